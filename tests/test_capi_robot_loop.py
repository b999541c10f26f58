"""The example of a robot's loop: built against the installed library, with every kind of camera."""

import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from native_samples import DIM, GRID, ROOT, cmake_build, random_engine, run, where

EXAMPLE = ROOT / "examples" / "robot_loop"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "engine.safetensors"
    path.write_bytes(random_engine())
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    options = [f"-Ddvt_fast_DIR={where('--cmake-dir')}", "-DCMAKE_CXX_FLAGS=-Werror -Wpedantic -Wshadow"]
    return cmake_build(EXAMPLE, tmp_path_factory.mktemp("robot_loop"), *options) / "robot_loop"


def numbers(said: str) -> dict[str, int]:
    """Frames by what became of them; checks that none is lost."""
    found = re.search(r"^in (\d+) = delivered (\d+) \+ dropped (\d+) \+ failed (\d+)$", said, re.M)
    assert found, said
    counts = dict(zip(("in", "delivered", "dropped", "failed"), map(int, found.groups())))
    assert counts["in"] == counts["delivered"] + counts["dropped"] + counts["failed"]
    return counts


def times(said: str, name: str) -> list[float]:
    """p50, p99, p99.9 and the maximum, in milliseconds."""
    row = [float(value) for value in re.search(rf"^{name} +(.*)$", said, re.M)[1].split()]
    assert len(row) == 4 and row == sorted(row) and row[0] > 0
    return row


def test_two_seconds_at_camera_rate(program, engine):
    begun = time.monotonic()
    said = run(program, engine, "--rate", "30", "--seconds", "2", "--threads", "2")
    assert 1.5 < time.monotonic() - begun < 30
    assert said.startswith(f"{GRID[0]} x {GRID[1]} patches, {DIM} channels; 2 threads, ")
    counts = numbers(said)
    assert counts["in"] == 60 and counts["failed"] == 0 and counts["delivered"] >= 10
    assert times(said, "age")[0] >= times(said, "compute")[0]
    times(said, "jitter")
    assert 0 <= int(re.search(r"^older than 33\.3 ms: (\d+)$", said, re.M)[1]) <= counts["delivered"]


def test_frames_that_come_too_fast_are_dropped(program, engine):
    """The ages of what is delivered are those of late frames, and every frame is accounted for."""
    said = run(program, engine, "--rate", "5000", "--seconds", "0.3", "--size", "320x240", "--deadline", "0.001")
    counts = numbers(said)
    assert counts["in"] == 1500 and counts["dropped"] > 0 and counts["delivered"] > 0
    assert int(re.search(r"^older than 0\.0 ms: (\d+)$", said, re.M)[1]) == counts["delivered"]


def ppm(height: int, width: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return b"P6 # a comment\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def test_cameras_from_files(program, engine, tmp_path):
    (tmp_path / "frames").mkdir()
    for i in range(5):  # of different sizes
        (tmp_path / "frames" / f"{i}.ppm").write_bytes(ppm(30 + i, 40, i))
    (tmp_path / "stream.ppm").write_bytes(b"".join(ppm(30, 40 + i, i) for i in range(6)))
    (tmp_path / "frames.rgb").write_bytes(bytes(7 * 48 * 64 * 3))
    slow = ("--rate", "40", "--seconds", "0")
    for camera, frames in (("frames", 5), ("stream.ppm", 6), ("frames.rgb", 7)):
        said = run(program, engine, "--camera", tmp_path / camera, "--size", "64x48", *slow)
        counts = numbers(said)
        assert counts["in"] == frames and counts["delivered"] > 0 and counts["failed"] == 0


def start(program: Path, *options: str | Path) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([program, *options], **pipes)


def test_a_pipe_that_ends_within_a_frame(program, engine):
    loop = start(program, engine, "--camera", "-", "--size", "64x48", "--rate", "0", "--seconds", "0")
    said, error = loop.communicate(bytes(2 * 64 * 48 * 3 + 5), timeout=60)
    assert loop.returncode == 1 and error == b"error: camera: -: ends within a frame\n"
    assert numbers(said.decode())["in"] == 2


def test_a_camera_that_stalls_and_a_signal(program, engine):
    """The loop waits for a silent pipe, and ends within a moment when it is told to, with its numbers."""
    loop = start(program, engine, "--camera", "-", "--size", "64x48", "--rate", "0", "--seconds", "0")
    loop.stdout.readline()  # the engine is ready
    loop.stdin.write(bytes(64 * 48 * 3))
    loop.stdin.flush()
    time.sleep(0.5)
    assert loop.poll() is None
    loop.send_signal(signal.SIGINT)
    said, error = loop.communicate(timeout=30)
    assert loop.returncode == 0 and error == b""
    assert numbers(said.decode())["delivered"] == 1


def test_an_image_that_the_engine_refuses_is_counted(program, engine, tmp_path):
    """9000 pixels wide, where a session takes 8192: that frame fails, the next one is delivered."""
    (tmp_path / "x.ppm").write_bytes(ppm(4, 9000, 0) + ppm(40, 40, 1))
    loop = start(program, engine, "--camera", tmp_path / "x.ppm", "--rate", "2", "--seconds", "0")
    said, error = loop.communicate(timeout=60)
    assert loop.returncode == 1 and error.startswith(b"error: engine: ") and error.count(b"\n") == 1
    counts = numbers(said.decode())
    assert (counts["in"], counts["delivered"], counts["failed"]) == (2, 1, 1)


@pytest.mark.parametrize(
    "options, error",
    [
        (["none.safetensors"], r"error: none\.safetensors.*\n"),
        (["ENGINE", "--camera", "none.rgb"], r"error: none\.rgb: No such file or directory\n"),
        (["ENGINE", "--camera", str(EXAMPLE)], r"error: .*: no \.ppm files in this folder\n"),
        (["ENGINE", "--threads", "many"], r"usage: .*"),
        (["ENGINE", "--size", "640"], r"usage: .*"),
        (["ENGINE", "--rate", "-1"], r"usage: .*"),
        ([], r"usage: .*"),
    ],
)
def test_what_cannot_be_is_said(program, engine, options, error):
    done = subprocess.run(
        [program, *(engine if option == "ENGINE" else option for option in options)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == (2 if error.startswith("usage") else 1) and done.stdout == ""
    assert re.fullmatch(error, done.stderr, re.S)
