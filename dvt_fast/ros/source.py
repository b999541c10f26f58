"""The pictures of a bag as the frames of a stream."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping

from ..errors import InputError
from ..stream.source import Frame
from .bag import Bag
from .messages import COMPRESSED_IMAGE, decode, stamp_of
from .pixels import compressed_pixels, image_pixels

_log = logging.getLogger(__name__)


class BagSource:
    """The pictures of one topic of a bag, in the order in which they were recorded. Needs rosbags, the extra [ros].

    path: a ROS 2 bag, MCAP or sqlite3, as a folder or a single file, or a ROS 1 bag. topic: of `sensor_msgs/msg/Image`
    or `CompressedImage`; None takes the only one there is. keep_messages: keep each message itself in its frame's meta,
    so that `BagSink` can write it unchanged.

    A frame's stamp is that of its message's header, or the time of its recording where the header has none; its meta
    holds "topic", "frame_id", "stamp_ns" and "recorded_ns" (the same times, exact), and with keep_messages "message"
    and its "message_type".

    A message that is broken or holds no picture is counted in `lost` as "corrupt", the first one of each kind is logged
    as a warning, and the rest goes on. A bag that is absent, cut or has no such topic is an `InputError`. `live` is
    False: wrap it in `stream.Paced` to replay it at the rate of its stamps.
    """

    live = False

    def __init__(self, path: str | os.PathLike[str], topic: str | None = None, *, keep_messages: bool = False):
        bag = Bag(path)
        try:
            self.topic = bag.choose(topic)
        except InputError:
            bag.close()
            raise
        self._bag: Bag | None = bag
        self.frames: int | None = self.topic.count
        self.rate = (self.frames - 1) / bag.seconds if self.frames > 1 and bag.seconds else None
        self._keep = keep_messages
        self._messages = bag.messages(self.topic.name)
        self._lost: Counter[str] = Counter()
        self._told: set[str] = set()
        self._next = 0
        self._closed = False
        self._reading = threading.Lock()

    @property
    def lost(self) -> Mapping[str, int]:
        return self._lost

    def read(self) -> Frame | None:
        with self._reading:
            frame = None
            while frame is None and not self._closed:
                recorded, data = next(self._messages, (0, None))
                if data is None:
                    break
                frame = self._frame(recorded, data)
        if self._closed:
            self.close()
            return None
        return frame

    def close(self) -> None:
        self._closed = True
        if self._reading.acquire(blocking=False):  # else the thread that reads closes it when it is done
            try:
                if self._bag is not None:
                    self._bag.close()
            finally:
                self._bag = None
                self._reading.release()

    def _frame(self, recorded: int, data: bytes) -> Frame | None:
        """The frame of a message; None for a broken one, which is counted."""
        number, self._next = self._next, self._next + 1
        kind = self.topic.type
        try:
            assert self._bag is not None  # closed only while nobody reads
            cdr = self._bag.cdr(data, kind)
            message = decode(cdr, kind)
            image = compressed_pixels(message) if kind == COMPRESSED_IMAGE else image_pixels(message)
        except InputError as error:
            self._lost["corrupt"] += 1
            self._tell(number, str(error))
            return None
        stamp = stamp_of(message) or recorded
        meta = {
            "topic": self.topic.name,
            "frame_id": message.header.frame_id,
            "stamp_ns": stamp,
            "recorded_ns": recorded,
        }
        if self._keep:
            meta |= {"message": bytes(cdr), "message_type": kind}
        return Frame(number, image, time.monotonic(), stamp / 1e9, meta)

    def _tell(self, number: int, reason: str) -> None:
        kind = "".join(letter for letter in reason if not letter.isdigit())
        if kind not in self._told:
            self._told.add(kind)
            _log.warning(
                "%s: message %d is skipped, and more like it are only counted: %s", self.topic.name, number, reason
            )
