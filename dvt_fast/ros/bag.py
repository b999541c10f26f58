"""Bags to read: ROS 2 ones in MCAP and sqlite3, folders or single files, and ROS 1 ones.

Damage is expected: recordings end with the robot's battery. Whatever rosbags meets in such a file is one `InputError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..extras import require
from .messages import COMPRESSED_IMAGE, IMAGE, typestore

EXTENSIONS = (".mcap", ".db3", ".bag")
MCAP_MAGIC = b"\x89MCAP0\r\n"


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: its type, such as "sensor_msgs/msg/Image", and how many messages it has."""

    name: str
    type: str
    count: int

    def __str__(self) -> str:
        return f"{self.name} ({self.type}, {self.count} messages)"


def is_bag(path: str | os.PathLike[str]) -> bool:
    """Whether a path looks like a bag: by its name, or a folder by its metadata.yaml."""
    path = Path(path).expanduser()
    return path.suffix.lower() in EXTENSIONS or (path / "metadata.yaml").is_file()


class Bag:
    """A bag, open to read. topics: by name. seconds: from its first message to its last.

    Raises `InputError`, one line: absent, not a bag, cut, damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = _bag_in(Path(path).expanduser())
        self._ros1 = self.path.suffix == ".bag"
        rosbags = require("rosbags.rosbag1" if self._ros1 else "rosbags.rosbag2", "ros")
        try:
            self._reader = rosbags.Reader(self.path)
            self._reader.open()
        except Exception as error:  # a cut or foreign file fails in many ways
            raise self._damaged("cannot be read as a bag", error) from None
        self.topics: dict[str, Topic] = {}
        for connection in self._reader.connections:  # a topic has one for each of its publishers
            known = self.topics.get(connection.topic)
            count = connection.msgcount + (known.count if known else 0)
            self.topics[connection.topic] = Topic(connection.topic, connection.msgtype, count)
        self.seconds = max(self._reader.duration, 0) / 1e9

    @property
    def image_topics(self) -> list[Topic]:
        return [topic for topic in self.topics.values() if topic.type in (IMAGE, COMPRESSED_IMAGE)]

    def choose(self, topic: str | None) -> Topic:
        """The image topic of this name, or the only one there is; raises `InputError` with what there is to choose."""
        images = self.image_topics
        if topic is not None:
            found = self.topics.get(topic)
            if found in images:
                return found
            problem = (
                f"no topic {topic}: its image topics are"
                if found is None
                else f"{topic} is a {found.type}, expected one of"
            )
        elif len(images) == 1:
            return images[0]
        else:
            problem = f"{len(images)} image topics, choose one:"
        if images:
            raise InputError(f"{self.path}: {problem} {_listed(images)}")
        held = _listed(self.topics.values())
        raise InputError(f"{self.path}: no topic of {IMAGE} or {COMPRESSED_IMAGE}, it holds {held}")

    def messages(self, topic: str) -> Iterator[tuple[int, bytes]]:
        """(nanoseconds, bytes) of a topic's messages, in the order of the times at which they were recorded.

        Raises `InputError` where the bag is damaged; nothing comes after it.
        """
        messages = self._reader.messages([c for c in self._reader.connections if c.topic == topic])
        done = 0
        while True:
            try:
                _, time, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # see above
                raise self._damaged(f"is damaged after message {done} of {topic}", error) from None
            yield time, data
            done += 1

    def cdr(self, data: bytes, kind: str) -> bytes | memoryview:
        """A message's bytes as ROS 2 has them; raises `InputError` for bytes that are not a message of ROS 1."""
        if not self._ros1:
            return data
        try:
            return typestore().ros1_to_cdr(data, kind)
        except Exception as error:
            raise InputError(f"not a {kind}: {_reason(error)}") from None

    def close(self) -> None:
        """May be called twice."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _damaged(self, what: str, error: Exception) -> InputError:
        files = [self.path] if self.path.is_file() else self.path.glob("*.mcap")
        cut = any(_is_mcap(file) for file in files)
        advice = " ('mcap recover' saves what is left of a recording that was cut off)" if cut else ""
        return InputError(f"{self.path}: {what}: {_reason(error)}{advice}")


def _bag_in(path: Path) -> Path:
    """What rosbags is to open: the path, or the one file of a recording that ended before it got a metadata.yaml."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file() and path.suffix not in EXTENSIONS:
        raise InputError(f"{path}: not a bag, expected a folder or one of {', '.join(EXTENSIONS)}")
    if path.is_file() or (path / "metadata.yaml").exists():
        return path
    files = [file for file in path.iterdir() if file.suffix in EXTENSIONS]
    if len(files) != 1:
        raise InputError(f"{path}: not a bag, as it has no metadata.yaml")
    return files[0]


def _is_mcap(path: Path) -> bool:
    """Whether a file begins as MCAPs do."""
    try:
        with path.open("rb") as file:
            return file.read(len(MCAP_MAGIC)) == MCAP_MAGIC
    except OSError:
        return False


def _listed(topics: Iterable[Topic], most: int = 10) -> str:
    names = [str(topic) for topic in topics]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + more) or "nothing at all"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
