"""Bags and messages to test with, made by rosbags alone."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image as PILImage
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores
from rosbags.typesys import get_typestore as make_typestore

from result_samples import START, slope

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"

get_typestore = cache(make_typestore)


def picture(height=12, width=16, seed=0):
    return slope(height, width, seed)


def raw(encoding, data, height, width, step, is_bigendian=0):
    """The fields of an Image."""
    data = np.frombuffer(bytes(data), np.uint8)
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=is_bigendian, step=step, data=data
    )


def rgb8(pixels):
    return raw("rgb8", pixels.tobytes(), *pixels.shape[:2], 3 * pixels.shape[1])


def compressed(pixels, kind="jpeg", format=None):
    """The fields of a CompressedImage."""
    file = io.BytesIO()
    PILImage.fromarray(pixels).save(file, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return SimpleNamespace(format=kind if format is None else format, data=np.frombuffer(file.getvalue(), np.uint8))


def cdr(fields, stamp=START, frame_id="camera", little_endian=True):
    """(type, bytes) of a message with these fields."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    kind, message = _message(store, fields, stamp, frame_id)
    return kind, store.serialize_cdr(message, kind, little_endian=little_endian)


def write_bag(path, topics, storage="mcap", interval=100_000_000, compression="NONE"):
    """A ROS 2 bag at folder `path`. topics: name -> what `cdr` gives (or fields, for that), a list; the i-th message is
    recorded 5 ms after START + i * interval and, given as fields, stamped with that."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    writer = Writer2(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    with writer as bag:
        for topic, messages in topics.items():
            connections = {}
            for i, message in enumerate(messages):
                stamp = START + i * interval
                kind, data = message if isinstance(message, tuple) else cdr(message, stamp)
                if kind not in connections:
                    connections[kind] = bag.add_connection(topic, kind, typestore=store)
                bag.write(connections[kind], stamp + 5_000_000, data)
    return Path(path)


def write_ros1_bag(path, topic, messages):
    store = get_typestore(Stores.ROS1_NOETIC)
    with Writer1(path) as bag:
        for i, fields in enumerate(messages):
            kind, message = _message(store, fields, START + i, "camera", seq=[i])
            if not i:
                connection = bag.add_connection(topic, kind, typestore=store)
            bag.write(connection, START + i, store.serialize_ros1(message, kind))
    return Path(path)


def storage_file(bag):
    """The one file of a bag that holds its messages."""
    return next(file for file in Path(bag).iterdir() if file.suffix in (".mcap", ".db3"))


def _message(store, fields, stamp, frame_id, seq=()):
    kind = IMAGE if hasattr(fields, "encoding") else COMPRESSED_IMAGE
    time = store.types["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9))
    header = store.types["std_msgs/msg/Header"](*seq, time, frame_id)
    return kind, store.types[kind](header=header, **vars(fields))
