"""Pictures in ROS messages: `sensor_msgs/msg/Image` and `CompressedImage` as uint8 RGB.

What a message says of itself is checked before a byte of it is used; where it cannot be true, `InputError` says why in
one line, and the next message is another matter.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from ..errors import InputError
from ..extras import require
from ..images import load_image
from .bayer import demosaic

# Encodings of sensor_msgs/msg/Image with one number a channel: how many channels, and which are red, green and blue.
_COLORS = {"rgb": (3, np.s_[0:3]), "bgr": (3, np.s_[2::-1]), "rgba": (4, np.s_[0:3]), "bgra": (4, np.s_[2::-1])}
_CHANNELS = {
    **{f"{order}{bits}": colors for order, colors in _COLORS.items() for bits in (8, 16)},
    **{f"mono{bits}": (1, np.s_[:]) for bits in (8, 16)},
    **{f"bayer_{pattern}{bits}": (1, np.s_[:]) for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)},
}
# Two pixels share their colour: where Y, U and V start in the four bytes of both, under the old and the new names.
_YUV = {"yuv422": (1, 0, 2), "uyvy": (1, 0, 2), "yuv422_yuy2": (0, 1, 3), "yuyv": (0, 1, 3)}

ENCODINGS = (*_CHANNELS, *_YUV)


def image_pixels(message: Any) -> np.ndarray:
    """The picture of a `sensor_msgs/msg/Image`: uint8 [H, W, 3], RGB; 16 bits are scaled to 8, alpha is left out.

    Rows may be padded (`step`), and 16-bit numbers big-endian. Raises `InputError`: an encoding that is no colour
    picture, a step shorter than a row, data shorter than its rows.
    """
    height, width, encoding, step = message.height, message.width, message.encoding, message.step
    if encoding in _CHANNELS:
        channels, size = _CHANNELS[encoding][0], 2 if encoding.endswith("16") else 1
    elif encoding in _YUV:
        channels, size = 2, 1
    else:
        raise InputError(f"encoding {encoding!r}, expected one of {', '.join(ENCODINGS)}")
    least = 2 if encoding.startswith("bayer") else 1
    if height < least or width < least or (encoding in _YUV and width % 2):
        raise InputError(f"{width} x {height} pixels of {encoding}")
    row = width * channels * size
    if step < row:
        raise InputError(f"a step of {step} bytes, expected at least {row} for {width} pixels of {encoding}")
    needed = step * (height - 1) + row
    if len(message.data) < needed:
        raise InputError(f"{len(message.data)} bytes of data, expected {needed} for {width} x {height} of {encoding}")
    kind = np.dtype(np.uint8 if size == 1 else ">u2" if message.is_bigendian else "<u2")
    pixels: np.ndarray = np.ndarray(
        (height, width, channels), kind, np.ascontiguousarray(message.data), strides=(step, channels * size, size)
    )
    if encoding in _YUV:
        return _yuv_to_rgb(np.ascontiguousarray(pixels).reshape(height, -1), *_YUV[encoding])
    if encoding.startswith("bayer"):
        return _to_bytes(demosaic(pixels[..., 0].astype(kind.newbyteorder("=")), encoding[6:10]))
    pixels = _to_bytes(pixels[..., _CHANNELS[encoding][1]])
    return np.repeat(pixels, 3, axis=2) if channels == 1 else pixels


def compressed_pixels(message: Any) -> np.ndarray:
    """The picture of a `sensor_msgs/msg/CompressedImage`, JPEG, PNG or what else Pillow reads: uint8 [H, W, 3], RGB.

    `format` is only looked at for what is no picture, as drivers write all sorts of things into it. Raises
    `InputError`.
    """
    if "compressedDepth" in message.format:
        raise InputError(f"format {message.format!r} is a depth map, expected a picture")
    if not len(message.data):
        raise InputError("no data")
    try:
        return np.array(load_image(io.BytesIO(memoryview(message.data))))
    except InputError as error:
        raise InputError(f"format {message.format!r}, {str(error).removeprefix('the given file: ')}") from None


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """8-bit numbers as they are, 16-bit ones rounded to 8 bits; a copy, contiguous."""
    if values.dtype.itemsize == 1:
        return values.copy()
    return ((values * np.uint32(255) + np.uint32(32895)) >> 16).astype(np.uint8)  # = round(value / 257), for all values


def _yuv_to_rgb(packed: np.ndarray, y: int, u: int, v: int) -> np.ndarray:
    """ITU-R BT.601 with Y from 16 to 235, as cameras give it: [H, 2 W] as [H, W, 3], to two of 255 levels."""
    Image = require("PIL.Image", "cli")
    planes = (_STRETCH_Y[packed[:, y::2]], *(_STRETCH_UV[packed[:, place::4]].repeat(2, axis=1) for place in (u, v)))
    return np.array(Image.fromarray(np.stack(planes, axis=2), "YCbCr").convert("RGB"))


_levels = np.arange(256) - np.array([[16], [128]])
_STRETCH_Y, _STRETCH_UV = np.clip(255 / np.array([[219], [224]]) * _levels + [[0.5], [128.5]], 0, 255).astype(np.uint8)
