"""One name in, the source or the sink that it means out."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..images import IMAGE_EXTENSIONS
from ..stream.source import Sink, Source
from ..stream.sources import Paced
from .camera import Camera, is_camera
from .file import VideoFile
from .folder import ImageSequence
from .mp4 import FORMATS, VideoSink
from .pictures import PictureSink, is_pattern

VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .h264 .h265 .hevc .m2ts .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpeg .mpg .mts .ts .webm .wmv".split()  # noqa: SIM905
)
BAG_FILES = (".mcap", ".db3")  # endings of the bags that can be written as a single file
FOLDER_RATE = 30.0  # frames a second of images, which have no times


def open_source(
    name: str | os.PathLike[str] | Sequence[str],
    *,
    rate: float | None = None,
    realtime: bool = False,
    topic: str | None = None,
) -> Source:
    """The source that `name` means: a camera ("camera:0", /dev/video0), a bag, a folder or pattern of images (or
    several of these), or else a video file.

    rate: frames a second: to ask of a camera, of images, and with realtime of the replay. realtime: replay what is not
    live at its own rate, or at `rate`, as if it were. topic: of a bag, where several hold images.
    """
    names = [os.fspath(name)] if isinstance(name, (str, os.PathLike)) else list(name)
    kind = kind_of(names[0]) if len(names) == 1 else "images"
    if kind == "camera":
        return Camera(names[0], rate=rate)
    source: Source
    if kind == "bag":
        from ..ros import BagSource

        source = BagSource(names[0], topic)
    elif kind == "images":
        source = ImageSequence(names, FOLDER_RATE if rate is None else rate)
    else:
        source = VideoFile(names[0])
    return Paced(source, rate) if realtime else source


def open_sink(name: str | os.PathLike[str], *, model: str = "", camera: bool = False) -> Sink:
    """The sink for a file of that name: a video, PNG files for a pattern such as out/%06d.png, else a bag, in a folder
    or in one file by the ending.

    model, camera: of a bag, see `ros.BagSink`.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() in FORMATS:
        return VideoSink(path)
    if is_pattern(str(name)):
        return PictureSink(name)
    from ..ros import BagSink

    return BagSink(path, model=model, camera=camera)


def kind_of(name: str) -> str:
    """What a name looks like: "camera", "bag", "images", "video", or "file" for one whose ending says nothing."""
    from ..ros import is_bag

    path = Path(name).expanduser()
    if is_camera(name):
        return "camera"
    if is_bag(path):
        return "bag"
    if path.suffix.lower() in VIDEO_EXTENSIONS and not path.is_dir():
        return "video"
    if path.is_dir() or path.suffix.lower() in IMAGE_EXTENSIONS or (glob.has_magic(name) and not path.exists()):
        return "images"
    return "file"


def is_stream_output(name: str | os.PathLike[str]) -> bool:
    """Whether `open_sink` takes a name for a file, by its ending."""
    return Path(name).suffix.lower() in (*FORMATS, *BAG_FILES) or is_pattern(os.fspath(name))


def check_output(name: str | os.PathLike[str]) -> None:
    """Refuse, with `InputError`, what is plainly meant as a file but would be taken for the name of a folder."""
    path = Path(name).expanduser()
    if is_stream_output(name) or path.is_dir():
        return
    files = f"a video ({', '.join(FORMATS)}), pictures such as out/%06d.png or a bag ({', '.join(BAG_FILES)})"
    if "%" in path.name:
        raise InputError(f"{path}: no pattern for pictures: expected {files}, or a folder")
    if path.suffix.lower() in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS | {".gif", ".bag"}:
        raise InputError(f"{path}: cannot write {path.suffix}: expected {files}, or a folder")
