"""The checks that every stage-1 solver makes of its problem, once, with one line for each thing that can be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import to_numpy
from ..errors import InputError, NonFiniteError

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def check_problem(features: Any, coords: Any, keep_half: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """features [V, H, W, C] and coords [V, H, W, 2] as contiguous float32 NumPy arrays.

    keep_half: float16 features stay as they are, at half the memory, for a solver that reads them.
    Raises `InputError` for another shape or dtype, fewer than 2 views, a grid of less than 2 x 2 patches, or
    coordinates outside [0, 1]; `NonFiniteError` for coordinates that are NaN. Features are not looked at: the solvers
    do that as they read them.
    """
    views, places = to_numpy(features, "features"), to_numpy(coords, "coords")
    for name, array in (("features", views), ("coords", places)):
        if array.dtype not in FLOATS:
            raise InputError(f"{name} must be float16, bfloat16, float32 or float64, got {array.dtype}")
    if views.ndim != 4:
        raise InputError(f"features must have shape [V, H, W, C], got {list(views.shape)}")
    if places.shape != (*views.shape[:3], 2):
        raise InputError(f"coords must have shape {[*views.shape[:3], 2]}, got {list(places.shape)}")
    if len(views) < 2:
        raise InputError(f"stage 1 needs at least 2 views, the last of the whole image, got {len(views)}")
    if min(views.shape[1:3]) < 2 or views.shape[3] < 1:
        raise InputError(f"features must have at least 2 x 2 patches and 1 channel, got shape {list(views.shape)}")
    if np.isnan(places).any():
        raise NonFiniteError("coords contain NaN")
    if places.min() < 0 or places.max() > 1:
        raise InputError(f"coords must be in [0, 1], got {places.min():g} to {places.max():g}")
    dtype = np.float16 if keep_half and views.dtype == np.float16 else np.float32
    return np.ascontiguousarray(views, dtype), np.ascontiguousarray(places, np.float32)


def check_finite(features: np.ndarray) -> None:
    """`NonFiniteError` naming the first view of features [V, ...] that holds NaN or infinity."""
    for view, values in enumerate(features):
        if not np.isfinite(values).all():
            raise NonFiniteError(f"features of view {view} contain NaN or infinity")
