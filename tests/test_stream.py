"""`dvt_fast.Stream`: what each policy keeps, that every frame is accounted for, and that nothing hangs."""

import gc
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import dvt_fast
from dvt_fast import Stream
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.stream import Images, Sink, Source
from stream_samples import PATIENCE, FakeSession, FakeSource, check_balance, make_image, wait_until

POLICIES = ("latest", "block", "drop_new")


def busy(policy, **options):
    """A stream whose session works on frame 0 and waits for a word."""
    session, source = FakeSession(gated=True), FakeSource(0)
    stream = Stream(session, source, policy, **options)
    stream.__enter__()
    wait_until(lambda: session.started == 1 and source.reads == 2)
    return stream, session, source


def offer(stream, source, *items):
    """Lets frames come, one after the other, and waits until the stream has dealt with each: none is on its way."""
    for item in items:
        reads = source.reads
        source.put(item)
        wait_until(lambda: source.reads > reads)  # noqa: B023, called at once


def values(results) -> list[int]:
    return [result.meta["value"] for result in results]


def test_results_carry_the_frame_and_its_times():
    source = FakeSource(3, 5, None)
    before = time.monotonic()
    with Stream(FakeSession(), source, "block", raw=True) as stream:
        first, second = stream
    assert (first.id, first.stamp, first.meta) == (0, 0.3, {"value": 3}) and second.id == 1
    assert first.features.dtype == np.float32 and first.features.shape == (2, 3, 4)
    assert (first.features == 3).all() and (first.raw == 1.5).all() and (second.features == 5).all()
    assert (first.image == make_image(3)).all()
    assert before <= first.captured <= first.started <= first.finished <= first.captured + first.age
    assert first.latency == first.finished - first.captured
    assert not first.missed_deadline and first.drops_before == 0
    assert "frame 0" in repr(first)
    numbers = check_balance(stream, 2)
    assert numbers["delivered"] == 2 and numbers["rate"] > 0 and numbers["missed"] == 0
    assert numbers["age_ms"]["max"] >= numbers["latency_ms"]["max"] >= numbers["compute_ms"]["max"] >= 0
    assert json.loads(stream.stats.as_json()) == numbers
    assert isinstance(source, Source) and not isinstance(source, Sink)


def test_raw_features_only_where_asked_for():
    with Stream(FakeSession(), FakeSource(3, None)) as stream:
        assert next(stream).raw is None


def test_latest_keeps_the_newest_frame():
    stream, session, source = busy("latest")
    offer(stream, source, 1, 2, 3)
    check_balance(stream)
    source.put(None)
    session.go.release()
    first = next(stream)
    session.go.release()
    results = [first, *stream]
    assert values(results) == [0, 3] and [r.drops_before for r in results] == [0, 2]
    assert check_balance(stream, 4)["drops"] == {"overtaken": 2}


def test_latest_keeps_the_newest_result():
    stream, session, source = busy("latest")
    for item in (1, 2):  # three results, and nobody who reads
        offer(stream, source, item)
        session.go.release()
        wait_until(lambda: session.started == item + 1)  # noqa: B023
    source.put(None)
    session.go.release()
    wait_until(lambda: stream._work_ended)
    (result,) = list(stream)
    assert (result.meta["value"], result.drops_before) == (2, 2)
    assert check_balance(stream, 3)["drops"] == {"overtaken": 2}


def test_drop_new_keeps_what_waits():
    stream, session, source = busy("drop_new")
    offer(stream, source, 1, 2, 3)
    assert check_balance(stream)["drops"] == {"busy": 2}
    source.put(None)
    session.go.release(2)
    results = list(stream)
    assert values(results) == [0, 1] and [r.drops_before for r in results] == [0, 0]
    assert check_balance(stream, 4)["delivered"] == 2


def test_drops_after_a_result_are_before_the_next():
    stream, session, source = busy("drop_new")
    offer(stream, source, 1, 2, 3)
    session.go.release(2)
    assert values([next(stream), next(stream)]) == [0, 1]
    source.put(4)
    source.put(None)
    session.go.release()
    (last,) = list(stream)
    assert (last.meta["value"], last.drops_before) == (4, 2)
    check_balance(stream, 5)


def test_block_drops_nothing():
    stream, session, source = busy("block")
    for item in (*range(1, 20), None):
        source.put(item)
    session.go.release(20)
    results = list(stream)
    assert values(results) == list(range(20)) and not any(r.drops_before for r in results)
    assert check_balance(stream, 20)["drops"] == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_source_that_waits_to_be_read_loses_nothing(policy):
    with Stream(FakeSession(), FakeSource(*range(20), None, live=False), policy) as stream:
        wait_until(lambda: stream.stats.as_dict()["pending"] == 4)  # all places are full, and nobody reads
        assert values(stream) == list(range(20))
    assert check_balance(stream, 20)["dropped"] == 0


