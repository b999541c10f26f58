"""Pixels on a device: the bits of the CPU, which are Pillow's, whatever the layout of the image."""

import ctypes

import numpy as np
import pytest

from cuda_samples import rounded, run_op
from dvt_fast import _native
from dvt_fast.errors import InputError
from test_pixels import LAYOUTS, MEAN, RAW, STD, bicubic_matrix, columns_first, noise

# (height, width) of a source and of a target. One of each kind: along rows first and columns first, shrinking and
# growing, lines of several segments, tiles that end inside a warp.
SIZES = [
    ((48, 64), (22, 33)),
    ((96, 41), (20, 18)),
    ((40, 40), (40, 40)),
    ((40, 70), (40, 33)),
    ((70, 40), (33, 40)),
    ((23, 31), (66, 50)),
    ((1, 1), (9, 5)),
    ((1, 90), (7, 3)),
    ((90, 1), (3, 7)),
    ((2, 3), (1, 1)),
    ((5, 1300), (6, 2)),
    ((1300, 5), (2, 6)),
    ((135, 240), (14, 14)),
]


def on_device(image, size, dtype="float32", max_source=None, **plan):
    """What the op makes of an image, or of a batch of them, with any strides."""
    # The memory from the first to the last byte of the view, and nothing beside it.
    extents = [(n - 1) * s for n, s in zip(image.shape, image.strides, strict=True) if n > 1]
    low, high = sum(e for e in extents if e < 0), sum(e for e in extents if e > 0) + image.itemsize
    pointer = image.__array_interface__["data"][0] + low
    memory = np.frombuffer((ctypes.c_char * (high - low)).from_address(pointer), image.dtype)
    rows = image.ndim - (3 if image.dtype == np.uint8 else 2)
    height, width = max_source or image.shape[rows : rows + 2]
    numbers = {"rank": image.ndim, "offset": -low // image.itemsize, "max_height": height, "max_width": width}
    for i in range(image.ndim):
        numbers |= {f"shape{i}": image.shape[i], f"stride{i}": image.strides[i] // image.itemsize}
    for name, values in (plan or RAW).items():
        numbers |= {f"{name}{c}": float(value) for c, value in enumerate(values)}
    batch = image.shape[0] if image.ndim == 4 else 1
    words = {"kind": image.dtype.name, "type": dtype}
    found = run_op("pixels", {"pixels": memory}, {"y": ((batch, 3, *size), dtype)}, numbers, words)["y"]
    return found if image.ndim == 4 else found[0]


def on_cpu(image, size, max_source=None, **plan):
    rows = 0 if image.dtype == np.uint8 else 1
    return _native.Pixels(size, max_source or image.shape[rows : rows + 2], **(plan or RAW)).prepare(image)


@pytest.mark.sanitizer
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_every_bit_is_the_cpus(cuda, source, target):
    image = noise(source)
    np.testing.assert_array_equal(on_device(image, target), on_cpu(image, target))


def test_sizes_of_all_kinds(cuda):
    rng = np.random.default_rng(1)
    orders = set()
    for seed in range(40 if cuda.emulated else 300):
        height, width, *target = (int(side) for side in np.exp(rng.uniform(0, 4.3 if cuda.emulated else 6, 4)))
        image = noise((height, width), seed)
        orders.add(columns_first((height, width), target))
        np.testing.assert_array_equal(on_device(image, target), on_cpu(image, target), f"{image.shape} {target}")
    assert orders == {False, True}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("source", "target"), [((61, 92), (24, 40)), ((100, 31), (12, 25)), ((13, 8), (9, 35))])
def test_layouts(cuda, layout, source, target):
    image = noise(source)
    view = LAYOUTS[layout](image)
    assert np.array_equal(view, image)
    np.testing.assert_array_equal(on_device(view, target), on_cpu(image, target))


@pytest.mark.parametrize("width", [64, 65])
def test_a_batch(cuda, width):
    """Whose tiles are large, and whose images are apart, in reverse order; every one is resized as if alone."""
    images = np.stack([noise((50, width), seed) for seed in range(5)])
    apart = np.full((5, 57, width, 3), 77, np.uint8)
    apart[:, 3:53] = images[::-1]
    expected = np.stack([on_cpu(image, (70, 40)) for image in images])
    np.testing.assert_array_equal(on_device(images, (70, 40)), expected)
    np.testing.assert_array_equal(on_device(apart[::-1, 3:53], (70, 40)), expected)


@pytest.mark.parametrize("views", [90, 140])
def test_large_tiles(cuda, views):
    """32 x 16 and 32 x 32 pixels, where there are enough of them for every multiprocessor, and not 32 x 8."""
    side = 66
    for source in ((side, side + 13), (2 * side, side // 2), (side // 3, side // 2)):
        image, target = noise(source), (side // 2, side // 2 + 3)
        assert (on_device(np.broadcast_to(image, (views, *image.shape)), target) == on_cpu(image, target)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_normalised_and_rounded(cuda, dtype):
    """Rounded after the product, after the sum, and to the type of the result."""
    image = noise((40, 50))
    plan = {
        "scale": [np.float32(1 / (255 * std)) for std in STD],
        "shift": [-np.float32(mean / std) for mean, std in zip(MEAN, STD, strict=True)],
    }
    expected = on_cpu(image, (31, 23), **plan)
    np.testing.assert_array_equal(on_device(image, (31, 23), dtype, **plan), rounded(expected, dtype))


def test_tables_of_a_larger_source_serve_a_smaller_one(cuda):
    image = noise((40, 61))
    np.testing.assert_array_equal(on_device(image, (24, 40), max_source=(200, 300)), on_cpu(image, (24, 40)))


# float32 rounds about 100 products a pixel: an error of a few units of the last place of 1.
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_floats_against_float64(cuda, source, target):
    values = (noise(source).transpose(2, 0, 1) / 255).astype(np.float32)
    expected = bicubic_matrix(source[0], target[0]) @ values.astype(np.float64) @ bicubic_matrix(source[1], target[1]).T
    found = on_device(values, target, scale=(1 / 255,) * 3, shift=(0, 0, 0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_layouts_of_floats(cuda):
    values = np.random.default_rng(0).random((3, 61, 85), np.float32)
    expected = on_device(values, (24, 40))
    for view in (
        np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1),
        np.ascontiguousarray(values[..., ::-1])[..., ::-1],
        np.ascontiguousarray(values[:, ::-1])[:, ::-1],
        np.ascontiguousarray(values[::-1])[::-1],
        np.asfortranarray(values),
        np.repeat(np.repeat(values, 3, 1), 2, 2)[:, ::3, ::2],
    ):
        np.testing.assert_array_equal(on_device(view, (24, 40)), expected)


def test_a_value_that_is_not_finite_stays_where_it_was(cuda):
    values = np.ones((3, 64, 64), np.float32)
    values[1, 0, 0] = np.nan
    found = on_device(values, (16, 16))
    assert np.isnan(found[1, 0, 0])
    assert np.isfinite(found[[0, 2]]).all() and np.isfinite(found[1, 8:, 8:]).all()
    same = on_device(values, (64, 64))
    assert np.isnan(same).sum() == 1, "nothing is resized: no other pixel sees it"


IMAGE = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "changes", "message"),
    [
        (IMAGE[0], {}, "must have shape [H, W, 3] or [B, H, W, 3] where it is uint8, got 2 axes"),
        (IMAGE[..., :2], {}, "where it is uint8, got [8, 9, 2]"),
        (IMAGE[None, ..., :2], {}, "where it is uint8, got [1, 8, 9, 2]"),
        (IMAGE.astype(np.float32), {}, "must have shape [3, H, W] or [B, 3, H, W] where it is float32, got [8, 9, 3]"),
        (IMAGE, {"max_source": (7, 9)}, "must have at most 7 x 9 pixels, the max_source that the session was made for"),
        (IMAGE, {"max_source": (8, 8)}, "must have at most 8 x 8 pixels, the max_source that the session was made for"),
        (IMAGE, {"scale": (1, np.inf, 1), "shift": (0, 0, 0)}, "scale and shift of pixels must be finite"),
        (IMAGE, {"max_source": (2**17, 9)}, "the largest source must be from 1 to 65536 pixels a side, got 131072 x 9"),
    ],
)
def test_what_cannot_be_is_refused(cuda, image, changes, message):
    with pytest.raises(InputError) as error:
        on_device(image, (4, 4), **({"max_source": (8, 9)} | changes))
    assert message in str(error.value)
