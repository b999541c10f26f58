"""Horizontal bars with intervals, as SVG that takes its colours from the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, ROW, TOP, FOOT = 460, 26, 8, 24  # of a chart, of a bar and its space, above the first, below the last
NAMES, VALUES, THICK = 132, 56, 12  # at the left, at the right, of a bar


@dataclass(frozen=True)
class Bar:
    """name: whose. value: None where there is none. low, high: the interval. kind: "control" is drawn hollow, "base"
    (raw features) fainter, both to compare with."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = ""


def bars(title: str, found: Sequence[Bar]) -> str:
    """An SVG picture of the values from 0 on, and a text of it for those who do not see it."""
    ends = [x for bar in found for x in (bar.value, bar.low, bar.high) if x is not None]
    low, high = min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)
    if low == high:
        high = 1.0
    steps = ticks(low, high)
    low, high = min(low, steps[0]), max(high, steps[-1])
    span = WIDTH - NAMES - VALUES

    def at(value: float) -> float:
        return round(NAMES + (value - low) / (high - low) * span, 1)

    bottom = TOP + ROW * len(found)
    height = bottom + FOOT
    parts = []
    for step in steps:
        parts.append(f'<line class="{"zero" if step == 0 else "tick"}" x1="{at(step)}" x2="{at(step)}" y1="{TOP}" '
                     f'y2="{bottom + 4}"/>')  # fmt: skip
        parts.append(f'<text class="scale" x="{at(step)}" y="{bottom + 18}" text-anchor="middle">{step:g}</text>')
    for index, bar in enumerate(found):
        y = TOP + ROW * index
        middle = y + ROW / 2
        parts.append(f'<text x="{NAMES - 10}" y="{middle + 4}" text-anchor="end">{escape(_cut(bar.name))}</text>')
        if bar.value is None:
            parts.append(f'<text class="scale" x="{at(0) + 6}" y="{middle + 4}">none</text>')
            continue
        left, right = sorted((at(0), at(bar.value)))
        parts.append(f'<rect class="bar {escape(bar.kind)}" x="{left}" y="{middle - THICK / 2}" '
                     f'width="{max(right - left, 0.5):.1f}" height="{THICK}" rx="2"/>')  # fmt: skip
        if bar.low is not None and bar.high is not None:
            a, b = at(bar.low), at(bar.high)
            ends_at = "".join(f"M{x} {middle - 4}V{middle + 4}" for x in (a, b))
            parts.append(f'<path class="whisker" d="M{a} {middle}H{b}{ends_at}"/>')
        parts.append(
            f'<text class="number" x="{WIDTH - 4}" y="{middle + 4}" text-anchor="end">{short(bar.value)}</text>'
        )
    told = "; ".join(f"{bar.name} {text(bar.value, bar.low, bar.high)}" for bar in found)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(f"{title}: {told}")}">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, three to six, from at most `low` to nearly `high`, with 0 among them where it is between."""
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    return [round(i * step, 12) for i in range(math.floor(low / step), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few signs: three places for what is around 1, three digits for what is larger or much smaller."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 5e-4:
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def text(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval: "0.514 (0.498 to 0.530)"."""
    if value is None:
        return "none"
    return short(value) + (f" ({short(low)} to {short(high)})" if low is not None and high is not None else "")


def _cut(name: str, signs: int = 20) -> str:
    return name if len(name) <= signs else f"{name[: signs - 1]}…"
