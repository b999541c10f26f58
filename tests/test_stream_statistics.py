"""The times of a stream in constant memory, and sources that have a pace or an end."""

import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from dvt_fast import Stream
from dvt_fast.errors import InputError
from dvt_fast.stream import Frame, Limited, Paced
from dvt_fast.stream.statistics import Quantiles
from stream_samples import PATIENCE, FakeSession, FakeSource, check_balance, make_image


def test_quantiles_are_those_of_all_values_to_half_a_percent():
    values = np.random.default_rng(0).lognormal(-4, 1.5, 50_000)
    quantiles = Quantiles()
    for value in values:
        quantiles.add(value)
    for q in (0, 0.01, 0.5, 0.99, 0.999, 1):
        exact = np.quantile(values, q, method="inverted_cdf")
        assert exact * (1 - 1e-9) <= quantiles.quantile(q) <= exact * 1.00501
    assert quantiles.milliseconds()["max"] == round(1e3 * values.max(), 3)
    assert len(quantiles._counts) < 5000


def test_quantiles_of_few_and_of_odd_values():
    quantiles = Quantiles()
    assert quantiles.milliseconds() is None
    quantiles.add(0.02)
    assert set(quantiles.milliseconds().values()) == {20.0}
    quantiles.add(0.0)
    quantiles.add(-1.0)  # a source whose clock is wrong
    assert quantiles.milliseconds()["p50"] <= 1e-4 and quantiles.milliseconds()["max"] == 20.0


class Clock:
    """A clock that only waiting moves; wait returns False, as that of an event that is not set."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


class Stamped:
    """A file with frames at given times, each of which takes a while to decode."""

    live = False
    lost = {}  # noqa: RUF012

    def __init__(self, clock, stamps, decode=0.0):
        self.clock, self.decode, self.frames = clock, decode, len(stamps)
        self.left = [Frame(i, make_image(i), 0.0, stamp) for i, stamp in enumerate(stamps)]

    def read(self):
        self.clock.now += self.decode
        return self.left.pop(0) if self.left else None

    def close(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


def replay(clock, source, rate=None):
    paced = Paced(source, rate)
    paced._closed = clock
    return [(frame.captured, clock.now) for frame in iter(paced.read, None)]


def test_a_replay_gives_each_frame_when_it_is_due(clock):
    stamps = [5.0, 5.1, 5.15, 6.0]  # of a variable rate
    times = replay(clock, Stamped(clock, stamps, decode=0.01))
    assert [captured for captured, _ in times] == pytest.approx([100.01, 100.11, 100.16, 101.01])
    assert [now for _, now in times] == pytest.approx([100.01, 100.11, 100.16, 101.01])
    times = replay(clock, Stamped(clock, stamps), rate=10)
    assert np.diff([captured for captured, _ in times]) == pytest.approx([0.1] * 3)


def test_a_replay_that_falls_behind_does_not_stop_the_clock(clock):
    times = replay(clock, Stamped(clock, [i / 10 for i in range(4)], decode=0.25))
    assert [captured for captured, _ in times] == pytest.approx([100.25, 100.35, 100.45, 100.55])
    assert [now for _, now in times] == pytest.approx([100.25, 100.5, 100.75, 1 + 100])


def test_a_replay_counts_from_its_first_frame_and_keeps_gaps(clock):
    source = Stamped(clock, [None] * 6)
    del source.left[:2], source.left[1]  # frames 0, 1 and 3 were lost
    assert [captured for captured, _ in replay(clock, source, rate=2)] == pytest.approx([100, 101, 101.5])


def test_a_replay_needs_times(clock):
    with pytest.raises(InputError, match="no times to replay it by: give a rate"):
        replay(clock, Stamped(clock, [None]))
    for rate in (0, -1, float("nan")):
        with pytest.raises(InputError, match="rate must be positive"):
            Paced(Stamped(clock, [0.0]), rate)


def test_close_ends_the_wait_of_a_replay():
    source = Paced(FakeSource(0, 200, live=False))  # the second frame is due in 20 s
    assert source.live and source.frames is None
    assert source.read().id == 0
    got = []
    reading = threading.Thread(target=lambda: got.append(source.read()))
    reading.start()
    source.close()
    reading.join(PATIENCE / 2)
    assert got == [None]


def test_a_replay_loses_frames_and_says_so():
    source = Paced(FakeSource("corrupt", *range(20), None, live=False), rate=1e5)
    with Stream(FakeSession(), source, "drop_new") as stream:
        last = list(stream)[-1]
    assert last.captured > 0 and check_balance(stream, 21)["drops"]["corrupt"] == 1


def test_limits(clock):
    stamps = [Fraction(i, 4) for i in range(20)]
    assert len(list(iter(Limited(Stamped(clock, stamps), frames=7).read, None))) == 7
    assert [frame.id for frame in iter(Limited(Stamped(clock, stamps), seconds=1).read, None)] == [0, 1, 2, 3]
    assert len(list(iter(Limited(Stamped(clock, stamps), frames=3, seconds=1).read, None))) == 3
    assert Limited(Stamped(clock, stamps), frames=7).frames == 7
    assert Limited(Stamped(clock, stamps), frames=70).frames == 20
    assert Limited(FakeSource(), frames=7).frames == 7 and Limited(FakeSource(), seconds=7).frames is None
    for limit in ("frames", "seconds"):
        with pytest.raises(InputError, match=f"{limit} must be positive, got 0"):
            Limited(FakeSource(), **{limit: 0})


def test_limits_of_a_live_source_go_by_the_clock(clock):
    paced = Paced(Stamped(clock, [0.0, 10.0, 20.0, 30.0]), rate=4)  # replayed at a rate of its own
    paced._closed = clock
    assert [frame.id for frame in iter(Limited(paced, seconds=0.5).read, None)] == [0, 1]


def test_a_limit_ends_the_stream():
    source = Limited(FakeSource(*range(9)), frames=4)
    with Stream(FakeSession(), source, "block") as stream:
        assert [result.id for result in stream] == [0, 1, 2, 3]
    check_balance(stream, 4)
