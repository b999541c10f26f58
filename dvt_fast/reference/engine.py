"""What the engine computes, in plain torch, from the bytes of an engine file (docs/engine_file.md).

Written from the description of the file and sharing nothing with the code that exports or runs one.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
}


def evaluate(
    data: bytes, x: Tensor, *, input: str = "normalized", dtype: torch.dtype = torch.float64
) -> tuple[Tensor | None, Tensor]:
    """Features of `x` by the engine file `data`: (the ViT's own or None, those of the last stage), [B, h, w, C] each.

    x: normalised images [B, 3, H, W] where input is "normalized", features [B, h, w, C] where it is "features", for the
    denoiser alone. dtype: of all arithmetic.
    """
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["dvt_fast"]
    config = json.loads(header)
    weights = {name: value.to(dtype) for name, value in load(data).items()}
    x = x.to(dtype)
    raw = None
    if input == "normalized":
        x = patch_embed(config["patch_embed"], weights, x)
        x = raw = transformer(config["vit"], weights, "vit", x)
    if config["denoiser"] is not None:
        x = transformer(config["denoiser"], weights, "denoiser", x)
    return raw, x


def patch_embed(config: dict[str, Any], weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> patches [B, h, w, C]."""
    kernels = weights["patch_embed.weight"].reshape(-1, 3, *config["patch"])
    maps = F.conv2d(images, kernels, weights.get("patch_embed.bias"), config["stride"])
    return norm(config["norm"], weights, "patch_embed.norm", maps.permute(0, 2, 3, 1))


def transformer(config: dict[str, Any], weights: dict[str, Tensor], name: str, patches: Tensor) -> Tensor:
    """Patches [B, h, w, C] -> [B, h, w, C]."""
    b, h, w, c = patches.shape
    x = patches.reshape(b, h * w, c)
    if config["pos_grid"] is not None:
        x = x + resample(weights[f"{name}.pos_embed"], config["pos_grid"], (h, w))
    first = 0  # the index of the first patch
    if config["extra_tokens"]:
        extra = weights[f"{name}.extra_tokens"].expand(b, -1, -1)
        first = extra.shape[1] if config["extra_first"] else 0
        x = torch.cat([extra, x] if config["extra_first"] else [x, extra], dim=1)
    angles = None
    if config["rotary"] is not None:
        angles = rotary_angles(config["rotary"], weights[f"{name}.rotary.bands"], (h, w))
    x = norm(config["norm_pre"], weights, f"{name}.norm_pre", x)
    for i in range(config["depth"]):
        x = block(config, weights, f"{name}.blocks.{i}", x, angles, first)
    x = norm(config["norm"], weights, f"{name}.norm", x)
    return x[:, first : first + h * w].reshape(b, h, w, c)


def block(
    config: dict[str, Any], weights: dict[str, Tensor], name: str, x: Tensor, angles: Tensor | None, first: int
) -> Tensor:
    """Tokens [B, N, C] -> [B, N, C]; angles: [h * w, head_dim / 2], of the patches from index `first` on."""
    norms = config["block"]
    b, n, _ = x.shape

    y = norm(norms["norm1"], weights, f"{name}.norm1", x)
    y = linear(weights, f"{name}.qkv", y).reshape(b, n, 3, config["heads"], config["head_dim"])
    q, k, v = y.permute(2, 0, 3, 1, 4)  # [B, heads, N, head_dim] each
    q, k = norm(norms["q_norm"], weights, f"{name}.q_norm", q), norm(norms["k_norm"], weights, f"{name}.k_norm", k)
    if angles is not None:
        q, k = (turn(t, angles, first, config["rotary"]["pairs"]) for t in (q, k))
    attention = torch.softmax(q @ k.transpose(-1, -2) / config["head_dim"] ** 0.5, dim=-1)
    y = (attention @ v).transpose(1, 2).reshape(b, n, -1)
    y = norm(norms["attention_norm"], weights, f"{name}.attention_norm", y)
    x = x + linear(weights, f"{name}.proj", y) * weights.get(f"{name}.scale1", 1)

    y = norm(norms["norm2"], weights, f"{name}.norm2", x)
    y = linear(weights, f"{name}.fc1", y)
    activation = ACTIVATIONS[config["activation"]]
    if config["gated"]:
        gate, value = y.chunk(2, dim=-1)
        y = activation(gate) * value
    else:
        y = activation(y)
    y = norm(norms["mlp_norm"], weights, f"{name}.mlp_norm", y)
    return x + linear(weights, f"{name}.fc2", y) * weights.get(f"{name}.scale2", 1)


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(config: dict[str, Any] | None, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A norm over the last axis; none where `config` is None."""
    if config is None:
        return x
    if config["kind"] == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + config["eps"])
    return x * weights.get(f"{name}.weight", 1) + weights.get(f"{name}.bias", 0)


def resample(pos_embed: Tensor, grid: list[int], size: tuple[int, int]) -> Tensor:
    """A position embedding [gy * gx, C] of `grid` for patches of `size`: [h * w, C]."""
    if tuple(grid) == size:
        return pos_embed
    maps = pos_embed.reshape(1, *grid, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size, mode="bicubic", antialias=True)
    return maps.permute(0, 2, 3, 1).reshape(size[0] * size[1], -1)


def rotary_angles(config: dict[str, Any], bands: Tensor, size: tuple[int, int]) -> Tensor:
    """The angle of each pair of channels at each patch: [h * w, head_dim / 2], pairs that turn with y first."""
    y, x = (
        (torch.arange(n, dtype=bands.dtype) + config["offset"]) * ((reference or n) / n) + config["shift"]
        for n, reference in zip(size, config["reference"])
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.cat([y.reshape(-1, 1) * bands, x.reshape(-1, 1) * bands], dim=1)


def turn(x: Tensor, angles: Tensor, first: int, pairs: str) -> Tensor:
    """Turn pairs of channels of x [B, heads, N, head_dim] at the tokens from `first` on; angles: [n, head_dim / 2]."""
    last = first + len(angles)
    patches = x[:, :, first:last]
    a, b = patches.chunk(2, dim=-1) if pairs == "halves" else (patches[..., 0::2], patches[..., 1::2])
    a, b = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
    turned = torch.cat([a, b], dim=-1) if pairs == "halves" else torch.stack([a, b], dim=-1).flatten(-2)
    return torch.cat([x[:, :, :first], turned, x[:, :, last:]], dim=2)
