"""Cameras: what a Video4Linux device gives, and how it stalls, changes and goes. `fake_camera.c` is the device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from video_samples import grey

pytest.importorskip("av")

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C compiler to make a camera"
)

PROGRAM = """
import json, sys, time
from dvt_fast import DvtError, Stream
from dvt_fast.video import Camera
from stream_samples import FakeSession, check_balance

rows, error, began = [], None, time.monotonic()
try:
    with Stream(FakeSession(), Camera("/dev/zero", timeout=float(sys.argv[1])), "block") as stream:
        for result in stream:
            row = {"id": result.id, "shape": result.image.shape, "value": float(result.image.mean())}
            rows.append(row | {"before": result.drops_before, "latency": result.latency, "age": result.age,
                               "kernel": result.captured == result.stamp})
            if len(rows) == int(sys.argv[2]):
                break
    numbers = check_balance(stream)
except DvtError as stopped:
    error, numbers = str(stopped), locals().get("stream") and check_balance(stream)
print(json.dumps({"rows": rows, "error": error, "numbers": numbers, "seconds": time.monotonic() - began}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("camera") / "fake_camera.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(made), str(HERE / "fake_camera.c"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the camera cannot be compiled here: {done.stderr.splitlines()[0]}")
    return made


@pytest.fixture
def camera(library, tmp_path):
    """Reads from a camera that does as told: the rows, the error, the statistics, the seconds it took, stderr."""

    def run(*script, timeout=5.0, read=-1, ms=10) -> dict:
        words = []
        for i, word in enumerate(script):
            if not isinstance(word, str):  # an image
                Image.fromarray(word).save(tmp_path / f"{i}.jpg")
                word = str(tmp_path / f"{i}.jpg")
            words.append(word)
        environment = {"LD_PRELOAD": str(library), "FAKE_CAMERA": " ".join(words), "FAKE_CAMERA_MS": str(ms)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(timeout), str(read)],
            cwd=HERE,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) | {"stderr": done.stderr}

    return run


def test_pictures_of_changing_sizes_with_the_kernels_stamps(camera):
    images = [grey(40), grey(80), grey(120, 96, 32), grey(160, 96, 32), grey(200)]
    done = camera(*images, "hang", read=5)
    assert done["error"] is None and done["stderr"] == ""
    for image, row in zip(images, done["rows"]):
        assert tuple(row["shape"]) == image.shape and abs(row["value"] - image.mean()) < 4
        assert row["kernel"] and 0 <= row["latency"] <= row["age"] < 5
    assert [row["id"] for row in done["rows"]] == [0, 1, 2, 3, 4]
    assert done["seconds"] < 5  # closing did not wait for a picture that never came


def test_a_camera_that_stalls(camera):
    done = camera(grey(40), grey(80), "hang", timeout=0.5)
    assert len(done["rows"]) == 2
    assert done["error"] == "/dev/zero: no picture for 0.5 seconds: it has stalled"


def test_a_camera_that_gives_nothing_at_all(camera):
    done = camera("hang", timeout=0.5)
    assert done["rows"] == [] and done["error"] == "/dev/zero: no picture for 0.5 seconds: it has stalled"


def test_a_camera_that_is_unplugged(camera):
    done = camera(grey(40), grey(80), grey(120), "unplug")
    assert len(done["rows"]) == 3 and done["error"] == "/dev/zero: it was unplugged"
    assert done["numbers"]["in"] == 3


def test_broken_pictures_are_counted(camera):
    done = camera(*[grey(40)] * 3, "broken", grey(80), "broken", "broken", grey(120), "unplug")
    lost = done["numbers"]["drops"]
    assert len(done["rows"]) == 5 and lost == {"corrupt": 3}
    assert [row["before"] for row in done["rows"]][3:] == [1, 2]
