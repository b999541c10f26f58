"""Images with boxes of objects, in the layouts that docs/data-layouts.md shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import InputError
from .box_files import Annotated, coco_parts, parse_coco, parse_voc, parse_yolo
from .classes import class_names
from .folders import DOCUMENT, Cut, Tree, check_each, check_not_empty, check_set, find_parts, image_size
from .labelled import BoxData, Boxed

TREES = {
    "voc": Tree(
        ("JPEGImages", "images"),
        ("Annotations", "annotations", "annotations_voc_xml"),
        frozenset((".xml",)),
        "ImageSets/Main",
    ),
    "yolo": Tree(("images",), ("labels", "labels_yolo"), frozenset((".txt",))),
}
LAYOUTS = ("coco", *TREES)


def read_boxes(
    folder: str | os.PathLike[str],
    layout: str = "auto",
    *,
    val_fraction: float | None = None,
    difficult: bool = True,
) -> BoxData:
    """A set with boxes of objects; a set without parts, and without val_fraction, is all in val.

    layout: "coco", "voc", "yolo" or "auto". val_fraction: the last of the sorted names are in val, the others in train.
    difficult: whether objects that VOC marks as difficult count, as they do in the published CorLoc of LOST. Crowds of
    COCO never do. An image without objects stays, with no box.

    Boxes are clipped to the upright image. A box of no area then, of an unknown class or that cannot be read is left
    out, and so is an image without a label file ("voc"), of another size than its label says, or unreadable: a line in
    `problems` for each. Raises `InputError` for a folder without images or with an empty part.
    """
    folder = check_set(folder)
    if not isinstance(difficult, bool):
        raise InputError(f"difficult must be true or false, got {difficult!r}")
    layout = _choose(folder, layout)
    problems: list[str] = []
    cut = Cut(val_fraction)
    names: Mapping[int, str] | None
    parsed: dict[str, list[Annotated | None]]
    if layout == "coco":
        entries, names = coco_parts(folder, cut, problems)
        parsed = {part: check_each(parse_coco, found, problems) for part, found in entries.items()}
    else:
        optional = layout == "yolo"  # which needs no file for an image without objects
        pairs = find_parts(folder, TREES[layout], cut, problems, optional=optional, whole=True)
        parse = parse_yolo if layout == "yolo" else partial(parse_voc, difficult=difficult)
        parsed = {part: check_each(parse, found, problems) for part, found in pairs.items()}
        names = _yolo_names(folder) if layout == "yolo" else None
    annotated = {part: [one for one in found if one is not None] for part, found in parsed.items()}
    keys: dict[int | str, str] = dict(names.items()) if names else _found(annotated)
    index = {key: place for place, key in enumerate(sorted(keys))}
    kept: dict[str, list[Boxed]] = {}
    for part, found in annotated.items():
        boxed = check_each(partial(_boxed, index=index), found, problems)
        problems += [line for one in found for line in one.told]
        kept[part] = [one for one in boxed if one is not None]
    check_not_empty(folder, kept, problems, ("val",) if not parsed["train"] and not cut.asked else ("train", "val"))
    return BoxData(
        folder.resolve().name,
        tuple(keys[key] for key in sorted(keys)),
        tuple(kept["train"]),
        tuple(kept["val"]),
        tuple(problems),
    )


def _boxed(one: Annotated, index: Mapping[int | str, int]) -> Boxed:
    width, height = image_size(one.image)
    if one.size is not None and one.size != (width, height):
        said = f"{one.size[0]} x {one.size[1]}"
        raise InputError(f"{one.label}: says {said}, but {one.image.name} is {width} x {height} upright")
    scale = (width, height, width, height) if one.relative else (1, 1, 1, 1)
    boxes, classes = [], []
    for where, key, edges in one.objects:
        box = (np.array(edges, np.float64) * scale).clip(0, (width, height, width, height))
        if key not in index:
            one.told.append(f"{where}: class {key} is none of the {len(index)} classes")
        elif not (box[2] > box[0] and box[3] > box[1]):  # written so that NaN fails
            one.told.append(f"{where}: the box {_rounded(edges)} has no area in the image of {width} x {height}")
        else:
            boxes.append(box)
            classes.append(index[key])
    return Boxed(one.image, (width, height), np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int64))


def _rounded(edges: tuple[float, float, float, float]) -> str:
    return "(" + ", ".join(f"{edge:g}" for edge in edges) + ")"


def _found(annotated: Mapping[str, list[Annotated]]) -> dict[int | str, str]:
    """The classes that there are, where no file names them."""
    keys = {key for found in annotated.values() for one in found for _, key, _ in one.objects}
    return {key: key if isinstance(key, str) else f"class {key}" for key in keys}


def _yolo_names(folder: Path) -> dict[int, str] | None:
    labels = TREES["yolo"].labels_in(folder) or folder
    return class_names(None, folder, "box") or class_names(None, labels, "box")


def _choose(folder: Path, layout: str) -> str:
    if layout in LAYOUTS:
        return layout
    if layout != "auto":
        raise InputError(f"layout must be auto, {', '.join(LAYOUTS)}, got {layout!r}")
    found = ["coco"] if any((folder / "annotations").glob("*.json")) else []
    found += [name for name, tree in TREES.items() if tree.labels_in(folder)]
    if len(found) != 1:
        what = f"fits the layouts {', '.join(found)}: say which" if found else f"no layout of boxes; {DOCUMENT}"
        raise InputError(f"{folder}: {what}")
    return found[0]
