"""What became of every frame of a stream, and how long the features took: in constant memory, however long it runs."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import Result

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


class Quantiles:
    """Quantiles of times, to half a percent, and their exact largest: counts in logarithmic bins, of which there are
    at most a few thousand."""

    WIDTH = math.log(1.005)
    SMALLEST = 1e-7  # seconds; what is shorter counts as this

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._largest = 0.0

    def add(self, seconds: float) -> None:
        self._counts[math.ceil(math.log(max(seconds, self.SMALLEST)) / self.WIDTH)] += 1
        self._largest = max(self._largest, seconds)

    def quantile(self, q: float) -> float:
        """The smallest time, at most half a percent too long, that a part `q` of all do not exceed; at least one time
        must have been added."""
        wanted = max(1, math.ceil(q * self._counts.total() - 1e-9))
        for place in sorted(self._counts):
            wanted -= self._counts[place]
            if wanted <= 0:
                break
        return min(math.exp(place * self.WIDTH), self._largest)

    def milliseconds(self) -> dict[str, float] | None:
        """p50, p99, p99.9 and max, in milliseconds; None before the first time."""
        if not self._counts:
            return None
        values = {name: self.quantile(q) for name, q in QUANTILES.items()} | {"max": self._largest}
        return {name: round(1e3 * value, 3) for name, value in values.items()}


class Statistics:
    """The numbers of a `Stream`; read them at any time, from any thread.

    Every frame that came in was either delivered or dropped, by one of these causes: "overtaken" (by a newer one, with
    `latest`), "busy" (it came while one was waiting, with `drop_new`), "error" (its features could not be computed),
    "closed" (the stream was closed first), and those of the source, such as "corrupt".
    """

    def __init__(
        self, lock: threading.Condition, pending: Callable[[], int], policy: str, deadline: float | None, live: bool
    ):
        self._lock = lock
        self._pending = pending
        self._policy, self._deadline = policy, deadline
        self._live = live
        self._read = self._delivered = self._missed = 0
        self._drops: Counter[str] = Counter()
        self._times = {name: Quantiles() for name in ("age", "latency", "compute", "jitter")}
        self._first = self._last = 0.0  # when results were delivered
        self._last_age: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types.

        policy, deadline_ms: the stream's. in, delivered, dropped: frames, where in = delivered + dropped. pending:
        those that wait or are worked on, which `in` does not count yet. drops: the dropped ones by cause. missed:
        deliveries after the deadline. rate: deliveries a second. And in milliseconds p50, p99, p99.9 and max of:
        age_ms, from the capture to the reader; latency_ms, from the capture to the features; compute_ms, the session's
        part of it; jitter_ms, the change of the age from one delivery to the next (None where there are none). Of a
        source that is not live only compute_ms is there: its frames wait to be read, so the others mean nothing.
        """
        with self._lock:
            pending = self._pending()
            seconds = self._last - self._first
            return {
                "policy": self._policy,
                "deadline_ms": None if self._deadline is None else 1e3 * self._deadline,
                "in": self._read - pending,
                "delivered": self._delivered,
                "dropped": self._drops.total(),
                "pending": pending,
                "drops": dict(sorted(self._drops.items())),
                "missed": self._missed,
                "rate": round((self._delivered - 1) / seconds, 3) if seconds > 0 else None,
                **{
                    f"{name}_ms": times.milliseconds() if self._live or name == "compute" else None
                    for name, times in self._times.items()
                },
            }

    @property
    def dropped(self) -> int:
        """Frames that were dropped so far."""
        with self._lock:
            return self._drops.total()

    def as_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=1)

    def __repr__(self) -> str:
        numbers = self.as_dict()
        return f"Statistics(in={numbers['in']}, delivered={numbers['delivered']}, dropped={numbers['dropped']})"

    # What follows is told by the stream, which holds the lock.

    def _came(self, frames: int = 1) -> int:
        """That frames came in; returns the number of the last one, counted from 1."""
        self._read += frames
        return self._read

    def _dropped(self, cause: str, frames: int = 1) -> None:
        self._drops[cause] += frames

    def _delivers(self, result: Result, now: float) -> None:
        self._delivered += 1
        self._missed += result.missed_deadline
        self._last = now
        self._times["age"].add(result.age)
        self._times["latency"].add(result.latency)
        self._times["compute"].add(result.finished - result.started)
        if self._last_age is None:
            self._first = now
        else:
            self._times["jitter"].add(abs(result.age - self._last_age))
        self._last_age = result.age
