"""Where datasets lie: folders, memory and S3 (a server that speaks it), and how each of them fails."""

import errno
import os
import pickle
import subprocess
import sys
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dataset_samples import S3
from dvt_fast import InputError, MissingExtraError, OutputError
from dvt_fast.dataset import store as store_module
from dvt_fast.dataset.inputs import find_sources
from dvt_fast.dataset.store import Store, Unreachable, is_passing


@pytest.fixture(scope="module")
def s3():
    with S3() as server:
        yield server


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        server = request.getfixturevalue("s3")
        bucket = server.make_bucket()
        yield Store(f"s3://{bucket}/some/place/", retries=1)
        server.remove_bucket(bucket)
    elif request.param == "memory":
        yield Store("memory://some/place", retries=1)
        MemoryFileSystem.store.clear()
    else:
        yield Store(tmp_path / "some" / "place", retries=1)


def test_what_is_written_is_read(store):
    assert store.list() == {} == store.list("pairs")
    assert store.read_or_none("pairs/ab/x") is None
    store.write("pairs/ab/x", b"one")
    store.write("pairs/ab/x", b"three")
    store.write("other", b"")
    assert store.read("pairs/ab/x") == store.read_or_none("pairs/ab/x") == b"three"
    assert store.list("pairs") == {"pairs/ab/x": 5}
    assert store.list() == {"pairs/ab/x": 5, "other": 0}
    store.remove("pairs/ab/x")
    store.remove("pairs/ab/x")
    assert store.list() == {"other": 0}
    with pytest.raises(InputError, match=f"^{store.url}/pairs/ab/x: no such file$"):
        store.read("pairs/ab/x")


def test_a_listing_is_of_now(store):
    """fsspec keeps listings; what another process did meanwhile must be seen."""
    store.write("pairs/a", b"1")
    assert store.list("pairs") == {"pairs/a": 1}
    other = pickle.loads(pickle.dumps(store))
    other.write("pairs/b", b"12")
    other.write("pairs/a", b"123")
    assert store.list("pairs") == {"pairs/a": 3, "pairs/b": 2}


def test_images_are_found_under_urls(store):
    for name in ("b.JPG", "a/c.png", "a/.hidden.png", "a/text.txt", "z.jpeg"):
        store.write(name, name.encode())
    found = find_sources([store.url])
    assert [(s.folder, s.image, s.bytes) for s in found] == [
        (store.url, name, len(name)) for name in ("a/c.png", "b.JPG", "z.jpeg")
    ]
    assert [s.image for s in find_sources(f"{store.url}/a/text.txt")] == ["text.txt"]  # given by name, so wanted
    assert [s.place for s in find_sources(f"{store.url}/*.jp*g")] == [f"{store.url}/z.jpeg"]
    assert find_sources([store.url, f"{store.url}/z.jpeg"])[2].place == f"{store.url}/z.jpeg"
    before = {s.image: s.stamp for s in found}
    time.sleep(0.01)
    store.write("b.JPG", b"other")
    after = {s.image: s.stamp for s in find_sources(store.url)}
    assert before["b.JPG"] != after["b.JPG"] and before["z.jpeg"] == after["z.jpeg"] != ""
    with pytest.raises(InputError, match=f"{store.url}/none: no such file or folder"):
        find_sources(f"{store.url}/none")


def test_a_folder_by_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("x", "./x/", "~/x", f"file://{tmp_path}/x"):
        assert Store(url).url == f"{tmp_path}/x"
    with pytest.raises(InputError, match="a folder or URL was expected, got ''"):
        Store("")


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    store = Store(tmp_path / "out")
    store.write("a", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=f"^{tmp_path}/out/a: cannot be written: No space left on device$") as caught:
        store.write("a", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path / "out") == ["a"] and store.read("a") == b"old"


def test_sweeping_spares_what_is_not_ours(tmp_path):
    store = Store(tmp_path / "out")
    keep = ["a", ".dvt-notes.txt", "pairs/.tmp", "other/.dvt-00.tmp"]
    for name in [*keep, ".dvt-01.tmp", "pairs/ab/.dvt-02.tmp"]:
        store.write(name, b"x")
    store.sweep("pairs")
    assert sorted(store.list()) == sorted(keep)
    Store(tmp_path / "none").sweep("pairs")


def test_the_lock_ends_with_its_process(tmp_path):
    store = Store(tmp_path / "out")
    script = (
        "import time; from dvt_fast.dataset.store import Store\n"
        f"with Store({store.url!r}).lock():\n    print('locked', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with (
            pytest.raises(OutputError, match=r"out: another run is writing to it: wait for that one, or end it"),
            store.lock(),
        ):
            pass
        other.kill()
    with store.lock(), pytest.raises(OutputError), store.lock():
        pass
    with store.lock():
        pass


