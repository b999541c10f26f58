"""Sources made of other things: of an iterable of images, of a path, and of other sources with a pace or an end."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np

from ..errors import InputError
from .source import Frame, Source


class Images:
    """The images (uint8 [H, W, 3]) of an iterable. live: None takes an iterator as live, a sequence as not."""

    def __init__(self, images: Iterable[np.ndarray], live: bool | None = None):
        self.live = isinstance(images, Iterator) if live is None else live
        self.frames = len(images) if isinstance(images, Sized) else None
        self.lost: Mapping[str, int] = {}
        self._images = iter(images)
        self._next = 0
        self._closed = False

    def read(self) -> Frame | None:
        image = None if self._closed else next(self._images, None)
        if image is None:
            return None
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"image {self._next} must be an array of uint8 [H, W, 3], got {got}")
        frame = Frame(self._next, image, time.monotonic())
        self._next += 1
        return frame

    def close(self) -> None:
        self._closed = True


class Paced:
    """Replays a source as if it were live: each frame arrives when its stamp says, counted from the first one.

    rate: frames a second instead of the stamps. `captured` is the moment at which a frame is due, whether or not
    anybody waited for it then: the age of features is counted from there, and a reader that falls behind does not stop
    the clock.
    """

    live = True

    def __init__(self, source: Source, rate: float | None = None):
        if rate is not None and not 0 < rate < math.inf:
            raise InputError(f"rate must be positive and finite, got {rate}")
        self._source, self._rate = source, rate
        self.frames = source.frames
        self._start: tuple[float, float] | None = None  # when the first frame was due, and its time in the source
        self._closed = threading.Event()

    @property
    def lost(self) -> Mapping[str, int]:
        return self._source.lost

    def read(self) -> Frame | None:
        frame = self._source.read()  # is decoded before it is due
        if frame is None:
            return None
        now = time.monotonic()
        place = self._place(frame)
        if self._start is None:
            self._start = now, place
        frame.captured = self._start[0] + place - self._start[1]
        if self._closed.wait(max(frame.captured - now, 0)):
            return None
        return frame

    def _place(self, frame: Frame) -> float:
        if self._rate is not None:
            return frame.id / self._rate
        if frame.stamp is None:
            raise InputError("the source has no times to replay it by: give a rate")
        return frame.stamp

    def close(self) -> None:
        self._closed.set()
        self._source.close()


class Limited:
    """A source that ends after `frames` frames, or `seconds` after its first one: by the stamps of the source, or,
    where it is live or has none, by the clock."""

    def __init__(self, source: Source, frames: int | None = None, seconds: float | None = None):
        for name, limit in (("frames", frames), ("seconds", seconds)):
            if limit is not None and not limit > 0:
                raise InputError(f"{name} must be positive, got {limit}")
        self._source, self._seconds = source, seconds
        self._left = float("inf") if frames is None else frames
        self.live = source.live
        known = [count for count in (source.frames, frames) if count is not None]
        self.frames = min(known) if known else None
        self._first: float | None = None

    @property
    def lost(self) -> Mapping[str, int]:
        return self._source.lost

    def read(self) -> Frame | None:
        frame = self._source.read() if self._left > 0 else None
        if frame is None:
            return None
        self._left -= 1
        place = frame.captured if self.live or frame.stamp is None else frame.stamp
        if self._first is None:
            self._first = place
        if self._seconds is not None and place - self._first >= self._seconds:
            self._left = 0
            return None
        return frame

    def close(self) -> None:
        self._source.close()


def as_source(source: Any) -> Source:
    """What `Stream` takes as a source, as one."""
    if isinstance(source, (str, os.PathLike)):
        from ..video import open_source

        return open_source(source)
    if isinstance(source, Source):
        return source
    if isinstance(source, Iterable):
        return Images(source)
    raise InputError(
        f"source must have live, frames, lost, read and close (see dvt_fast.stream.Source), or be a path or an "
        f"iterable of images, got {type(source).__name__}"
    )
