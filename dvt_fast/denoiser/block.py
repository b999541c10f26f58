"""The pieces of a denoiser: a pre-norm transformer block, what it is compared with, and the position embedding.

Names of submodules are those of timm's `Block`, so that the state dicts of the reference implementation fit. Shapes:
tokens [B, N, C] row by row, N = h * w patches and perhaps some extra tokens at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

MLP_RATIO = 4
NORM_EPS = 1e-6
ROTARY_BASE = 100.0  # wavelengths from 2 pi to nearly 100 times that, in patches: from neighbours to the whole frame


class Attention(nn.Module):
    """Multi-head self-attention; `rotary`: (cos, sin), each [h * w, C / heads], turns queries and keys."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = turn(q, *rotary), turn(k, *rotary)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    """Two layers around a GELU (the exact one)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): tokens [B, N, C] -> [B, N, C].

    Both branches start at zero, so that a fresh denoiser only adds its position embedding.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim)
        for last in (self.attn.proj, self.mlp.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotary)
        return x + self.mlp(self.norm2(x))


class ConvBlock(nn.Module):
    """x + conv1x1(gelu(conv(norm(x)))): feature maps [B, h, w, C] -> [B, h, w, C], the convolution of size 1 or 3.

    The hidden width (4 C for size 1, C for size 3) gives it about as many parameters as a `Block`.
    """

    def __init__(self, dim: int, size: int):
        super().__init__()
        hidden = MLP_RATIO * dim if size == 1 else dim
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.conv = nn.Conv2d(dim, hidden, size, padding=size // 2)
        self.out = nn.Conv2d(hidden, dim, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.norm(x).permute(0, 3, 1, 2)
        return x + self.out(F.gelu(self.conv(maps))).permute(0, 2, 3, 1)


def resample_pos_embed(pos_embed: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """A position embedding [1, h * w, C] made for `grid`, for feature maps of `size`.

    Bicubic with antialias in float32, as timm's `resample_abs_pos_embed` does it.
    """
    if size == grid:
        return pos_embed
    maps = pos_embed.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size, mode="bicubic", antialias=True)
    return maps.permute(0, 2, 3, 1).reshape(1, size[0] * size[1], -1).to(pos_embed.dtype)


def rotary_angles(grid: tuple[int, int], size: tuple[int, int], head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) of the angles that turn a head's channels at each patch: float32 [h * w, head_dim] each.

    The first half of the pairs of channels turns with y, the second with x (axial rotary embedding); places are in
    patches of `grid`, whatever the `size`, so that a finer map of the same frame means the same places.
    """
    bands = head_dim // 4
    frequencies = ROTARY_BASE ** -(torch.arange(bands) / bands)
    y, x = ((torch.arange(n) + 0.5) * (g / n) for n, g in zip(size, grid, strict=True))
    angles = torch.cat(
        [
            (y[:, None] * frequencies)[:, None].expand(size[0], size[1], bands),
            (x[:, None] * frequencies)[None].expand(size[0], size[1], bands),
        ],
        dim=-1,
    ).reshape(size[0] * size[1], 2 * bands)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D / 2) of x [..., N, D] by its patch's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)
