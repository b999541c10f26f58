"""Sources and sessions for tests of streams, which do what a test tells them when it tells them."""

import queue
import threading
import time
from collections import Counter

import numpy as np

from dvt_fast.stream import Frame

PATIENCE = 20.0  # seconds until a test gives up on something that ought to come at once


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.001)


def make_image(value: int, h: int = 8, w: int = 12) -> np.ndarray:
    return np.full((h, w, 3), value % 256, np.uint8)


class FakeSession:
    """Features are the image's mean, raw ones half of it. It may wait for `go`, once a frame, and fail."""

    input, batch, grid, dim = "image", 1, (2, 3), 4

    def __init__(self, gated: bool = False):
        self.go = threading.Semaphore(0) if gated else None
        self.started = 0
        self.failures: dict[int, BaseException] = {}  # by the image's value

    def run(self, x, out=None, stream=None, *, raw=None):
        self.started += 1
        if self.go is not None:
            assert self.go.acquire(timeout=PATIENCE)
        value = int(x[0, 0, 0])
        if value in self.failures:
            raise self.failures[value]
        out = np.empty((*self.grid, self.dim), np.float32) if out is None else out
        out[:] = x.mean()
        if raw is not None:
            raw[:] = x.mean() / 2
        return out


class FakeSource:
    """Gives what a test puts in: an image's value, an exception to raise, None for the end. `read` waits for it.

    deaf: `close` does not wake a `read` that waits, as with a driver that hangs.
    """

    frames = None

    def __init__(self, *items, live: bool = True, deaf: bool = False):
        self.live, self.deaf = live, deaf
        self.lost: Counter[str] = Counter()
        self.items: queue.Queue = queue.Queue()
        self.count = self.reads = self.closes = 0
        for item in items:
            self.put(item)

    def put(self, item) -> None:
        self.items.put(item)

    def read(self) -> Frame | None:
        self.reads += 1
        item = self.items.get()
        if isinstance(item, str):  # a frame lost by this cause
            self.lost[item] += 1
            self.count += 1
            return self.read()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return None
        self.count += 1
        return Frame(self.count - 1, make_image(item), time.monotonic(), stamp=item / 10, meta={"value": item})

    def close(self) -> None:
        self.closes += 1
        if not self.deaf:
            self.put(None)


def check_balance(stream, came: int | None = None) -> dict:
    """That every frame was delivered or dropped; came: how many the source gave or lost."""
    numbers = stream.stats.as_dict()
    assert numbers["in"] == numbers["delivered"] + numbers["dropped"]
    assert numbers["dropped"] == sum(numbers["drops"].values())
    if came is not None:
        assert (numbers["in"], numbers["pending"]) == (came, 0)
    return numbers
