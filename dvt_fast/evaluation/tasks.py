"""The tasks: what each measures, in plain words; how its data is read; how its settings are given by name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..extras import require
from ..images import find_images
from .data.describe import Data
from .frames import Frame, whole_frames


@dataclass(frozen=True)
class Task:
    """A module of this package of that name, with its function and its class of settings.

    name: as it is given. title, about: for people. data: the module of `evaluation.data` that reads it, None for
    images without labels. heads: whether some are trained, one a seed. needs: packages of the extra "eval". timed:
    whether scores are of the machine.
    """

    name: str
    title: str
    about: str
    data: str | None
    heads: bool = False
    needs: tuple[str, ...] = ()
    timed: bool = False

    @cached_property
    def module(self) -> types.ModuleType:
        for package in ("torch", *self.needs):
            require(package, "eval")
        return importlib.import_module(f"{__package__}.{self.name}")

    @property
    def run(self) -> Any:
        """(features, variant, data, settings, progress) -> Outcome."""
        return getattr(self.module, self.name)

    @property
    def settings_class(self) -> Any:
        return getattr(self.module, f"{self.name.capitalize()}Settings")

    def frames(self, data: Data, settings: Any) -> list[Frame]:
        """What features the task will ask for, where it says so."""
        asked = getattr(self.module, "frames", None)
        return list(asked(data, settings)) if asked else []

    def read(self, paths: Sequence[Path], layout: str = "auto", options: Mapping[str, Any] | None = None) -> Data:
        """The data at `paths`: one folder, or images where the task needs no labels.

        Raises `InputError` for an option that the reader has not, and what the reader raises."""
        options = dict(options or {})
        if self.data is None:
            if options or layout != "auto":
                raise InputError(f"{self.name} takes images without labels: no layout, and no option for reading them")
            return whole_frames(find_images([str(path) for path in paths]))
        if len(paths) != 1:
            raise InputError(f"{self.name} takes one folder, got {len(paths)}")
        reader = getattr(importlib.import_module(f"{__package__}.data.{self.data}"), f"read_{self.data}")
        known = [name for name in inspect.signature(reader).parameters if name not in ("folder", "layout")]
        for name in options:
            if name not in known:
                raise InputError(f"unknown option {name!r} for reading {self.data}; expected one of {', '.join(known)}")
        return reader(paths[0], layout, **options)

    def settings(self, quick: bool = False, **values: Any) -> Any:
        """Settings with these values: the full recipe, or the quick one, but for them. `InputError` for an unknown one,
        which names those there are, and for a value of another type."""
        kind = self.settings_class
        known = typing.get_type_hints(kind)
        for name, value in values.items():
            if name not in known:
                raise InputError(f"unknown setting {name!r} of {self.name}; expected one of {', '.join(known)}")
            values[name] = _fitted(f"{self.name}: {name}", value, known[name])
        return dataclasses.replace(kind.quick() if quick else kind(), **values)


TASKS = {
    task.name: task
    for task in (
        Task(
            "mic",
            "Position in the features",
            "How much the features tell of where in the frame a patch is, which clean features should not: the maximal "
            "information coefficient between a channel and the place, the share of the features' variance that the "
            "place explains over all images, and how alike features of one place are in different images.",
            None,
        ),
        Task(
            "segment",
            "Segmentation, linear head",
            "A linear head on frozen features names the class of each pixel: trained on the training images, measured "
            "on the others.",
            "segmentation",
            heads=True,
        ),
        Task(
            "knn",
            "Segmentation, nearest neighbours",
            "Each patch takes the class of the training patches whose features are nearest: nothing is trained.",
            "segmentation",
        ),
        Task(
            "depth",
            "Depth, linear head",
            "A linear head on frozen features tells the distance of each pixel: trained on the training images, "
            "measured on the others, where they have a distance.",
            "depth",
            heads=True,
        ),
        Task(
            "discover",
            "Object discovery",
            "LOST finds one box an image from the features alone. CorLoc is the share of images whose box has an IoU "
            "of at least 0.5 with an object; boxes that look at no image stand beside it.",
            "boxes",
            needs=("scipy",),
        ),
        Task(
            "detect",
            "Object detection",
            "A light detector is trained on frozen features; its mean average precision on other images.",
            "boxes",
            heads=True,
            needs=("torchvision", "pycocotools"),
        ),
        Task(
            "speed",
            "Speed",
            "What the features of one image cost on one machine, after warming up.",
            None,
            timed=True,
        ),
    )
}


def task_called(name: str) -> Task:
    """The task of that name. Raises `InputError`, which names those there are."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def _fitted(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type `kind` of a field, from JSON's types."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for choice in arguments:
            try:
                return _fitted(name, value, choice)
            except InputError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
        raise InputError(f"{name} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return tuple(_fitted(name, item, arguments[0]) for item in value)
            if len(value) == len(arguments):
                return tuple(_fitted(name, item, part) for item, part in zip(value, arguments))
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif kind is Any or (isinstance(kind, type) and type(value) is kind):
        return value
    shown = getattr(kind, "__name__", str(kind)) if not arguments else str(kind)
    raise InputError(f"{name} must be {shown}, got {value!r}")