def test_ages_of_a_source_that_waits_mean_nothing():
    for live in (True, False):
        with Stream(FakeSession(), FakeSource(0, 1, 2, None, live=live), "block") as stream:
            assert all(result.live is live for result in stream)
        numbers = stream.stats.as_dict()
        assert numbers["compute_ms"]["max"] >= 0
        assert all((numbers[f"{name}_ms"] is not None) is live for name in ("age", "latency", "jitter"))


def test_deadline():
    stream, session, source = busy("block", deadline_ms=50)
    time.sleep(0.06)
    session.go.release()
    late = next(stream)
    assert late.missed_deadline and late.age > 0.05
    stream.close()
    numbers = check_balance(stream)
    assert (numbers["missed"], numbers["deadline_ms"]) == (1, 50)
    with Stream(FakeSession(), FakeSource(1, None), deadline_ms=1e3 * PATIENCE) as stream:
        assert not next(stream).missed_deadline


def test_losses_of_the_source_are_drops():
    source = FakeSource("corrupt", "corrupt", 2, 3, "broken", 5, "corrupt", None)
    with Stream(FakeSession(), source, "block") as stream:
        results = list(stream)
    assert [r.id for r in results] == [2, 3, 5] and [r.drops_before for r in results] == [2, 0, 1]
    assert check_balance(stream, 7)["drops"] == {"broken": 1, "corrupt": 3}


@pytest.mark.parametrize("policy", POLICIES)
def test_errors_of_the_work_come_out_of_the_next_read_and_it_goes_on(policy):
    session = FakeSession()
    session.failures = {1: NonFiniteError("no numbers"), 2: ValueError("what")}
    with Stream(session, FakeSource(0, 1, 2, 3, None, live=False), policy) as stream:
        assert next(stream).id == 0
        with pytest.raises(NonFiniteError, match="no numbers"):
            next(stream)
        with pytest.raises(ValueError, match="what"):
            next(stream)
        last = next(stream)
        assert (last.id, last.drops_before) == (3, 2)
        assert stream.read() is None
    assert check_balance(stream, 4)["drops"] == {"error": 2}


def test_an_error_is_not_overtaken():
    stream, session, source = busy("latest")
    session.failures = {0: NonFiniteError("first")}
    session.go.release(3)
    wait_until(lambda: stream._finished is not None)
    offer(stream, source, 1, 2)
    source.put(None)
    with pytest.raises(NonFiniteError, match="first"):
        next(stream)
    assert values(stream)[-1] == 2
    check_balance(stream, 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_the_source_raises_comes_after_the_frames_before_it(policy):
    source = FakeSource(0, 1, 2, InputError("unplugged"), 3, live=False)
    stream = Stream(FakeSession(), source, policy)
    got = []
    with pytest.raises(InputError, match="unplugged"):
        for result in stream:
            got.append(result)
    assert values(got) == [0, 1, 2]
    assert list(stream) == [] and stream.read() is None and source.closes
    check_balance(stream, 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_close_in_the_midst_of_everything(policy):
    stream, session, source = busy(policy)
    source.put(1)
    source.put(2)
    wait_until(lambda: stream.stats.as_dict()["pending"] + stream.stats.as_dict()["dropped"] == 3)
    closing = threading.Thread(target=stream.close)
    closing.start()
    wait_until(lambda: stream._closed)
    session.go.release()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    numbers = check_balance(stream, 3)
    assert numbers["delivered"] == 0 and numbers["drops"]["closed"] >= 2
    assert stream.read() is None and list(stream) == []
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dvt-")]


def test_close_while_the_source_waits_and_another_thread_reads():
    stream = Stream(FakeSession(), FakeSource())
    got = []
    reading = threading.Thread(target=lambda: got.append(stream.read()))
    reading.start()
    wait_until(lambda: stream.source.reads == 1)
    stream.close()
    reading.join(PATIENCE)
    assert got == [None]
    check_balance(stream, 0)


def test_close_leaves_a_source_behind_that_does_not_come_back(monkeypatch):
    monkeypatch.setattr(Stream, "CLOSING", 0.05)
    source = FakeSource(0, deaf=True)
    stream = Stream(FakeSession(), source)
    assert next(stream).id == 0
    wait_until(lambda: source.reads == 2)
    stream.close()
    source.put(1)  # it comes back when all is over
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "dvt-capture"])
    numbers = check_balance(stream, 1)
    assert numbers["delivered"] == 1 and source.closes == 2


def test_closed_before_it_began_and_never_read():
    source = FakeSource(0)
    stream = Stream(FakeSession(), source)
    stream.close()
    assert list(stream) == [] and source.closes and source.reads == 0
    with Stream(FakeSession(), FakeSource()) as stream, pytest.raises(TimeoutError, match=r"no result for 0\.01 sec"):
        stream.read(timeout=0.01)


