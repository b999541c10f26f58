"""Frames from whatever FFmpeg decodes, through PyAV: upright RGB, with every lost frame counted.

Delay: frame threads would hold back a frame a thread, so slices are decoded in parallel instead; a packet goes in and
its frame comes out, but for the frames that the video itself refers ahead to (B-frames).

A broken packet costs its frame, and in most codecs those that build on it: the decoder says an error once and then
gives nothing until it is sure again. Which frames are missing is told by the time stamps of packets that went in: those
before the frame that comes out will not come any more.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from ..extras import require
from ..stream.source import Frame

_log = logging.getLogger(__name__)

GIVE_UP = 300  # broken packets without any frame between them


class DecodedSource:
    """What video files and cameras have in common: packets, their frames, their losses, and the end.

    name: for messages; the first damage is logged as a warning. Subclasses give packets by `_next_packet`.
    """

    def __init__(self, name: str, container: Any, live: bool):
        self.name, self.live = name, live
        self.frames: int | None = None
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.thread_type = "SLICE"
        self._av = require("av", "video")
        self._reformatter = self._av.video.reformatter.VideoReformatter()
        self._lost: Counter[str] = Counter()
        self._next_id = 0
        self._ready: list[Any] = []  # frames that are decoded, in reverse order
        self._due: list[int] = []  # heap: times of the packets whose frames have not come out
        self._damaged = False  # since the first error; until then, packets without a frame are meant to have none
        self._failures = 0
        self._ended = self._closed = False
        self._reading = threading.Lock()

    @property
    def lost(self) -> Mapping[str, int]:
        return self._lost

    def read(self) -> Frame | None:
        with self._reading:
            frame = None if self._closed else self._read()
        if self._closed:
            self.close()
        return frame

    def close(self) -> None:
        """FFmpeg must not be closed under a thread that is in it: where one reads, it closes when it is done."""
        self._closed = True
        if self._reading.acquire(blocking=False):
            try:
                self._ready.clear()
                self._container.close()
            finally:
                self._reading.release()

    def _next_packet(self) -> Any:
        """The next packet, an empty one at the end to get out what the decoder holds, then None. Raises an FFmpeg
        error for one that is broken, and `InputError` for what ends the source."""
        raise NotImplementedError

    def _captured(self, decoded: Any) -> float:
        """When a frame that was just decoded was captured."""
        return time.monotonic()

    def _stamp(self, decoded: Any) -> float | None:
        """The source's own time of a frame, in seconds."""
        return decoded.time

    def _read(self) -> Frame | None:
        while not self._closed:
            while not self._ready and not self._ended and not self._closed:
                self._decode_more()
            if not self._ready:
                break
            decoded = self._ready.pop()
            self._account(decoded)
            if decoded.is_corrupt:
                self._damage("the decoder calls it corrupt", "corrupt")
                continue
            captured = self._captured(decoded)
            try:
                image = upright(self._reformatter.reformat(decoded, format="rgb24").to_ndarray(), orientation(decoded))
            except (self._av.FFmpegError, ValueError) as error:  # pixels that FFmpeg cannot convert
                self._damage(reason_of(error), "corrupt")
                continue
            self._failures = 0
            self._next_id += 1
            return Frame(self._next_id - 1, image, captured, self._stamp(decoded))
        return None

    def _decode_more(self) -> None:
        try:
            packet = self._next_packet()
        except self._av.FFmpegError as error:
            self._damage(reason_of(error), "corrupt")
            return
        if packet is None:
            self._ended = True
            if self._damaged:
                self._lose(len(self._due))
            return
        timed = packet.pts is not None and not packet.is_discard
        if timed:
            heapq.heappush(self._due, packet.pts)
        try:
            self._ready = packet.decode()[::-1]
        except self._av.FFmpegError as error:
            self._damage(
                reason_of(error), None if timed else "corrupt"
            )  # the former is counted when a later frame comes out

    def _account(self, decoded: Any) -> None:
        """Count the frames that should have come before this one."""
        if decoded.pts is None:
            return
        before = 0
        while self._due and self._due[0] <= decoded.pts:
            before += heapq.heappop(self._due) < decoded.pts
        if self._damaged:
            self._lose(before)

    def _damage(self, reason: str, cause: str | None) -> None:
        if not self._damaged:
            _log.warning(
                "%s: frame %d is dropped as corrupt, and more like it are only counted: %s",
                *(self.name, self._next_id, reason),
            )
        self._damaged = True
        self._failures += 1
        if cause is not None:
            self._lose(1, cause)
        if self._failures >= GIVE_UP:
            raise InputError(f"{self.name}: gives nothing that can be decoded, {GIVE_UP} times in a row")

    def _lose(self, frames: int, cause: str = "corrupt") -> None:
        if frames:
            self._lost[cause] += frames
            self._next_id += frames


def open_container(name: str, file: str, what: str, **options: Any) -> Any:
    """`av.open` to read, with one-line errors and at least one video stream. what: for messages, "a video"."""
    av = require("av", "video")
    try:
        container = av.open(file, **options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read as {what}: {reason_of(error)}") from None
    if not container.streams.video:
        container.close()
        raise InputError(f"{name}: holds no video")
    return container


def reason_of(error: Exception) -> str:
    """What FFmpeg says, without its number and the file's name."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def orientation(decoded: Any) -> np.ndarray | None:
    """[2, 2]: how a pixel's (x, y) goes to that of the upright picture, but for a shift; None where it is the same."""
    data = decoded.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2].T / 65536
    return None if np.allclose(matrix, np.eye(2), atol=0.1) else matrix


def upright(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """[H, W, 3] turned and mirrored as `orientation` says, to the nearest quarter of a turn; contiguous."""
    if matrix is not None:
        if abs(matrix[0, 1]) > abs(matrix[0, 0]):
            image, matrix = image.swapaxes(0, 1), matrix[:, ::-1]
        if matrix[1, 1] < 0:
            image = image[::-1]
        if matrix[0, 0] < 0:
            image = image[:, ::-1]
    return np.ascontiguousarray(image)
