"""Pixels for a ViT: Pillow's resize to the bit, whatever the layout of the image, then scaled and shifted."""

import ctypes
import mmap

import numpy as np
import PIL
import pytest
from PIL import Image

from dvt_fast import _native
from dvt_fast.errors import InputError
from dvt_fast.images import resize

PROT_NONE = 0  # of sys/mman.h
RAW = {"scale": (1, 1, 1), "shift": (0, 0, 0)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# (height, width) of a source and of a target: what cameras and ViTs have, and everything else
SIZES = [
    ((480, 640), (224, 224)),
    ((720, 1280), (224, 224)),
    ((1280, 720), (224, 224)),  # columns first
    ((224, 224), (224, 224)),
    ((224, 500), (224, 224)),
    ((500, 224), (224, 224)),  # columns alone
    ((224, 224), (518, 518)),
    ((37, 53), (518, 126)),
    ((1, 1), (9, 5)),
    ((1, 700), (7, 3)),
    ((700, 1), (3, 7)),
    ((2, 3), (1, 1)),
    ((1080, 1920), (14, 14)),
    ((3, 5000), (16, 33)),
    ((5000, 3), (33, 16)),
]


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Black and white at random, where bicubic overshoots most, over a ramp."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    extreme = rng.random(size) < 0.5
    image[extreme] = rng.integers(0, 2, (extreme.sum(), 3), np.uint8) * 255
    return image


def columns_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether Pillow resizes along columns first, from its version 13 on."""
    return source[0] > target[0] and source[0] - target[0] > 2 * (source[1] - target[1])


def by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's resize as its version 13 does it, as float32 [3, height, width]."""
    source, picture = image.shape[:2], Image.fromarray(np.ascontiguousarray(image))
    if columns_first(source, size) and int(PIL.__version__.split(".")[0]) < 13:
        picture = Image.fromarray(resize(picture, (size[0], source[1])))
    return resize(picture, size).transpose(2, 0, 1).astype(np.float32)


def prepared(image: np.ndarray, size: tuple[int, int], max_source: tuple[int, int] | None = None, **plan) -> np.ndarray:
    rows = 0 if image.dtype == np.uint8 else 1
    return _native.Pixels(size, max_source or image.shape[rows : rows + 2], **(plan or RAW)).prepare(image)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_every_bit_is_pillows(isa, source, target):
    image = noise(source)
    np.testing.assert_array_equal(prepared(image, target), by_pillow(image, target))


def test_every_bit_is_pillows_at_sizes_of_all_kinds(isa):
    rng = np.random.default_rng(1)
    orders = set()
    for seed in range(300):
        height, width, *target = (int(side) for side in np.exp(rng.uniform(0, 5.5, 4)))
        image = noise((height, width), seed)
        orders.add(columns_first((height, width), target))
        np.testing.assert_array_equal(prepared(image, tuple(target)), by_pillow(image, tuple(target)), f"{image.shape}")
    assert orders == {False, True}


def test_a_photo_gives_the_bits_of_the_python_path(isa):
    """The whole way: `ViT.transform` of an image, and its result, without torch here."""
    torch = pytest.importorskip("torch")
    from dvt_fast import ViT

    vit = ViT("dvt_mini")
    image = noise((300, 451))
    scale = [np.float32(1 / (255 * std)) for std in vit.std]
    shift = [-np.float32(mean / std) for mean, std in zip(vit.mean, vit.std, strict=True)]
    expected = vit.transform(Image.fromarray(image))
    assert expected.dtype == torch.float32
    np.testing.assert_array_equal(prepared(image, vit.size, scale=scale, shift=shift), expected.numpy())


def in_bgra(image: np.ndarray, first: int, order: slice) -> np.ndarray:
    """A view of pixels of four bytes, the channels from `first` on."""
    whole = np.full((*image.shape[:2], 4), 77, np.uint8)
    whole[..., first : first + 3] = image[..., order]
    return whole[..., first : first + 3][..., order]


def strided(image: np.ndarray) -> np.ndarray:
    """Every third row and second column of a larger image, in another memory order."""
    whole = np.full((5, 2 * image.shape[1], 3 * image.shape[0]), 77, np.uint8)
    view = whole[1:4, ::2, ::3].transpose(2, 1, 0)
    view[:] = image
    return view


def padded(image: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
    """A part of a larger image: its rows are apart, and it starts anywhere."""
    whole = np.full((image.shape[0] + 3, image.shape[1] + 5, image.shape[2]), 77, dtype)
    view = whole[1:-2, 3:-2]
    view[:] = image
    return view


SAME, BACK = slice(None), slice(None, None, -1)
LAYOUTS = {
    "padded rows": padded,
    "BGR": lambda image: np.ascontiguousarray(image[..., ::-1])[..., ::-1],
    "BGR in padded rows": lambda image: padded(image[..., ::-1])[..., ::-1],
    "RGBA": lambda image: in_bgra(image, 0, SAME),
    "ARGB": lambda image: in_bgra(image, 1, SAME),
    "BGRA": lambda image: in_bgra(image, 0, BACK),
    "ABGR": lambda image: in_bgra(image, 1, BACK),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1])[:, ::-1],
    "upside down": lambda image: np.ascontiguousarray(image[::-1])[::-1],
    "turned": lambda image: np.rot90(np.ascontiguousarray(np.rot90(image)), -1),
    "planes": lambda image: np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
    "strided": strided,
    "columns": np.asfortranarray,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("source", "target"), [((61, 200), (24, 40)), ((200, 31), (24, 40)), ((13, 7), (24, 40))])