class Flaky:
    """A file system that fails some times before it works."""

    def __init__(self, error, times):
        self.error, self.left = error, times

    def cat_file(self, path):
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return b"data"

    def pipe_file(self, path, data):
        self.cat_file(path)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were slept, without sleeping."""
    slept = []
    monkeypatch.setattr(store_module.time, "sleep", slept.append)
    monkeypatch.setattr(store_module.random, "uniform", lambda low, high: high)
    return slept


def flaky_store(error, times, retries=5):
    store = Store("memory://x", retries=retries)
    store._system, store._owner = (Flaky(error, times), "/x"), os.getpid()
    return store


def test_passing_failures_are_tried_again_ever_later(waits):
    assert flaky_store(TimeoutError(), 3).read("a") == b"data"
    assert waits == [0.5, 1, 2]
    waits.clear()
    with pytest.raises(OutputError, match=r"^memory://x/a: cannot be written: Connection reset by peer$"):
        flaky_store(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)), 99).write("a", b"")
    assert waits == [0.5, 1, 2, 4, 8]
    waits.clear()
    with pytest.raises(Unreachable, match=r"^memory://x/a: cannot be read: TimeoutError$"):
        flaky_store(TimeoutError(), 99, retries=0).read("a")
    assert waits == []


def test_final_failures_are_not_tried_again(waits):
    with pytest.raises(InputError, match=r"^memory://x/a: cannot be read: Access Denied$") as caught:
        flaky_store(PermissionError("Access\n Denied"), 99).read("a")
    assert waits == [] and not isinstance(caught.value, Unreachable)


class Http(Exception):
    def __init__(self, status):
        self.status = status


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    "error, passing",
    [
        (TimeoutError(), True),
        (ConnectionError("reset"), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (OSError(errno.EREMOTEIO, "InternalError"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EFBIG, "too large"), False),
        (FileNotFoundError("bucket"), False),
        (PermissionError("denied"), False),
        (ImportError("s3fs"), False),
        (ValueError("bad"), False),
        (Http(503), True),
        (Http(429), True),
        (Http(403), False),
        (NoCredentialsError("Unable to locate credentials"), False),
        (RuntimeError("a client's own error"), True),
        (OutputError("x"), False),
    ],
)
def test_what_passes(error, passing):
    assert is_passing(error) is passing


def test_s3_without_a_bucket(s3):
    store = Store("s3://no-such-bucket/x", retries=3)
    start = time.monotonic()
    with pytest.raises(OutputError, match=r"^s3://no-such-bucket/x/a: cannot be written: The specified bucket"):
        store.write("a", b"x")
    assert store.read_or_none("a") is None and store.list() == {}
    assert time.monotonic() - start < 1.5  # it is gone, not slow


def test_s3_that_is_out_of_reach_for_a_while(s3, monkeypatch):
    bucket = s3.make_bucket()
    store = Store(f"s3://{bucket}/x", retries=1)
    store.write("a", b"x")
    monkeypatch.setattr(store_module, "FIRST_WAIT", 0.01)
    s3.stop()
    try:
        with pytest.raises(Unreachable, match=rf"^s3://{bucket}/x/a: cannot be read: Could not connect to the"):
            store.read("a")
        with pytest.raises(OutputError, match=rf"^s3://{bucket}/x/b: cannot be written: Could not connect"):
            store.write("b", b"x")
        with pytest.raises(Unreachable, match=rf"^s3://{bucket}/x: cannot be read: Could not connect"):
            store.list()
    finally:
        s3.start()
    assert store.read("a") == b"x"


def test_s3_without_permission(s3):
    bucket = s3.make_bucket()
    store = Store(f"s3://{bucket}/x", retries=3)
    store.write("a", b"x")
    with s3.closed_to_strangers():
        for action in (lambda: store.read("a"), store.list, lambda: find_sources(store.url)):
            with pytest.raises(InputError, match=rf"^s3://{bucket}/x(/a)?: cannot be read: ") as caught:
                action()
            assert not isinstance(caught.value, Unreachable)  # so it is not tried again
        with pytest.raises(OutputError, match=rf"^s3://{bucket}/x/b: cannot be written: "):
            store.write("b", b"x")


def test_s3_takes_one_request_a_file(s3):
    bucket = s3.make_bucket()
    store = Store(f"s3://{bucket}/x")
    store.write("warm", b"")
    for action, expected in (
        (lambda: store.write("a", bytes(10**6)), ["PUT"]),
        (lambda: store.read("a"), ["GET"]),
        (lambda: store.read_or_none("none"), ["GET"]),
        (lambda: store.list(), ["GET"]),
    ):
        with s3.requests() as seen:
            action()
        assert [line.split()[0] for line in seen] == expected


@pytest.mark.parametrize(
    "module, message",
    [
        ("fsspec", "this needs the package 'fsspec', which is not installed: pip install 'dvt-fast[train]'"),
        ("s3fs", "s3://bucket: Install s3fs to access S3 (pip install 'dvt-fast[train]' for s3://)"),
    ],
)
def test_a_missing_package(module, message):
    """Folders need neither."""
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from dvt_fast.dataset.store import Store\nStore('x').list()\n"
        "try:\n    Store('s3://bucket')\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{MissingExtraError.__name__} {message}\n", "")


def test_a_url_that_cannot_be():
    with pytest.raises(InputError, match=r"^nosuch://x: not a URL that can be used: .*nosuch"):
        Store("nosuch://x")
