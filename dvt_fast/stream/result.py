"""What a stream gives for a frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(eq=False, slots=True)
class Result:
    """The features of one frame, and when they came. Times are in seconds, stamps those of `time.monotonic()`.

    id, image, captured, stamp, meta: those of the `Frame`. features: float32 [h, w, C]. raw: [h, w, C], the ViT's own
    features, where the stream was asked for them. started, finished: when work on the frame began and ended. age: from
    the capture to the moment that the reader got the result. missed_deadline: whether that is more than the stream's
    deadline. drops_before: frames that were dropped between the last result and this one. live: whether the source was;
    ages mean nothing where frames waited to be read.

    The arrays belong to whoever holds them: their memory serves a later frame only after the last reference to them
    (views and tensors that share it among them) is gone.
    """

    id: int
    image: np.ndarray
    features: np.ndarray
    captured: float
    stamp: float | None = None
    raw: np.ndarray | None = None
    started: float = 0.0
    finished: float = 0.0
    age: float = 0.0
    missed_deadline: bool = False
    drops_before: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    live: bool = True

    @property
    def latency(self) -> float:
        """From the capture of the frame to its features."""
        return self.finished - self.captured

    def __repr__(self) -> str:
        h, w, c = self.features.shape
        return f"Result(frame {self.id}, {h}x{w} patches, {c} channels, age {1e3 * self.age:.1f} ms)"
