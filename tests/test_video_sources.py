"""Video files and image folders as sources: every frame, upright, at its time; what is broken is counted."""

import threading

import numpy as np
import pytest
from PIL import Image

from dvt_fast import Stream
from dvt_fast.errors import InputError
from dvt_fast.stream import Paced, Source
from dvt_fast.video import Camera, ImageSequence, VideoFile, open_source
from stream_samples import FakeSession, check_balance

av = pytest.importorskip("av")

from video_samples import corners, damage, grey, make_video, orient, packets_of  # noqa: E402  needs PyAV


def frames_of(source):
    try:
        return list(iter(source.read, None))
    finally:
        source.close()


def colors(image: np.ndarray) -> list[str]:
    """The names of the colours in the corners, clockwise from the top left."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    h, w, _ = image.shape
    places = [(h // 4, w // 4), (h // 4, 3 * w // 4), (3 * h // 4, 3 * w // 4), (3 * h // 4, w // 4)]
    return [names[tuple(int(value) for value in image[place] > 127)] for place in places]


def test_every_frame_in_order_with_its_stamp(tmp_path):
    path = make_video(tmp_path / "a.mp4", [grey(20 * i) for i in range(10)], bf=2)
    source = VideoFile(path)
    assert isinstance(source, Source) and not source.live and (source.frames, source.rate) == (10, 10)
    frames = frames_of(source)
    assert [frame.id for frame in frames] == list(range(10))
    assert [frame.stamp for frame in frames] == pytest.approx([i / 10 for i in range(10)])
    for i, frame in enumerate(frames):
        assert frame.image.dtype == np.uint8 and frame.image.shape == (48, 64, 3)
        assert frame.image.flags.c_contiguous and abs(int(frame.image.mean()) - 20 * i) <= 3
    assert source.lost == {} and source.read() is None


def test_one_packet_in_one_frame_out(tmp_path):
    """Where the video has no frames out of order; threads over frames would hold some back."""
    source = VideoFile(make_video(tmp_path / "a.mp4", [grey(i) for i in range(12)], bf=0))
    for i in range(12):
        assert source.read().id == i and len(source._due) == 0
    source.close()


def test_stamps_of_a_variable_rate(tmp_path):
    times = [0, 0.05, 0.3, 0.31, 1.0, 1.001, 2.5]
    frames = frames_of(VideoFile(make_video(tmp_path / "a.mp4", [grey(9)] * 7, [3 + t for t in times])))
    assert [frame.stamp for frame in frames] == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize(
    "codec, pixels, suffix, shape",
    [
        ("libx264", "yuv444p", "mp4", (48, 64)),
        ("libx264", "yuv422p10le", "mkv", (48, 64)),
        ("mpeg4", "yuv420p", "avi", (48, 64)),
        ("mjpeg", "yuvj420p", "avi", (46, 62)),
        ("ffv1", "bgra", "mkv", (47, 63)),
        ("ffv1", "gbrp10le", "mkv", (47, 63)),
        ("rawvideo", "rgb565le", "avi", (48, 64)),
    ],
)
def test_pixel_formats(tmp_path, codec, pixels, suffix, shape):
    path = make_video(tmp_path / f"a.{suffix}", [corners(*shape)] * 3, codec=codec, pixels=pixels)
    frames = frames_of(VideoFile(path))
    assert len(frames) == 3
    for frame in frames:
        assert frame.image.shape == (*shape, 3) and colors(frame.image) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize("pixels", ["gray", "gray16le"])
def test_grey_is_grey(tmp_path, pixels):
    (frame,) = frames_of(VideoFile(make_video(tmp_path / "a.mkv", [grey(100)], codec="ffv1", pixels=pixels)))
    assert abs(frame.image.astype(int) - 100).max() <= 2


@pytest.mark.parametrize(
    "matrix, expected",
    [
        ([[1, 0], [0, 1]], ["red", "green", "blue", "white"]),
        ([[0, -1], [1, 0]], ["white", "red", "green", "blue"]),  # a quarter clockwise: an upright phone
        ([[-1, 0], [0, -1]], ["blue", "white", "red", "green"]),
        ([[0, 1], [-1, 0]], ["green", "blue", "white", "red"]),
        ([[-1, 0], [0, 1]], ["green", "red", "white", "blue"]),  # mirrored: the camera at its front
        ([[1, 0], [0, -1]], ["white", "blue", "green", "red"]),
        ([[0, 1], [1, 0]], ["red", "white", "blue", "green"]),
        ([[0, -1], [-1, 0]], ["blue", "green", "red", "white"]),
    ],
)
def test_frames_are_upright(tmp_path, matrix, expected):
    path = make_video(tmp_path / "a.mp4", [corners()])
    orient(path, matrix)
    (frame,) = frames_of(VideoFile(path))
    assert frame.image.shape == ((48, 64, 3) if matrix[0][0] else (64, 48, 3)) and frame.image.flags.c_contiguous
    assert colors(frame.image) == expected


def test_sizes_may_change(tmp_path):
    """Two H.264 streams, one after the other, as a camera sends that changes its resolution."""
    parts = [
        make_video(tmp_path / f"{i}.ts", [grey(80)] * 5, times=[i + j / 10 for j in range(5)])
        if i == 0
        else make_video(tmp_path / f"{i}.ts", [grey(160, 96, 32)] * 5, times=[i + j / 10 for j in range(5)])
        for i in range(2)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with Stream(FakeSession(), VideoFile(joined), "block") as stream:
        shapes = [result.image.shape for result in stream]
    assert shapes == [(48, 64, 3)] * 5 + [(96, 32, 3)] * 5
    check_balance(stream, 10)


def test_broken_packets_cost_their_frames_and_are_counted(tmp_path):
    path = make_video(tmp_path / "a.mp4", [grey(10 * i) for i in range(20)], g=1)  # all key frames
    damage(path, [3, 4, 11])
    source = VideoFile(path)
    frames = frames_of(source)
    assert source.lost == {"corrupt": 3}
    assert [frame.id for frame in frames] == [i for i in range(20) if i not in (3, 4, 11)]
    assert all(abs(frame.stamp - frame.id / 10) < 1e-3 for frame in frames)
    with Stream(FakeSession(), VideoFile(path), "block") as stream:
        assert [result.drops_before for result in stream if result.drops_before] == [2, 1]
    assert check_balance(stream, 20)["drops"] == {"corrupt": 3}


@pytest.mark.parametrize("broken", [[0], [19], [5], [17, 18, 19]])
def test_frames_that_build_on_broken_ones_are_given_or_counted(tmp_path, broken):
    """All but the first build on those before, up to the next key frame."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(20)]
    path = make_video(tmp_path / "a.mp4", images, g=10, bf=0)
    damage(path, broken)
    source = VideoFile(path)
    frames = frames_of(source)
    assert len(frames) + source.lost["corrupt"] == 20 and source.lost["corrupt"] >= len(broken)
    assert all(abs(frame.stamp - frame.id / 10) < 1e-3 for frame in frames)


