"""Multi-resolution hash grid in plain torch, with tiny-cuda-nn's parameter layout (Mueller et al., 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class Level:
    """One resolution: scale in float32, corners a side, entries, and how many entries come before it."""

    scale: float
    resolution: int
    entries: int
    offset: int


def make_levels(
    n_dims: int, n_levels: int, log2_hashmap_size: int, base_resolution: int, per_level_scale: float
) -> list[Level]:
    """The levels' sizes; float32 where tiny-cuda-nn has float32, for one bit can move a ceiling."""
    levels: list[Level] = []
    offset = 0
    log2_scale = np.float32(math.log2(np.float32(per_level_scale)))
    for level in range(n_levels):
        growth = np.float32(2.0 ** float(np.float32(level) * log2_scale))
        scale = growth * np.float32(base_resolution) - np.float32(1)
        resolution = math.ceil(scale) + 1
        entries = min(-(-(resolution**n_dims) // 8) * 8, 2**log2_hashmap_size)
        levels.append(Level(float(scale), resolution, entries, offset))
        offset += entries
    return levels


def entry_of(corner: Tensor, level: Level) -> Tensor:
    """The entry, within its level, of corners [..., D] (int64)."""
    n_dims = corner.shape[-1]
    if level.resolution**n_dims <= level.entries:
        strides = torch.tensor([level.resolution**d for d in range(n_dims)])
        index = (corner * strides).sum(-1)
    else:
        index = torch.zeros_like(corner[..., 0])
        for d in range(n_dims):
            index = index ^ (corner[..., d] * PRIMES[d] % 2**32)
    return index % 2**32 % level.entries


class HashGridEncoding(nn.Module):
    """Coordinates [N, D] in [0, 1] -> features [N, n_levels * n_features_per_level], linear between the corners."""

    def __init__(
        self,
        n_input_dims: int = 2,
        n_levels: int = 16,
        n_features_per_level: int = 8,
        log2_hashmap_size: int = 20,
        base_resolution: int = 16,
        per_level_scale: float = 2.0 ** (6 / 15),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.n_input_dims = n_input_dims
        self.n_features = n_features_per_level
        self.levels = make_levels(n_input_dims, n_levels, log2_hashmap_size, base_resolution, per_level_scale)
        entries = self.levels[-1].offset + self.levels[-1].entries
        self.params = nn.Parameter(torch.empty(entries * n_features_per_level, dtype=dtype).uniform_(-1e-4, 1e-4))

    def forward(self, coords: Tensor) -> Tensor:
        """coords [N, D] -> [N, L * F]."""
        table = self.params.view(-1, self.n_features)
        outputs = []
        for level in self.levels:
            # The corner is chosen in float32, as in every implementation; the weights have the module's own dtype.
            # In double the product is exact and the sum is rounded once: what a float32 fused multiply-add gives.
            position = (coords.double() * level.scale + 0.5).float().to(coords.dtype)
            if coords.requires_grad:
                position = position.detach() + level.scale * (coords - coords.detach())
            lower = position.detach().floor()
            fraction = position - lower
            encoding = torch.zeros(len(coords), self.n_features, dtype=table.dtype)
            for bits in range(2**self.n_input_dims):
                upper = torch.tensor([(bits >> d) & 1 for d in range(self.n_input_dims)])
                entry = entry_of(lower.long() + upper, level)
                weight = torch.where(upper.bool(), fraction, 1 - fraction).prod(-1)
                encoding = encoding + weight[:, None] * table[level.offset + entry]
            outputs.append(encoding)
        return torch.cat(outputs, dim=-1)