def test_an_open_stream_does_not_keep_the_program_from_ending():
    code = """
import time, numpy as np
from stream_samples import FakeSession, FakeSource
from dvt_fast import Stream
stream = Stream(FakeSession(), FakeSource(0), "block")
print(next(stream).id)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rsplit("/", 1)[0], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_memory_serves_again_only_after_the_last_reference():
    source = FakeSource(live=False)
    with Stream(FakeSession(), source, "block") as stream:

        def read(value):
            source.put(value)
            return next(stream)

        kept = [read(value) for value in range(4)]  # more than the stream itself has in work
        view = kept[1].features[0, 1:]
        addresses = {result.features.ctypes.data for result in kept}
        assert len(addresses) == 4
        del kept[1]
        for value in range(10, 20):
            read(value)
        gc.collect()
        assert (view == 1).all() and [float(result.features.min()) for result in kept] == [0, 2, 3]
        del view, kept
        gc.collect()
        again = {read(value).features.ctypes.data for value in range(20, 60)}
        assert len(again) <= 8 and again & addresses
        source.put(None)
        assert list(stream) == []


def test_many_frames_from_a_fast_source_balance():
    for policy in POLICIES:
        with Stream(FakeSession(), FakeSource(*range(256), None), policy) as stream:
            results = []
            for result in stream:
                check_balance(stream)
                results.append(result)
        numbers = check_balance(stream, 256)
        assert [r.id for r in results] == sorted({r.id for r in results})
        assert results[-1].id == 255 or policy == "drop_new"
        dropped_after = numbers["dropped"] - sum(r.drops_before for r in results)
        assert dropped_after == 255 - results[-1].id


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_frame_is_accounted_for(seed):
    """Losses, failures, a slow session or a slow reader, an end or an early close: in = delivered + dropped."""
    random = np.random.default_rng(seed)
    items = [str(random.choice(["corrupt", "broken"])) if random.random() < 0.1 else i for i in range(150)]
    source = FakeSource(*items, InputError("unplugged") if seed % 3 == 0 else None, live=seed % 4 != 0)
    session = FakeSession()
    session.failures = {int(i): NonFiniteError("bad") for i in random.integers(0, 150, 15)}
    slow, early = random.choice(["session", "reader", "nobody"]), random.random() < 0.3
    if slow == "session":
        compute = session.run
        session.run = lambda *given, **named: (time.sleep(0.0005), compute(*given, **named))[1]
    results, errors = [], 0
    with Stream(session, source, POLICIES[seed % 3]) as stream:
        while not (early and len(results) > 5):
            try:
                result = stream.read(PATIENCE)
            except (NonFiniteError, InputError):
                errors += 1
                continue
            if result is None:
                break
            check_balance(stream)
            results.append(result)
            time.sleep(0.0005 * (slow == "reader"))
    numbers = check_balance(stream)
    assert numbers["pending"] == 0 and numbers["delivered"] == len(results)
    assert 0 <= source.count - numbers["in"] <= early  # one may come back when all is over
    assert [r.id for r in results] == sorted({r.id for r in results})
    assert sum(r.drops_before for r in results) <= numbers["dropped"]
    if not early:
        assert errors >= (seed % 3 == 0) and "closed" not in numbers["drops"]


def test_iterables_of_images():
    images = [make_image(value) for value in range(30)]
    with Stream(FakeSession(), images) as stream:  # a list waits to be read
        assert [int(result.image[0, 0, 0]) for result in stream] == list(range(30))
    stream = Stream(FakeSession(), iter(images))
    assert stream.source.live and list(stream)[-1].id == 29
    assert not Images(iter(images), live=False).live
    for bad, got in ((np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"), (np.zeros((4, 4, 3)), "float64"), ("x", "str")):
        with Stream(FakeSession(), [images[0], bad]) as stream, pytest.raises(InputError, match=f"image 1 .*{got}"):
            list(stream)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(policy="newest"), "policy must be one of latest, block, drop_new, got 'newest'"),
        (dict(deadline_ms=0), "deadline_ms must be positive, got 0"),
        (dict(deadline_ms=float("nan")), "deadline_ms must be positive, got nan"),
        (dict(session="engine.safetensors"), r"expected a session: engine.session\(\), got str"),
        (dict(source=3), r"source must have live, frames, lost, read and close \(.*, got int"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Stream(**{"session": FakeSession(), "source": []} | arguments)


@pytest.mark.parametrize("name, value", [("input", "features"), ("batch", 4)])
def test_sessions_that_do_not_fit(name, value):
    session = FakeSession()
    setattr(session, name, value)
    with pytest.raises(InputError, match=f"needs a session for one image at a time, got .*{value}"):
        Stream(session, [])


def test_public_name():
    assert dvt_fast.Stream is Stream
