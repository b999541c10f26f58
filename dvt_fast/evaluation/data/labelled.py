"""What readers of all layouts give: images with their labels, and what was wrong with those left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..frames import Frame


@dataclass(frozen=True)
class Labelled:
    """An image and its map of labels.

    image: its file. label: the file of the labels. read: gives the map, of the image's size [height, width]:
    for segmentation int16 class indices from 0, -1 where a pixel does not count; for depth float32 metres, NaN where
    there is none. Raises `InputError` naming the file.
    """

    image: Path
    label: Path
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Boxed:
    """An image and its objects. size: (width, height). boxes: float64 [n, 4], (left, top, right, bottom) in pixels of
    the upright image, inside it. classes: int64 [n], indices into the set's classes."""

    image: Path
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray

    def cut(self, frame: Frame, visible: float = 0.0) -> Boxed:
        """The objects in a frame of this image, in its pixels, clipped to it; without those that are outside it, or of
        whose area less than the share `visible` is inside."""
        left, top, right, bottom = frame.edges(*self.size)
        boxes = frame.cut_boxes(self.boxes, *self.size)
        kept = (_area(boxes) > 0) & (_area(boxes) >= visible * _area(self.boxes))
        return Boxed(self.image, (right - left, bottom - top), boxes[kept], self.classes[kept])


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@dataclass(frozen=True)
class SegmentationData:
    """name: of the folder. classes: their names. problems: one line for each image that was left out."""

    name: str
    classes: tuple[str, ...]
    train: tuple[Labelled, ...]
    val: tuple[Labelled, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class DepthData:
    """name: of the folder. problems: one line for each image that was left out."""

    name: str
    train: tuple[Labelled, ...]
    val: tuple[Labelled, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class BoxData:
    """name: of the folder. classes: their names. problems: one line for each image or box that was left out. For
    detection train and val; where the folder has no splits all images are in val."""

    name: str
    classes: tuple[str, ...]
    train: tuple[Boxed, ...]
    val: tuple[Boxed, ...]
    problems: tuple[str, ...] = ()
