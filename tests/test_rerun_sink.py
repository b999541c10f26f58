"""What the Rerun sink logs is in the file, exactly; files are whole or absent; no viewer and no disk hangs it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("rerun", reason="needs the extra [rerun]")
pytest.importorskip("rerun.chunk", reason="needs a rerun-sdk that reads .rrd files")

from rerun import chunk

from dvt_fast.errors import InputError, OutputError
from dvt_fast.images import load_image
from dvt_fast.rerun_sink import RerunSink
from dvt_fast.stream import Sink
from dvt_fast.video.colors import StableColors
from result_samples import START, largest_file, results


def write_all(sink, items):
    for result in items:
        sink.write(result)
    sink.close()


def read_all(path):
    """entity -> column -> values of all rows, in the order of the frames."""
    found = {}
    for part in chunk.RrdReader(path).stream():
        batch = part.to_record_batch()
        columns = found.setdefault(part.entity_path, {})
        for name in batch.schema.names:
            values = batch.column(name)
            is_time = name in ("frame", "stamp", "log_time")
            columns.setdefault(name, []).extend(values.cast("int64").to_pylist() if is_time else values.to_pylist())
    for columns in found.values():
        if "frame" in columns:
            order = np.argsort(columns["frame"])
            columns.update({name: [values[i] for i in order] for name, values in columns.items()})
    return found


def pixels_of(columns, i):
    (format,) = columns["Image:format"][i]
    return np.array(columns["Image:buffer"][i][0], np.uint8).reshape(format["height"], format["width"], 3)


def test_what_is_logged(tmp_path):
    sink = RerunSink(tmp_path / "out.rrd")
    assert isinstance(sink, Sink)
    given = list(results(5))
    for i, result in enumerate(given):
        result.age, result.finished, result.drops_before = 0.01 * (i + 1), result.captured + 0.007, i
    write_all(sink, given)
    assert [path.name for path in tmp_path.iterdir()] == ["out.rrd"]
    found = read_all(tmp_path / "out.rrd")
    colors = StableColors()
    for i, result in enumerate(given):
        basis = colors.update(result.raw, result.features)
        np.testing.assert_array_equal(pixels_of(found["/pca"], i), basis.colors(result.features))
        np.testing.assert_array_equal(pixels_of(found["/raw_pca"], i), basis.colors(result.raw))
        jpeg = bytes(found["/frame"]["EncodedImage:blob"][i][0])
        (tmp_path / "frame.jpg").write_bytes(jpeg)
        np.testing.assert_allclose(np.array(load_image(tmp_path / "frame.jpg")).astype(int), result.image, atol=12)
    for entity, values in (
        ("/timing/age_ms", [10, 20, 30, 40, 50]),
        ("/timing/latency_ms", [7] * 5),
        ("/drops_before", [0, 1, 2, 3, 4]),
    ):
        np.testing.assert_allclose(np.ravel(found[entity]["Scalars:scalars"]), values, rtol=1e-6)
    for entity in ("/frame", "/pca", "/raw_pca", "/timing/age_ms"):
        assert found[entity]["frame"] == list(range(5))
        assert found[entity]["stamp"] == [START + i * 40_000_000 for i in range(5)]
    assert len(chunk.RrdReader(tmp_path / "out.rrd").blueprints()) == 1


def test_stamps_of_a_video_count_from_its_start(tmp_path):
    given = list(results(3, raw=False, meta=False))
    for i, result in enumerate(given):
        result.stamp = 0.5 + i / 4
    write_all(RerunSink(tmp_path / "out.rrd"), given)
    found = read_all(tmp_path / "out.rrd")
    assert found["/pca"]["stamp"] == [500_000_000, 750_000_000, 1_000_000_000] and "/raw_pca" not in found


def test_frames_without_stamps_have_the_time_of_their_capture(tmp_path):
    write_all(RerunSink(tmp_path / "out.rrd"), results(1, meta=False))
    (stamp,) = read_all(tmp_path / "out.rrd")["/pca"]["stamp"]
    assert abs(stamp / 1e9 - time.time()) < 30


def test_file_is_hidden_until_it_is_whole(tmp_path):
    sink = RerunSink(tmp_path / "deep" / "out.rrd")
    for result in results(3):
        sink.write(result)
        assert not (tmp_path / "deep" / "out.rrd").exists()
    sink.close()
    sink.close()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.rrd"]
    with pytest.raises(InputError, match="is closed"):
        sink.write(result)


def test_without_results_there_is_no_file(tmp_path):
    RerunSink(tmp_path / "out.rrd").close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [100_000, 100])  # full on the way, and only when all is said
def test_disk_that_fills_up(tmp_path, room):
    (tmp_path / "out.rrd").write_text("an earlier one")
    sink = RerunSink(tmp_path / "out.rrd")
    before = time.monotonic()
    with largest_file(room), pytest.raises(OutputError) as error:
        for result in results(300 if room > 1000 else 1, grid=(24, 24)):
            sink.write(result)
        sink.close()
    assert time.monotonic() - before < 20
    assert str(tmp_path / "out.rrd") in str(error.value) and "\n" not in str(error.value)
    sink.close()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an earlier one"]
    write_all(RerunSink(tmp_path / "out.rrd"), results(2))
    assert len(read_all(tmp_path / "out.rrd")["/pca"]["frame"]) == 2


def test_targets_that_cannot_be(tmp_path, monkeypatch):
    for target in ("out.mp4", "viewer"):
        with pytest.raises(InputError, match=r"expected a file that ends in \.rrd"):
            RerunSink(target)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if sys.platform == "linux":
        with pytest.raises(OutputError, match="no display"):
            RerunSink("spawn")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        RerunSink(tmp_path / "file" / "out.rrd")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_viewer():
    with pytest.raises(OutputError, match=r"Rerun viewer .*refused"):
        RerunSink(f"rerun+http://127.0.0.1:{free_port()}/proxy")


SERVER = """
import sys, rerun
recording = rerun.RecordingStream("server")
print(recording.serve_grpc(grpc_port=int(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server():
    """What a viewer listens with; (its address, its process)."""
    command = [sys.executable, "-c", SERVER, str(free_port())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip(), process
        process.kill()


def test_viewer_that_runs(server):
    sink = RerunSink(server[0])
    write_all(sink, results(5))
    sink.close()


def test_viewer_that_is_closed(server):
    sink = RerunSink(server[0])
    given = results(400)
    for _ in range(50):
        sink.write(next(given))
    server[1].kill()
    server[1].wait()
    before = time.monotonic()
    with pytest.raises(OutputError, match="Rerun viewer"):
        write_all(sink, given)
    assert time.monotonic() - before < 30
    sink.close()
