"""Every encoding of ROS images comes out as the picture that went in, and whatever cannot be one is refused."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the extra [ros]")

from dvt_fast.errors import InputError
from dvt_fast.ros.bayer import demosaic
from dvt_fast.ros.pixels import ENCODINGS, compressed_pixels, image_pixels
from ros_samples import compressed, picture, raw, rgb8

GREY = np.array([0.299, 0.587, 0.114])
BAYER = ("rggb", "bggr", "gbrg", "grbg")


def channels_of(encoding, pixels):
    """The picture in an encoding of one number a channel, without Bayer ones: uint8 [H, W, n]."""
    if encoding.startswith("mono"):
        return (pixels @ GREY + 0.5).astype(np.uint8)[..., None]
    alpha = np.full((*pixels.shape[:2], 1), 77, np.uint8)
    return np.concatenate([pixels, alpha], axis=2)[..., ["rgba".index(letter) for letter in encoding.rstrip("168")]]


def mosaic_of(pixels, pattern):
    """[H, W]: of each pixel the one colour that a Bayer sensor sees."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    colors = np.array(["rgb".index(letter) for letter in pattern]).reshape(2, 2)
    return np.take_along_axis(pixels, colors[y % 2, x % 2][..., None], axis=2)[..., 0]


def message_of(encoding, numbers, bigendian=False, padding=0):
    """Numbers [H, W, n] as an Image, 16-bit ones as 257 times those of 8 bits."""
    wide = encoding.endswith("16")
    rows = (numbers.astype(np.uint16) * 257).astype(">u2" if bigendian else "<u2") if wide else numbers
    step = rows[0].nbytes + padding
    data = b"".join(row.tobytes() + b"\xaa" * padding for row in rows)
    return raw(encoding, data, *numbers.shape[:2], step, bigendian)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name[:3] in ("rgb", "bgr", "mon")])
def test_channels_in_any_order(encoding, bigendian, padding):
    pixels = picture(11, 15)
    got = image_pixels(message_of(encoding, channels_of(encoding, pixels), bigendian, padding))
    expected = channels_of("mono8", pixels).repeat(3, axis=2) if encoding.startswith("mono") else pixels
    assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.writeable
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [(10, 14), (9, 13), (2, 2)])
@pytest.mark.parametrize("pattern", BAYER)
def test_demosaic_is_the_mean_of_the_neighbours(pattern, size):
    mosaic = np.random.default_rng(0).integers(0, 2**16, size).astype(np.uint16)
    padded = np.pad(mosaic, 1, mode="reflect")
    letters = np.pad(np.array([list(pattern[:2]), list(pattern[2:])]), ((0, 14), (0, 14)), mode="wrap")
    letters = np.pad(letters[: size[0], : size[1]], 1, mode="reflect")
    expected = np.zeros((*size, 3), int)
    for y, x, color in np.ndindex(*expected.shape):
        own = letters[y + 1, x + 1] == "rgb"[color]
        window = np.s_[y + 1 : y + 2, x + 1 : x + 2] if own else np.s_[y : y + 3, x : x + 3]
        values = padded[window][letters[window] == "rgb"[color]]
        expected[y, x, color] = floor(Fraction(int(values.sum()), values.size) + Fraction(1, 2))
    np.testing.assert_array_equal(demosaic(mosaic, pattern), expected)


@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", BAYER)
def test_bayer_gives_slopes_back(pattern, bits, bigendian):
    pixels = picture(12, 16)  # even slopes, which means of neighbours leave as they are
    message = message_of(f"bayer_{pattern}{bits}", mosaic_of(pixels, pattern)[..., None], bigendian, padding=3)
    np.testing.assert_allclose(image_pixels(message)[1:-1, 1:-1].astype(int), pixels[1:-1, 1:-1], atol=1)


