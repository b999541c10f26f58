"""Bags as sources: every storage, what they hold beside pictures, and what happens to damaged ones."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the extra [ros]")

from dvt_fast.errors import InputError
from dvt_fast.ros import BagSource, is_bag
from dvt_fast.stream import Source
from result_samples import START
from ros_samples import (
    cdr,
    compressed,
    picture,
    rgb8,
    storage_file,
    write_bag,
    write_ros1_bag,
)

STORAGES = ("mcap", "sqlite3")
PICTURES = [picture(seed=seed) for seed in range(4)]


@pytest.fixture(params=STORAGES)
def storage(request):
    return request.param


def read_all(source):
    frames = list(iter(source.read, None))
    source.close()
    return frames


@pytest.mark.parametrize("single", [False, True])
def test_frames_and_what_is_known_of_them(tmp_path, storage, single):
    bag = write_bag(tmp_path / "bag", {"/camera/image_raw": map(rgb8, PICTURES)}, storage)
    source = BagSource(storage_file(bag) if single else bag)
    assert isinstance(source, Source) and not source.live
    assert source.frames == 4 and source.rate == pytest.approx(10)
    frames = read_all(source)
    assert [frame.id for frame in frames] == [0, 1, 2, 3] and source.lost == {}
    for i, (frame, pixels) in enumerate(zip(frames, PICTURES)):
        np.testing.assert_array_equal(frame.image, pixels)
        stamp = START + i * 100_000_000
        assert frame.stamp == pytest.approx(stamp / 1e9, abs=1e-6)
        assert frame.meta == {
            "topic": "/camera/image_raw",
            "frame_id": "camera",
            "stamp_ns": stamp,
            "recorded_ns": stamp + 5_000_000,
        }


def test_compressed_images_and_their_messages(tmp_path, storage):
    messages = [cdr(compressed(pixels), START + i) for i, pixels in enumerate(PICTURES)]
    bag = write_bag(tmp_path / "bag", {"/camera/image_raw/compressed": messages}, storage)
    frames = read_all(BagSource(bag, keep_messages=True))
    assert [(frame.meta["message_type"], frame.meta["message"]) for frame in frames] == messages
    for frame, pixels in zip(frames, PICTURES):
        np.testing.assert_allclose(frame.image.astype(int), pixels, atol=12)


def test_big_endian_messages(tmp_path, storage):
    messages = [cdr(rgb8(pixels), START + 7, little_endian=False) for pixels in PICTURES]
    frames = read_all(BagSource(write_bag(tmp_path / "bag", {"/image": messages}, storage)))
    assert len(frames) == 4 and all(frame.meta["stamp_ns"] == START + 7 for frame in frames)
    np.testing.assert_array_equal(frames[3].image, PICTURES[3])


@pytest.mark.parametrize(
    "storage, compression",
    [("mcap", "STORAGE"), ("mcap", "MESSAGE"), ("mcap", "FILE"), ("sqlite3", "MESSAGE"), ("sqlite3", "FILE")],
)
def test_compressed_bags(tmp_path, storage, compression):
    messages = [cdr(rgb8(pixels)) for pixels in PICTURES]
    bag = write_bag(tmp_path / "bag", {"/image": messages}, storage, compression=compression)
    frames = read_all(BagSource(bag, keep_messages=True))
    assert [(frame.meta["message_type"], frame.meta["message"]) for frame in frames] == messages


def test_ros1(tmp_path):
    path = write_ros1_bag(tmp_path / "one.bag", "/image", map(rgb8, PICTURES))
    frames = read_all(BagSource(path, keep_messages=True))
    assert len(frames) == 4 and frames[2].meta["stamp_ns"] == START + 2 and frames[2].meta["frame_id"] == "camera"
    np.testing.assert_array_equal(frames[2].image, PICTURES[2])
    assert (frames[2].meta["message_type"], frames[2].meta["message"]) == cdr(rgb8(PICTURES[2]), START + 2)


def test_headers_without_a_stamp_have_the_time_of_recording(tmp_path):
    bag = write_bag(tmp_path / "bag", {"/image": [cdr(rgb8(PICTURES[0]), stamp=0)]})
    (frame,) = read_all(BagSource(bag))
    assert frame.meta["stamp_ns"] == frame.meta["recorded_ns"] == START + 5_000_000


def test_size_may_change(tmp_path):
    bag = write_bag(tmp_path / "bag", {"/image": [rgb8(picture(12, 16)), rgb8(picture(24, 18))]})
    assert [frame.image.shape for frame in read_all(BagSource(bag))] == [(12, 16, 3), (24, 18, 3)]


def test_recording_that_ended_before_its_metadata(tmp_path, storage):
    bag = write_bag(tmp_path / "bag", {"/image": map(rgb8, PICTURES)}, storage)
    (bag / "metadata.yaml").unlink()
    assert len(read_all(BagSource(bag))) == 4


def test_topics(tmp_path):
    one, two = map(rgb8, PICTURES[:2]), map(compressed, PICTURES[:3])
    bag = write_bag(tmp_path / "bag", {"/left": one, "/right/compressed": two})
    topics = (
        "/left (sensor_msgs/msg/Image, 2 messages), /right/compressed (sensor_msgs/msg/CompressedImage, 3 messages)"
    )
    with pytest.raises(InputError, match="2 image topics, choose one") as error:
        BagSource(bag)
    assert topics in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="no topic /top: its image topics are /left") as error:
        BagSource(bag, "/top")
    assert topics in str(error.value)
    assert len(read_all(BagSource(bag, "/left"))) == 2
    assert len(read_all(BagSource(bag, "/right/compressed"))) == 3


def test_topics_that_are_no_images(shared_data):
    with pytest.raises(InputError, match="/camera/camera_info is a sensor_msgs/msg/CameraInfo"):
        BagSource(shared_data / "bags" / "driving_mcap", "/camera/camera_info")


def test_bag_without_images(tmp_path):
    with pytest.raises(InputError, match="it holds nothing at all"):
        BagSource(write_bag(tmp_path / "bag", {}))


@pytest.mark.parametrize("name, topic, count", [("driving_mcap", "/camera/image_raw/compressed", 60),
                                                ("driving_mcap", "/camera_low/image_raw", 6),
                                                ("driving_sqlite3", None, 20)])  # fmt: skip
def test_real_video(shared_data, name, topic, count):
    source = BagSource(shared_data / "bags" / name, topic)
    frames = read_all(source)
    assert len(frames) == source.frames == count and not source.lost
    assert all(40 < frame.image.mean() < 200 for frame in frames)
    assert frames[0].meta["frame_id"] == "camera_optical"


def test_broken_messages_are_skipped_counted_and_told_once_a_kind(tmp_path, storage, caplog):
    short, depth = rgb8(PICTURES[0]), rgb8(PICTURES[0])
    short.data = short.data[:-1]
    depth.encoding = "32FC1"
    kind, whole = cdr(rgb8(PICTURES[0]))
    messages = [
        rgb8(PICTURES[0]),
        short,
        (kind, whole[:-50]),
        (kind, whole[:3]),
        (kind, b"\0\1\0\0" + b"\xff" * 200),
        depth,
        depth,
        rgb8(PICTURES[1]),
        depth,
    ]
    source = BagSource(write_bag(tmp_path / "bag", {"/image": messages}, storage))
    with caplog.at_level(logging.WARNING, "dvt_fast.ros"):
        frames = read_all(source)
    assert [frame.id for frame in frames] == [0, 7]
    assert source.lost == {"corrupt": 7}
    lines = [record.getMessage() for record in caplog.records]
    assert any("message 1 is skipped" in line and "575 bytes of data, expected 576" in line for line in lines)
    assert sum("32FC1" in line for line in lines) == 1 and len(lines) <= 5
    assert not any("\n" in line for line in lines)


def test_broken_jpegs_are_skipped(tmp_path):
    broken, cut = compressed(PICTURES[0]), compressed(picture(64, 64))
    broken.data = np.zeros(500, np.uint8)
    cut.data = cut.data[:-300]
    bag = write_bag(tmp_path / "bag", {"/image": [broken, cut, compressed(PICTURES[1])]})
    source = BagSource(bag)
    assert [frame.id for frame in read_all(source)] == [2] and source.lost == {"corrupt": 2}


def test_what_is_no_bag(tmp_path):
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "empty.mcap").touch()
    (tmp_path / "foreign.db3").write_bytes(b"not a database at all" * 100)
    (tmp_path / "foreign.bag").write_bytes(b"not a bag")
    (tmp_path / "folder").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "metadata.yaml").write_text("rosbag2_bagfile_information: [1, 2")
    for name, said in [
        ("absent", "no such file"),
        ("note.txt", "not a bag, expected"),
        ("empty.mcap", "empty"),
        ("foreign.db3", "cannot be read as a bag"),
        ("foreign.bag", "cannot be read as a bag"),
        ("folder", "no metadata.yaml"),
        ("odd", "cannot be read as a bag"),
    ]:
        with pytest.raises(InputError, match=said) as error:
            BagSource(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)
        assert "mcap recover" not in str(error.value)  # which cannot help where there is no MCAP


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_cut_bags_end_with_one_line(tmp_path, storage, kept):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    bag = write_bag(tmp_path / "bag", {"/image": [rgb8(pixels)] * 20}, storage)
    file = storage_file(bag)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    for path in (bag, file):
        frames = []
        with pytest.raises(InputError, match=r"cannot be read as a bag|is damaged after message") as error:
            source = BagSource(path)
            frames.extend(iter(source.read, None))
        assert "\n" not in str(error.value) and len(frames) < 20
        assert ("'mcap recover' saves" in str(error.value)) is (storage == "mcap")


def test_damaged_chunk_ends_the_source_after_the_frames_before_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)  # three to a chunk
    bag = write_bag(tmp_path / "bag", {"/image": [rgb8(pixels)] * 9})
    file = storage_file(bag)
    data = bytearray(file.read_bytes())
    place = data.index(b"rgb8", len(data) // 2)
    data[place - 2000 : place] = b"\xff" * 2000
    file.write_bytes(data)
    source = BagSource(bag)
    frames = []
    with pytest.raises(InputError, match="is damaged after message"):
        frames.extend(iter(source.read, None))
    assert 0 < len(frames) < 9
    assert source.read() is None
    source.close()


def test_fuzzed_bags_never_raise_anything_else(tmp_path, storage, caplog):
    caplog.set_level(logging.CRITICAL)
    bag = write_bag(tmp_path / "bag", {"/image": map(rgb8, PICTURES), "/other": map(compressed, PICTURES)}, storage)
    whole = storage_file(bag).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for i in range(150):
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(data), rng.integers(1, 30))
        data[places] = rng.integers(0, 256, len(places))
        file = tmp_path / f"{i}{storage_file(bag).suffix}"
        file.write_bytes(data[: rng.integers(1, len(data))] if i % 5 == 0 else data)
        try:
            source = BagSource(file, "/image")
            outcomes.add(("frames", len(read_all(source))))
        except InputError as error:
            assert "\n" not in str(error)
            outcomes.add("error")
        file.unlink()
    assert "error" in outcomes and ("frames", 4) in outcomes


def test_close_from_another_thread_and_twice(tmp_path, storage):
    bag = write_bag(tmp_path / "bag", {"/image": [cdr(rgb8(picture(144, 144)))] * 300}, storage)
    source = BagSource(bag)
    frames = []
    reader = threading.Thread(target=lambda: frames.extend(iter(source.read, None)))
    reader.start()
    deadline = time.monotonic() + 10
    while not frames and time.monotonic() < deadline:
        time.sleep(0.001)
    source.close()
    reader.join(5)
    assert not reader.is_alive() and 0 < len(frames) < 300
    source.close()
    assert source.read() is None


def test_bag_is_told_by_its_name(tmp_path, storage):
    bag = write_bag(tmp_path / "bag", {"/image": []}, storage)
    (tmp_path / "images").mkdir()
    assert is_bag(bag) and is_bag(storage_file(bag)) and is_bag("one.bag")
    assert not is_bag(tmp_path / "images") and not is_bag("clip.mp4")
