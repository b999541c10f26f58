"""Images with a class for each pixel, in the layouts that docs/data-layouts.md shows.

Labels are index images: the number in the file is the class. They are never converted to colours and back, because a
palette may hold any colours. Every label is decoded once when the set is read, on all cores (468 of 480 x 360 pixels
take a second of one core), so that a wrong value is known before anything is trained.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...extras import require
from .classes import Classes, class_names, is_void
from .folders import (
    DOCUMENT,
    Cut,
    Pair,
    Tree,
    check_each,
    check_not_empty,
    check_numbers,
    check_set,
    check_size,
    find_parts,
)
from .labelled import Labelled, SegmentationData

INDEX_IMAGES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif"))
LAYOUTS = {
    "voc": Tree(("JPEGImages",), ("SegmentationClass",), INDEX_IMAGES, "ImageSets/Segmentation"),
    "ade20k": Tree(("images",), ("annotations",), INDEX_IMAGES),
    "index": Tree(("images",), ("labels", "masks", "annotations", "masks_semantic"), INDEX_IMAGES),
}
VOC_CLASSES = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
ADE20K_CLASSES = 150
IGNORED = 255
# Pillow spreads grey of 2 and 4 bits over 0..255: the numbers of the file are these times smaller.
_SPREAD = {"L;2": 85, "L;4": 17}


def read_segmentation(
    folder: str | os.PathLike[str],
    layout: str = "auto",
    *,
    classes: Classes | None = None,
    ignore: int | Iterable[int] | None = None,
    val_fraction: float | None = None,
    folds: int | None = None,
    fold: int = 0,
    keep: int | None = None,
) -> SegmentationData:
    """A set with a class for each pixel.

    layout: "voc", "ade20k", "index" or "auto". classes: names in order, names by value, or a file with them; None takes
    those of the folder (classes.txt, classes.json), or of the layout, or the values found. ignore: values that do not
    count, beside 255 (where it has no name), the classes called void, ignore or unlabelled, and 0 of "ade20k".
    val_fraction, folds, fold: the part tested on, for a set without parts; see `folders.Cut`. keep: only so many
    classes count, those with the most pixels in train; with folds in all images, so that the folds have the same.

    Every image with something wrong is left out, with a line in `problems`: no label, another size, a value that is no
    class, no pixel that counts, unreadable. Raises `InputError` for a folder without images or with an empty part.
    """
    folder = check_set(folder)
    layout = _choose(folder, layout)
    check_numbers(int, keep=keep)
    ignored = _values(ignore)
    problems: list[str] = []
    parts = find_parts(folder, LAYOUTS[layout], Cut(val_fraction, folds, fold), problems)
    pairs = parts["train"] + parts["val"]
    values = dict(zip(pairs, check_each(_count, pairs, problems)))

    names = _names(folder, layout, classes, [found for found in values.values() if found is not None])
    counted = {value: name for value, name in names.items() if not is_void(name) and value not in ignored}
    known = set(names) | ignored | {IGNORED, *((0,) if layout == "ade20k" else ())}
    for pair, found in values.items():
        unknown = sorted(set(found or ()) - known)
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            problems.append(f"{pair.label}: value {shown} is none of the {len(names)} classes; name it or ignore it")
            values[pair] = None
    counted = _most_frequent(counted, keep, [values[p] for p in (pairs if folds else parts["train"])])
    for pair, found in values.items():
        if found is not None and not any(value in counted for value in found):
            problems.append(f"{pair.label}: no pixel of a class that counts")
            values[pair] = None

    table = np.full(1 << 16, -1, np.int16)
    table[list(counted)] = np.arange(len(counted))
    kept = {part: [_labelled(pair, table) for pair in parts[part] if values[pair] is not None] for part in parts}
    check_not_empty(folder, kept, problems, ("train", "val"))
    name = folder.resolve().name
    return SegmentationData(name, tuple(counted.values()), tuple(kept["train"]), tuple(kept["val"]), tuple(problems))


def read_index(path: Path) -> np.ndarray:
    """The numbers of an index image as they are in the file: uint16 [height, width]. Raises `InputError`."""
    try:
        with require("PIL.Image", "cli").open(path) as image:
            mode, raw = image.mode, str(image.tile[0][3]) if image.tile else ""
            array = np.asarray(image)
    except Exception as error:  # Pillow's readers raise whatever a broken file leads to
        reason = "the file is empty (0 bytes)" if path.is_file() and not path.stat().st_size else error
        raise InputError(f"{path}: cannot be read as an index image: {' '.join(str(reason).split())}") from None
    if mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        raise InputError(f"{path}: a picture of mode {mode}, expected an index image (one number a pixel: P, L, I;16)")
    if mode == "I" and not 0 <= array.min() <= array.max() < 1 << 16:
        raise InputError(f"{path}: values from {array.min()} to {array.max()}, expected 0 to 65535")
    return array.astype(np.uint16) // np.uint16(_SPREAD.get(raw, 1))


def _labelled(pair: Pair, table: np.ndarray) -> Labelled:
    assert pair.label is not None
    return Labelled(pair.image, pair.label, partial(_read_classes, pair.label, table))


def _read_classes(path: Path, table: np.ndarray) -> np.ndarray:
    return table[read_index(path)]


def _count(pair: Pair) -> dict[int, int]:
    """Pixels by value."""
    assert pair.label is not None
    array = read_index(pair.label)
    check_size(pair.label, (array.shape[1], array.shape[0]), pair.image)
    counts = np.bincount(array.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _values(ignore: Any) -> set[int]:
    if isinstance(ignore, (int, str)):  # a str is no number: said below
        ignore = [ignore]
    found = list(ignore or ())
    for value in found:
        check_numbers(int, ignore=value)
    return set(found)


def _choose(folder: Path, layout: str) -> str:
    if layout in LAYOUTS:
        return layout
    if layout != "auto":
        raise InputError(f"layout must be auto, {', '.join(LAYOUTS)}, got {layout!r}")
    if (folder / "SegmentationClass").is_dir():
        return "voc"
    if (folder / "annotations" / "training").is_dir():
        return "ade20k"
    if (folder / "images").is_dir():
        return "index"
    raise InputError(f"{folder}: no layout of labels that is known; {DOCUMENT}")


def _names(folder: Path, layout: str, classes: Classes | None, found: list[dict[int, int]]) -> dict[int, str]:
    """Names by the value in the file."""
    names = class_names(classes, folder, "mask", first=1 if layout == "ade20k" else 0)
    if names is not None:
        return names
    if layout == "voc":
        return dict(enumerate(VOC_CLASSES.split(", ")))
    values = range(1, ADE20K_CLASSES + 1) if layout == "ade20k" else sorted(set[int]().union(*found) - {IGNORED})
    return {value: f"class {value}" for value in values}


def _most_frequent(counted: dict[int, str], keep: int | None, found: list[dict[int, int] | None]) -> dict[int, str]:
    if keep is None:
        return counted
    if not 1 <= keep <= len(counted):
        raise InputError(f"keep must be from 1 to the {len(counted)} classes, got {keep}")
    pixels = {value: sum(one.get(value, 0) for one in found if one) for value in counted}
    best = sorted(counted, key=lambda value: (-pixels[value], value))[:keep]
    return {value: counted[value] for value in sorted(best)}
