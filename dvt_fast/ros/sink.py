"""The results of a stream as a ROS 2 bag: features as a typed message, and their colours as a picture to look at."""

from __future__ import annotations

import io
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, OutputError
from ..extras import require
from ..files import Unfinished, check_folder
from ..stream.result import Result
from ..video.colors import StableColors
from . import messages

STORAGES = ("mcap", "sqlite3")
_SINGLE_FILES = {".mcap": "mcap", ".db3": "sqlite3"}


class BagSink:
    """Writes a ROS 2 bag, which appears at `path`, whole, when the sink is closed. Needs rosbags, the extra [ros].

    path: a folder, as ROS makes them, or with the ending .mcap or .db3 a single file; what exists already is not
    replaced. storage: "mcap" (the default) or "sqlite3", of a folder.

    Topics, under `prefix`: features (`dvt_fast_msgs/msg/FeatureMap`, numbers of `dtype`, float32 or float16; `model` is
    the text in it that says what computed them), pca (the colours, an Image of rgb8) and, where results have the ViT's
    own features, raw_pca. patch_pixels: the side of a patch in these pictures; None makes them as large as the frame.
    camera: write the frames too: the message itself where the source kept it (`BagSource(keep_messages=True)`), on its
    own topic, else a JPEG on image/compressed.

    Every message has the stamp and frame_id of the frame, and the time at which the frame was recorded; what has no
    stamp is stamped with the time of its capture, by the clock of the system.

    `write` raises `NonFiniteError` for features with NaN or infinity, which are not written; the sink goes on. Where
    the bag cannot be written, both raise `OutputError`, and nothing of it is left.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        storage: str | None = None,
        model: str = "",
        dtype: str = "float32",
        prefix: str = "/dvt",
        patch_pixels: int | None = 16,
        camera: bool = False,
    ):
        path = Path(path).expanduser()
        ending = _SINGLE_FILES.get(path.suffix)
        if storage not in (None, *STORAGES) or (ending and storage not in (None, ending)):
            expected = repr(ending) if ending else " or ".join(map(repr, STORAGES))
            raise InputError(f"storage of {path.name} must be {expected}, got {storage!r}")
        if dtype not in messages.DTYPES:
            raise InputError(f"dtype must be {' or '.join(messages.DTYPES)}, got {dtype!r}")
        if not re.fullmatch(r"(/[A-Za-z_][A-Za-z0-9_]*)+", prefix):
            raise InputError(f"prefix must be a topic such as /dvt, got {prefix!r}")
        if patch_pixels is not None and patch_pixels < 1:
            raise InputError(f"patch_pixels must be at least 1, got {patch_pixels}")
        if path.exists():
            raise OutputError(f"{path}: exists already, and a bag is not replaced: choose another name")
        self._rosbag2 = require("rosbags.rosbag2", "ros")
        self._plugin = self._rosbag2.StoragePlugin[(storage or ending or "mcap").upper()]
        self._path, self._is_file = path, ending is not None
        check_folder(path.parent)
        self._colors, self._model, self._dtype = StableColors(), model, dtype
        self._prefix, self._patch_pixels, self._camera = prefix, patch_pixels, camera
        self._unfinished: Unfinished | None = None  # from the first result on
        self._writer: Any = None
        self._connections: dict[str, Any] = {}
        self._ended = False

    def write(self, result: Result) -> None:
        if self._ended:
            raise InputError(f"{self._path}: is closed")
        stamp = _stamp(result)
        recorded = max(result.meta.get("recorded_ns", stamp), 0)
        header = messages.header(stamp, result.meta.get("frame_id", ""))
        features = messages.feature_map(header, result.features, self._dtype, self._model)
        new: list[tuple[str, str, bytes | memoryview]] = [
            (f"{self._prefix}/features", messages.FEATURE_MAP, messages.encode(features))
        ]
        seen = ({} if result.raw is None else {"raw_pca": result.raw}) | {"pca": result.features}
        basis = self._colors.update(*seen.values())
        for name, tokens in seen.items():
            picture = messages.image(header, self._enlarged(basis.colors(tokens), result.image))
            new.append((f"{self._prefix}/{name}", messages.IMAGE, messages.encode(picture)))
        if self._camera:
            new.append(self._camera_message(result, header, [topic for topic, _, _ in new]))
        with self._ended_by_errors():
            for topic, kind, data in new:
                self._open_writer().write(self._connection(topic, kind), recorded, data)

    def close(self) -> None:
        if self._ended:
            return
        if self._unfinished is not None:
            with self._ended_by_errors():
                self._writer.close()
            self._ended = True
            inside = self._unfinished.inside
            self._unfinished.finish(inside.with_suffix("") / inside.name if self._is_file else inside)
        self._ended = True

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """What goes wrong while a record is written leaves a part of it: the bag is given up, whatever it was."""
        try:
            yield
        except BaseException as error:
            self._ended = True
            with suppress(Exception):
                self._writer.abort()
            if isinstance(error, (OSError, sqlite3.Error, self._rosbag2.WriterError)) and self._unfinished:
                raise self._unfinished.failed(error) from None
            if self._unfinished:
                self._unfinished.discard()
            raise

    def _open_writer(self) -> Any:
        if self._writer is None:
            self._unfinished = Unfinished(self._path)
            inside = self._unfinished.inside
            folder = inside.with_suffix("") if self._is_file else inside  # its file gets its name, and the ending
            # Version 8 of the metadata is what every ROS 2 reads; 9, of ROS 2 Jazzy, is not.
            self._writer = self._rosbag2.Writer(folder, version=8, storage_plugin=self._plugin)
            self._writer.open()
        return self._writer

    def _connection(self, topic: str, kind: str) -> Any:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, msgdef=messages.definition(kind), rihs01=messages.typestore().hash_rihs01(kind)
            )
        return self._connections[topic]

    def _camera_message(self, result: Result, header: Any, taken: list[str]) -> tuple[str, str, bytes | memoryview]:
        """Topic, type and bytes of the frame itself."""
        if "message" in result.meta:
            topic = result.meta["topic"]
            if topic in taken:
                raise InputError(
                    f"prefix {self._prefix} makes the topic {topic}, which is the camera's: choose another"
                )
            return topic, result.meta["message_type"], result.meta["message"]
        jpeg = io.BytesIO()
        require("PIL.Image", "cli").fromarray(result.image).save(jpeg, "JPEG", quality=90)
        message = messages.compressed_image(header, jpeg.getvalue())
        return f"{self._prefix}/image/compressed", messages.COMPRESSED_IMAGE, messages.encode(message)

    def _enlarged(self, colors: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Patches [h, w, 3] as a picture, each as a rectangle of its colour."""
        h, w, _ = colors.shape
        height, width = (
            image.shape[:2] if self._patch_pixels is None else (h * self._patch_pixels, w * self._patch_pixels)
        )
        return colors[np.arange(height)[:, None] * h // height, np.arange(width) * w // width]


def _stamp(result: Result) -> int:
    """Nanoseconds: those of the source, exact where it tells them, else the time of the capture by the system clock."""
    if "stamp_ns" in result.meta:
        return result.meta["stamp_ns"]
    if result.stamp is not None:
        return round(1e9 * result.stamp)
    return time.time_ns() - round(1e9 * (time.monotonic() - result.captured))
