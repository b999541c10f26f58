"""Cameras as sources: Video4Linux devices, through FFmpeg.

The device is opened without blocking and polled, because a blocked call into a driver that hangs can be neither timed
out nor closed. The poll does not blur the time of capture: that comes from the kernel, which stamps each picture with
the clock of `time.monotonic()`.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Any

from ..errors import InputError
from .decoding import DecodedSource, open_container

POLL = 0.002  # seconds

# FFmpeg's flags by their values: it has no name for the first among its options, and PyAV's names changed.
FORMAT_NONBLOCK, CODEC_LOW_DELAY = 1 << 2, 1 << 19


class Camera(DecodedSource):
    """The frames of a camera as they come. Needs PyAV, from the extra [video].

    name: "camera:0", or its device "/dev/video0". size: (height, width) to ask for, rate: frames a second to ask for;
    the camera gives the nearest that it has. timeout: seconds without any picture after which it counts as stalled.

    `captured` is the kernel's stamp of the picture, `stamp` the same. Sizes may change from frame to frame. Pictures
    that the driver or the decoder calls broken are skipped and counted as "corrupt".

    Raises `InputError` for a camera that is absent, in use, stalled or unplugged.
    """

    def __init__(self, name: str, size: tuple[int, int] | None = None, rate: float | None = None, timeout: float = 5.0):
        self._stopped = threading.Event()
        self._timeout = timeout
        device = find_camera(name)
        options = {"fflags": str(FORMAT_NONBLOCK)}
        if size is not None:
            options["video_size"] = f"{size[1]}x{size[0]}"
        if rate is not None:
            options["framerate"] = f"{rate:g}"
        container = open_container(name, device, "a camera", format="video4linux2", options=options, timeout=timeout)
        super().__init__(name, container, live=True)
        self._stream.codec_context.flags |= CODEC_LOW_DELAY
        self.rate = float(self._stream.average_rate) if self._stream.average_rate else None

    def close(self) -> None:
        self._stopped.set()
        super().close()

    def _next_packet(self) -> Any:
        end = time.monotonic() + self._timeout
        while True:
            try:
                return next(self._container.demux(self._stream), None)
            except self._av.error.BlockingIOError:  # no picture yet
                if time.monotonic() > end:
                    raise InputError(f"{self.name}: no picture for {self._timeout:g} seconds: it has stalled") from None
                if self._stopped.wait(POLL):
                    return None
            except self._av.error.InvalidDataError:  # one broken picture
                raise
            except (self._av.FFmpegError, OSError) as error:
                gone = error.errno in (errno.ENODEV, errno.EIO, errno.EBADF)
                reason = "it was unplugged" if gone else " ".join(str(error).split())
                raise InputError(f"{self.name}: {reason}") from None

    def _captured(self, decoded: Any) -> float:
        now = time.monotonic()
        stamp = decoded.time
        return stamp if stamp is not None and now - self._timeout < stamp <= now else now

    def _stamp(self, decoded: Any) -> float | None:
        return decoded.time


def is_camera(name: str) -> bool:
    """Whether a name is that of a camera."""
    return name.startswith(("camera:", "/dev/video"))


def find_camera(name: str) -> str:
    """The device of a camera: that of "camera:0" is /dev/video0. Raises `InputError` where there is none."""
    kind, colon, number = name.partition(":")
    device = name
    if not name.startswith("/dev/"):
        if kind != "camera" or not number.isdecimal():
            raise InputError(f"expected camera:NUMBER, such as camera:0, or a device such as /dev/video0, got {name!r}")
        device = f"/dev/video{number}"
    if not os.path.exists(device):
        raise InputError(f"{name}: no such camera")
    return device