def test_layouts(isa, layout, source, target):
    image = noise(source)
    view = LAYOUTS[layout](image)
    assert np.array_equal(view, image)
    assert view.strides != image.strides
    np.testing.assert_array_equal(prepared(view, target), by_pillow(image, target))


def test_one_pixel_for_all():
    """Strides of 0: NumPy's broadcasting."""
    pixel = np.array([1, 128, 255], np.uint8)
    got = prepared(np.broadcast_to(pixel, (300, 200, 3)), (20, 30))
    np.testing.assert_array_equal(got, np.broadcast_to(pixel[:, None, None], got.shape))
    gray = np.broadcast_to(noise((40, 50))[..., :1], (40, 50, 3))
    np.testing.assert_array_equal(prepared(gray, (20, 30)), by_pillow(gray, (20, 30)))


def test_one_plan_serves_images_of_any_size(isa):
    """A camera may change its size: tables and rings are filled anew, whatever the frame before left there."""
    pixels = _native.Pixels((24, 40), (400, 500), **RAW)
    for source in [(40, 61), (400, 500), (200, 31), (24, 40), (40, 61)]:
        image = noise(source)
        np.testing.assert_array_equal(pixels.prepare(image), by_pillow(image, (24, 40)))
        values = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255
        np.testing.assert_array_equal(pixels.prepare(values), prepared(values, (24, 40)))


class Guarded:
    """Memory with pages on both sides that cannot be touched."""

    def __init__(self, size: int):
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self.memory = mmap.mmap(-1, self.size + 2 * page)
        self.whole = np.frombuffer(self.memory, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (self.whole.ctypes.data, self.whole.ctypes.data + page + self.size):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), PROT_NONE) == 0
        self.bytes = self.whole[page:-page]


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("source", "target"), [((5, 37), (4, 16)), ((64, 17), (4, 16)), ((6, 1), (4, 16))])
def test_no_byte_beside_the_image_is_read(isa, channels, source, target):
    """Bytes of the first and the last row's ends lie against pages that would stop the process."""
    image = noise(source)
    count = source[0] * source[1] * channels
    guarded = Guarded(count)
    for place in (guarded.bytes[:count], guarded.bytes[-count:]):
        whole = place.reshape(*source, channels)
        for first in range(channels - 2):
            # With four channels the first or the last byte belongs to nobody, and may be missing.
            view = whole[..., first : first + 3]
            view[:] = image
            np.testing.assert_array_equal(prepared(view, target), by_pillow(image, target))
            view[:] = image[..., ::-1]
            np.testing.assert_array_equal(prepared(view[..., ::-1], target), by_pillow(image, target))
    if channels == 4:
        # All but the last byte of all, which is not a channel: the view ends where the memory ends.
        view = np.ndarray((*source, 3), np.uint8, guarded.bytes[1 - count :].data, strides=(source[1] * 4, 4, 1))
        view[:] = image
        np.testing.assert_array_equal(prepared(view, target), by_pillow(image, target))


@pytest.mark.parametrize("source", [(5, 37), (64, 17), (6, 1)])
def test_no_float_beside_the_image_is_read(isa, source):
    values = np.random.default_rng(0).random((3, *source), np.float32)
    guarded = Guarded(values.nbytes)
    for place in (guarded.bytes[: values.nbytes], guarded.bytes[-values.nbytes :]):
        view = place.view(np.float32).reshape(values.shape)
        view[:] = values
        np.testing.assert_array_equal(prepared(view, (4, 16)), prepared(values, (4, 16)))


def test_rounds_after_the_product_and_after_the_sum(isa):
    """As NumPy does, which `ViT.to_input` uses; a fused multiply-add would round once."""
    image = noise((40, 50))
    scale = [np.float32(1 / (255 * std)) for std in STD]
    shift = [-np.float32(mean / std) for mean, std in zip(MEAN, STD, strict=True)]
    expected = by_pillow(image, (31, 23))
    for c in range(3):
        expected[c] = expected[c] * scale[c] + shift[c]
    np.testing.assert_array_equal(prepared(image, (31, 23), scale=scale, shift=shift), expected)


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """Weights [target, source] in float64: the cubic convolution with a = -1/2, stretched by what is shrunk."""
    stretch = max(source / target, 1)
    center = (np.arange(target) + 0.5) * source / target
    x = np.abs(np.arange(source) + 0.5 - center[:, None]) / stretch
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    # A pixel counts where its middle, rounded to whole pixels, is within the support.
    first, last = (np.floor(np.clip(center + side * 2 * stretch + 0.5, 0, None)) for side in (-1, 1))
    places = np.arange(source)
    weights = np.where((places >= first[:, None]) & (places < last[:, None]), weights, 0)
    return weights / weights.sum(1, keepdims=True)