def test_what_cannot_be_decoded_at_all_ends(tmp_path):
    path = make_video(tmp_path / "a.mp4", [grey(10)] * 320, g=1)
    damage(path, range(320))
    with pytest.raises(InputError, match=r"a\.mp4: gives nothing that can be decoded, 300 times in a row"):
        frames_of(VideoFile(path))


def test_a_video_that_is_cut(tmp_path, caplog):
    path = make_video(tmp_path / "a.mkv", [corners(240, 320)] * 40, codec="mjpeg", pixels="yuvj420p")
    position, size, _ = packets_of(path)[30]
    path.write_bytes(path.read_bytes()[: position + size // 2])
    source = VideoFile(path)
    assert 30 <= len(frames_of(source)) <= 31
    assert ".mkv ends after 3." in caplog.text and " of 4.0 seconds: cut off?" in caplog.text


def test_packets_that_are_declared_but_not_there(tmp_path, caplog):
    old = make_video(tmp_path / "a.mov", [corners(240, 320)] * 40, codec="mjpeg", pixels="yuvj420p")
    path = tmp_path / "b.mov"
    with av.open(str(old)) as whole, av.open(str(path), "w", options={"movflags": "faststart"}) as indexed_first:
        stream = indexed_first.add_stream_from_template(whole.streams.video[0])
        for packet in [packet for packet in whole.demux(video=0) if packet.size]:
            packet.stream = stream
            indexed_first.mux(packet)
    path.write_bytes(path.read_bytes()[: packets_of(path)[20][0]])
    assert len(frames_of(VideoFile(path))) == 20
    assert "b.mov ends after 20 of 40 frames: cut off?" in caplog.text


def test_empty_packets_of_an_avi_are_no_loss(tmp_path, caplog):
    path = make_video(tmp_path / "a.avi", [corners()] * 30, codec="mjpeg", pixels="yuvj420p")
    source = VideoFile(path)
    assert len(frames_of(source)) == 30 < source.frames and caplog.text == ""


def test_the_first_image_that_is_corrupt_is_told(tmp_path, caplog):
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_text("no image")
    Image.fromarray(corners()).save(tmp_path / "a.png")
    source = ImageSequence(tmp_path)
    assert len(frames_of(source)) == 1 and source.lost == {"corrupt": 2}
    assert len(caplog.messages) == 1 and f"{tmp_path / 'b.png'}: " in caplog.text


@pytest.mark.parametrize(
    "name, message",
    [
        ("none.mp4", "none.mp4: no such file"),
        ("text.mp4", "text.mp4: cannot be read as a video: Invalid data found when processing input"),
        ("empty.mp4", "empty.mp4: cannot be read as a video: "),
        ("half.mp4", "half.mp4: cannot be read as a video: "),
        ("sound.wav", "sound.wav: holds no video"),
    ],
)
def test_files_that_are_no_video(tmp_path, capfd, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video " * 500)
    (tmp_path / "empty.mp4").touch()
    whole = make_video(tmp_path / "whole.mp4", [corners()] * 9).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open("sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(InputError) as caught:
        VideoFile(name)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # FFmpeg's own log stays silent


def test_close_while_another_thread_reads(tmp_path):
    source = VideoFile(make_video(tmp_path / "a.mp4", [corners(480, 640)] * 200))
    frames = []

    def read():
        while (frame := source.read()) is not None:
            frames.append(frame)
            if len(frames) == 3:
                started.set()

    started = threading.Event()
    reading = threading.Thread(target=read)
    reading.start()
    assert started.wait(20)
    source.close()
    reading.join(20)
    assert not reading.is_alive() and len(frames) < 200
    source.close()
    assert source.read() is None


def test_folders_are_sorted_as_people_count(tmp_path):
    for i in (9, 10, 1, 100):
        Image.fromarray(grey(i)).save(tmp_path / f"f{i}.png")
    (tmp_path / "f11.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image either")
    source = ImageSequence(tmp_path, rate=4)
    assert isinstance(source, Source) and (source.frames, source.live) == (5, False)
    frames = frames_of(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 9, 10, 100]
    assert [frame.id for frame in frames] == [0, 1, 2, 4] and source.lost == {"corrupt": 1}
    assert [frame.stamp for frame in frames] == [0, 0.25, 0.5, 1.0]
    assert frames[1].meta["path"].endswith("f9.png") and frames[0].image.flags.writeable
    with pytest.raises(InputError, match="no images found"):
        ImageSequence(tmp_path / "*.tif")
    with pytest.raises(InputError, match="rate must be positive, got 0"):
        ImageSequence(tmp_path, rate=0)


def test_open_source_takes_a_name_for_what_it_means(tmp_path):
    video = make_video(tmp_path / "a.mp4", [grey(5)] * 3)
    Image.fromarray(grey(5)).save(tmp_path / "f.png")
    assert isinstance(open_source(video), VideoFile) and isinstance(open_source(str(video)), VideoFile)
    for name in (tmp_path, tmp_path / "f.png", f"{tmp_path}/*.png"):
        assert isinstance(open_source(name), ImageSequence)
    assert open_source(tmp_path, rate=12).rate == 12
    replay = open_source(video, realtime=True)
    assert isinstance(replay, Paced) and replay.live and replay.frames == 3
    with pytest.raises(InputError, match=r"camera:77: no such camera"):
        open_source("camera:77")
    with pytest.raises(InputError, match=r"expected camera:NUMBER, such as camera:0, or a device .*, got 'camera:x'"):
        Camera("camera:x")
    with pytest.raises(InputError, match=r"/dev/video77: no such camera"):
        open_source("/dev/video77")
    with Stream(FakeSession(), video) as stream:
        assert len(list(stream)) == 3


def test_a_replay_of_a_video_is_due_by_its_stamps(tmp_path):
    path = make_video(tmp_path / "a.mp4", [grey(5)] * 4, [0, 0.02, 0.03, 0.1])
    with Stream(FakeSession(), open_source(path, realtime=True), "block") as stream:
        captured = [result.captured for result in stream]
    assert np.diff(captured) == pytest.approx([0.02, 0.01, 0.07], abs=2e-3)
