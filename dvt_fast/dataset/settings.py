"""What the pairs of a dataset depend on, as `dataset.json` has it: all of it equal, or the dataset is another one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import InputError
from ..stage1 import parse_options
from ..views import PLANS, plan_boxes
from .pairs import DTYPES, KEPT
from .store import Store

if TYPE_CHECKING:
    from ..views import Plan
    from ..vit import ViT

FILE = "dataset.json"
FORMAT, VERSION = "dvt_fast.dataset", 1
COORDS = ("center", "official")


def make_settings(
    vit: ViT, *, views: Plan, coords: str, solver: str, options: Mapping[str, Any], seed: int, keep: str, dtype: str
) -> dict[str, Any]:
    """The settings as plain JSON types. The plan is written out as tiles and every option with its value, so that a
    default that changes makes another dataset; a known artifact map is there by the hash of its values."""
    plan_boxes(views, seed)  # what is no plan is said here
    for name, value, allowed in (("keep", keep, KEPT), ("dtype", dtype, DTYPES), ("coords", coords, COORDS)):
        if value not in allowed:
            raise InputError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
    if solver == "hashgrid":
        options = {**options, "seed": seed}  # as `decompose` has it
    return {
        "vit": vit.describe(),
        "views": _written_out(views),
        "coords": coords,
        "solver": solver,
        "options": {name: _plain(value) for name, value in dataclasses.asdict(parse_options(solver, options)).items()},
        "seed": seed,
        "keep": keep,
        "dtype": dtype,
    }


def digest(settings: Mapping[str, Any]) -> str:
    """16 hex digits that stand for the settings."""
    return hashlib.sha256(json.dumps(_flat(settings), sort_keys=True).encode()).hexdigest()[:16]


def to_bytes(settings: Mapping[str, Any], vit_options: Mapping[str, Any]) -> bytes:
    """The content of `dataset.json`. vit_options: the keyword arguments that make the ViT again."""
    content = {"format": FORMAT, "version": VERSION, "made_by": f"dvt_fast {__version__}", "hash": digest(settings)}
    return (json.dumps({**content, "settings": settings, "vit_options": vit_options}, indent=1) + "\n").encode()


def read(store: Store) -> dict[str, Any] | None:
    """The content of `dataset.json`, or None where there is none; `InputError` for one that cannot be used."""
    data = store.read_or_none(FILE)
    if data is None:
        return None
    where = store.locate(FILE)
    try:
        content = json.loads(data)
        made, version = content["format"], content["version"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}: not a {FORMAT} file") from None
    check_version(where, made, version, FORMAT, VERSION)
    if not (isinstance(content.get("settings"), dict) and isinstance(content.get("vit_options"), dict)):
        raise InputError(f"{where}: lacks 'settings' or 'vit_options'")
    return content


def check_version(where: str, made: Any, version: Any, format: str, expected: int) -> None:
    """`InputError` for another format, or another version of it."""
    if made != format:
        raise InputError(f"{where}: not a {format} file, but {made!r}")
    if version != expected:
        newer = isinstance(version, int) and version > expected
        hint = ": it is newer than this dvt_fast, which must be updated to read it" if newer else ""
        raise InputError(f"{where}: {format} version {version}, expected version {expected}{hint}")


def refuse_others(where: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """`InputError` naming each setting in which a dataset differs from those asked for, with both values."""
    made, wanted = _flat(there), _flat(here)
    differing = [name for name in {**made, **wanted} if made.get(name) != wanted.get(name)]
    if differing:
        each = (f"{name} is {_shown(name, made)} there and {_shown(name, wanted)} here" for name in differing)
        raise InputError(f"{where}: made with other settings: {'; '.join(each)}: ask for the same, or another folder")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One name a setting: "vit.layer", "options.passes". The name of the weights says less than their fingerprint."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": part for inner, part in value.items()}
        else:
            flat[name] = value
    if flat.get("vit.fingerprint"):
        flat.pop("vit.weights", None)
    return flat


def _shown(name: str, flat: Mapping[str, Any]) -> str:
    if name not in flat:
        return "absent"
    value = flat[name]
    if name == "views":
        value = next((plan for plan in PLANS if _written_out(plan) == value), value)
    return json.dumps(value)


def _written_out(plan: Plan) -> int | list[list[int | float]]:
    """A plan as a number of crops, or as levels of (columns, rows, width, height)."""
    found = PLANS[plan] if isinstance(plan, str) else plan
    if isinstance(found, (int, np.integer)):
        return int(found)
    levels = [level if len(level) == 4 else (level[0], level[0], level[1], level[1]) for level in found]
    return [[int(level[0]), int(level[1]), float(level[2]), float(level[3])] for level in levels]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"sha256 {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    return list(value) if isinstance(value, tuple) else value