@pytest.mark.parametrize(
    "encoding, places", [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_yuv_that_pairs_of_pixels_share(encoding, places):
    pairs = np.random.default_rng(0).integers(60, 200, (10, 7, 3))
    pixels = pairs.repeat(2, axis=1).astype(np.uint8)  # both pixels of a pair alike, so that no colour is lost
    red, green, blue = np.moveaxis(pairs.astype(float), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    channels = {
        "y": 16 + 219 / 255 * luma,
        "u": 128 + 224 / 255 * (blue - luma) / 1.772,
        "v": 128 + 224 / 255 * (red - luma) / 1.402,
    }
    packed = np.stack([channels[letter] for letter in places], axis=-1).round().astype(np.uint8)
    message = message_of(encoding, packed.reshape(10, 14, 2), padding=6)
    np.testing.assert_allclose(image_pixels(message).astype(int), pixels, atol=3)


def test_yuv_reaches_black_and_white():
    message = raw("yuyv", bytes([16, 128, 235, 128, 0, 128, 255, 128]), 1, 4, 8)
    np.testing.assert_array_equal(image_pixels(message)[0, :, 1], [0, 255, 0, 255])


def test_last_row_needs_no_padding():
    pixels = picture(4, 5)
    data = b"".join(row.tobytes() + b"\xaa" for row in pixels)[:-1]
    np.testing.assert_array_equal(image_pixels(raw("rgb8", data, 4, 5, 16)), pixels)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"encoding": "16UC1"}, "encoding '16UC1', expected one of rgb8"),
        ({"encoding": ""}, "encoding ''"),
        ({"step": 47}, "a step of 47 bytes, expected at least 48"),
        ({"step": 0}, "a step of 0 bytes"),
        ({"data": np.zeros(575, np.uint8)}, "575 bytes of data, expected 576"),
        ({"data": np.zeros(0, np.uint8)}, "0 bytes of data"),
        ({"height": 0}, "16 x 0 pixels"),
        ({"width": 0}, "0 x 12 pixels"),
        ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, "a step of 4294967295 bytes"),
        ({"height": 2**32 - 1}, "576 bytes of data, expected"),
        ({"encoding": "yuyv", "width": 15}, "15 x 12 pixels of yuyv"),
        ({"encoding": "bayer_rggb8", "height": 1}, "16 x 1 pixels of bayer_rggb8"),
    ],
)
def test_images_that_cannot_be(change, said):
    message = rgb8(picture(12, 16))
    vars(message).update(change)
    with pytest.raises(InputError) as error:
        image_pixels(message)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind, format",
    [
        ("jpeg", "jpeg"),
        ("jpeg", "rgb8; jpeg compressed bgr8"),
        ("png", "png"),
        ("png", "bgr8; png compressed bgr8"),
        ("webp", ""),
    ],
)
def test_compressed(kind, format):
    pixels = picture(32, 48)
    got = compressed_pixels(compressed(pixels, kind, format))
    assert got.flags.writeable
    np.testing.assert_allclose(got.astype(int), pixels, atol=12 if kind != "png" else 0)


def test_compressed_mono16():
    grey = np.arange(0, 65536, 683, dtype=np.uint16).reshape(8, 12)
    got = compressed_pixels(compressed(grey, "png", "mono16; png compressed mono16"))
    np.testing.assert_array_equal(got[..., 1], np.round(grey / 257))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": "16UC1; compressedDepth png"}, "depth map"),
        ({"data": np.zeros(0, np.uint8)}, "no data"),
        ({"data": np.arange(100, dtype=np.uint8)}, "'jpeg', not an image"),
        ({"data": compressed(picture(64, 64)).data[:-500]}, "cannot be decoded"),
    ],
)
def test_compressed_that_cannot_be(change, said):
    message = compressed(picture(64, 64))
    vars(message).update(change)
    with pytest.raises(InputError) as error:
        compressed_pixels(message)
    assert said in str(error.value) and "\n" not in str(error.value)
