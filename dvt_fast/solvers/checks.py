"""The checks that every stage-1 solver makes of its problem, once, with one line for each thing that can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _native
from ..arrays import is_tensor, to_numpy
from ..devices import Device, current_stream, device_of
from ..errors import InputError, NonFiniteError

FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def check_problem(features: Any, coords: Any, keep_half: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """features [V, H, W, C] and coords [V, H, W, 2] as contiguous float32 NumPy arrays.

    keep_half: float16 features stay as they are, at half the memory, for a solver that reads them.
    Raises `InputError` for another shape or dtype, fewer than 2 views, a grid of less than 2 x 2 patches, or
    coordinates outside [0, 1]; `NonFiniteError` for coordinates that are NaN. Features are not looked at: the solvers
    do that as they read them.
    """
    views = to_numpy(features, "features")
    if views.dtype not in FLOATS:
        raise InputError(f"features must be float16, bfloat16, float32 or float64, got {views.dtype}")
    places = _check_places(views.shape, coords)
    dtype = np.float16 if keep_half and views.dtype == np.float16 else np.float32
    return np.ascontiguousarray(views, dtype), places


def check_problem_cuda(features: Any, coords: Any, device: Device) -> tuple[Any, np.ndarray]:
    """The same for a CUDA device: features there, contiguous, float32, float16 or bfloat16; coords as above.

    Features that lie on the device already are not copied unless they have to be; others are uploaded. Raises
    `InputError` for features on another device, too, and for those that no torch tensor makes contiguous.
    """
    where = device_of(features)
    if where.is_cuda and where != device:
        raise InputError(f"features are on device '{where}', expected '{device}'")
    if not where.is_cuda and not isinstance(features, _native.DeviceArray):
        half = str(getattr(features, "dtype", "")).endswith("float16")  # also torch's bfloat16, which becomes float32
        views, places = check_problem(features, coords, keep_half=half)
        return _native.DeviceArray.from_numpy(views, str(views.dtype), device.index, current_stream(device)), places
    if is_tensor(features):
        features = features.detach()
        features = (features.float() if features.dtype.itemsize > 4 else features).contiguous()
    there = _native.DeviceArray.of(features, "features", device.index)
    return there, _check_places(there.shape, coords)


def _check_places(shape: Sequence[int], coords: Any) -> np.ndarray:
    """coords for features of that shape as contiguous float32."""
    places = to_numpy(coords, "coords")
    if places.dtype not in FLOATS:
        raise InputError(f"coords must be float16, bfloat16, float32 or float64, got {places.dtype}")
    if len(shape) != 4:
        raise InputError(f"features must have shape [V, H, W, C], got {list(shape)}")
    if places.shape != (*shape[:3], 2):
        raise InputError(f"coords must have shape {[*shape[:3], 2]}, got {list(places.shape)}")
    if shape[0] < 2:
        raise InputError(f"stage 1 needs at least 2 views, the last of the whole image, got {shape[0]}")
    if min(shape[1:3]) < 2 or shape[3] < 1:
        raise InputError(f"features must have at least 2 x 2 patches and 1 channel, got shape {list(shape)}")
    if np.isnan(places).any():
        raise NonFiniteError("coords contain NaN")
    if places.min() < 0 or places.max() > 1:
        raise InputError(f"coords must be in [0, 1], got {places.min():g} to {places.max():g}")
    return np.ascontiguousarray(places, np.float32)


def check_finite(features: np.ndarray) -> None:
    """`NonFiniteError` naming the first view of features [V, ...] that holds NaN or infinity."""
    for view, values in enumerate(features):
        if not np.isfinite(values).all():
            raise NonFiniteError(f"features of view {view} contain NaN or infinity")
