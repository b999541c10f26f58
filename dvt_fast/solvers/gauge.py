"""Where the constant that F and G share belongs: the same for every solver."""

from __future__ import annotations

import numpy as np

OUTLYING, STEPS = 3.0, 10


def gauge(artifacts: np.ndarray) -> np.ndarray:
    """The constant that G [patches, C] gives to F: its mean over the patches, without those that stand far out.

    Views cannot tell where a constant belongs, so G is taken to have mean zero. A few giant tokens (ViTs have some with
    25 times the median norm) must not count in that mean: they would move all of F by their share. Patches further
    from the centre than OUTLYING times the median distance lose weight with the square of their distance.
    """
    centre = artifacts.mean(0)
    for _ in range(STEPS):
        distance = np.linalg.norm(artifacts - centre, axis=1)
        weights = 1 / np.maximum(1, distance / max(OUTLYING * float(np.median(distance)), 1e-30)) ** 2
        centre = (weights @ artifacts) / weights.sum()
    return centre.astype(np.float32)
