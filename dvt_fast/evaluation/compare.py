"""Two files of results side by side: what differs in what was asked, and by how much each variant's scores do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .store import ASKED, differences


@dataclass(frozen=True)
class Difference:
    """One score of one variant: here, there, and here - there. low, high: of the difference; None without intervals.

    The 95 % interval takes the two runs as independent, and adds the squares of the distances from the values to the
    ends of their intervals. Of the same test images it is wider than it need be.
    """

    variant: str
    score: str
    higher: bool | None
    here: float | None
    there: float | None
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str:
        """Which is better, where the interval leaves out 0."""
        if self.low is None or self.high is None or self.higher is None or self.low <= 0 <= self.high:
            return ""
        return "better" if (self.low > 0) == self.higher else "worse"


def compare(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    """The scores that two files share, variant by variant by their names."""
    others = {row["variant"]["name"]: row for row in there["rows"]}
    found = []
    for row in here["rows"]:
        name = row["variant"]["name"]
        for score, ours in row["scores"].items():
            theirs = others.get(name, {}).get("scores", {}).get(score)
            if theirs is not None:
                found.append(_difference(name, score, ours, theirs))
    return found


def apart(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What is not the same in what was asked: lines such as "settings: iterations 4000, now 2000"; and variants of one
    name that are made in another way, or are in one file alone."""
    found = differences(there, here, ASKED)
    ours, theirs = ({row["variant"]["name"]: row["variant"] for row in file["rows"]} for file in (here, there))
    found += [f"variant {name} is made in another way" for name in ours if theirs.get(name, ours[name]) != ours[name]]
    for what, names in (("here", ours.keys() - theirs.keys()), ("there", theirs.keys() - ours.keys())):
        found += [f"variant {name} is {what} alone" for name in sorted(names)]
    return found


def best(scores: Sequence[Mapping[str, Any] | None], variants: Sequence[Mapping[str, Any]]) -> int | None:
    """Which one is best of several variants' scores, where its interval lies wholly on the better side of those of all
    others; None where that cannot be said, or where it is the control."""
    given = [(index, score) for index, score in enumerate(scores) if score and score.get("value") is not None]
    if len(given) < 2 or any(score.get("low") is None or score.get("high") is None for _, score in given):
        return None
    higher = given[0][1].get("higher")
    if higher is None:
        return None
    near, far = ("low", "high") if higher else ("high", "low")
    sign = 1 if higher else -1
    index, top = max(given, key=lambda pair: sign * pair[1]["value"])
    beaten = all(sign * top[near] > sign * score[far] for other, score in given if other != index)
    return index if beaten and variants[index].get("kind") != "coordinates" else None


def _difference(variant: str, score: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference:
    a, b = ours.get("value"), theirs.get("value")
    shared = (variant, score, ours.get("higher"), a, b)
    if a is None or b is None:
        return Difference(*shared)
    ends = [side.get(end) for side in (ours, theirs) for end in ("low", "high")]
    if None in ends:
        return Difference(*shared, a - b)
    low_a, high_a, low_b, high_b = ends
    return Difference(
        *shared, a - b, a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)
    )
