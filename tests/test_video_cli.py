"""`dvt-fast denoise` of videos, cameras, bags and folders: what it writes, says and leaves behind."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dvt_fast
from dvt_fast.stream import Stream
from dvt_fast.video import VideoFile, read_features
from stream_samples import wait_until
from video_samples import corners, damage, grey, make_video

pytest.importorskip("av")
pytest.importorskip("timm")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with denoiser.safetensors, of a small ViT, and both of them in engine.safetensors."""
    from dvt_fast.denoiser import Denoiser

    folder = tmp_path_factory.mktemp("models")
    vit = dvt_fast.ViT("dvt_mini", norm=False, size=64)
    denoiser = Denoiser(vit.dim, vit.grid)
    denoiser.meta = {"vit": vit.describe()}
    denoiser.save(folder / "denoiser.safetensors")
    dvt_fast.Engine.from_vit(vit, denoiser).save(folder / "engine.safetensors")
    return folder


@pytest.fixture
def run(program, models):
    """Runs `dvt-fast denoise`, with the engine's file."""

    def run(*args, engine=True) -> tuple[int, str, str]:
        return program("denoise", *args, *(["--engine", models / "engine.safetensors"] if engine else []))

    return run


@pytest.fixture
def video(tmp_path):
    """Eight frames at 10 a second."""
    rng = np.random.default_rng(0)
    images = [np.kron(rng.integers(0, 255, (6, 8, 3), np.uint8), np.ones((12, 12, 1), np.uint8)) for _ in range(8)]
    return make_video(tmp_path / "drive.mp4", images, g=1)


def expected_features(models, source) -> list[np.ndarray]:
    session = dvt_fast.Engine.load(models / "engine.safetensors").session()
    with Stream(session, source, "block") as stream:
        return [result.features for result in stream]