# float32 rounds about 100 products a pixel: an error of a few units of the last place of 1.
FLOAT_TOLERANCE = 2e-6


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_floats_against_float64(isa, source, target):
    values = (noise(source).transpose(2, 0, 1) / 255).astype(np.float32)
    expected = bicubic_matrix(source[0], target[0]) @ values.astype(np.float64) @ bicubic_matrix(source[1], target[1]).T
    got = prepared(values, target, scale=(1 / 255,) * 3, shift=(0, 0, 0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=FLOAT_TOLERANCE)


def test_floats_and_bytes_agree(isa):
    """To the two roundings to 8 bits, where nothing is clamped."""
    image = np.random.default_rng(0).integers(80, 176, (300, 400, 3), np.uint8)
    values = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255
    assert np.abs(prepared(values, (100, 90)) - prepared(image, (100, 90))).max() < 1.5


def test_floats_are_not_clamped():
    values = np.zeros((3, 8, 8), np.float32)
    values[:, :, 4:] = 1
    got = prepared(values, (8, 64))
    assert got.max() > 260
    assert got.min() < -5


@pytest.mark.parametrize(
    "view",
    [
        lambda x: np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1),  # [H, W, 3]
        lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
        lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
        lambda x: np.ascontiguousarray(x[::-1])[::-1],
        lambda x: np.repeat(np.repeat(x, 3, 1), 2, 2)[:, ::3, ::2],
    ],
)
def test_layouts_of_floats(isa, view):
    values = np.random.default_rng(0).random((3, 61, 85), np.float32)
    assert np.array_equal(view(values), values)
    np.testing.assert_array_equal(prepared(view(values), (24, 40)), prepared(values, (24, 40)))


def test_a_value_that_is_not_finite_stays_where_it_was(isa):
    values = np.ones((3, 64, 64), np.float32)
    values[1, 0, 0] = np.nan
    got = prepared(values, (16, 16))
    assert np.isnan(got[1, 0, 0])
    assert np.isfinite(got[[0, 2]]).all()
    assert np.isfinite(got[1, 8:, 8:]).all()


IMAGE = np.zeros((8, 9, 3), np.uint8)
REFUSED = [
    (IMAGE[0], {}, "must have shape [H, W, 3] where it is uint8, got 2 axes"),
    (IMAGE[None], {}, "must have shape [H, W, 3] where it is uint8, got 4 axes"),
    (IMAGE[..., :2], {}, "must have shape [H, W, 3] where it is uint8, got [8, 9, 2]"),
    (IMAGE[:0], {}, "got [0, 9, 3]"),
    (IMAGE[:, :0], {}, "got [8, 0, 3]"),
    (IMAGE.astype(np.float32), {}, "must have shape [3, H, W] where it is float32, got [8, 9, 3]"),
    (IMAGE.astype(np.float64), {}, "must be uint8 or float32"),
    (IMAGE, {"max_source": (7, 9)}, "must have at most 7 x 9 pixels, the max_source that the session was made for"),
    (IMAGE, {"max_source": (8, 8)}, "must have at most 8 x 8 pixels, the max_source that the session was made for"),
    (IMAGE, {"size": (0, 4)}, "the image size must be from 1 to 65536 pixels a side, got 0 x 4"),
    (IMAGE, {"size": (4, 2**40)}, "the image size must be from 1 to 65536 pixels a side"),
    (IMAGE, {"max_source": (-1, 9)}, "the largest source must be from 1 to 65536 pixels a side, got -1 x 9"),
    (IMAGE, {"scale": (1, np.inf, 1)}, "scale and shift of pixels must be finite"),
    (IMAGE, {"shift": (1, 1, np.nan)}, "scale and shift of pixels must be finite"),
    (np.broadcast_to(np.uint8(0), (3, 9, 3)), {"max_source": (2, 9)}, "must have at most 2 x 9 pixels"),
]


@pytest.mark.parametrize(("image", "changes", "message"), REFUSED, ids=[message[-40:] for _, _, message in REFUSED])
def test_what_cannot_be_is_refused(image, changes, message):
    with pytest.raises(InputError) as error:
        _native.Pixels(**({"size": (4, 4), "max_source": (8, 9)} | RAW | changes)).prepare(image)
    assert message in str(error.value)


@pytest.mark.parametrize("stride", [2**62, -(2**63)])
def test_the_stride_of_a_single_row_or_column_may_be_anything(stride):
    image = noise((1, 40))
    row = np.lib.stride_tricks.as_strided(image, strides=(stride, 3, 1))
    np.testing.assert_array_equal(prepared(row, (5, 6)), by_pillow(image, (5, 6)))
    column = np.lib.stride_tricks.as_strided(image, (40, 1, 3), (3, stride, 1))
    np.testing.assert_array_equal(prepared(column, (5, 6)), by_pillow(image.reshape(40, 1, 3), (5, 6)))


def test_strides_beyond_memory_are_refused():
    far = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2, 2, 3), (2**62, 1, 1))
    with pytest.raises(InputError, match="must have strides within memory"):
        prepared(far, (4, 4))
