"""Names of classes: given, or read from the files that people keep beside their labels."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...extras import require
from .folders import NAMES, read_lines, read_text

Classes = str | os.PathLike[str] | Mapping[int, str] | Sequence[str]

FILES = (NAMES, "classes.json", "data.yaml", "data.yml", "objectInfo150.txt")
_NUMBERED = re.compile(r"(\d+)(?:[\s,:;]+(\S.*))?$")
_VOID = re.compile(r"(unlabell?ed|void|ignored?)\b", re.IGNORECASE)


def is_void(name: str) -> bool:
    """Whether pixels of a class of that name do not count: 'Unlabelled (ignore)', 'void', ..."""
    return _VOID.match(name.strip()) is not None


def class_names(given: Classes | None, folder: Path, kind: str, first: int = 0) -> dict[int, str] | None:
    """Names by value: those given, or those of the first of `FILES` in the folder; None where there is no such file.

    given: a mapping, names in order, or a file in the folder or elsewhere. kind: "mask" or "box", which chooses from a
    JSON file that has several sets. first: the value of the first of names without numbers. Raises `InputError`.
    """
    if given is None:
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        return None if path is None else _from_file(path, kind, first)
    if isinstance(given, (str, os.PathLike)):
        path = folder / given
        return _from_file(path if path.is_file() else Path(given).expanduser(), kind, first)
    return _checked(given, "classes", first)


def _from_file(path: Path, kind: str, first: int) -> dict[int, str]:
    if path.suffix.lower() == ".txt":
        return _from_text(path, first)
    text = read_text(path)
    try:
        content = json.loads(text) if path.suffix.lower() == ".json" else require("yaml", "eval").safe_load(text)
    except Exception as error:  # each parser has its own
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(content, dict) and any(isinstance(value, (dict, list)) for value in content.values()):
        keys = [key for key in map(str, content) if key in ("names", "classes") or kind in key]
        if not keys:
            raise InputError(f"{path}: no names found; expected a key 'names', 'classes' or one with '{kind}' in it")
        content = content[keys[0]]
    return _checked(content, str(path), first)


def _from_text(path: Path, first: int) -> dict[int, str]:
    lines = read_lines(path)
    numbered = [_NUMBERED.match(line) for line in lines]
    if len(lines) > 1 and numbered[0] is None and all(numbered[1:]):  # a line over the columns
        lines, numbered = lines[1:], numbered[1:]
    if not all(numbered):
        return _checked(lines, str(path), first)
    found: dict[int, str] = {}
    for line, match in zip(lines, numbered):
        assert match is not None
        value, name = int(match[1]), (match[2] or "").split("\t")[-1].strip()
        if not name or value in found:
            raise InputError(f"{path}: {line!r}: expected a number that is there once, and a name")
        found[value] = name
    return _checked(found, str(path), first)


def _checked(content: Any, where: str, first: int) -> dict[int, str]:
    """Names by value from a list of names, or from a mapping one way or the other."""
    if isinstance(content, Mapping):
        items = list(content.items())
        if items and all(isinstance(value, int) for _, value in items):
            items = [(value, key) for key, value in items]
    elif isinstance(content, Sequence) and not isinstance(content, str):
        items = list(enumerate(content, first))
    else:
        items = []
    try:
        found = {int(value): str(name).strip() for value, name in items if isinstance(name, (str, int))}
    except (TypeError, ValueError):
        found = {}
    if not found or len(found) < len(items) or not 0 <= min(found) <= max(found) < 1 << 16:
        raise InputError(f"{where}: expected names of classes, or values from 0 to 65535 with their names")
    return dict(sorted(found.items()))
