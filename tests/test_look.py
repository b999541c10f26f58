"""`dvt-fast look` below the page: what it shows of an image, one at a time, and the command.

test_look_server.py asks whom it answers, test_look_page.py tries the page in a browser.
"""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("PIL")
from PIL import Image
from safetensors.numpy import load

from dvt_fast import visual
from dvt_fast.look import session as sessions
from dvt_fast.look.model import Shown, of_stage1, of_stage2, show
from dvt_fast.look.server import listen
from dvt_fast.look.session import Session
from dvt_fast.stage2 import Denoised
from look_samples import settled
from samples import make_decomposition

PICTURE = Image.new("RGB", (40, 20), "teal")


@pytest.fixture
def sessions_of(tmp_path):
    """Makes a session of `n` images whose work is `make`; closes it."""
    made = []

    def build(make, n=3, **options):
        paths = [tmp_path / f"{i}.png" for i in range(n)]
        made.append(Session(paths, make, lambda path, error: f"{path.name}: {error}", **options))
        return made[-1]

    yield build
    for session in made:
        session.close()


# What is shown of an image.


def test_numbers_of_stage1_are_those_of_the_panel():
    d = make_decomposition(6, 7, 12)
    shown = show(PICTURE, of_stage1(d))
    arrays = load(shown.data)
    constant = np.median(d.artifacts, axis=(0, 1))
    basis = visual.ColorBasis.fit(d.raw, d.semantics + constant)
    expected = basis.colors(d.raw), basis.colors(d.semantics + constant), basis.offset_colors(d.artifacts - constant)
    np.testing.assert_array_equal(arrays["colors"], expected)
    np.testing.assert_allclose(arrays["norms"][2], np.linalg.norm(d.artifacts, axis=-1), rtol=1e-6)
    unit = arrays["unit"][1].astype(float) / 32767
    np.testing.assert_allclose(unit @ unit[2, 3], visual.similarity(d.semantics, (2, 3)), atol=1e-4)
    np.testing.assert_array_equal(arrays["labels"][1], visual.kmeans(d.semantics, 6))
    assert Image.open(io.BytesIO(shown.picture)).size == PICTURE.size


