"""Results on disk: a JSON file for each run, a task on some data with some settings, and its pictures beside it.

A row of it holds what one variant scored, under a key made of all that the scores depend on. So a run that was stopped
goes on where it was, and one whose data, ViT or settings have changed since starts anew.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .. import __version__, machine
from ..errors import InputError
from ..files import check_folder, write_together
from .outcome import Outcome
from .variants import Variant

FORMAT, VERSION = "dvt_fast.evaluation", 1
PANELS = "panels"
ASKED = ("data", "vit", "settings")  # what all rows of a file share; with others they are other results
MADE = ("machine", "dvt_fast", "commit")
_FIELDS = {"task": str, "name": str, "data": dict, "vit": dict, "settings": dict, "machine": dict, "dvt_fast": str}
_FIELDS |= {"problems": list, "rows": list}
_ROW = {"key": str, "variant": dict, "scores": dict, "details": dict, "pictures": list, "date": str}


class Store:
    """The file `out/<task>-<name>.json` while its rows are made.

    data: see `data.describe`. vit: `ViT.describe()`; vit_key: what stands for it in keys. settings: JSON types.
    again: rows that are there are made again. say: told, in one line, when rows are dropped because data, ViT or
    settings are others now: the file is then for the new ones alone, from the first row that is made.
    Raises `InputError` (a name that no file can have, a file of another kind) and `OutputError`.
    """

    def __init__(
        self,
        out: Path,
        task: str,
        name: str,
        *,
        data: Mapping[str, Any],
        vit: Mapping[str, Any],
        vit_key: str,
        settings: Mapping[str, Any],
        again: bool = False,
        say: Callable[[str], None] | None = None,
    ):
        self.folder = check_folder(out)
        self.path = self.folder / f"{task}-{check_name(name)}.json"
        self._vit_key, self._again = vit_key, again
        self.document: dict[str, Any] = {"format": FORMAT, "version": VERSION, "task": task, "name": name}
        self.document |= as_json({"data": data, "vit": vit, "settings": settings})
        self.document |= {"machine": machine.describe(), "dvt_fast": __version__, "commit": machine.commit()}
        self.document |= {"problems": [], "rows": []}
        self._made: set[str] = set()
        if self.path.exists():
            self._take_over(read(self.path), say)

    def has(self, variant: Variant) -> bool:
        """Whether the row of `variant` need not be made."""
        if self._again and variant.name not in self._made:
            return False
        return any(row["variant"]["name"] == variant.name and row["key"] == self.key(variant) for row in self.rows)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.document["rows"]

    def key(self, variant: Variant) -> str:
        """16 hex digits for all that the scores of `variant` depend on."""
        parts = [self.document["task"], self.document["data"]["digest"], self._vit_key, self.document["settings"]]
        return hashlib.sha256(json.dumps([*parts, variant.key], sort_keys=True).encode()).hexdigest()[:16]

    def add(self, variant: Variant, outcome: Outcome, seconds: float) -> None:
        """Write the row of `variant`, in place of one of that name, and its pictures."""
        key = self.key(variant)
        stem, own = self.path.stem, f"{_fit(variant.name)}-{key[:8]}"
        pictures = {f"{PANELS}/{stem}/{own}/{_fit(name)}.webp": picture for name, picture in outcome.pictures.items()}
        row = {
            "key": key,
            "variant": variant.as_dict(),
            "scores": {name: score.as_dict() for name, score in outcome.scores.items()},
            "details": as_json(outcome.details),
            "pictures": list(pictures),
            "seconds": round(seconds, 3),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        self._made.add(variant.name)
        names = [old["variant"]["name"] for old in self.rows]
        if variant.name in names:
            self.rows[names.index(variant.name)] = row
        else:
            self.rows.append(row)
        if pictures:
            check_folder(self.folder / PANELS / stem / own)
        self.save({self.folder / name: _webp(picture) for name, picture in pictures.items()})
        self._remove_old_pictures()

    def save(self, others: Mapping[Path, bytes] | None = None) -> None:
        """Write the file, with others that belong to it."""
        files: dict[Any, bytes] = dict(others or {})
        text = json.dumps(self.document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_together(files | {self.path: text.encode()})

    def _take_over(self, old: dict[str, Any], say: Callable[[str], None] | None) -> None:
        """Keep the rows of the file that is there, where they are of the same data, ViT and settings."""
        changed = differences(old, self.document)
        if not changed:
            self.document["rows"], self.document["problems"] = old["rows"], old["problems"]
            made = {name: old.get(name) for name in MADE}
            for row in self.rows:
                if made != {name: self.document[name] for name in MADE}:
                    row.setdefault("made", made)
        elif old["rows"] and say:
            rows = f"{len(old['rows'])} row{'s' if len(old['rows']) > 1 else ''}"
            say(f"{self.path}: not the same any more, so its {rows} will be replaced: {'; '.join(changed)}")

    def _remove_old_pictures(self) -> None:
        folder = self.folder / PANELS / self.path.stem
        wanted = {PurePosixPath(name).parts[2] for row in self.rows for name in row["pictures"]}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)


def read(path: Path) -> dict[str, Any]:
    """A file of results. Raises `InputError`, one line with the path: absent, cut, of another kind or version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path}: not results of dvt-fast eval, whose format is {FORMAT!r}")
    if found.get("version") != VERSION:
        raise InputError(f"{path}: {FORMAT} version {found.get('version')}, expected version {VERSION}")
    _check(found, _FIELDS, str(path))
    for index, row in enumerate(found["rows"]):
        _check(row, _ROW, f"{path}: row {index}")
        if not isinstance(row["variant"].get("name"), str):
            raise InputError(f"{path}: row {index}: its variant has no name")
        for name, score in row["scores"].items():
            if not isinstance(score, dict) or not all(
                score.get(part) is None or _is_number(score[part]) for part in ("value", "low", "high")
            ):
                raise InputError(f"{path}: row {index}: score {name!r} is no number with an interval")
        for name in row["pictures"]:
            parts = PurePosixPath(str(name)).parts
            if len(parts) != 4 or parts[0] != PANELS or ".." in parts:
                raise InputError(f"{path}: row {index}: a picture {name!r}, expected {PANELS}/RUN/VARIANT/NAME.webp")
    return found


