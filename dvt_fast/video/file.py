"""Video files as sources."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .decoding import DecodedSource, open_container

_log = logging.getLogger(__name__)


class VideoFile(DecodedSource):
    """The frames of a video file, each as soon as it is decoded. Needs PyAV, from the extra [video].

    Rotation that the file asks for is applied, any pixel format becomes RGB, and stamps are seconds from the start,
    also where their rate varies. Broken packets are skipped and counted as "corrupt"; the first one, and an end before
    the one that the file declares, are logged as warnings. `live` is False: wrap it in `stream.Paced` to replay it at
    its own rate.

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
        self._count, self._end = 0, 0.0  # packets so far, and the latest time in them

    def _next_packet(self) -> Any:
        try:
            packet = next(self._packets, None)
        except self._av.FFmpegError:
            self._packets = self._container.demux(self._stream)  # an error ends a generator, but not the file
            raise
        if packet is None:
            self._check_end()
        elif packet.size:
            self._count += 1
            if packet.pts is not None:
                self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return packet

    def _check_end(self) -> None:
        """Warn where the file ends before it should: by its count of packets, in which AVI has empty ones that FFmpeg
        does not give, and by its length, in which the sound may outlast the pictures."""
        stream, declared = self._stream, self._stream.frames
        alone = len(self._container.streams) == 1
        length = float(stream.duration * stream.time_base) if stream.duration else 0.0
        length = length or (self._container.duration or 0) / 1e6
        end = self._end - self._start
        early = end + end / max(self._count, 1) < 0.95 * length  # the last packet may not say how long it lasts
        if self._count < declared and (early or not length):
            _log.warning("%s ends after %d of %d frames: cut off?", self.name, self._count, declared)
        elif early and alone and not declared:
            _log.warning("%s ends after %.1f of %.1f seconds: cut off?", self.name, end, length)

    def _stamp(self, decoded: Any) -> float | None:
        return None if decoded.time is None else decoded.time - self._start
