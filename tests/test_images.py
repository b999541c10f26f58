"""Images in: every kind of file becomes upright 8-bit RGB, and every file that cannot is one line naming it."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dvt_fast import images
from dvt_fast.errors import InputError
from dvt_fast.images import find_images, load_image, reduce_for, resize

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(source) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def photo(rng_pixels) -> Image.Image:
    return Image.fromarray(rng_pixels)


@pytest.fixture
def rng_pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def test_rgb_png_is_exact_from_every_kind_of_source(photo, rng_pixels, tmp_path):
    path = save(photo, tmp_path / "a.png")
    for source in (path, str(path), photo, rng_pixels, path.open("rb")):
        assert np.array_equal(pixels(source), rng_pixels)


def test_grayscale_and_one_bit(photo, tmp_path):
    gray = photo.convert("L")
    assert np.array_equal(pixels(save(gray, tmp_path / "gray.png")), np.asarray(gray)[..., None].repeat(3, 2))
    assert set(np.unique(pixels(save(photo.convert("1"), tmp_path / "bit.png")))) == {0, 255}


def test_transparency_is_laid_over_white(tmp_path):
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 255, 128)])
    got = pixels(save(rgba, tmp_path / "rgba.png"))
    assert got[0].tolist() == [list(RED), list(WHITE), [127, 127, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putdata([0, 1])
    assert pixels(save(palette, tmp_path / "plain.png"))[0].tolist() == [list(RED), list(GREEN)]
    got = pixels(save(palette, tmp_path / "transparent.png", transparency=1))
    assert got[0].tolist() == [list(RED), list(WHITE)]
    gray = Image.new("LA", (2, 1))
    gray.putdata([(10, 255), (10, 0)])
    assert pixels(save(gray, tmp_path / "la.png"))[0].tolist() == [[10] * 3, [255] * 3]


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    assert np.abs(pixels(save(cmyk, tmp_path / "cmyk.jpg", quality=100)).astype(int) - RED).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    expected = [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    for name in ("deep.png", "deep.tif"):
        assert pixels(save(Image.fromarray(values), tmp_path / name))[0].tolist() == expected
    assert pixels(values)[0].tolist() == expected
    (tmp_path / "deep.pgm").write_bytes(b"P5 4 1 65535\n" + values.astype(">u2").tobytes())
    assert pixels(tmp_path / "deep.pgm")[0].tolist() == expected


def test_float_images(tmp_path):
    values = np.array([[0, 0.5, 1]], np.float32)
    expected = [[0] * 3, [128] * 3, [255] * 3]
    assert pixels(values)[0].tolist() == expected
    assert pixels(save(Image.fromarray(values), tmp_path / "float.tif"))[0].tolist() == expected
    for bad in (values * 2, values - 1, values * np.nan):
        with pytest.raises(InputError, match="expected 0 to 1"):
            load_image(bad)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, tmp_path):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[16:, 24:] = RED, BLUE
    stored = {  # what a camera writes to be turned upright
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(path), upright)
    assert np.array_equal(pixels(load_image(path)), upright), "loading twice must not turn twice"


def test_broken_exif_is_ignored(photo, tmp_path):
    path = save(photo, tmp_path / "exif.jpg", exif=b"Exif\0\0garbage that is no TIFF header")
    assert load_image(path).size == photo.size


def test_one_pixel_image(tmp_path):
    path = save(Image.new("RGB", (1, 1), BLUE), tmp_path / "one.png")
    assert load_image(path).size == (1, 1)
    assert (resize(load_image(path), (8, 8), (0.2, 0.2, 0.6, 0.6)) == BLUE).all()


def test_large_images_come_smaller(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE_PIXELS", 600)  # the photo has 2,400
    for name in ("large.png", "large.jpg"):
        assert load_image(save(photo, tmp_path / name)).size == (30, 20)
    gradient = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1)))
    got = np.asarray(load_image(save(gradient, tmp_path / "gradient.png")))[0, :, 0]
    assert np.array_equal(got, np.arange(2, 240, 8))


def test_between_pillows_warning_and_its_limit(photo, tmp_path, monkeypatch, recwarn):
    path = save(photo, tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert load_image(path).size == photo.size
    assert not recwarn.list


def make_bomb(path) -> None:
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))))


def make_cut(path) -> None:
    whole = path.with_suffix(".whole" + path.suffix)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


BAD_FILES = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "empty"),
    "text.png": (lambda path: path.write_text("not an image"), "not an image"),
    "header_only.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "image"),
    "cut.jpg": (make_cut, "cannot be decoded"),
    "cut.png": (make_cut, "cannot be decoded"),
    "cut.tif": (make_cut, "image|decoded"),
    "bomb.png": (make_bomb, "too large"),
    "folder.jpg": (lambda path: path.mkdir(), "folder"),
    "absent.jpg": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_line_naming_it(name, tmp_path):
    make, message = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        load_image(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.int64), 7, None]
)
def test_bad_array(bad):
    with pytest.raises(InputError):
        load_image(bad)


def test_find_images(photo, tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/deep/d.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", "sub/data.csv"):
        (tmp_path / name).write_text("x")

    def names(paths) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_images(paths)]

    everything = ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.tif"]
    assert names(tmp_path) == everything
    assert names([str(tmp_path)]) == everything
    assert names(f"{tmp_path}/*.png") == ["b.png"]
    assert names(f"{tmp_path}/**/*.tif") == ["sub/deep/d.tif"]
    assert names(f"{tmp_path}/*") == everything
    assert names([tmp_path / "sub", tmp_path / "b.png", tmp_path]) == [*everything[2:], "b.png", "a.JPG"]
    assert names(tmp_path / "notes.txt") == ["notes.txt"], "a file that is named is taken at its word"


@pytest.mark.parametrize("paths", [[], "absent.png", "*.png", "."])
def test_find_images_finds_nothing(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no images found|no such file"):
        find_images(paths)


def test_file_name_with_glob_signs(photo, tmp_path):
    path = save(photo, tmp_path / "frame[1].png")
    assert find_images(str(path)) == [path]


def test_resize_matches_an_integer_crop(photo):
    crop = np.asarray(photo.crop((15, 10, 45, 30)))
    assert np.array_equal(resize(photo, (20, 30), (0.25, 0.25, 0.5, 0.5)), crop)


def test_reduce_keeps_places(rng_pixels):
    """A crop of the shrunk image shows what the crop of the original shows, also where the factor does not divide."""
    y, x = np.mgrid[0:601, 0:803]
    ramp = np.stack([x * 255 / 803, y * 255 / 601, 0 * x], -1).astype(np.uint8)
    image = Image.fromarray(ramp)
    small, extent = reduce_for(image, (32, 32), (0.4, 0.4))
    assert small.size == (161, 201) and extent == (803 / 5, 601 / 3)
    box = (0.55, 0.6, 0.4, 0.4)
    difference = resize(small, (32, 32), box, extent).astype(int) - resize(image, (32, 32), box)
    assert np.abs(difference).max() <= 1
    assert reduce_for(image, (500, 500), (0.4, 0.4)) == (image, (803.0, 601.0))


def test_real_photos(shared_data):
    for path in find_images(shared_data / "images")[:5]:
        assert load_image(path).mode == "RGB"