def read_all(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The results of a folder by task and name, and a line for each file that should be one and cannot be read.

    JSON files of other kinds are passed over. Raises `InputError` where there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: {'a file, expected a folder' if folder.exists() else 'no such folder'}")
    found, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(read(path))
        except InputError as error:
            if "not results of dvt-fast eval" not in str(error):
                problems.append(str(error))
    return found, problems


def differences(old: Mapping[str, Any], new: Mapping[str, Any], parts: tuple[str, ...] = ASKED) -> list[str]:
    """How the data, ViT and settings of two files of results differ: "settings: iterations 40000, now 2000"."""
    found = []
    for part in parts:
        for name in {**old[part], **new[part]}:
            before, now = old[part].get(name), new[part].get(name)
            # Weights are told apart by their fingerprint, wherever they lie, and data by their digest.
            if before != now and (part, name) not in (("vit", "weights"), ("data", "name")):
                shown = [json.dumps(v, ensure_ascii=False) for v in (before, now)]
                both = f" {shown[0]}, now {shown[1]}" if max(map(len, shown)) <= 40 else ""
                found.append(f"{part}: {name}{both or ' differs'}")
    return found


def as_json(value: Any) -> Any:
    """`value` with JSON types: NumPy's numbers and arrays as Python's, and None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, Path):
        return value.name  # where it lies is no matter of others
    return value


def check_name(name: str) -> str:
    """`name`, which a file can have: letters, digits, and . _ - between them; `InputError` otherwise."""
    if not re.fullmatch(r"\w([\w.-]{0,98}\w)?", name):
        raise InputError(f"the name of a run is letters, digits and . _ - between them, got {name!r}")
    return name


def name_for(text: str) -> str:
    """A name of a run like `text`."""
    return _fit(text)


def _fit(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:80].strip("-.") or "x"


def _webp(picture: Any) -> bytes:
    """Much smaller than a PNG of a photo: a report holds hundreds of these, and is mailed."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=90)
    return file.getvalue()


def _check(found: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected an object, got {type(found).__name__}")
    for name, kind in fields.items():
        if not isinstance(found.get(name), kind):
            raise InputError(f"{where}: {name} is {'missing' if name not in found else 'of another type'}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
