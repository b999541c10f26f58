"""Files of boxes: COCO's JSON, VOC's XML, YOLO's text."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ...errors import InputError
from ...images import IMAGE_EXTENSIONS
from .folders import TRAIN, VAL, Cut, Pair, first_folder, read_text, without_shared

Edges = tuple[float, float, float, float]


class Object(NamedTuple):
    """where: the file, and the line or number in it. key: the class, as a name or a number. edges: (left, top, right,
    bottom), in pixels or in units of the image."""

    where: str
    key: int | str
    edges: Edges


@dataclass
class Annotated:
    """What a file says of one image. size: (width, height), where it says. told: objects that could not be read."""

    image: Path
    label: Path
    objects: list[Object] = field(default_factory=list)
    size: tuple[int, int] | None = None
    relative: bool = False
    told: list[str] = field(default_factory=list)


def parse_yolo(pair: Pair) -> Annotated:
    """Lines "class x y width height", of the centre and the sides in units of the image. Raises `InputError`."""
    found = Annotated(pair.image, pair.label or pair.image, relative=True)
    for number, line in enumerate(read_text(pair.label).splitlines() if pair.label else (), 1):
        where = f"{pair.label} line {number}"
        words = line.split()
        if not words:
            continue
        try:
            x, y, w, h = map(float, words[1:])
            found.objects.append(Object(where, int(words[0]), (x - w / 2, y - h / 2, x + w / 2, y + h / 2)))
        except ValueError:
            found.told.append(f"{where}: expected class, x, y, width, height, got {line.strip()[:60]!r}")
    return found


def parse_voc(pair: Pair, difficult: bool = True) -> Annotated:
    """One XML file an image; pixels are counted from 1, and the last one belongs to the box. Raises `InputError`."""
    assert pair.label is not None
    text = read_text(pair.label)
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        what = f"not readable XML: {error}" if text else "the file is empty (0 bytes)"
        raise InputError(f"{pair.label}: {what}") from None
    found = Annotated(pair.image, pair.label)
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        raise InputError(f"{pair.label}: size: expected numbers of pixels") from None
    found.size = (width, height) if width and height else None  # some tools write no size, or 0
    for number, item in enumerate(root.iter("object"), 1):
        where = f"{pair.label} object {number}"
        if not difficult and (item.findtext("difficult") or "0").strip() == "1":
            continue
        name = (item.findtext("name") or "").strip()
        try:
            corners = (item.findtext(f"bndbox/{edge}") or "" for edge in ("xmin", "ymin", "xmax", "ymax"))
            left, top, right, bottom = map(float, corners)
        except ValueError:
            name = ""
        if name:
            found.objects.append(Object(where, name, (left - 1, top - 1, right, bottom)))
        else:
            found.told.append(f"{where}: expected a name, and xmin, ymin, xmax, ymax in a bndbox")
    return found


class Entry(NamedTuple):
    """One image of a COCO file, and what is annotated on it, as in the file."""

    path: Path
    image: Path
    content: dict[str, Any]
    annotations: list[dict[str, Any]]


def coco_parts(folder: Path, cut: Cut, problems: list[str]) -> tuple[dict[str, list[Entry]], dict[int, str]]:
    """The images of each part, and the names of the categories. One file with "train" in its name and one with "val"
    are the parts; a single file is cut. Raises `InputError`."""
    paths = sorted((folder / "annotations").glob("*.json"))
    paths = [path for path in paths if path.name.startswith("instances")] or paths
    parts = {part: [path for path in paths if part in path.name.lower()] for part in ("train", "val")}
    if len(paths) == 1:
        parts = {"all": paths}
    elif not (len(paths) == 2 and len(parts["train"]) == len(parts["val"]) == 1):
        listed = ", ".join(path.name for path in paths) or "none"
        raise InputError(
            f"{folder / 'annotations'}: expected one JSON file, or one for train and one for val: {listed}"
        )
    names: dict[int, str] = {}
    found: dict[str, list[Entry]] = {}
    files = _files(folder)
    for part, (path,) in parts.items():
        content = _read_coco(path)
        try:
            own = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: expected categories with an id and a name") from None
        if any(names.get(key, name) != name for key, name in own.items()):
            raise InputError(f"{path}: its categories have other names than those of {parts['train'][0].name}")
        names |= own
        found[part] = _entries(path, content, files, _inside(folder, part), problems)
    if "all" not in found:
        cut.refuse(folder)
        return without_shared(found, problems), names
    return (cut.apply(found["all"], folder) if cut.asked else {"train": [], "val": found["all"]}), names


def parse_coco(entry: Entry) -> Annotated:
    """Boxes (left, top, width, height) in pixels, without crowds. Raises `InputError`."""
    found = Annotated(entry.image, entry.path)
    width, height = entry.content.get("width"), entry.content.get("height")
    try:
        found.size = (int(width), int(height)) if width and height else None
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{entry.path}: {entry.image.name}: width and height: expected numbers of pixels") from None
    for item in entry.annotations:
        where = f"{entry.path} annotation {item.get('id', '?')}"
        if item.get("iscrowd"):
            continue
        try:
            left, top, w, h = map(float, item["bbox"])
            found.objects.append(Object(where, int(item["category_id"]), (left, top, left + w, top + h)))
        except (KeyError, TypeError, ValueError, OverflowError):
            found.told.append(f"{where}: expected a category_id and a bbox of four numbers")
    return found


def _read_coco(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        what = f"not readable JSON: {error}" if text else "the file is empty (0 bytes)"
        raise InputError(f"{path}: {what}") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise InputError(f"{path}: not a COCO file: expected lists of {', '.join(keys)}")
    return content


def _files(folder: Path) -> dict[str, Path]:
    """Images by path in the folder with the images, and by name where only one has that name."""
    root = folder / "images" if (folder / "images").is_dir() else folder
    paths = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_EXTENSIONS]
    names = defaultdict(list)
    for path in paths:
        names[path.name].append(path)
    return {name: same[0] for name, same in names.items() if len(same) == 1} | {
        path.relative_to(root).as_posix(): path for path in paths
    }


def _inside(folder: Path, part: str) -> str:
    """The folder of a part below that of the images: "train2017/"."""
    root = folder / "images" if (folder / "images").is_dir() else folder
    inside = first_folder(root, {"train": TRAIN, "val": VAL}.get(part, ()))
    return f"{inside.name}/" if inside else ""


def _entries(
    path: Path, content: dict[str, Any], files: dict[str, Path], inside: str, problems: list[str]
) -> list[Entry]:
    """Each image of the file that is there, sorted by name, with its annotations."""
    by_image = defaultdict(list)
    for item in content["annotations"]:
        if isinstance(item, dict) and isinstance(item.get("image_id"), (int, str)):
            by_image[item["image_id"]].append(item)
    found = {}
    for item in content["images"]:
        name = item.get("file_name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not isinstance(item.get("id"), (int, str)):
            problems.append(f"{path}: {str(item)[:60]}: expected an image with an id and a file_name")
            continue
        image = files.get(inside + name) or files.get(name) or files.get(Path(name).name)
        if image is None:
            problems.append(f"{path}: names {name}, of which there is no image")
        else:
            found[name] = Entry(path, image, item, by_image[item["id"]])
    return [found[name] for name in sorted(found)]
