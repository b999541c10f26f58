"""Options from keywords: their names, kinds and ranges, with one clear line for each thing that can be wrong.

A set of options is a frozen dataclass derived from `Options`, each field made by `option` with a reader: a function of
(name, value) that returns the value in its proper type, or raises `InputError`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from .errors import InputError

Reader = Callable[[str, Any], Any]
Parsed = TypeVar("Parsed", bound="Options")

MAX_NODES = 2**24  # of a bilinear grid: more is a mistake, found here rather than by running out of memory


def option(default: Any, read: Reader) -> Any:
    """A field of `Options`; where the default is None, None may be given too."""
    return dataclasses.field(default=default, metadata={"read": read})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of a solver's options; `solver` is its name in messages."""

    solver: ClassVar[str]

    @classmethod
    def parse(cls: type[Parsed], options: Mapping[str, Any]) -> Parsed:
        """Options from keywords. `InputError` for an unknown one, which names those there are, or for a value of
        another kind or out of range."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        read = {}
        for name, value in options.items():
            if name not in known:
                names = f"one of {', '.join(known)}" if len(known) > 1 else "".join(known)
                raise InputError(f"unknown option {name!r} of solver {cls.solver!r}; expected {names}")
            optional = value is None and known[name].default is None
            read[name] = None if optional else known[name].metadata["read"](name, value)
        parsed = cls(**read)
        parsed.check()
        return parsed

    def check(self) -> None:
        """Raise `InputError` where options do not go together."""


def parse_values(texts: Iterable[str] | None, what: str) -> dict[str, Any]:
    """NAME=VALUE texts as a dict, their values JSON where they parse as such. what: they are, in messages."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{what}: expected NAME=VALUE, got {text!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def whole(low: int, high: int) -> Reader:
    """A whole number from low to high."""

    def read(name: str, value: Any) -> int:
        if not _is_whole(value) or not low <= value <= high:
            raise InputError(f"{name} must be a whole number of at least {low} and at most {high}, got {_shown(value)}")
        return int(value)

    return read


def number(fits: Callable[[float], bool], expected: str) -> Reader:
    """A finite number for which `fits`; expected: as in "lr must be positive"."""

    def read(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputError(f"{name} must be a number, got {_shown(value)}")
        try:
            x = float(value)
        except OverflowError:
            x = math.inf
        if not fits(x):  # also NaN, for which no comparison holds
            raise InputError(f"{name} must {expected}, got {x}")
        if not math.isfinite(x):
            raise InputError(f"{name} must be finite, got {x}")
        return x

    return read


positive = number(lambda x: x > 0, "be positive")
not_negative = number(lambda x: x >= 0, "not be negative")
seed = whole(0, 2**64 - 1)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {_shown(value)}")
    return value


def choice(*names: Any) -> Reader:
    """One of a few values."""

    def read(name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (str, numbers.Integral)) or value not in names:
            *first, last = (repr(n) for n in names)
            raise InputError(f"{name} must be {', '.join(first)} or {last}, got {_shown(value)}")
        return value

    return read


def grid(name: str, value: Any) -> tuple[int, int]:
    """Nodes of a grid, (Ry, Rx), from a whole number or a pair."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(_is_whole(n) and n >= 2 for n in pair):
        raise InputError(f"{name} must be at least 2 nodes a side, a whole number or a pair, got {_shown(value)}")
    if pair[0] * pair[1] > MAX_NODES:
        raise InputError(f"{name} must have at most {MAX_NODES} nodes, got {_shown(value)}")
    return int(pair[0]), int(pair[1])


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value in one line of reasonable length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
