"""Results of a stream without the stream, and a disk that fills up."""

from __future__ import annotations

import resource
import time
from contextlib import contextmanager

import numpy as np

from dvt_fast.stream import Result

START = 1_700_000_000_123_456_789  # nanoseconds, of which a float keeps too few


def results(n=4, raw=True, meta=True, grid=(5, 7), channels=24, seed=0):
    """n results of frames of 30 x 44 pixels, 40 ms apart. meta: with the exact stamps and the frame_id of a bag."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        stamp = START + i * 40_000_000
        known = {"frame_id": "front", "stamp_ns": stamp, "recorded_ns": stamp + 3} if meta else {}
        features, raw_features = rng.standard_normal((2, *grid, channels), np.float32)
        yield Result(
            id=i,
            image=slope(30, 44, i),
            features=features,
            raw=raw_features if raw else None,
            captured=time.monotonic(),
            stamp=stamp / 1e9 if meta else None,
            meta=known,
        )


def slope(height, width, seed=0):
    """Even slopes of all three colours, which survive JPEG: uint8 [H, W, 3], of at most 144 pixels a side."""
    y, x = np.mgrid[:height, :width] * np.array([144 // height, 144 // width])[:, None, None]
    shift = np.random.default_rng(seed).integers(0, 60)
    return np.stack([30 + shift + x, 220 - shift - y, 60 + x // 2 + y // 2], axis=-1).astype(np.uint8)


@contextmanager
def largest_file(size):
    """The system refuses to make files larger, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