def test_numbers_of_stage2_show_what_was_removed():
    raw, denoised = np.random.default_rng(0).standard_normal((2, 4, 5, 8)).astype(np.float32)
    arrays = load(show(PICTURE, of_stage2(Denoised(raw, denoised))).data)
    np.testing.assert_allclose(arrays["norms"][2], np.linalg.norm(raw - denoised, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(
        arrays["colors"][2], visual.ColorBasis.fit(raw, denoised).offset_colors(raw - denoised)
    )


def test_a_large_picture_is_sent_smaller():
    shown = show(Image.new("RGB", (3000, 20)), of_stage1(make_decomposition()))
    assert Image.open(io.BytesIO(shown.picture)).size == (1280, 9)


def test_names_are_those_within_the_common_folder(tmp_path):
    assert sessions.names([tmp_path / "a" / "x.png", tmp_path / "b.png"]) == ["a/x.png", "b.png"]
    assert sessions.names([tmp_path / "a" / "x.png"]) == ["x.png"]


# One image at a time.


def test_nothing_is_done_before_it_is_asked_for_and_then_once(sessions_of):
    done = []
    session = sessions_of(lambda path, progress: done.append(path.name) or Shown(b"", b""))
    time.sleep(0.05)
    assert done == [] and session.shown(1) is None
    for _ in range(3):
        assert settled(lambda: session.ask(1)) == {"state": "ready"}
    assert done == ["1.png"]


def test_progress_is_told_and_what_was_asked_for_last_is_next(sessions_of):
    go, under_way, done = threading.Event(), threading.Event(), []

    def make(path, progress):
        progress(2, 9, "views")
        under_way.set()
        assert go.wait(5)
        done.append(path.name)
        return Shown(b"", b"")

    session = sessions_of(make)
    session.ask(0)
    assert under_way.wait(5)
    assert session.ask(0) == {"state": "working", "done": 2, "total": 9, "what": "views"}
    assert session.ask(1) == session.ask(2) == {"state": "waiting"}
    go.set()
    settled(lambda: session.ask(2))
    settled(lambda: session.ask(1))
    assert done == ["0.png", "2.png", "1.png"]


def test_work_that_nobody_waits_for_gives_way(sessions_of, monkeypatch):
    monkeypatch.setattr(sessions, "GONE_AFTER", 0.05)
    stopped = threading.Event()

    def make(path, progress):
        for step in range(1000 if path.stem == "0" else 1):
            if progress(step, 1000, "steps") is False:
                stopped.set()
                raise sessions.Cancelled("stopped")
            time.sleep(0.005)
        return Shown(b"", b"")

    session = sessions_of(make)
    session.ask(0)
    time.sleep(0.2)
    assert not stopped.is_set()  # alone, it may as well go on
    assert settled(lambda: session.ask(1)) == {"state": "ready"}
    assert stopped.is_set()
    assert session.ask(0)["state"] in ("waiting", "working")  # not failed: it begins anew


def test_a_failure_is_told_and_the_others_go_on(sessions_of):
    broken = {"0.png"}

    def make(path, progress):
        if path.name in broken:
            raise RuntimeError("it is broken")
        return Shown(b"", b"")

    session = sessions_of(make)
    assert settled(lambda: session.ask(0)) == {"state": "failed", "error": "0.png: it is broken"}
    assert settled(lambda: session.ask(1)) == {"state": "ready"}
    broken.clear()
    assert session.ask(0)["state"] == "failed"
    session.ask(0, again=True)
    assert settled(lambda: session.ask(0)) == {"state": "ready"}


def test_results_are_kept_up_to_a_size(sessions_of):
    session = sessions_of(lambda path, progress: Shown(b"", bytes(100)), kept_bytes=250)
    for index in (0, 1, 0, 2):
        settled(lambda index=index: session.ask(index))
    assert [session.shown(index) is not None for index in range(3)] == [True, False, True]
    large = sessions_of(lambda path, progress: Shown(b"", bytes(1000)), kept_bytes=250)
    settled(lambda: large.ask(0))
    assert large.shown(0) is not None


def test_closing_ends_the_work(sessions_of):
    under_way = threading.Event()

    def make(path, progress):
        while progress(0, 1, "steps"):
            under_way.set()
            time.sleep(0.005)
        raise sessions.Cancelled("stopped")

    session = sessions_of(make)
    session.ask(0)
    assert under_way.wait(5)
    session.close()
    assert not session._thread.is_alive()


# The command.


def test_wrong_usage_is_one_line(program, tmp_path):
    PICTURE.save(tmp_path / "x.png")
    code, out, err = program("look", "x.png", "--stage2", "--views", "realtime")
    assert code == 2 and "stage 1" in err
    assert program("look", "none.png")[::2] == (1, "error: none.png: no such file or folder\n")
    with listen("127.0.0.1", 0) as taken:
        code, out, err = program("look", "x.png", "--port", taken.getsockname()[1])
    assert code == 1 and err.startswith("error: cannot listen on 127.0.0.1") and err.count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--stage2",), ("--host", "0.0.0.0")], ids=["stage1", "stage2", "network"])
def test_the_command_shows_its_images(program, tmp_path, monkeypatch, options):
    pytest.importorskip("timm")
    from starlette.testclient import TestClient

    PICTURE.save(tmp_path / "x.png")
    (tmp_path / "y.png").write_text("not an image")
    states = []

    def ask(app, listener):
        browser = TestClient(app, base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        states.append(browser.get("/api/images").status_code)
        if states == [200]:
            states.extend(settled(lambda i=i: browser.get(f"/api/images/{i}").json(), 60) for i in range(2))
            states.append(json.loads(load_header(browser.get("/api/images/0/data").content))["names"])

    monkeypatch.setattr("dvt_fast.look.server.serve", ask)
    views = () if "--stage2" in options else ("--views", "realtime")
    code, out, err = program("look", ".", "--no-browser", "--port", 0, *options, *views)
    assert (code, err) == (0, "")
    if "--host" in options:
        assert states == [403] and re.fullmatch(r"http://\S+:\d+/\?token=\S{43}  \(Ctrl-C ends\)\n", out)
        return
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/  \(Ctrl-C ends\)\n", out)
    failure = {"state": "failed", "error": "y.png: not an image that Pillow can read"}
    names = ["raw", "denoised", "removed"] if options else ["raw", "F", "G"]
    assert states == [200, {"state": "ready"}, failure, names]


def load_header(data):
    """Our header, as text, of a safetensors file."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["dvt_fast"]


SERVE = """
import time
from pathlib import Path
from dvt_fast.look.server import Address, listen, make_app, serve
from dvt_fast.look.session import Session

def make(path, progress):
    while progress(0, 1, "steps"):
        time.sleep(0.01)

session = Session([Path("x.png")], make, lambda path, error: str(error))
listener = listen("127.0.0.1", 0)
address = Address("127.0.0.1", listener.getsockname()[1], "secret")
print(address.url, flush=True)
serve(make_app(session, address), listener)
session.close()
print("closed")
"""


def test_ctrl_c_ends_it_quietly_also_at_work():
    running = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = running.stdout.readline().strip()
        with urllib.request.urlopen(url.replace("/?", "/api/images/0?")) as answer:
            assert json.load(answer)["state"] in ("waiting", "working")
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=20) == ("closed\n", "")
        assert running.returncode == 0
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_one_line(program, tmp_path, monkeypatch, package):
    PICTURE.save(tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, package, None)
    line = f"error: this needs the package '{package}', which is not installed: pip install 'dvt-fast[look]'\n"
    assert program("look", "x.png") == (1, "", line)
