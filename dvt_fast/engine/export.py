"""The engine file of a ViT, of a denoiser, or of one after the other, as docs/engine_file.md describes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..denoiser import Denoiser
from ..denoiser.block import MLP_RATIO, ROTARY_BASE, resample_pos_embed
from ..denoiser.checkpoint import DTYPES
from ..errors import InputError, NonFiniteError
from .layers import BLOCK_NORMS, Layers, class_name, y_first

if TYPE_CHECKING:
    from ..vit import ViT

FORMAT, VERSION = "dvt_fast.engine", 1
VITS = {
    "timm.models.deit.VisionTransformerDistilled",
    "timm.models.eva.Eva",
    "timm.models.vision_transformer.VisionTransformer",
}
ROTARY = {"timm.layers.pos_embed_sincos.RotaryEmbeddingCat", "timm.layers.pos_embed_sincos.RotaryEmbeddingDinoV3"}
PATCH_EMBEDS = ("timm.layers.patch_embed.PatchEmbed",)
PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order in which they stand before the patches
CONVOLUTIONAL = ("conv1", "conv3")  # kinds of denoisers that are no transformers


def to_bytes(vit: ViT | None, denoiser: Denoiser | None, dtype: str = "float32") -> bytes:
    """The bytes of an engine file.

    vit: its blocks up to `vit.layer`, and the final norm where it uses that; its size is the default of sessions.
    denoiser: for the features of `vit`, or alone. dtype: "float32", "float16" or "bfloat16", of the weights of linear
    layers; all other numbers stay float32.

    Raises `InputError` for a model that the engine cannot run, naming the layer, or a denoiser for another ViT, and
    `NonFiniteError` for weights that are NaN, infinite, or too large for `dtype`.
    """
    if vit is None and denoiser is None:
        raise InputError("expected a ViT, a denoiser or both, got neither")
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "patch_embed": None, "vit": None, "denoiser": None}
    source: dict[str, Any] = {"vit": None, "denoiser": None}
    tensors: dict[str, torch.Tensor] = {}
    if vit is not None:
        layers = _vit_layers(vit)
        header |= {"patch_embed": _patch_embed(vit, layers), "vit": _vit(vit, layers)}
        layers.finish()
        tensors |= layers.tensors
        source["vit"] = vit.describe()
    if denoiser is not None:
        if vit is not None:
            denoiser.check(vit)
        header["denoiser"], more = _denoiser(denoiser)
        tensors |= more
        source["denoiser"] = {key: getattr(denoiser, key) for key in ("kind", "dim", "grid", "num_blocks", "num_heads")}
        source["denoiser"] |= {key: denoiser.meta.get(key) for key in ("vit", "training")}
    # JSON knows no NaN, which a record of a training may hold
    header["source"] = json.loads(json.dumps(source), parse_constant=lambda _: None)
    return _pack(header, tensors, DTYPES[dtype])


def _pack(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> bytes:
    from safetensors.torch import save

    stored = {}
    for name, value in tensors.items():
        is_linear = value.ndim == 2 and name.endswith(".weight")  # the weights that take time to read; no norm's
        stored[name] = value.to(dtype) if is_linear else value
        if not _is_finite(stored[name]):
            if not _is_finite(value):
                raise NonFiniteError(f"{name} holds NaN or infinity: not exported")
            raise NonFiniteError(f"{name} holds numbers too large for {dtype}: export as float32 or bfloat16")
    return save(stored, metadata={"dvt_fast": json.dumps(header)})


def _is_finite(value: torch.Tensor) -> bool:
    return all(math.isfinite(bound) for bound in torch.aminmax(value))  # several times faster than torch.isfinite


def _transformer(layers: Layers, **settings: Any) -> dict[str, Any]:
    """A header's TRANSFORMER: what its blocks share, and what is given."""
    shared = settings | layers.settings
    return {key: value for key, value in shared.items() if key not in BLOCK_NORMS} | {
        "block": {key: shared.get(key) for key in BLOCK_NORMS},
        "rotary": layers.rotary,
    }


