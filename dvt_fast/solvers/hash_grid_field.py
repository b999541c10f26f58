"""The semantics as a hash grid and an MLP over image coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _native
from ..errors import InputError

GRID_KEYS = ("n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution", "per_level_scale")


def growth(base_resolution: int, max_resolution: int, n_levels: int) -> float:
    """The factor from one level's resolution to the next, so that the last has max_resolution corners a side."""
    return (max_resolution / base_resolution) ** (1 / (n_levels - 1)) if n_levels > 1 else 1.0


@dataclass(frozen=True)
class HashGridField:
    """grid: float32 [entries * F]. mlp: float32, W_0, b_0, W_1, b_1 in one array, W_i [widths[i + 1], widths[i]].

    config: the keys of `GRID_KEYS`.
    """

    grid: np.ndarray
    mlp: np.ndarray
    widths: tuple[int, ...]
    config: Mapping[str, Any]

    def query(self, coords: np.ndarray) -> np.ndarray:
        """Values at (x, y) in [0, 1]: [..., 2] -> float32 [..., C]."""
        coords = np.ascontiguousarray(coords, np.float32)
        layout = _native.HashGrid(n_input_dims=2, **self.config)
        values = _native.field_query(layout, list(self.widths), self.grid, self.mlp, coords.reshape(-1, 2))
        return values.reshape(*coords.shape[:-1], self.widths[-1])

    def state(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        """Its parameters, and what `from_state` needs to know."""
        return {"grid": self.grid, "mlp": self.mlp}, {"kind": "hash_grid", "widths": list(self.widths), **self.config}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> HashGridField:
        """The field that `state` described."""
        missing = [name for name in ("widths", *GRID_KEYS) if name not in meta]
        if missing:
            raise InputError(f"a hash-grid field needs {missing[0]!r} in its metadata")
        config = {name: meta[name] for name in GRID_KEYS}
        grid, mlp = (np.ascontiguousarray(arrays[name], np.float32) for name in ("grid", "mlp"))
        field = cls(grid, mlp, tuple(int(w) for w in meta["widths"]), config)
        field.query(np.zeros((1, 2), np.float32))  # the native code checks that everything fits together
        return field
