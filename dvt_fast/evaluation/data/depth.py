"""Images with a distance for each pixel, in the layouts that docs/data-layouts.md shows."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...extras import require
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
    read_lines,
    without_shared,
)
from .labelled import DepthData, Labelled

MAPS = frozenset((".png", ".tif", ".tiff", ".npy"))
TREE = Tree(("rgb", "images", "color"), ("depth", "depth_registered_mm"), MAPS)
LAYOUTS = ("folders", "lists")


def read_depth(
    folder: str | os.PathLike[str],
    layout: str = "auto",
    *,
    scale: float = 1000.0,
    val_fraction: float | None = None,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
) -> DepthData:
    """A set with a distance for each pixel.

    layout: "folders" (pairs by name), "lists" (a pair of paths a line, as NYU's) or "auto". scale: whole numbers in a
    file are metres times this; floating-point numbers are metres. val_fraction: the last of the sorted names are tested
    on, for a set without parts. min_depth, max_depth: metres; what is outside, 0 or not finite is no depth (NaN).

    Every image with something wrong is left out, with a line in `problems`: no depth map, one of another size or
    without any valid pixel, unreadable; all maps are decoded once to know. Raises `InputError` for a folder without
    images or with an empty part.
    """
    folder = check_set(folder)
    check_numbers(scale=scale, min_depth=min_depth, max_depth=max_depth)
    if not (scale > 0 and 0 < min_depth < max_depth):
        raise InputError(f"expected scale > 0 and 0 < min_depth < max_depth, got {scale}, {min_depth}, {max_depth}")
    if layout not in ("auto", *LAYOUTS):
        raise InputError(f"layout must be auto, {', '.join(LAYOUTS)}, got {layout!r}")
    problems: list[str] = []
    cut = Cut(val_fraction)
    lists = None if layout == "folders" else _lists(folder)
    if layout == "lists" and lists is None:
        raise InputError(f"{folder}: no list of pairs for train and none for val or test; {DOCUMENT}")
    if lists is None:
        parts = find_parts(folder, TREE, cut, problems)
    else:
        cut.refuse(folder)
        parts = without_shared({part: _listed(path, folder, problems) for part, path in lists.items()}, problems)

    def check(pair: Pair) -> Labelled:
        assert pair.label is not None
        read = partial(_read_metres, pair.label, scale, min_depth, max_depth)
        metres = read()
        check_size(pair.label, (metres.shape[1], metres.shape[0]), pair.image)
        if np.isnan(metres).all():
            raise InputError(f"{pair.label}: no valid depth: no pixel from {min_depth:g} to {max_depth:g} m")
        return Labelled(pair.image, pair.label, read)

    found = {part: [i for i in check_each(check, pairs, problems) if i is not None] for part, pairs in parts.items()}
    check_not_empty(folder, found, problems, ("train", "val"))
    return DepthData(folder.resolve().name, tuple(found["train"]), tuple(found["val"]), tuple(problems))


def _read_metres(path: Path, scale: float, min_depth: float, max_depth: float) -> np.ndarray:
    """float32 [height, width], NaN where there is no depth."""
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with require("PIL.Image", "cli").open(path) as image:
                array = np.asarray(image)
    except Exception as error:  # the readers raise whatever a broken file leads to
        reason = "the file is empty (0 bytes)" if path.is_file() and not path.stat().st_size else error
        raise InputError(f"{path}: cannot be read as a depth map: {' '.join(str(reason).split())}") from None
    if array.ndim != 2 or array.dtype.kind not in "iuf" or array.dtype.itemsize < 2:
        got = f"{array.dtype} of shape {list(array.shape)}"
        raise InputError(f"{path}: expected one number of at least 16 bits a pixel, got {got}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 is no depth
        metres = array.astype(np.float32) / np.float32(1 if array.dtype.kind == "f" else scale)
    metres[~((metres >= min_depth) & (metres <= max_depth))] = np.nan  # written so that NaN fails
    return metres


def _lists(folder: Path) -> dict[str, Path] | None:
    """The two lists, where the lines of both are pairs of files. train.txt and val.txt may also list names alone."""
    found = {}
    for part, words in {"train": ("train",), "val": ("val", "test")}.items():
        paths = sorted(path for path in folder.glob("*.txt") if any(word in path.stem.lower() for word in words))
        if len(paths) > 1:
            raise InputError(f"{folder}: several lists for {part}: {', '.join(path.name for path in paths)}")
        if not paths or not any(len(line.split()) >= 2 for line in read_lines(paths[0])):
            return None
        found[part] = paths[0]
    return found


def _listed(path: Path, folder: Path, problems: list[str]) -> list[Pair]:
    """Pairs of a list: the image and its depth map, below the folder; a third word, NYU's focal length, is not used."""
    pairs: dict[Pair, None] = {}
    for line in read_lines(path):
        words = [word.lstrip("/") for word in line.split()]
        if len(words) not in (2, 3):
            problems.append(f"{path}: {line!r}: expected an image and its depth map")
            continue
        missing = [word for word in words[:2] if not (folder / word).is_file()]
        if missing:
            problems.append(f"{path}: {' and '.join(missing)}: no such file in {folder}")
        else:
            pairs[Pair(folder / words[0], folder / words[1])] = None
    return list(pairs)
