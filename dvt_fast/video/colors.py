"""Colours of features that stay the same over time.

The principal components of each frame alone would turn, swap and change sign from frame to frame. Here one basis serves
all frames: it is fitted on the first one, and from then on follows the video slowly. Tokens of the last seconds are
kept; now and then a new basis is fitted to them, turned so that it agrees with the old one as well as it can (its
signs, order and rotation mean nothing: orthogonal Procrustes), and the colours glide towards it, a little each frame.

On the clips of the tests the basis alone moves a colour by 0.1 to 0.25 of 255 levels a frame, and never by 1; the basis
of each frame by itself does so by 10 to 34 (`benchmarks/stream.py colors`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import to_numpy
from ..visual import ColorBasis


class StableColors:
    """A `ColorBasis` that follows a video; all the features given for a frame (raw and denoised) share it."""

    TOKENS = 2048  # that are kept, of the last frames
    EACH = 32  # of them from each part of a frame
    REFIT = 30  # frames between fits; at the start 1, 2, 4, ...
    GLIDE = 0.03  # part of the way to the last fit that is gone in a frame

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._tokens: list[np.ndarray] = []  # [EACH, C] each, oldest first
        self._frames = 0
        self._basis: ColorBasis | None = None
        self._target: ColorBasis | None = None

    def update(self, *parts: Any) -> ColorBasis:
        """The basis for the next frame, whose features [h, w, C] these are."""
        tokens = [to_numpy(part).reshape(-1, part.shape[-1]) for part in parts]
        for part in tokens:
            # Copies: the features' memory serves a later frame.
            self._tokens.append(part[self._random.integers(0, len(part), self.EACH)])
        del self._tokens[: -(self.TOKENS // self.EACH)]
        if self._basis is None or self._target is None:
            self._basis = self._target = ColorBasis.fit(*tokens)
        elif self._frames % self.REFIT == 0 or (self._frames < self.REFIT and self._frames.bit_count() == 1):
            self._target = ColorBasis.fit(*self._tokens, like=self._basis)
        self._frames += 1
        self._basis = _between(self._basis, self._target, self.GLIDE)
        return self._basis


def _between(old: ColorBasis, new: ColorBasis, part: float) -> ColorBasis:
    """The basis that is a part of the way from one to another, with axes orthonormal again."""
    left, _, right = np.linalg.svd((1 - part) * old.axes + part * new.axes, full_matrices=False)
    mean, low, high = (
        (1 - part) * a + part * b for a, b in ((old.mean, new.mean), (old.low, new.low), (old.high, new.high))
    )
    return ColorBasis(mean, left @ right, low, high)
