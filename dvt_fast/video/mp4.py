"""A video of the results: the frame beside its features in colour."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from ..extras import require
from ..files import Unfinished
from ..stream.result import Result
from .picture import Painter

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
CLOCK = 90_000  # ticks a second of the time stamps: every usual rate is a whole number of them


class VideoSink:
    """Writes results as a video of `Painter`'s pictures. Needs PyAV and Pillow, from the extra [video].

    path: .mp4, .m4v, .mov or .mkv. The pictures are shown at the stamps of their frames (where the source has none, at
    the times of capture), so that the video runs at the speed of what it shows, also where frames were dropped. It is
    H.264 where the encoder is there, else MPEG-4. The file is a hidden one until `close` finishes it.
    """

    def __init__(self, path: str | os.PathLike[str], height: int = 360):
        self.path = Path(path).expanduser()
        if self.path.suffix.lower() not in FORMATS:
            raise InputError(f"{self.path}: a video must end in {', '.join(FORMATS)}")
        self._av = require("av", "video")
        self._painter = Painter(height)
        self._unfinished = Unfinished(self.path)
        self._file: Any = None
        self._container: Any = None
        self._stream: Any = None
        self._first = 0.0  # the time of the first result
        self._last = -1  # the time of the last one, in ticks after the first
        self._step = 0  # ticks from the one before it
        self._closed = False

    def write(self, result: Result) -> None:
        if self._closed:
            raise InputError(f"{self.path}: is closed")
        picture = self._painter.draw(result)
        time = result.captured if result.stamp is None else result.stamp
        try:
            if self._container is None:
                self._open(picture.shape[0], picture.shape[1])
                self._first = time
            # A decoder wants times that grow; those of a source may stand still or jump back.
            ticks = max(round((time - self._first) * CLOCK), self._last + 1)
            self._step, self._last = ticks - max(self._last, 0), ticks
            frame = self._av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
            self._mux(frame)
        except (self._av.FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._container is None:
            self._unfinished.discard()
            return
        try:
            self._mux(None)
            self._container.close()
            self._file.close()
        except (self._av.FFmpegError, OSError) as error:
            raise self._failed(error) from None
        self._unfinished.finish()

    def _open(self, height: int, width: int) -> None:
        # Through a file of our own, because FFmpeg's own ones do not say that the disk is full.
        self._file = open(self._unfinished.inside, "w+b")  # noqa: SIM115, closed at the end
        self._container = self._av.open(self._file, "w", format=FORMATS[self.path.suffix.lower()])
        h264 = "libx264" in self._av.codecs_available
        options = {"preset": "superfast", "crf": "21"} if h264 else {"qscale": "3"}
        self._stream = self._container.add_stream("libx264" if h264 else "mpeg4", rate=30, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, CLOCK)

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            if self._step:
                packet.duration = self._step  # counts for the last one, which lasts as long as the one before it
            self._container.mux(packet)

    def _failed(self, error: Exception) -> OutputError:
        self._closed = True
        for part in (self._container, self._file):
            with suppress(Exception):  # what is left of a file that is thrown away
                part.close()
        return self._unfinished.failed(error)
