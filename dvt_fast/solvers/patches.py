"""A field averaged over patches: what a token of a ViT speaks for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Points a patch side at which a field is averaged over the patch.
FOOTPRINT = 3


def patch_means(query: Callable[[np.ndarray], np.ndarray], coords: np.ndarray) -> np.ndarray:
    """The field `query`, [n, 2] -> [n, C], averaged over the patches whose centres are given.

    coords: [H, W, 2], the centres of the patches of the whole image. Returns float32 [H, W, C]. A token speaks for its
    whole patch, and F may change within it: hence the mean rather than the value at the centre.
    """
    h, w = coords.shape[:2]
    step_x = (coords[0, -1, 0] - coords[0, 0, 0]) / max(1, w - 1)
    step_y = (coords[-1, 0, 1] - coords[0, 0, 1]) / max(1, h - 1)
    offsets = (np.arange(FOOTPRINT) + 0.5) / FOOTPRINT - 0.5
    shifts = np.stack(np.meshgrid(offsets * step_x, offsets * step_y), -1).reshape(-1, 1, 1, 2)
    points = np.clip(coords + shifts.astype(np.float32), 0, 1)
    return query(points.reshape(-1, 2)).reshape(*points.shape[:-1], -1).mean(0)