def files_in(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_video_becomes_a_video_features_and_statistics(run, video, models, tmp_path):
    code, out, err = run("drive.mp4", "--features", "kept", "--out", "out", "--stats", "stats.json", "--deadline", 1e6)
    assert (code, err) == (0, "")
    assert out.startswith("drive.mp4: features in kept, out/drive-denoised.mp4 (8 frames; ")
    assert "0 after the deadline" in out and "dropped" not in out and " a second" in out and "age" not in out
    assert files_in("out") == ["drive-denoised.mp4"]
    source = VideoFile("out/drive-denoised.mp4")
    shown = list(iter(source.read, None))
    source.close()
    assert [frame.stamp for frame in shown] == pytest.approx([i / 10 for i in range(8)], abs=1e-3)
    height, width, _ = shown[0].image.shape
    assert width > 3 * height and len({frame.image.shape for frame in shown}) == 1
    kept = list(read_features("kept"))
    for (frame, arrays), expected in zip(kept, expected_features(models, VideoFile(video)), strict=True):
        np.testing.assert_array_equal(arrays["features"], expected)
        assert set(arrays) == {"features"} and not frame["missed_deadline"]
    numbers = json.loads(Path("stats.json").read_text())
    assert (numbers["in"], numbers["delivered"], numbers["dropped"], numbers["missed"]) == (8, 8, 0, 0)
    assert numbers["source"] == ["drive.mp4"] and numbers["grid"] == [4, 4] and numbers["deadline_ms"] == 1e6


def test_a_vit_and_its_denoiser_are_exported_in_memory(run, video, models):
    code, _, err = run("drive.mp4", "--denoiser", models / "denoiser.safetensors", "--features", "kept", engine=False)
    assert (code, err) == (0, "")
    for (_, arrays), expected in zip(read_features("kept"), expected_features(models, VideoFile(video)), strict=True):
        np.testing.assert_array_equal(arrays["features"], expected)
    assert not Path("out").exists()  # not asked for


def test_raw_features_limits_and_json(run, video):
    code, out, err = run("drive.mp4", "--features", "kept", "--raw", "--frames", 5, "--json", "--threads", 1)
    assert (code, err) == (0, "")
    row = json.loads(out)
    assert (row["in"], row["threads"], row["written"], row["errors"]) == (5, 1, ["features in kept"], [])
    kept = [arrays for _, arrays in read_features("kept")]
    assert len(kept) == 5 and all(np.abs(arrays["raw"] - arrays["features"]).max() > 1e-3 for arrays in kept)
    assert json.loads(run("drive.mp4", "--seconds", 0.25, "--json", "-o", "x.mkv")[1])["in"] == 3
    assert len(list(iter(VideoFile("x.mkv").read, None))) == 3


def test_a_replay_is_live(run, video):
    code, out, _ = run("drive.mp4", "--realtime", "--rate", 20, "--policy", "block", "--json", "-o", "a.mp4")
    row = json.loads(out)
    assert code == 0 and row["delivered"] == 8 and row["policy"] == "block"
    code, out, _ = run("drive.mp4", "--realtime", "--frames", 1, "-o", "b.mp4")
    assert code == 0 and out.startswith("drive.mp4: b.mp4 (1 frame; age ")
    code, out, _ = run("drive.mp4", "--realtime", "--rate", 2000, "--policy", "drop_new", "--json", "-o", "a.mp4")
    row = json.loads(out)
    assert code == 0 and row["in"] == 8 == row["delivered"] + row["dropped"] and set(row["drops"]) <= {"busy"}


def test_the_session_has_run_before_the_clock_of_a_replay_starts(run, video, monkeypatch):
    """The source is not read yet when the session runs for the first time, on a grey frame."""
    seen = []
    first, read = dvt_fast.Session.run, VideoFile.read
    monkeypatch.setattr(dvt_fast.Session, "run", lambda *a, **k: (seen.append(int(np.ptp(a[1]))), first(*a, **k))[1])
    monkeypatch.setattr(VideoFile, "read", lambda self: (seen.append("read"), read(self))[1])
    assert run("drive.mp4", "--realtime", "-o", "a.mp4")[0] == 0
    assert seen[:2] == [0, "read"] and all(spread for spread in seen[1:])


def test_folders_of_images_become_videos_and_pictures(run, tmp_path):
    (tmp_path / "shots").mkdir()
    for i in range(12):
        Image.fromarray(grey(20 * i)).save(tmp_path / "shots" / f"{i}.png")
    assert run("shots", "-o", "a.mp4", "--rate", 4)[0] == 0
    assert [frame.stamp for frame in iter(VideoFile("a.mp4").read, None)] == pytest.approx([i / 4 for i in range(12)])
    code, out, _ = run("shots/1.png", "shots/10.png", "shots/2.png", "-o", "b.mp4")
    assert code == 0 and out.startswith("3 images: b.mp4 (3 frames")
    shown = [frame.image[60, 60, 0] for frame in iter(VideoFile("b.mp4").read, None)]
    assert shown == sorted(shown)  # 1, 2, 10
    assert run("shots/1*.png", "-o", "new/%03d.png")[0] == 0
    assert files_in("new") == ["000.png", "001.png", "002.png"]


def test_broken_packets_are_told(run, video, caplog):
    damage(video, [2, 5])
    code, out, _ = run("drive.mp4", "-o", "a.mp4")
    assert code == 0 and "(6 frames; " in out and out.endswith("2 dropped: corrupt)\n")
    (said,) = caplog.messages
    assert said.startswith("drive.mp4: frame 2 is dropped as corrupt")


def test_frames_that_fail_do_not_stop_the_others(run, tmp_path):
    (tmp_path / "shots").mkdir()
    for i, size in enumerate([(48, 64), (48, 9000), (48, 64), (48, 64)]):  # the second is wider than sessions take
        Image.fromarray(grey(50, *size)).save(tmp_path / "shots" / f"{i}.png")
    code, out, err = run("shots", "-o", "a.mp4", "--stats", "stats.json")
    assert code == 1 and err.startswith("error: shots: ") and "9000" in err and err.count("\n") == 1
    assert "(3 frames; " in out and "1 dropped: error" in out
    assert json.loads(Path("stats.json").read_text())["drops"] == {"error": 1}
    assert len(list(iter(VideoFile("a.mp4").read, None))) == 3


def test_bags_in_and_out(run, video):
    rosbags = pytest.importorskip("rosbags.highlevel")
    code, _, err = run("drive.mp4", "-o", "drive.mcap")
    assert (code, err) == (0, "")
    code, out, err = run("drive.mcap", "-o", "more", "--topic", "/dvt/image/compressed")
    assert (code, err) == (0, "") and "more/drive-denoised (8 frames" in out
    with rosbags.AnyReader([Path("more/drive-denoised")]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
    assert counts == {"/dvt/features": 8, "/dvt/pca": 8, "/dvt/raw_pca": 8}
    assert run("drive.mcap", "-o", "again.mp4", "--topic", "/dvt/pca")[0] == 0
    assert len(list(iter(VideoFile("again.mp4").read, None))) == 8
    code, _, err = run("drive.mcap", "-o", "x.mp4", "--topic", "/nowhere")
    assert code == 1 and "/nowhere" in err and err.count("\n") == 1 and not Path("x.mp4").exists()


def test_rerun(run, video):
    pytest.importorskip("rerun")
    code, out, err = run("drive.mp4", "--rerun", "drive.rrd")
    assert (code, err) == (0, "") and out.startswith("drive.mp4: Rerun (drive.rrd) (8 frames")
    assert Path("drive.rrd").stat().st_size > 1000 and not Path("out").exists()


def test_without_torch(video, models, tmp_path):
    """An engine's file is all that a stream needs."""
    code = (
        "import sys\n"
        "for name in ('torch', 'timm'):\n    sys.modules[name] = None\n"
        "sys.argv = ['dvt-fast', 'denoise', *sys.argv[1:]]\n"
        "from dvt_fast.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, str(video), "--engine", str(models / "engine.safetensors"), "-o", "a.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT})
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["none.mp4"], "none.mp4: no such file"),
        (["text.mp4"], "text.mp4: cannot be read as a video: Invalid data found when processing input"),
        (["camera:77"], "camera:77: no such camera"),
        (["camera:front"], "expected camera:NUMBER, such as camera:0, or a device such as /dev/video0, got 'camera:fr"),
        (["none.mcap"], "none.mcap: no such file"),
        (["none/*.png", "-o", "x.mp4"], "no images found in none/*.png"),
        (["drive.mp4", "-o", "drive.mp4"], "drive.mp4: is the input itself: give another name by --out"),
        (["drive.mp4", "-o", "text.mp4/x.mp4"], "text.mp4: is a file, expected a folder to write to"),
        (["drive.mp4", "-o", "x.avi"], "x.avi: cannot write .avi: expected a video (.mp4, .m4v, .mov, .mkv), "),
        (["drive.mp4", "-o", "new/x.gif"], "new/x.gif: cannot write .gif: expected a video (.mp4, "),
        (["none.jpg", "-o", "x.png"], "x.png: cannot write .png: expected a video (.mp4, "),
        (["drive.mp4", "-o", "%d%d.png"], "%d%d.png: no pattern for pictures: expected a video (.mp4, "),
        (["drive.mp4", "--features", "text.mp4"], "text.mp4: is a file, expected a folder to write to"),
        (["drive.mp4", "--stats", "text.mp4/s.json"], "text.mp4: is a file, expected a folder to write to"),
        (["drive.mp4", "--rerun", "x.mp4"], "x.mp4: expected a file that ends in .rrd, spawn, connect or a viewer"),
        (["drive.mp4", "--seconds", "0"], "seconds must be positive, got 0"),
        (["drive.mp4", "--deadline", "0"], "deadline_ms must be positive, got 0"),
        (["drive.mp4", "--realtime", "--rate", "0"], "rate must be positive and finite, got 0"),
        (["drive.mp4", "--engine", "none.safetensors"], "none.safetensors: "),
        (["drive.mp4", "--engine", "text.mp4"], "text.mp4: "),
        (["drive.mp4", "--engine", "MODELS/denoiser.safetensors"], "MODELS/denoiser.safetensors: holds no ViT"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_leave_nothing(run, video, models, args, message):
    Path("text.mp4").write_text("no video " * 100)
    before = files_in(".")
    args = [arg.replace("MODELS", str(models)) for arg in args]
    code, out, err = run(*args, engine="--engine" not in args)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {message.replace('MODELS', str(models))}") and err.count("\n") == 1
    assert [name for name in files_in(".") if name != "out"] == before
    assert not Path("out").exists() or files_in("out") == []


@pytest.mark.parametrize(
    "args, message",
    [
        (["drive.mp4", "drive.mp4"], "drive.mp4 goes by itself: expected one video, camera or bag, or images"),
        (["drive.mp4", "--stage1"], "--stage1: is for images, not for streams"),
        (["drive.mp4", "--patch", "1,2"], "is for images, not for streams"),
        (["drive.mp4", "--rate", "5"], "drive.mp4 has a rate of its own: give --realtime, too"),
        (["drive.mp4", "--topic", "/x"], "is an option of bags"),
        (["drive.mp4", "--raw", "-o", "x.mp4"], "needs --features"),
        (["drive.mp4", "--layer", "3"], "is of no use with --engine, whose file holds it"),
        (["drive.mp4", "--denoiser", "x"], "is of no use with --engine, whose file holds it"),
        (["drive.mp4", "--policy", "newest"], "'newest' is not one of 'latest', 'drop_new', 'block'"),
        (["photo.png"], "for images give --out a video (.mp4), a bag or out/%06d.png"),
    ],
)
def test_wrong_usage(run, video, args, message):
    Image.fromarray(corners()).save("photo.png")
    code, out, err = run(*args)
    assert (code, out) == (2, "") and message in " ".join(err.replace("│", "").split())
    assert files_in(".") == ["drive.mp4", "photo.png"]


def test_streams_run_on_a_device(run, video, models, cuda):
    """The same features as on the CPU, to what float16 products leave."""
    for device, dtype in (("cpu", "float32"), ("cuda", "float16")):
        args = ["drive.mp4", "--device", device, "--dtype", dtype, "--frames", "1", "--features", device]
        assert run(*args)[0] == 0
    (_, found), (_, expected) = (next(read_features(folder)) for folder in ("cuda", "cpu"))
    scale = np.abs(expected["features"]).max()
    np.testing.assert_allclose(found["features"], expected["features"], atol=0.02 * scale)


def test_devices_and_dtypes_that_are_not_there(run, video, cuda):
    code, _, err = run("drive.mp4", "--device", "cuda:99")
    assert code == 1 and "device 'cuda:99' does not exist" in err
    code, _, err = run("drive.mp4", "--dtype", "tf32")
    assert code == 1 and "dtype must be one of float32, float16, bfloat16 on cpu, got 'tf32'" in " ".join(err.split())


def test_a_disk_that_fills_ends_it_with_one_line(run, video, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = run("drive.mp4", "-o", "a.mp4", "--features", "kept", "--stats", "s.json")
    assert (code, out) == (1, "")
    assert err == "error: kept/part-000000.safetensors: cannot be written: No space left on device\n"
    assert files_in(".") == ["drive.mp4", "kept"] and files_in("kept") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_files(models, tmp_path, number):
    """The video is an hour long by its stamps, and replayed at its own rate."""
    times = [0, 0.05, 0.1, 0.15, 3600]
    make_video(tmp_path / "long.mp4", [corners()] * 5, times)
    command = [sys.executable, "-m", "dvt_fast.cli", "denoise", "long.mp4", "--realtime", "--policy", "block"]
    command += ["--engine", str(models / "engine.safetensors"), "-o", "shots/%d.png", "--features", "kept"]
    command += ["--stats", "stats.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        wait_until(lambda: (tmp_path / "shots" / "3.png").exists() or process.poll() is not None)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped; the files written so far are whole\n")
    assert out.startswith("long.mp4: features in kept, shots/%d.png (4 frames; ")
    assert len(list(read_features(tmp_path / "kept"))) == 4
    numbers = json.loads((tmp_path / "stats.json").read_text())
    assert numbers["in"] == numbers["delivered"] + numbers["dropped"] and numbers["delivered"] == 4
