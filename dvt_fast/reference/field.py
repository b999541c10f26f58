"""The three parts of a feature: semantics F, shared artifacts G, residual h."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .hash_grid import HashGridEncoding


class SemanticsField(nn.Module):
    """F: image coordinates [N, 2] -> features [N, C]; hash grid, then one hidden layer."""

    def __init__(self, encoding: HashGridEncoding, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.encoding = encoding
        dtype = encoding.params.dtype
        inputs = len(encoding.levels) * encoding.n_features
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden_dim, dtype=dtype), nn.ReLU(), nn.Linear(hidden_dim, dim, dtype=dtype)
        )

    def forward(self, coords: Tensor) -> Tensor:
        """coords [N, 2] -> [N, C]."""
        return self.mlp(self.encoding(coords))


class SharedArtifacts(nn.Module):
    """G: patch index [N] -> [N, C]."""

    def __init__(self, patches: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.map = nn.Parameter(0.02 * torch.randn(patches, dim, dtype=dtype))

    def forward(self, patch: Tensor) -> Tensor:
        """patch [N] -> [N, C]."""
        return self.map[patch]


class ResidualPredictor(nn.Module):
    """h: raw feature [N, C] -> [N, C]; two hidden layers."""

    def __init__(self, dim: int, hidden_dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim, dtype=dtype),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim, dtype=dtype),
            nn.ReLU(),
            nn.Linear(hidden_dim, dim, dtype=dtype),
        )

    def forward(self, raw: Tensor) -> Tensor:
        """raw [N, C] -> [N, C]."""
        return self.mlp(raw)
