"""ViTs for tests of the engine: every family of timm's that it runs, small, with weights that make each part matter."""

import json
from unittest import mock

import pytest
import timm
import torch

from dvt_fast.denoiser import Denoiser
from dvt_fast.vit import ViT

# One of each family that computes something of its own, and what makes it small.
FAMILIES = {
    "vit_tiny_patch16_224": {},
    "vit_medium_patch16_gap_240": {"embed_dim": 128, "num_heads": 2},  # no class token, LayerScale
    "vit_wee_patch16_reg1_gap_256": {"embed_dim": 128, "num_heads": 2},  # registers without position embedding
    "deit_tiny_distilled_patch16_224": {},  # two class tokens with position embedding
    "deit3_small_patch16_224": {"embed_dim": 128, "num_heads": 2},  # a class token without
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 128, "num_heads": 2},
    "vit_giant_patch14_dinov2": {"embed_dim": 128, "num_heads": 2},  # SwiGLU in one layer
    "vit_base_patch32_clip_quickgelu_224": {"embed_dim": 128, "num_heads": 2},  # a norm before the blocks, QuickGELU
    "vit_base_patch32_siglip_256": {"embed_dim": 128, "num_heads": 2},  # GELU by tanh
    "aimv2_large_patch14_224": {"embed_dim": 256, "num_heads": 2},  # RMS norms, SwiGLU in two layers, heads of 128
    "beit3_base_patch16_224": {"embed_dim": 128, "num_heads": 2},  # norms within attention and MLP
    "eva_giant_patch14_clip_224": {"embed_dim": 176, "num_heads": 2},  # heads of 88, no bias of keys, uneven MLP
    "eva02_tiny_patch14_224": {},  # rotary positions of neighbouring channels
    "eva02_base_patch16_clip_224": {"embed_dim": 128, "num_heads": 2},  # three projections, norms within
    "vit_small_patch16_rope_224": {"embed_dim": 128, "num_heads": 2},  # rotary positions of no reference, x first
    "vit_pe_core_base_patch16_224": {"embed_dim": 128, "num_heads": 2},  # rotary positions that start at 1, x first
    "vit_small_patch16_dinov3": {"embed_dim": 128, "num_heads": 2},  # rotary positions from -1 to 1
    "vit_small_plus_patch16_dinov3_qkvb": {"embed_dim": 128, "num_heads": 2},
    # keys and values that several heads share, norms of queries and keys
    "vit_base_patch16_sapiens2": {"embed_dim": 256, "num_heads": 4, "num_kv_heads": (4, 2)},
}
CREATE_MODEL = timm.create_model


def lively_vit(name, size=None, blocks=2, changed=None, **options) -> ViT:
    """A ViT of a few blocks with random weights of the size that trained ones have.

    changed: further options of the timm model, else what `FAMILIES` says; others are those of `ViT`.
    """

    def create(name, **defaults):
        model = CREATE_MODEL(name, depth=blocks, **defaults, **(FAMILIES.get(name, {}) if changed is None else changed))
        enliven(model)
        return model

    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with mock.patch.object(timm, "create_model", create):
        return ViT(name, weights="random", size=size, **options)


def lively_denoiser(kind="block", dim=48, **options) -> Denoiser:
    """A denoiser with such weights; options are those of `Denoiser`."""
    denoiser = Denoiser(dim, kind=kind, **({"grid": (5, 4), "num_heads": 3} | options)).eval()
    enliven(denoiser)
    return denoiser


@torch.no_grad()
def enliven(model, seed=1):
    """Weights by which attention is far from even and no scale, bias or token is small, as they are after training."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith(("_token", "pos_embed", "registers")):
            value.copy_(0.5 * noise)
        elif value.ndim > 1:
            value.copy_(1.2 * noise / value[0].numel() ** 0.5)
        elif name.endswith(("weight", "gamma", "gamma_1", "gamma_2")):
            value.copy_(1 + 0.3 * noise)
        else:
            value.copy_(0.3 * noise)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read_header(data):
    """The header of an engine file, and the type of each of its tensors."""
    tensors = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header = json.loads(tensors.pop("__metadata__")["dvt_fast"])
    return header, {name: entry["dtype"] for name, entry in tensors.items()}


def distance(a, b) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())
