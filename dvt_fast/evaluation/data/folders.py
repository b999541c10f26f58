"""What all readers share: images and labels by name, the parts of a set, and checks of many files at once.

What is wrong with one image or label never stops a reader: it is one line in `problems`, and that image is left out.
What makes the whole set useless (no image, an empty part) is an `InputError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from ...errors import InputError
from ...extras import require
from ...images import IMAGE_EXTENSIONS, load_image

T = TypeVar("T")
R = TypeVar("R")


class OfImage(Protocol):
    @property
    def image(self) -> Path: ...


Imaged = TypeVar("Imaged", bound=OfImage)

DOCUMENT = "see docs/data-layouts.md"
# What people call the folders of the two parts.
TRAIN = ("train", "training", "train2017")
VAL = ("val", "validation", "valid", "val2017")
NAMES = "classes.txt"  # which labelling tools put among the labels
_EXIF_ORIENTATION, _FIRST_QUARTER_TURN = 0x0112, 5


@dataclass(frozen=True)
class Tree:
    """Where a layout keeps things. images, labels: names of folders, of which the first that holds such files counts.
    extensions: of labels. lists: the folder of train.txt and val.txt."""

    images: tuple[str, ...]
    labels: tuple[str, ...]
    extensions: frozenset[str]
    lists: str = "."

    def images_in(self, folder: Path) -> Path | None:
        return _first(folder, self.images, IMAGE_EXTENSIONS)

    def labels_in(self, folder: Path) -> Path | None:
        return _first(folder, self.labels, self.extensions)


@dataclass(frozen=True)
class Cut:
    """How a set without parts of its own is cut: the last `val_fraction` of the sorted names are tested on, or block
    `fold` of `folds` equal ones. Blocks and not every n-th name, as neighbours in a video are nearly the same image."""

    val_fraction: float | None = None
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        check_numbers(val_fraction=self.val_fraction)
        check_numbers(int, folds=self.folds, fold=self.fold)
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise InputError(f"val_fraction must be between 0 and 1, got {self.val_fraction}")
        if self.folds is not None and (self.folds < 2 or not 0 <= self.fold < self.folds):
            raise InputError(f"folds must be at least 2 and fold from 0 to folds - 1, got {self.folds} and {self.fold}")
        if self.val_fraction is not None and self.folds is not None:
            raise InputError("give val_fraction or folds, not both")

    @property
    def asked(self) -> bool:
        return self.val_fraction is not None or self.folds is not None

    def apply(self, items: Sequence[T], folder: Path) -> dict[str, list[T]]:
        """{"train": ..., "val": ...}, of sorted items."""
        n = len(items)
        if self.folds is not None:
            first, last = (n * fold // self.folds for fold in (self.fold, self.fold + 1))
        elif self.val_fraction is not None:
            first, last = n - round(n * self.val_fraction), n
        else:
            raise InputError(f"{folder}: has no parts train and val: give val_fraction or folds; {DOCUMENT}")
        return {"train": [*items[:first], *items[last:]], "val": list(items[first:last])}

    def refuse(self, folder: Path) -> None:
        """Raise `InputError` where a cut is asked for a set that has parts."""
        if self.asked:
            raise InputError(f"{folder}: has parts train and val of its own: leave out val_fraction and folds")


class Pair(NamedTuple):
    image: Path
    label: Path | None  # None only where a layout may do without


def find_parts(
    folder: Path, tree: Tree, cut: Cut, problems: list[str], *, optional: bool = False, whole: bool = False
) -> dict[str, list[Pair]]:
    """The pairs of {"train": ..., "val": ...}, sorted by name.

    optional: an image without a label is fine. whole: with no parts and no cut all is in val. Raises `InputError`.
    """
    images, labels = tree.images_in(folder), tree.labels_in(folder)
    if images is None:
        raise InputError(f"{folder}: no image in {' or '.join(tree.images)}; {DOCUMENT}")
    if labels is None:
        raise InputError(f"{folder}: no label in {' or '.join(tree.labels)}; {DOCUMENT}")
    lists = {part: folder / tree.lists / f"{part}.txt" for part in ("train", "val")}
    there = [path for path in lists.values() if path.is_file()]
    if len(there) == 1:
        raise InputError(f"{there[0].parent}: has {there[0].name} alone, expected train.txt and val.txt")
    folders = {"train": first_folder(images, TRAIN), "val": first_folder(images, VAL)}
    if not (folders["train"] and folders["val"]):
        folders = {}
    if folders or there:
        cut.refuse(folder)
    found: dict[str, list[Pair]] = {}
    for part in ("train", "val") if folders or there else ("all",):
        inside = folders.get(part) or images
        label_folder = labels / inside.name if inside != images and (labels / inside.name).is_dir() else labels
        pictures = by_name(inside, IMAGE_EXTENSIONS, problems)
        marks = by_name(label_folder, tree.extensions, problems)
        names: list[str] = sorted(pictures)
        if there:
            names = _listed(lists[part], pictures, inside, problems)
        elif label_folder != labels or not folders:
            alone = sorted(set(marks) - set(names))
            problems += [f"{marks[name]}: no image of that name in {inside}" for name in alone]
        found[part] = []
        for name in names:
            if name not in marks and not optional:
                problems.append(f"{pictures[name]}: no label of that name in {label_folder}")
            else:
                found[part].append(Pair(pictures[name], marks.get(name)))
    if "all" in found:
        return {"train": [], "val": found["all"]} if whole and not cut.asked else cut.apply(found["all"], folder)
    return without_shared(found, problems)


def without_shared(parts: dict[str, list[Imaged]], problems: list[str]) -> dict[str, list[Imaged]]:
    """The parts train and val of what has an `image`; one that is in both is only tested on."""
    both = {item.image for item in parts["train"]} & {item.image for item in parts["val"]}
    problems += [f"{image}: listed in both train and val, left out of train" for image in sorted(both)]
    return parts | {"train": [item for item in parts["train"] if item.image not in both]}


def by_name(folder: Path, extensions: Iterable[str], problems: list[str]) -> dict[str, Path]:
    """Files in `folder` and below by their path in it without extension. Of two of one name the first counts."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in extensions or path.name.startswith(".") or path.name == NAMES:
            continue
        if path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                problems.append(f"{path}: left out, as {found[name].name} has the same name")
            else:
                found[name] = path
    return found


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, stripped, without empty ones and comments (#). Raises `InputError`."""
    return [line for line in map(str.strip, read_text(path).splitlines()) if line and not line.startswith("#")]


def read_text(path: Path) -> str:
    """Raises `InputError`, one line with the path."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def check_numbers(kind: type = float, **values: Any) -> None:
    """Raise `InputError` for a value that is neither None nor a number, whole where `kind` is int."""
    for name, value in values.items():
        allowed = (int,) if kind is int else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
            raise InputError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}")


def check_set(folder: str | os.PathLike[str]) -> Path:
    """The folder, which must exist."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"{path}: {'a file, expected a folder' if path.exists() else 'no such folder'}")
    return path


def check_not_empty(folder: Path, parts: dict[str, list[R]], problems: Sequence[str], needed: Sequence[str]) -> None:
    """Raise `InputError` where a part has no image left, with the first of the problems."""
    for part in needed:
        if not parts[part]:
            why = f"; {len(problems)} left out, the first: {problems[0]}" if problems else ""
            raise InputError(f"{folder}: no usable image in the part {part}{why}")


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, from its header alone. Raises `InputError`."""
    try:
        with require("PIL.Image", "cli").open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= _FIRST_QUARTER_TURN
    except Exception:  # whatever a broken header leads to: the reader of images says it in one line, or copes
        return load_image(path).size
    return (height, width) if turned else (width, height)


def check_size(label: Path, size: tuple[int, int], image: Path) -> tuple[int, int]:
    """The (width, height) of the image, which must be `size`, its label's."""
    expected = image_size(image)
    if size != expected:
        own, other = (" x ".join(map(str, sides)) for sides in (size, expected))
        raise InputError(f"{label}: is {own}, but {image.name} is {other} upright")
    return expected


def check_each(check: Callable[[T], R], items: Sequence[T], problems: list[str]) -> list[R | None]:
    """`check` of each item, on all cores, in order; None and a line in `problems` where it raised `InputError`."""

    def guarded(item: T) -> R | InputError:
        try:
            return check(item)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        found = list(pool.map(guarded, items))
    problems += [str(result) for result in found if isinstance(result, InputError)]
    return [None if isinstance(result, InputError) else result for result in found]


def first_folder(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of the folders in `folder` that is there."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _first(folder: Path, names: Iterable[str], extensions: Iterable[str]) -> Path | None:
    for name in names:
        if any(path.suffix.lower() in extensions for path in (folder / name).rglob("*")):
            return folder / name
    return None


def _listed(path: Path, pictures: dict[str, Path], inside: Path, problems: list[str]) -> list[str]:
    """The names that a list gives: a name or a path, with or without extension, perhaps with that of the label behind
    it."""
    names: dict[str, None] = {}
    for line in read_lines(path):
        entries = [line, line.split()[0]]
        entries += [entry.rsplit(".", 1)[0] for entry in entries if Path(entry).suffix.lower() in IMAGE_EXTENSIONS]
        entries += [entry.rsplit("/", 1)[-1] for entry in entries]
        name = next((entry for entry in entries if entry in pictures), None)
        if name is None:
            problems.append(f"{path}: names {entries[1]}, of which there is no image in {inside}")
        else:
            names[name] = None
    return sorted(names)
