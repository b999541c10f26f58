"""Video files as sources."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .decoding import DecodedSource, open_container


class VideoFile(DecodedSource):
    """The frames of a video file, each as soon as it is decoded. Needs PyAV, from the extra [video].

    Rotation that the file asks for is applied, any pixel format becomes RGB, and stamps are seconds from the start,
    also where their rate varies. Broken packets are skipped and counted as "corrupt". `live` is False: wrap it in
    `stream.Paced` to replay it at its own rate.

    Raises `InputError` for a file that is absent, not a video, or cut where nothing can be read.
    """

    def __init__(self, path: str | os.PathLike[str]):
        path = Path(path).expanduser()
        if not path.is_file():
            raise InputError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
        super().__init__(str(path), open_container(str(path), str(path), "a video"), live=False)
        stream = self._stream
        self.rate = float(stream.average_rate) if stream.average_rate else None
        self.frames = stream.frames or None
        if not self.frames and self.rate and self._container.duration:
            self.frames = round(self._container.duration / 1e6 * self.rate)
        start = stream.start_time
        self._start = float(start * stream.time_base) if start is not None else 0.0
        self._packets = self._container.demux(stream)

    def _next_packet(self) -> Any:
        try:
            return next(self._packets, None)
        except self._av.FFmpegError:
            self._packets = self._container.demux(self._stream)  # an error ends a generator, but not the file
            raise

    def _stamp(self, decoded: Any) -> float | None:
        return None if decoded.time is None else decoded.time - self._start
