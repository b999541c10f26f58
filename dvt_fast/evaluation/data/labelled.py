"""What readers of all layouts give: images with their labels, and what was wrong with those left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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
