"""One name in, the source that it means out."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from ..images import IMAGE_EXTENSIONS
from ..stream.source import Source
from ..stream.sources import Paced
from .camera import Camera, is_camera
from .file import VideoFile
from .folder import ImageSequence

BAG_EXTENSIONS = (".mcap", ".db3")
FOLDER_RATE = 30.0  # frames a second of images, which have no times


def open_source(
    name: str | os.PathLike[str], *, rate: float | None = None, realtime: bool = False, topic: str | None = None
) -> Source:
    """The source that `name` means: a camera ("camera:0", /dev/video0), a ROS 2 bag, a folder or pattern of images, or
    else a video file.

    rate: frames a second: asked of a camera, that of images, and with realtime that of a replay. realtime: replay what
    is not live at its own rate, or at `rate`, as if it were. topic: of a bag, where several hold images.
    """
    name = os.fspath(name)
    if is_camera(name):
        return Camera(name, rate=rate)
    source: Source
    kind = kind_of(name)
    if kind == "bag":
        from ..ros import BagSource

        source = BagSource(name, topic)
    elif kind == "images":
        source = ImageSequence(name, rate or FOLDER_RATE)
    else:
        source = VideoFile(name)
    return Paced(source, rate) if realtime else source


def kind_of(name: str) -> str:
    """What a name means: "camera", "bag", "images" or "video"; of what does not exist, by its looks."""
    path = Path(name).expanduser()
    if is_camera(name):
        return "camera"
    if path.suffix.lower() in BAG_EXTENSIONS or (path / "metadata.yaml").is_file():
        return "bag"
    if path.is_dir() or path.suffix.lower() in IMAGE_EXTENSIONS or (glob.has_magic(name) and not path.exists()):
        return "images"
    return "video"
