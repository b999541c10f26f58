"""Bags that are written: whole or absent, and what other tools read in them is what came."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the extra [ros]")

from rosbags.highlevel import AnyReader

from dvt_fast.errors import InputError, NonFiniteError, OutputError
from dvt_fast.ros import FEATURE_MAP_DEFINITION, BagSink, BagSource, features_of
from dvt_fast.stream import Result, Sink
from dvt_fast.video.colors import StableColors
from result_samples import START, largest_file, results
from ros_samples import compressed, picture, rgb8, storage_file, write_bag

OUTPUTS = [("bag", None), ("bag", "sqlite3"), ("bag.mcap", None), ("bag.db3", None)]


def write_all(sink, items):
    for result in items:
        sink.write(result)
    sink.close()


def read_all(path):
    """topic -> [(nanoseconds, message, bytes)], decoded by the definitions that the bag holds."""
    found = {}
    with AnyReader([Path(path)]) as reader:
        for connection, recorded, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            found.setdefault(connection.topic, []).append((recorded, message, data))
    return found


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def pixels_of(message):
    assert message.encoding == "rgb8" and message.step == 3 * message.width
    return message.data.reshape(message.height, message.width, 3)


@pytest.mark.parametrize("name, storage", OUTPUTS)
def test_what_comes_is_what_is_read(tmp_path, name, storage):
    sink = BagSink(tmp_path / name, storage=storage, model="a ViT")
    assert isinstance(sink, Sink)
    write_all(sink, results())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).is_dir() == (name == "bag")
    found = read_all(tmp_path / name)
    assert set(found) == {"/dvt/features", "/dvt/pca", "/dvt/raw_pca"}
    colors = StableColors()
    for i, result in enumerate(results()):
        for messages in found.values():
            recorded, message, _ = messages[i]
            stamp = START + i * 40_000_000
            assert (stamp_of(message), recorded, message.header.frame_id) == (stamp, stamp + 3, "front")
        message = found["/dvt/features"][i][1]
        np.testing.assert_array_equal(features_of(message), result.features)
        assert message.model == "a ViT"
        basis = colors.update(result.raw, result.features)
        for topic, features in (("/dvt/pca", result.features), ("/dvt/raw_pca", result.raw)):
            expected = np.kron(basis.colors(features), np.ones((16, 16, 1), np.uint8))
            np.testing.assert_array_equal(pixels_of(found[topic][i][1]), expected)


def test_float16(tmp_path):
    write_all(BagSink(tmp_path / "bag", dtype="float16"), results(1, raw=False))
    found = read_all(tmp_path / "bag")
    assert set(found) == {"/dvt/features", "/dvt/pca"}
    ((_, message, _),) = found["/dvt/features"]
    (result,) = results(1, raw=False)
    assert message.dtype == "float16" and message.data.nbytes == 2 * result.features.size
    np.testing.assert_array_equal(features_of(message), result.features.astype(np.float16))


@pytest.mark.parametrize("change", [{"channels": 23}, {"height": 2**32 - 1, "width": 2**32 - 1}, {"dtype": "int8"}])
def test_feature_maps_that_cannot_be(tmp_path, change):
    write_all(BagSink(tmp_path / "bag"), results(1))
    message = read_all(tmp_path / "bag")["/dvt/features"][0][1]
    for name, value in change.items():
        object.__setattr__(message, name, value)
    with pytest.raises(InputError, match="expected"):
        features_of(message)


def test_definition_is_in_the_bag_with_its_comments(tmp_path):
    write_all(BagSink(tmp_path / "bag.mcap"), results(1))
    assert FEATURE_MAP_DEFINITION.encode() in (tmp_path / "bag.mcap").read_bytes()


def test_pictures_as_large_as_the_frame(tmp_path):
    write_all(BagSink(tmp_path / "bag", patch_pixels=None, prefix="/robot/eyes"), results(1))
    ((_, message, _),) = read_all(tmp_path / "bag")["/robot/eyes/pca"]
    pixels = pixels_of(message)
    assert pixels.shape == (30, 44, 3)
    (result,) = results(1)
    colors = StableColors().update(result.raw, result.features).colors(result.features)
    for y, x in ((0, 0), (15, 22), (29, 43), (11, 43)):
        np.testing.assert_array_equal(pixels[y, x], colors[y * 5 // 30, x * 7 // 44])


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("kind", [rgb8, compressed])
def test_camera_messages_pass_unchanged(tmp_path, kind, storage):
    camera = write_bag(tmp_path / "camera", {"/front/image": [kind(picture(seed=i)) for i in range(3)]}, storage)
    sink = BagSink(tmp_path / "bag", storage=storage, camera=True)
    source = BagSource(camera, keep_messages=True)
    for frame, result in zip(iter(source.read, None), results(3)):
        result.meta = frame.meta
        sink.write(result)
    source.close()
    sink.close()
    before, after = read_all(camera)["/front/image"], read_all(tmp_path / "bag")
    assert set(after) == {"/dvt/features", "/dvt/pca", "/dvt/raw_pca", "/front/image"}
    for (recorded, old, data), (copied, new, copy) in zip(before, after["/front/image"]):
        assert (copied, bytes(copy)) == (recorded, bytes(data)) and new.__msgtype__ == old.__msgtype__
    assert [stamp_of(new) for _, new, _ in after["/dvt/features"]] == [stamp_of(old) for _, old, _ in before]


def test_frames_without_a_message_become_jpegs(tmp_path):
    write_all(BagSink(tmp_path / "bag", camera=True), results(2))
    source = BagSource(tmp_path / "bag", "/dvt/image/compressed")
    for result in results(2):
        frame = source.read()
        assert frame.meta["stamp_ns"] == result.meta["stamp_ns"] and frame.meta["frame_id"] == "front"
        np.testing.assert_allclose(frame.image.astype(int), result.image, atol=12)
    source.close()


def test_topic_of_the_camera_is_not_written_twice(tmp_path):
    camera = write_bag(tmp_path / "camera", {"/dvt/pca": [rgb8(picture())]})
    source = BagSource(camera, keep_messages=True)
    (result,) = results(1)
    result.meta = source.read().meta
    source.close()
    sink = BagSink(tmp_path / "bag", camera=True)
    with pytest.raises(InputError, match="/dvt/pca, which is the camera's"):
        sink.write(result)
    sink.close()
    assert not (tmp_path / "bag").exists()


def test_results_without_stamps_have_the_time_of_their_capture(tmp_path):
    before = time.time_ns()
    write_all(BagSink(tmp_path / "bag"), results(1, meta=False))
    ((recorded, message, _),) = read_all(tmp_path / "bag")["/dvt/features"]
    assert before - 10**8 < stamp_of(message) < time.time_ns() + 10**8
    assert recorded == stamp_of(message) and message.header.frame_id == ""


def test_stamps_before_the_start_of_a_video(tmp_path):
    (result,) = results(1, meta=False)
    result.stamp = -0.25
    write_all(BagSink(tmp_path / "bag"), [result])
    ((recorded, message, _),) = read_all(tmp_path / "bag")["/dvt/features"]
    assert stamp_of(message) == -250_000_000 and recorded == 0


def test_bag_is_hidden_until_it_is_whole(tmp_path):
    sink = BagSink(tmp_path / "deep" / "bag")
    for result in results(3):
        sink.write(result)
        assert not (tmp_path / "deep" / "bag").exists()
    sink.close()
    sink.close()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bag"]
    with pytest.raises(InputError, match="is closed"):
        sink.write(result)


def test_without_results_there_is_no_bag(tmp_path):
    BagSink(tmp_path / "bag").close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype, value", [("float32", np.nan), ("float32", -np.inf), ("float16", 1e6)])
def test_features_that_cannot_be_written_leave_the_sink_as_it_was(tmp_path, dtype, value):
    one, broken, two = results(3)
    broken.features[1, 2, 3] = value
    sink = BagSink(tmp_path / "bag", dtype=dtype)
    sink.write(one)
    with pytest.raises(NonFiniteError, match="float16" if dtype == "float16" else "NaN or infinity"):
        sink.write(broken)
    sink.write(two)
    sink.close()
    for messages in read_all(tmp_path / "bag").values():
        assert [stamp_of(message) for _, message, _ in messages] == [START, START + 80_000_000]


def test_interrupt_while_a_record_is_written(tmp_path, monkeypatch):
    sink = BagSink(tmp_path / "bag")
    one, two = results(2)
    sink.write(one)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sink._writer.storage, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sink.write(two)
    sink.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bag", "bag.mcap"])
def test_nothing_is_replaced(tmp_path, name):
    (tmp_path / name).mkdir() if name == "bag" else (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        BagSink(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"storage": "rosbag"}, "storage of bag must be 'mcap' or 'sqlite3', got 'rosbag'"),
        ({"path": "bag.mcap", "storage": "sqlite3"}, "storage of bag.mcap must be 'mcap'"),
        ({"dtype": "float64"}, "dtype must be float32 or float16"),
        ({"prefix": "dvt"}, "prefix must be a topic such as /dvt"),
        ({"prefix": "/dvt/"}, "prefix must be"),
        ({"patch_pixels": 0}, "patch_pixels must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, said):
    with pytest.raises(InputError) as error:
        BagSink(tmp_path / options.pop("path", "bag"), **options)
    assert said in str(error.value)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        BagSink(tmp_path / "file" / "bag")


@pytest.mark.parametrize("name, storage", OUTPUTS)
def test_disk_that_fills_up(tmp_path, name, storage):
    sink = BagSink(tmp_path / name, storage=storage)
    with largest_file(4_000_000), pytest.raises(OutputError) as error:
        for result in results(100, grid=(37, 37), channels=48):
            sink.write(result)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    sink.close()
    assert not list(tmp_path.iterdir())
    write_all(BagSink(tmp_path / name, storage=storage), results(2))  # as soon as there is space
    assert len(read_all(tmp_path / name)["/dvt/features"]) == 2


@pytest.mark.parametrize("name, storage", OUTPUTS)
def test_disk_that_is_full_at_the_end(tmp_path, name, storage):
    sink = BagSink(tmp_path / name, storage=storage)
    for result in results(2):
        sink.write(result)
    with largest_file(3000), pytest.raises(OutputError):
        sink.close()
    sink.close()
    assert not list(tmp_path.iterdir())


def test_rerun_reads_it(tmp_path):
    pytest.importorskip("rerun", reason="needs the extra [rerun]")
    chunks = pytest.importorskip("rerun.chunk", reason="needs a rerun-sdk that reads MCAP")
    write_all(BagSink(tmp_path / "bag.mcap", camera=True), results(3))
    found = {}
    for chunk in chunks.McapReader(tmp_path / "bag.mcap").stream():
        found.setdefault(chunk.entity_path, set()).update(chunk.to_record_batch().schema.names)
    assert {"Image:buffer", "Image:format"} <= found["/dvt/pca"]
    assert "EncodedImage:blob" in found["/dvt/image/compressed"]
    assert any("FeatureMap" in name for name in found["/dvt/features"])


def test_real_bag_in_and_out(shared_data, tmp_path):
    source = BagSource(shared_data / "bags" / "driving_sqlite3", keep_messages=True)
    sink = BagSink(tmp_path / "bag", camera=True)
    frames = list(iter(source.read, None))
    for frame, result in zip(frames, results(20)):
        sink.write(Result(frame.id, frame.image, result.features, frame.captured, frame.stamp, meta=frame.meta))
    source.close()
    sink.close()
    before, after = read_all(shared_data / "bags" / "driving_sqlite3"), read_all(tmp_path / "bag")
    topic = "/camera/image_raw/compressed"
    assert [(time, data) for time, _, data in after[topic]] == [(time, data) for time, _, data in before[topic]]
    assert storage_file(tmp_path / "bag").name == "bag.mcap"


def test_the_documents_have_the_definition():
    text = (Path(__file__).parents[1] / "docs" / "ros.md").read_text()
    assert f"```text\n{FEATURE_MAP_DEFINITION}```" in text
    assert all(f"`{name}`" in text for name in ("rgb8", "bgra8", "mono8", "yuv422", "uyvy", "yuv422_yuy2", "yuyv"))
