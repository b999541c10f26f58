"""What a task found for one variant: scores with intervals, details, and pictures to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image as PILImage

LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class Score:
    """A number and how sure it is.

    low, high: a 95 % interval; None where there is none. seeds: the value with each seed, where there are several; the
    value is then their mean. higher: whether more is better; None where neither is.
    """

    value: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()
    higher: bool | None = True

    def as_dict(self) -> dict[str, Any]:
        """As JSON types; NaN, which JSON has not, is None."""
        clean = [None if v is None or not np.isfinite(v) else float(v) for v in (self.value, self.low, self.high)]
        found: dict[str, Any] = {"value": clean[0], "low": clean[1], "high": clean[2], "higher": self.higher}
        return found | ({"seeds": [float(v) for v in self.seeds]} if self.seeds else {})


@dataclass(frozen=True)
class Outcome:
    """scores: by name ("mIoU"). details: JSON types (IoU of each class). pictures: by a name fit for a file."""

    scores: dict[str, Score]
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, PILImage.Image] = field(default_factory=dict)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    items: int,
    *,
    draws: int = 1000,
    seed: int = 0,
    seeds: Sequence[float] = (),
    higher: bool | None = True,
) -> Score:
    """A statistic of `items` test items (images, say), with the percentile interval over resampled items.

    statistic: of indices into the items, an int array; of all of them in order it is the value. Where it is NaN for a
    draw (no item of a class is in it, say) the draw does not count. seeds: see `Score`; where several heads were
    trained, the statistic is the mean over them, so that the interval is of that mean.
    """
    value = float(statistic(np.arange(items)))
    if items < 2:  # which all draws would repeat
        return Score(value, seeds=tuple(float(v) for v in seeds), higher=higher)
    random = np.random.default_rng(seed)
    found = np.array([statistic(random.integers(0, items, items)) for _ in range(draws)], np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return Score(value, seeds=tuple(seeds), higher=higher)
    low, high = (float(q) for q in np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))
    return Score(value, low, high, tuple(float(v) for v in seeds), higher)
