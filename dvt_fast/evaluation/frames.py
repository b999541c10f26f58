"""What a ViT is shown: a whole image, or a part of one as if it were whole; labels are cut the same way."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..extras import require
from ..images import load_image

if TYPE_CHECKING:
    from PIL import Image as PILImage

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Frame:
    """A part of an image.

    image: its file. box: (x, y, width, height) in units of the image; edges are rounded to whole pixels, so that labels
    can be cut exactly alike. flip: mirrored left to right after the cut.
    """

    image: Path
    box: tuple[float, float, float, float] = WHOLE
    flip: bool = False

    def __post_init__(self) -> None:
        x, y, w, h = self.box
        if not (x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= 1 + 1e-9 and y + h <= 1 + 1e-9):
            raise InputError(f"box must be (x, y, width, height) inside the image, in units of it, got {self.box}")

    def edges(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of an image of that size; at least one pixel wide and high."""
        x, y, w, h = self.box
        left, top = min(round(x * width), width - 1), min(round(y * height), height - 1)
        return (
            left,
            top,
            max(left + 1, min(round((x + w) * width), width)),
            max(top + 1, min(round((y + h) * height), height)),
        )

    def picture(self) -> PILImage.Image:
        """The part as an upright RGB picture. Raises what `load_image` raises."""
        picture = load_image(self.image)
        if self.box != WHOLE:
            picture = picture.crop(self.edges(*picture.size))
        mirror = require("PIL.Image", "cli").Transpose.FLIP_LEFT_RIGHT
        return picture.transpose(mirror) if self.flip else picture

    def cut(self, labels: np.ndarray) -> np.ndarray:
        """The same part of a map of labels [height, width, ...] of the whole image, contiguous."""
        left, top, right, bottom = self.edges(labels.shape[1], labels.shape[0])
        part = labels[top:bottom, left:right]
        return np.ascontiguousarray(part[:, ::-1] if self.flip else part)

    def cut_boxes(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Boxes [n, 4] (left, top, right, bottom) in pixels of the whole image, in pixels of the part and clipped to
        it; a box outside it has no area left. width, height: of the whole image."""
        left, top, right, bottom = self.edges(width, height)
        moved = np.asarray(boxes, np.float64).reshape(-1, 4) - (left, top, left, top)
        moved = moved.clip(0, (right - left, bottom - top, right - left, bottom - top))
        if self.flip:
            moved[:, [0, 2]] = (right - left) - moved[:, [2, 0]]
        return moved

    @property
    def key(self) -> str:
        """16 hex digits for the content of the file and the part of it."""
        part = "" if (self.box, self.flip) == (WHOLE, False) else f" {self.box} {self.flip}"
        return hashlib.sha256(f"{content(self.image)}{part}".encode()).hexdigest()[:16]


def whole_frames(images: Sequence[Path]) -> list[Frame]:
    """Each image as it is."""
    return [Frame(Path(image)) for image in images]


def random_frames(images: Sequence[Path], seed: int = 0, area: tuple[float, float] = (0.25, 0.6)) -> list[Frame]:
    """A random crop of each image, of that share of its area and its aspect, every second one mirrored.

    What a head learned about places in the frame is wrong in them: the control for data that reward knowing the place.
    The crop of an image depends on the seed and its index alone.
    """
    frames = []
    for index, image in enumerate(images):
        random = np.random.default_rng([seed, index])
        side = float(np.sqrt(random.uniform(*area)))
        x, y = (float(v) for v in random.random(2) * (1 - side))
        frames.append(Frame(Path(image), (x, y, side, side), index % 2 == 1))
    return frames


def sliding_frames(image: Path, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[Frame]:
    """Windows over an image of `size` (height, width) pixels, of `window` pixels every `stride`, the last ones flush
    with the edges, row by row. A side shorter than the window is taken whole."""
    starts = []
    for length, part, step in zip(size, window, stride, strict=True):
        if part < 1 or step < 1:
            raise InputError(f"window and stride must be at least 1, got {window} and {stride}")
        last = max(0, length - part)
        starts.append(sorted({*range(0, last, step), last}))
    h, w = (min(part, length) for part, length in zip(window, size, strict=True))
    height, width = size
    return [
        Frame(Path(image), (x / width, y / height, min(w / width, 1 - x / width), min(h / height, 1 - y / height)))
        for y in starts[0]
        for x in starts[1]
    ]


def content(path: Path) -> str:
    """64 hex digits for the content of a file, which is read once. Raises `InputError` where it cannot be."""
    return _content(str(path), _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written: so that its content is hashed once."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=1 << 16)
def _content(path: str, stamp: tuple[int, int]) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
