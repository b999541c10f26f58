"""Image files as the frames of a source."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..images import find_images, load_image
from ..stream.source import Frame

_log = logging.getLogger(__name__)


class ImageSequence:
    """The images of folders, files and patterns, as frames at a given rate: frame i has the stamp i / rate.

    Numbers in names count as numbers, so that frame 10 comes after frame 9. An image that cannot be read is skipped and
    counted as "corrupt", and the first one is logged as a warning. The path of each is in `meta["path"]`. Needs Pillow,
    from the extra [cli].
    """

    live = False

    def __init__(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], rate: float = 30.0):
        if not rate > 0:
            raise InputError(f"rate must be positive, got {rate}")
        self.rate = rate
        self._paths = sorted(find_images(paths), key=_counting)
        self.frames: int | None = len(self._paths)
        self._lost: Counter[str] = Counter()
        self._next = 0
        self._closed = False

    @property
    def lost(self) -> Mapping[str, int]:
        return self._lost

    def read(self) -> Frame | None:
        while self._next < len(self._paths) and not self._closed:
            i, path = self._next, self._paths[self._next]
            self._next += 1
            try:
                image = np.array(load_image(path))
            except InputError as error:
                if not self._lost:
                    _log.warning("%s (dropped as corrupt, and more like it are only counted)", error)
                self._lost["corrupt"] += 1
                continue
            return Frame(i, image, time.monotonic(), i / self.rate, {"path": str(path)})
        return None

    def close(self) -> None:
        self._closed = True


def _counting(path: Path) -> list[tuple[str, int]]:
    """A key that sorts numbers as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(text, int(number or 0)) for text, number in zip(parts[::2], [*parts[1::2], ""])]
