"""The messages that bags of ours hold, in CDR as ROS 2 has it, and the definition of our own one.

Stamps are whole nanoseconds since the epoch, as ROS counts; seconds as a float would lose the last digits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, NonFiniteError
from ..extras import require

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
FEATURE_MAP = "dvt_fast_msgs/msg/FeatureMap"

# Text of FeatureMap.msg. Bags hold it, so that tools decode features without knowing of this package.
FEATURE_MAP_DEFINITION = """\
# Features of one camera frame: a grid of patches over the whole picture, each with the same number of channels.

std_msgs/Header header  # stamp and frame_id are those of the camera's message
uint32 height           # patches from top to bottom
uint32 width            # patches from left to right
uint32 channels         # numbers a patch
string dtype            # of the numbers: "float32" or "float16", little-endian
string model            # what computed them
uint8[] data            # [height, width, channels], the channels of one patch side by side
"""
DTYPES = ("float32", "float16")
_NANOSECONDS = 10**9


@cache
def typestore() -> Typestore:
    """The types of ROS 2, in which the image types are the same in every release, and our own."""
    typesys = require("rosbags.typesys", "ros")
    store: Typestore = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    store.register(typesys.get_types_from_msg(FEATURE_MAP_DEFINITION, FEATURE_MAP))
    return store


def definition(kind: str) -> str:
    """The text that a bag holds for a type: its own definition, then those of the types in it."""
    text = typestore().generate_msgdef(kind, ros_version=2)[0]
    if kind != FEATURE_MAP:
        return text
    own, separator, others = text.partition("=" * 80 + "\n")
    return FEATURE_MAP_DEFINITION + separator + others  # with the comments


def decode(data: bytes | memoryview, kind: str) -> Any:
    """A message of its CDR bytes; raises `InputError` where they cannot be one."""
    try:
        return typestore().deserialize_cdr(data, kind)
    except Exception as error:  # bytes that are not what they should be fail in many ways
        raise InputError(f"not a {kind}: {' '.join(str(error).split()) or type(error).__name__}") from None


def encode(message: Any) -> memoryview:
    """The CDR bytes of a message, little-endian."""
    return typestore().serialize_cdr(message, message.__msgtype__, little_endian=True)


def header(stamp: int, frame_id: str) -> Any:
    types = typestore().types
    sec, nanosec = divmod(stamp, _NANOSECONDS)
    return types["std_msgs/msg/Header"](types["builtin_interfaces/msg/Time"](sec, nanosec), frame_id)


def stamp_of(message: Any) -> int:
    """The stamp in a message's header, in nanoseconds."""
    return message.header.stamp.sec * _NANOSECONDS + message.header.stamp.nanosec


def image(header: Any, pixels: np.ndarray) -> Any:
    """uint8 [H, W, 3] as an Image of encoding rgb8."""
    height, width, _ = pixels.shape
    return typestore().types[IMAGE](header, height, width, "rgb8", 0, 3 * width, np.ascontiguousarray(pixels).ravel())


def compressed_image(header: Any, jpeg: bytes) -> Any:
    return typestore().types[COMPRESSED_IMAGE](header, "jpeg", np.frombuffer(jpeg, np.uint8))


def feature_map(header: Any, features: np.ndarray, dtype: str, model: str) -> Any:
    """Features [h, w, C] as a FeatureMap, in one of `DTYPES`. Raises `NonFiniteError` where they hold NaN or infinity,
    also where float16 makes it so."""
    height, width, channels = features.shape
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(features, np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(numbers).all():
        overflow = np.isfinite(features).all()
        raise NonFiniteError(f"features {'too large for float16' if overflow else 'with NaN or infinity'}: not written")
    return typestore().types[FEATURE_MAP](header, height, width, channels, dtype, model, numbers.view(np.uint8).ravel())


def features_of(message: Any) -> np.ndarray:
    """The features [h, w, C] in a FeatureMap that some library decoded; raises `InputError` where it holds no such."""
    shape = (message.height, message.width, message.channels)
    if message.dtype not in DTYPES:
        raise InputError(f"dtype {message.dtype!r}, expected {' or '.join(DTYPES)}")
    dtype = np.dtype(message.dtype).newbyteorder("<")
    data = np.frombuffer(bytes(message.data), dtype)
    if data.size != np.prod(shape, dtype=object):
        raise InputError(f"{data.size} numbers, expected {shape[0]} x {shape[1]} x {shape[2]}")
    return data.reshape(shape)
