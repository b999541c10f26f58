"""The semantics as values at the nodes of a regular grid on the image, bilinear in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _native
from ..errors import InputError
from .patches import patch_means


@dataclass(frozen=True)
class BilinearField:
    """nodes: float32 [Ry, Rx, C]; node (i, j) lies at y = i / (Ry - 1), x = j / (Rx - 1)."""

    nodes: np.ndarray

    def query(self, coords: np.ndarray) -> np.ndarray:
        """Values at (x, y) in [0, 1]: [..., 2] -> float32 [..., C]."""
        coords = np.ascontiguousarray(coords, np.float32)
        values = _native.interpolate(self.nodes, coords.reshape(-1, 2))
        return values.reshape(*coords.shape[:-1], self.nodes.shape[-1])

    def patch_means(self, coords: np.ndarray) -> np.ndarray:
        """The field averaged over the patches with centres `coords` [H, W, 2]: float32 [H, W, C]; see patches.py."""
        return patch_means(self.query, coords)

    def state(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        """Its nodes, and what `from_state` needs to know."""
        return {"nodes": self.nodes}, {"kind": "bilinear_grid"}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> BilinearField:
        """The field that `state` described."""
        nodes = np.ascontiguousarray(arrays["nodes"], np.float32)
        if nodes.ndim != 3 or min(nodes.shape[:2]) < 2 or nodes.shape[2] < 1:
            raise InputError(f"nodes must have shape [Ry >= 2, Rx >= 2, C >= 1], got {list(nodes.shape)}")
        return cls(nodes)
