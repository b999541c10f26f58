"""What tells one set of data from another; fewer of its images; and the set without those that cannot be read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import InputError
from ...images import load_image
from ..frames import Frame, content
from .labelled import BoxData, Boxed, DepthData, Labelled, SegmentationData

Item: TypeAlias = Labelled | Boxed | Frame
Data: TypeAlias = SegmentationData | DepthData | BoxData | Sequence[Frame]


def describe(data: Data, read: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """{name, train, val, classes, read, digest}, JSON types: its folder's name, how many images, the names of the
    classes (None where there are none), the options that it was read with, and 16 hex digits for these and for the
    content of all images and labels, and which are trained on. Where the folder is does not matter. Frames without
    labels are all in val."""
    splits = _splits(data)
    classes = getattr(data, "classes", None)
    read = json.loads(json.dumps(dict(read or {}), sort_keys=True))
    digest = hashlib.sha256(json.dumps([classes, read]).encode())
    for name, items in splits.items():
        digest.update(name.encode())
        for item in items:
            digest.update(_content(item))
    return {
        "name": _name(data),
        "train": len(splits["train"]),
        "val": len(splits["val"]),
        "classes": None if classes is None else list(classes),
        "read": read,
        "digest": digest.hexdigest()[:16],
    }


def thin(data: Data, train: int | None = None, val: int | None = None) -> Data:
    """At most so many images of each split, evenly spaced over it: the same ones each time."""
    limits = {"train": train, "val": val}
    return _with(data, {name: _spaced(items, limits[name]) for name, items in _splits(data).items()})


def readable(data: Data) -> tuple[Data, list[str]]:
    """The data without images that cannot be read to the end, and a line for each of these."""
    problems = []
    kept: dict[str, list[Item]] = {}
    for name, items in _splits(data).items():
        kept[name] = []
        for item in items:
            try:
                load_image(item.image)
            except InputError as error:
                problems.append(str(error))
            else:
                kept[name].append(item)
    return (_with(data, kept), problems) if problems else (data, [])


def problems_of(data: Data) -> list[str]:
    """What its reader said of images that were left out."""
    return list(getattr(data, "problems", ()))


def _splits(data: Data) -> dict[str, Sequence[Item]]:
    if isinstance(data, (SegmentationData, DepthData, BoxData)):
        return {"train": data.train, "val": data.val}
    return {"train": (), "val": data}


def _with(data: Data, splits: dict[str, list[Item]]) -> Data:
    if isinstance(data, (SegmentationData, DepthData, BoxData)):
        parts: dict[str, Any] = {name: tuple(items) for name, items in splits.items()}
        return dataclasses.replace(data, **parts)
    return [frame for frame in splits["val"] if isinstance(frame, Frame)]


def _name(data: Data) -> str:
    if isinstance(data, (SegmentationData, DepthData, BoxData)):
        return data.name
    folders = [str(frame.image.absolute().parent) for frame in data]
    return Path(os.path.commonpath(folders)).name if folders else ""


def _content(item: Item) -> bytes:
    if isinstance(item, Frame):
        return item.key.encode()
    if isinstance(item, Labelled):
        return f"{content(item.image)} {content(item.label)}".encode()
    return f"{content(item.image)} {item.size} {item.boxes.tolist()} {item.classes.tolist()}".encode()


def _spaced(items: Sequence[Item], limit: int | None) -> list[Item]:
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise InputError(f"at least 1 image of a split is needed, got {limit}")
    return [items[index * len(items) // limit] for index in range(limit)]
