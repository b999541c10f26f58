"""What a stream reads from and what it is written to: the contracts of sources, frames and sinks.

Everything that gives frames (a video file, a camera, a folder, a bag) is a `Source`, and everything that keeps results
(an MP4, features, a bag, a viewer) a `Sink`. Nothing here knows of a file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from .result import Result


@dataclass(eq=False, slots=True)
class Frame:
    """One picture of a source.

    id: counts the frames of the source from 0, also those that were lost, so that gaps show. image: uint8 [H, W, 3],
    RGB, upright, contiguous; its size may change from frame to frame, and the source never writes to it again.
    captured: when the frame arrived, by `time.monotonic()`, in seconds; in a replay the moment it was due. stamp: the
    source's own time in seconds (of a video from its start, of a bag since the epoch), None where it has none.
    meta: what else the source knows, such as a ROS frame_id; it goes with the result unchanged.
    """

    id: int
    image: np.ndarray
    captured: float
    stamp: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Where frames come from. The first three may be plain attributes."""

    @property
    def live(self) -> bool:
        """True where frames arrive at their own time, whether or not somebody reads them (a camera); False where they
        wait to be read (a file)."""
        ...

    @property
    def frames(self) -> int | None:
        """How many there will be, lost ones among them; None where nobody knows."""
        ...

    @property
    def lost(self) -> Mapping[str, int]:
        """How many frames the source itself has lost so far, by cause ("corrupt"); only ever grows."""
        ...

    def read(self) -> Frame | None:
        """The next frame, waited for where it is not there yet; None after the last one and after `close`.

        A single broken frame is skipped and counted in `lost`. What ends the source (a camera that is unplugged, or
        that gives nothing for too long) is an `InputError`. Called by one thread at a time.
        """
        ...

    def close(self) -> None:
        """Let go of the file or device. May be called twice, and from another thread while `read` waits: that call
        then returns None within a second."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Where results go: to files that are whole or absent."""

    def write(self, result: Result) -> None:
        """Keep one result. Results come in order; sizes of their images may change.

        Raises `OutputError` (no permission, a full disk): the sink has then removed what is not whole, and `close`
        does nothing more.
        """
        ...

    def close(self) -> None:
        """Finish the files, which take their names now, with all that was written; without any result there is none.

        May be called twice. Raises `OutputError` as `write` does.
        """
        ...
