"""What is written of a stream: a video whose colours stay, features that survive a kill; and disks that fill."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt_fast import visual
from dvt_fast.errors import InputError, NonFiniteError, OutputError
from dvt_fast.stream import Result, Sink
from dvt_fast.video import FeatureSink, Painter, PictureSink, VideoFile, VideoSink, read_features
from dvt_fast.video.colors import StableColors
from dvt_fast.video.features import PART_FRAMES, parts_in
from dvt_fast.video.picture import describe
from stream_samples import make_image
from video_samples import corners, grey

av = pytest.importorskip("av")


def make_result(i: int, image=None, raw=True, h=3, w=4, c=8) -> Result:
    rng = np.random.default_rng(i)
    features = rng.standard_normal((h, w, c)).astype(np.float32)
    return Result(
        id=i,
        image=corners() if image is None else image,
        features=features,
        raw=2 * features if raw else None,
        captured=100 + i / 10,
        stamp=i / 10,
        age=0.03,
        drops_before=i % 2,
        meta={"path": f"{i}.png", "thing": object()},
    )


def images_of(path) -> list[np.ndarray]:
    source = VideoFile(path)
    try:
        return [frame.image for frame in iter(source.read, None)]
    finally:
        source.close()


def scene(frames: int, c: int = 24):
    """Features of a scene that changes slowly: three parts of the picture, each with noise of its own."""
    rng = np.random.default_rng(0)
    mean, parts, drift = rng.standard_normal(c), rng.standard_normal((3, c)) * 3, rng.standard_normal((3, c)) * 0.02
    labels = rng.integers(0, 3, (14, 14))
    for i in range(frames):
        yield (mean + (parts + i * drift)[labels] + rng.standard_normal((14, 14, c)) * 0.3).astype(np.float32)


def flicker(update) -> np.ndarray:
    """By how many of 255 levels the colour of the same features changes from frame to frame, mean of each frame."""
    changes, before = [], None
    for features in scene(120):
        basis = update(features)
        if before is not None:
            changes.append(np.abs(basis.colors(features).astype(float) - before.colors(features)).mean())
        before = basis
    return np.array(changes)


def test_colours_stay_stable():
    each_frame = flicker(visual.ColorBasis.fit)
    stable = flicker(StableColors().update)
    assert each_frame.mean() > 15 and stable.max() < 1.5 and stable.mean() < 0.6


def test_colours_follow_the_video():
    """After a cut the colours of the old scene would show little of the new one."""
    colors, rng = StableColors(), np.random.default_rng(1)
    old, new = (rng.standard_normal((5, 16)) for _ in range(2))

    def frame(parts):
        return (parts[rng.integers(0, 5, (12, 12))] + 0.1 * rng.standard_normal((12, 12, 16))).astype(np.float32)

    def seen(basis, features):
        tokens = features.reshape(-1, 16) - features.reshape(-1, 16).mean(0)
        return ((tokens @ basis.axes) ** 2).sum() / (tokens**2).sum()

    for _ in range(40):
        basis = colors.update(frame(old))
    at_the_cut = seen(basis, frame(new))
    for _ in range(300):
        basis = colors.update(frame(new))
    best = seen(visual.ColorBasis.fit(frame(new)), frame(new))
    assert seen(basis, frame(new)) > 0.9 * best > at_the_cut
    assert np.allclose(basis.axes.T @ basis.axes, np.eye(3))


def test_a_basis_like_another_spans_the_same_space_with_nearby_axes():
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((500, 10)) * np.geomspace(5, 0.5, 10)
    free = visual.ColorBasis.fit(tokens)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turned = visual.ColorBasis(free.mean, free.axes @ turn, free.low, free.high)
    again = visual.ColorBasis.fit(tokens, like=turned)
    assert np.allclose(again.axes, turned.axes, atol=1e-3)
    assert np.allclose(again.axes @ again.axes.T, free.axes @ free.axes.T, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels_have_colours_too(channels):
    colors = StableColors()
    for features in scene(40, channels):
        basis = colors.update(features)
    assert np.ptp(basis.colors(features), axis=(0, 1)).max() > 100


def test_pictures_of_one_size_with_all_tiles():
    painter = Painter(height=80)
    first = painter.draw(make_result(0))
    for i, image in enumerate([grey(9, 48, 64), grey(9, 200, 50), grey(9, 1, 90), grey(9, 1, 1)], 1):
        assert painter.draw(make_result(i, image)).shape == first.shape
    assert first.dtype == np.uint8 and first.shape[0] % 2 == first.shape[1] % 2 == 0
    without = Painter(height=80).draw(make_result(0, raw=False))
    assert without.shape[0] == first.shape[0] and without.shape[1] < 0.75 * first.shape[1]
    tall = Painter(height=80).draw(make_result(0, grey(9, 64, 48)))
    assert tall.shape[1] < first.shape[1]


def test_a_video_holds_every_result_at_its_time(tmp_path):
    path = tmp_path / "out" / "a.mp4"
    sink = VideoSink(path, height=96)
    assert isinstance(sink, Sink)
    results = [make_result(i) for i in (0, 1, 2, 5, 9)]
    for result in results:
        sink.write(result)
        assert [name for name in os.listdir(path.parent) if not name.startswith(".")] == []  # not before it is whole
    sink.close()
    sink.close()
    assert os.listdir(path.parent) == ["a.mp4"]
    source = VideoFile(path)
    frames = list(iter(source.read, None))
    source.close()
    assert [frame.stamp for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.5, 0.9], abs=1e-3)
    painter = Painter(height=96)
    for frame, result in zip(frames, results):
        expected = painter.draw(result)
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image.astype(float) - expected).mean() < 6
    with pytest.raises(InputError, match=r"a\.mp4: is closed"):
        sink.write(results[0])


def test_times_that_stand_still_or_jump_back(tmp_path):
    sink = VideoSink(tmp_path / "a.mkv", height=64)
    for i, stamp in enumerate([5.0, 5.0, 5.5, 2.0, 6.0, None]):
        result = make_result(i)
        result.stamp = stamp
        sink.write(result)
    sink.close()
    assert len(images_of(tmp_path / "a.mkv")) == 6


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_the_last_frame_lasts_as_long_as_the_one_before(tmp_path, suffix):
    sink = VideoSink(tmp_path / f"a{suffix}", height=64)
    for i in range(5):
        result = make_result(i)
        result.stamp = i / 4
        sink.write(result)
    sink.close()
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        assert container.duration / 1e6 == pytest.approx(1.25, abs=1e-3)


def test_ages_are_of_live_sources_only():
    result = make_result(3)
    assert "age 30 ms" in describe(result)
    result.live = False
    assert "age" not in describe(result)


def test_a_video_of_nothing_is_no_file(tmp_path):
    VideoSink(tmp_path / "a.mp4").close()
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match=r"a\.gif: a video must end in \.mp4, "):
        VideoSink(tmp_path / "a.gif")


class FullDisk(io.BytesIO):
    """A file on a disk with room for some bytes."""

    def __init__(self, room: int):
        super().__init__()
        self._room = room

    def write(self, data) -> int:
        if self.tell() + len(data) > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 20, 4000, 40_000])
def test_a_disk_that_fills_leaves_the_old_video(tmp_path, monkeypatch, room):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"an earlier one")
    monkeypatch.setattr("dvt_fast.video.mp4.open", lambda *_: FullDisk(room), raising=False)
    sink = VideoSink(path, height=200)
    with pytest.raises(OutputError) as caught:
        for i in range(60):
            sink.write(make_result(i, np.random.default_rng(i).integers(0, 255, (200, 300, 3), np.uint8)))
        sink.close()
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    sink.close()
    assert os.listdir(tmp_path) == ["a.mp4"] and path.read_bytes() == b"an earlier one"


def test_a_disk_that_is_full_at_the_very_end(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = VideoSink(tmp_path / "a.mp4", height=64)
    sink.write(make_result(0))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        sink.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("float16", 2e-3)])
def test_features_come_back(tmp_path, raw, dtype, tolerance):
    sink = FeatureSink(tmp_path / "kept", raw=raw, dtype=dtype)
    assert isinstance(sink, Sink)
    results = [make_result(i) for i in range(PART_FRAMES + 10)]
    for result in results:
        sink.write(result)
        result.features = result.features.copy()
    assert len(parts_in(tmp_path / "kept")) == 1  # the rest is not whole yet
    sink.close()
    sink.close()
    kept = list(read_features(tmp_path / "kept"))
    assert len(kept) == len(results) and len(parts_in(tmp_path / "kept")) == 2
    for result, (frame, arrays) in zip(results, kept):
        assert set(arrays) == ({"features", "raw"} if raw else {"features"}) and arrays["features"].dtype == dtype
        for name, array in arrays.items():
            np.testing.assert_allclose(array, getattr(result, name), rtol=tolerance, atol=tolerance)
        assert (frame["id"], frame["stamp"], frame["drops_before"]) == (result.id, result.stamp, result.drops_before)
        assert frame["meta"] == {"path": f"{result.id}.png"}
        assert abs(frame["captured"] + frame["epoch"] - (time.time() - time.monotonic() + result.captured)) < 1


def test_large_features_make_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("dvt_fast.video.features.PART_BYTES", 3 * 3 * 4 * 8 * 4)
    sink = FeatureSink(tmp_path)
    for i in range(7):
        sink.write(make_result(i))
    sink.close()
    assert [len(part) for part in (list(read_features(tmp_path)),)] == [7] and len(parts_in(tmp_path)) == 3


def test_features_whose_memory_serves_again(tmp_path):
    sink, result = FeatureSink(tmp_path), make_result(0)
    for i in range(3):
        result.id, result.features[:] = i, i
        sink.write(result)
    sink.close()
    assert [float(arrays["features"].max()) for _, arrays in read_features(tmp_path)] == [0, 1, 2]


def test_features_that_cannot_be_kept(tmp_path, monkeypatch):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "part-000000.safetensors").touch()
    with pytest.raises(InputError, match="mixed: holds features already: choose another folder"):
        FeatureSink(tmp_path / "mixed")
    with pytest.raises(InputError, match="dtype must be float32 or float16, got 'int8'"):
        FeatureSink(tmp_path / "a", dtype="int8")
    with pytest.raises(InputError, match="hold no raw features: open the stream with raw=True"):
        FeatureSink(tmp_path / "a", raw=True).write(make_result(0, raw=False))
    sink, result = FeatureSink(tmp_path / "a"), make_result(0)
    result.features[0, 0, 0] = np.nan
    sink.write(result)
    with pytest.raises(NonFiniteError, match="features holds NaN or infinity: not saved"):
        sink.close()
    sink.close()
    assert os.listdir(tmp_path / "a") == []


def test_features_on_a_disk_that_fills(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = FeatureSink(tmp_path)
    for i in range(PART_FRAMES):
        sink.write(make_result(i))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"part-000001\.safetensors: cannot be written: No space left on device"):
        for i in range(PART_FRAMES):
            sink.write(make_result(i))
    sink.close()
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["part-000000.safetensors"]
    assert len(list(read_features(tmp_path))) == PART_FRAMES


def test_features_that_are_none(tmp_path):
    with pytest.raises(InputError, match="holds no features"):
        list(read_features(tmp_path))
    sink = FeatureSink(tmp_path)
    sink.write(make_result(0))
    sink.close()
    (part,) = parts_in(tmp_path)
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"part-000000\.safetensors: not a readable safetensors file"):
        list(read_features(tmp_path))


KILLED = """
import itertools, sys, time
from dvt_fast.video import FeatureSink, VideoSink
from test_video_sinks import make_result
sinks = FeatureSink(sys.argv[1] + "/kept"), VideoSink(sys.argv[1] + "/a.mp4", height=64)
for i in itertools.count():
    for sink in sinks:
        sink.write(make_result(i))
    if i == 100:
        print("written", flush=True)
        time.sleep(600)
"""


def test_a_kill_leaves_what_is_whole(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    kept = [frame["id"] for frame, _ in read_features(tmp_path / "kept")]
    assert kept == list(range(PART_FRAMES))
    assert not (tmp_path / "a.mp4").exists()


def test_pictures_by_number(tmp_path):
    sink = PictureSink(tmp_path / "new" / "%04d.png", height=64)
    for i in (0, 3):
        sink.write(make_result(i, make_image(50)))
    sink.close()
    assert sorted(os.listdir(tmp_path / "new")) == ["0000.png", "0003.png"]
    with Image.open(tmp_path / "new" / "0003.png") as picture:
        assert picture.height > 16 and picture.mode == "RGB"
    for bad in ("a.png", "%d.jpg", "%s%d.png", "%d/a.png", "100%.png"):
        with pytest.raises(InputError, match=r"expected a name with %d or %06d for the frame's number"):
            PictureSink(tmp_path / bad)
