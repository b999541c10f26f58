"""Many runs from one TOML file; docs/evaluation.md has the format. What is wrong in it is one line with its place."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DvtError, InputError
from ...evaluation.tasks import task_called
from ...evaluation.variants import Variant, check_names, parse_variant
from ...extras import require
from ...vit import MINI
from .jobs import Job, is_path

_FILE = {"out": str, "vit": dict, "vits": dict, "variants": list, "tasks": list}
_VIT = {"name": str, "weights": str, "size": (int, list), "layer": int, "norm": bool, "stride": (int, list)}
_VIT |= {"mean": list, "std": list, "seed": int, "device": str}
_VARIANT = {"name": str, "kind": str, "file": str, "views": (str, int), "seed": int, "options": dict, "part": str}
_VARIANT |= {"vits": list}
_TASK = {"task": str, "name": str, "data": (str, list), "layout": str, "read": dict, "quick": bool, "seeds": int}
_TASK |= {"settings": dict, "variants": list, "vits": list, "train_images": int, "val_images": int}


def read_config(
    path: Path,
    roots: Sequence[Path] = (),
    *,
    quick: bool = False,
    device: str | None = None,
    only: Sequence[str] = (),
) -> tuple[list[Job], Path]:
    """The runs that a file asks for, and the folder for their results.

    roots: where relative paths are looked for, one after the other, and then beside the file. quick: the quick recipe
    for all. device: instead of the file's. only: runs by TASK-NAME; all where empty. Raises `InputError` naming the
    place in the file.
    """
    found = _parsed(path)
    folders = [*roots, path.parent]
    _check(found, _FILE, str(path))
    if "vit" in found and "vits" in found:
        raise InputError(f"{path}: either [vit], for one ViT, or [vits.NAME], for several")
    vits = found.get("vits") or {"": found.get("vit") or {}}
    options = {name: _vit(vit, folders, device, f"{path}: vits.{name}" if name else f"{path}: vit")
               for name, vit in vits.items()}  # fmt: skip
    variants = [
        _variant(entry, folders, list(vits), f"{path}: variants[{index}]")
        for index, entry in enumerate(found.get("variants") or [])
    ]
    jobs = [
        job
        for index, task in enumerate(found.get("tasks") or [])
        for job in _jobs(task, options, variants, folders, quick, f"{path}: tasks[{index}]")
    ]
    if not jobs:
        raise InputError(f"{path}: no [[tasks]] in it")
    if only:
        known = {f"{job.task.name}-{job.name or ''}{job.suffix}": job for job in jobs}
        unknown = [name for name in only if name not in known]
        if unknown:
            raise InputError(f"{path}: no run {unknown[0]!r}; there are {', '.join(known)}")
        jobs = [known[name] for name in known if name in only]
    return jobs, path.parent / found["out"] if "out" in found else Path("eval")


def _parsed(path: Path) -> dict[str, Any]:
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli", "eval")
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # TOML's errors and text that is no UTF-8
        raise InputError(f"{path}: not readable as TOML: {' '.join(str(error).split())}") from None


def _vit(found: Any, folders: Sequence[Path], device: str | None, place: str) -> dict[str, Any]:
    _check(found, _VIT, place)
    options: dict[str, Any] = {"name": MINI} | {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
    if "weights" in options and is_path(options["weights"]):
        options["weights"] = str(_located(options["weights"], folders, place))
    return options | ({"device": device} if device else {})


def _variant(found: Any, folders: Sequence[Path], vits: Sequence[str], place: str) -> tuple[Variant, list[str]]:
    """A variant, and for which ViTs it is."""
    try:
        if isinstance(found, str):
            return _with_file(found, folders, place), list(vits)
        _check(found, _VARIANT, place)
        values = {key: value for key, value in found.items() if key != "vits"}
        if "kind" not in values:
            raise InputError("kind is missing")
        if "file" in values and is_path(values["file"]):
            values["file"] = str(_located(values["file"], folders, place))
        values.setdefault("name", values["kind"])
        return Variant(**values), _subset(found.get("vits"), vits, "vits")
    except DvtError as error:
        raise _placed(error, place) from None


def _with_file(text: str, folders: Sequence[Path], place: str) -> Variant:
    """A variant as the command line has it, its file looked for."""
    head, comma, rest = text.partition(",")
    start, colon, file = head.partition(":")
    if colon and is_path(file):
        file = str(_located(file, folders, place))
    variant = parse_variant(f"{start}{colon}{file}{comma}{rest}")
    return variant


def _jobs(
    found: Any,
    vits: Mapping[str, dict[str, Any]],
    variants: Sequence[tuple[Variant, list[str]]],
    folders: Sequence[Path],
    quick: bool,
    place: str,
) -> list[Job]:
    """The runs of one entry of [[tasks]], one a ViT."""
    _check(found, _TASK, place)
    for key in ("task", "data"):
        if key not in found:
            raise InputError(f"{place}: {key} is missing")
    try:
        task = task_called(found["task"])
        names = [variant.name for variant, _ in variants]
        chosen = _subset(found.get("variants"), list(dict.fromkeys(names)), "variants")
        paths = found["data"] if isinstance(found["data"], list) else [found["data"]]
        located = [_located(str(name), folders, place) for name in paths]
        jobs = []
        for name in _subset(found.get("vits"), list(vits), "vits"):
            own = [variant for variant, of in variants if name in of and variant.name in chosen]
            job = Job(task, located, vits[name], check_names(own) if variants else None)
            for key in ("layout", "read", "train_images", "val_images", "quick", "seeds", "settings"):
                if key in found:
                    setattr(job, key, found[key])
            job = dataclasses.replace(job, name=found.get("name") or _own_name(located), quick=job.quick or quick)
            job.suffix = f"-{name}" if name else ""
            jobs.append(job)
    except DvtError as error:
        raise _placed(error, place) from None
    return jobs


def _own_name(paths: Sequence[Path]) -> str | None:
    from ...evaluation.store import name_for

    return name_for(paths[0].resolve().name) if len(paths) == 1 and paths[0].is_dir() else None


def _located(name: str, folders: Sequence[Path], place: str) -> Path:
    """A path as it is, or relative to the first of the folders that has it; a glob pattern to the first where it finds
    something."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return path
    for folder in folders:
        if (folder / path).exists() or any(folder.glob(name)):
            return folder / path
    raise InputError(f"{place}: {name}: not in {' or '.join(str(folder) for folder in folders)}")


def _subset(wanted: Sequence[str] | None, known: Sequence[str], what: str) -> list[str]:
    for name in wanted or ():
        if name not in known:
            there = f"expected some of {', '.join(known)}" if any(known) else f"the file itself names no {what}"
            raise InputError(f"{what}: unknown name {name!r}; {there}")
    return list(known) if wanted is None else [name for name in known if name in wanted]


def _check(found: Any, known: Mapping[str, Any], place: str) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{place}: expected a table, got {found!r}")
    for key, value in found.items():
        if key not in known:
            raise InputError(f"{place}: unknown key {key!r}; expected one of {', '.join(known)}")
        kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
        if type(value) not in kinds:
            raise InputError(f"{place}: {key} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")


def _placed(error: DvtError, place: str) -> InputError:
    text = str(error)
    return InputError(text if text.startswith(place) else f"{place}: {text}")