def _denoiser(denoiser: Denoiser) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A denoiser's part of the header, and its tensors."""
    if denoiser.kind in CONVOLUTIONAL:
        raise InputError(f"the denoiser is of kind {denoiser.kind!r}: convolutions are not supported by the engine")
    head_dim = denoiser.dim // denoiser.num_heads
    layers = Layers(denoiser, f"denoiser of kind {denoiser.kind!r}", denoiser.state_dict())
    if denoiser.kind == "rotary":
        layers.rotary = {"offset": 0.5, "shift": 0.0, "reference": list(denoiser.grid), "pairs": "halves"}
        layers.put("denoiser.rotary.bands", ROTARY_BASE ** -(torch.arange(head_dim // 4) / (head_dim // 4)))
    depth = 0 if denoiser.kind == "map" else denoiser.num_blocks
    for i in range(depth):
        layers.block("denoiser" if denoiser.num_blocks == 1 else f"denoiser.{i}", f"denoiser.blocks.{i}")
    if depth == 0:
        layers.settings = {"heads": denoiser.num_heads, "head_dim": head_dim, "hidden": MLP_RATIO * denoiser.dim}
        layers.settings |= {"activation": "gelu", "gated": False}
    if denoiser.pos_embed is not None:
        layers.put("denoiser.pos_embed", layers.take("pos_embed")[0])
    if denoiser.registers is not None:
        layers.put("denoiser.extra_tokens", layers.take("registers")[0])
    layers.finish()
    config = _transformer(
        layers,
        dim=denoiser.dim,
        depth=depth,
        pos_grid=None if denoiser.pos_embed is None else list(denoiser.grid),
        extra_tokens=0 if denoiser.registers is None else denoiser.registers.shape[1],
        extra_first=False,
        norm_pre=None,
        norm=None,
    )
    return config, layers.tensors


def _vit_layers(vit: ViT) -> Layers:
    """A ViT's layers, none of them kept yet; refused where its forward pass is not the engine's."""
    layers = Layers(vit.model, vit.name, vit.used_tensors())
    for i in range(vit.layer + 1):
        layers.check_block(f"blocks.{i}")  # first, as a layer's name says more than the model's
    if class_name(vit.model) not in VITS:
        raise InputError(f"{vit.name}: {class_name(vit.model)} is not supported by the engine")
    return layers


def _patch_embed(vit: ViT, layers: Layers) -> dict[str, Any]:
    """The header's `patch_embed`."""
    layers.check_class("patch_embed", PATCH_EMBEDS)
    layers.check_class("patch_embed.proj", ("torch.nn.modules.conv.Conv2d",))
    module = vit.model.patch_embed
    if module.proj.in_channels != 3 or module.proj.groups != 1 or any(module.proj.padding) or module.dynamic_img_pad:
        raise layers.refuse("patch_embed", "a number of channels other than three, or padding,")
    layers.put("patch_embed.weight", layers.take("patch_embed.proj.weight").flatten(1))
    layers.put("patch_embed.bias", None if module.proj.bias is None else layers.take("patch_embed.proj.bias"))
    return {
        "patch": list(vit.patch_size),
        "stride": list(vit.stride),
        "image_size": list(vit.size),
        "mean": list(vit.mean),
        "std": list(vit.std),
        "norm": layers.norm("patch_embed.norm", "patch_embed.norm"),
    }


def _vit(vit: ViT, layers: Layers) -> dict[str, Any]:
    """The header's `vit`."""
    _rotary(layers)
    pos_grid = _tokens(vit, layers)
    norm_pre = layers.norm("norm_pre", "vit.norm_pre")
    for i in range(vit.layer + 1):
        layers.block(f"blocks.{i}", f"vit.blocks.{i}")
    return _transformer(
        layers,
        dim=vit.dim,
        depth=vit.layer + 1,
        pos_grid=pos_grid,
        extra_tokens=vit.n_prefix,
        extra_first=True,
        norm_pre=norm_pre,
        norm=layers.norm("norm", "vit.norm") if vit.norm else None,
    )


def _tokens(vit: ViT, layers: Layers) -> list[int] | None:
    """Keep the prefix tokens, and the position embedding; returns its grid.

    The embedding is kept as it was loaded, so that sessions of other sizes resample that and not what timm has
    resampled for `vit`; unless it was trained since.
    """
    model = vit.model
    parts = [layers.take(name)[0] for name in PREFIX_TOKENS if getattr(model, name, None) is not None]
    prefix = torch.cat(parts) if parts else torch.zeros(0, vit.dim)
    if len(prefix) != vit.n_prefix:
        raise layers.refuse("num_prefix_tokens", f"{vit.n_prefix}, with {len(prefix)} tokens to put there,")
    grid = None
    if model.pos_embed is not None:
        loaded, now = layers.take("pos_embed"), model.pos_embed.detach().to("cpu", torch.float32)
        n = 0 if model.no_embed_class else vit.n_prefix  # the first are of the prefix tokens
        prefix = prefix + now[0, :n] if n else prefix
        as_loaded = torch.equal(resample_pos_embed(loaded[:, n:], vit.loaded_grid, vit.grid), now[:, n:])
        grid = vit.loaded_grid if as_loaded else vit.grid
        layers.put("vit.pos_embed", (loaded if as_loaded else now)[0, n:])
    layers.put("vit.extra_tokens", prefix if len(prefix) else None)
    return None if grid is None else list(grid)


def _rotary(layers: Layers) -> None:
    """Keep what the ViT's rotary positions are made of, if it has them."""
    rope = layers.child("rope")
    if rope is None:
        return
    kind = layers.check_class("rope", ROTARY).rpartition(".")[2]
    halves = getattr(layers.child("blocks.0.attn"), "rotate_half", False)
    if getattr(rope, "rotate_half", halves) != halves:
        raise layers.refuse("rope", "another order of channels than in blocks.0.attn")
    layers.rotary = {"pairs": "halves" if halves else "neighbours"}
    if kind == "RotaryEmbeddingDinoV3":
        if rope.normalize_coords != "separate":
            raise layers.refuse("rope", f"coordinates normalised by {rope.normalize_coords!r}")
        layers.rotary |= {"offset": 0.5 + rope.grid_offset, "shift": -1.0, "reference": [2, 2]}
        bands = 2 * math.pi / rope.periods.detach().to("cpu", torch.float64)
    else:
        if getattr(rope, "grid_type", "pixel" if rope.in_pixels else "index") != "index":
            raise layers.refuse("rope", "positions in pixels")
        reference = list(rope.ref_feat_shape or (0, 0))
        layers.rotary |= {"offset": float(rope.grid_offset), "shift": 0.0, "reference": reference}
        # as timm finds them; its buffer of them is not there in all its versions
        bands = 1.0 / float(rope.temperature) ** (torch.arange(rope.dim // 4) / (rope.dim // 4))
    layers.put("vit.rotary.bands", bands.float())
    if rope.grid_indexing == "xy":
        layers.order = y_first(rope.dim, layers.rotary["pairs"])
