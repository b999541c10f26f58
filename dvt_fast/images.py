"""Images in: any file, PIL image or array becomes one upright 8-bit RGB picture; folders and globs become file lists.

Everything downstream (views, panels, training) assumes RGB, upright, 8 bit, decoded. This file is the only place that
knows the ways in which real files differ from that, and every file it cannot use is one `InputError` that names it.
"""

from __future__ import annotations

import glob
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .extras import require

if TYPE_CHECKING:
    from PIL import Image as PILImage

    ImageSource = str | os.PathLike[str] | IO[bytes] | PILImage.Image | np.ndarray

IMAGE_EXTENSIONS = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()  # noqa: SIM905
)

# Beyond this many pixels an image is loaded at a lower resolution: no view needs more (the smallest crop, a third of a
# side, still has 1,900 pixels), and decoding it whole would cost seconds and hundreds of megabytes.
LARGE_PIXELS = 2**25


def load_image(source: ImageSource) -> PILImage.Image:
    """Load one image as an upright, decoded PIL image in mode RGB.

    source: a path, an open binary file, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8,
    uint16 (0..65535), bool or float (0..1).

    The EXIF rotation is applied; transparency is laid over white, as a page shows it; 16 bits are scaled to 8; of an
    animation comes the first frame. An image of more than `LARGE_PIXELS` comes at an integer fraction of its
    resolution, so use coordinates in units of the image, not in pixels of the file.

    Raises `InputError`, one line naming the file: absent, empty, unreadable, truncated, or so large that Pillow takes
    it for a decompression bomb (`PIL.Image.MAX_IMAGE_PIXELS` sets that limit).
    """
    Image = require("PIL.Image", "cli")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, getattr(source, "filename", "") or "the given image")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        _check_file(path)
        return _open(path, str(path))
    if hasattr(source, "read"):
        return _open(source, str(getattr(source, "name", "the given file")))
    raise InputError(f"an image must be a path, an open file, a PIL image or an array, got {type(source).__name__}")


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Expand files, folders (recursively) and glob patterns into image files: sorted within each, none twice.

    A file is taken whatever its name; folders and patterns give the files with one of `IMAGE_EXTENSIONS`, without
    hidden ones. Raises `InputError` for a path that does not exist and where no image is found.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: dict[Path, None] = {}
    names = [os.fspath(path) for path in paths]
    for name in names:
        path = Path(name).expanduser()
        if path.is_file():
            found[path] = None
        elif path.is_dir():
            found.update(dict.fromkeys(_images_in(path)))
        elif glob.has_magic(name):
            for match in sorted(Path(m) for m in glob.glob(str(path), recursive=True)):
                if match.is_dir() and "**" not in name:  # "**" walks into folders itself
                    found.update(dict.fromkeys(_images_in(match)))
                elif match.is_file() and _looks_like_image(match):
                    found[match] = None
        else:
            raise InputError(f"{name}: no such file or folder")
    if not found:
        raise InputError(f"no images found in {', '.join(names) or 'an empty list of paths'}")
    return list(found)


def resize(
    image: PILImage.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    extent: tuple[float, float] | None = None,
) -> np.ndarray:
    """Resample the part `box` of an RGB image to `size`, bicubic with antialias, exact to fractions of a pixel.

    size: (height, width) in pixels. box: (x, y, width, height) in units of the image. extent: (width, height) in
    pixels that the unit box spans, where that is not the image's own size (see `reduce_for`).
    Returns uint8 [height, width, 3].
    """
    Image = require("PIL.Image", "cli")
    edges = box_edges(box, extent or image.size)
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=edges))


def box_edges(box: tuple[float, float, float, float], extent: tuple[float, float]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of a box (x, y, width, height) in units of an image of (width, height)."""
    x, y, w, h = box
    width, height = extent
    return (x * width, y * height, min((x + w) * width, width), min((y + h) * height, height))


def reduce_for(
    image: PILImage.Image, size: tuple[int, int], smallest: tuple[float, float]
) -> tuple[PILImage.Image, tuple[float, float]]:
    """Shrink a large image by whole factors, once, so that many crops of it are cheap.

    size: (height, width) that crops are resampled to. smallest: (width, height) of the smallest crop, in units of the
    image; it keeps at least twice the pixels that it is resampled to, so that the result is the same to the eye and
    nearly so to a network. Returns the image and the (width, height) in its pixels that the whole original spans,
    fractional where the factor does not divide the original.
    """
    factor_x = max(1, int(image.width * smallest[0] / (2 * size[1])))
    factor_y = max(1, int(image.height * smallest[1] / (2 * size[0])))
    extent = (image.width / factor_x, image.height / factor_y)
    return (image.reduce((factor_x, factor_y)) if factor_x * factor_y > 1 else image), extent


def _looks_like_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _looks_like_image(path) and path.is_file())


def _check_file(path: Path) -> None:
    """The faults whose message would otherwise be Pillow's "cannot identify image file"."""
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected an image file")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes)")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _open(file: Any, name: str) -> PILImage.Image:
    Image = require("PIL.Image", "cli")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is fine, a bomb raises
            image = Image.open(file)
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: too large to be decoded safely (more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels); "
            "raise PIL.Image.MAX_IMAGE_PIXELS to allow it"
        ) from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name}: not an image that Pillow can read") from None
    except Exception as error:  # Pillow's readers raise whatever a broken header leads to
        raise InputError(f"{name}: cannot be read as an image: {_reason(error)}") from None
    with image:
        factor = _large_factor(image)
        if factor > 1:  # JPEG only: decodes at a half, a quarter or an eighth of the resolution
            image.draft(image.mode, (image.width // factor, image.height // factor))
        return _decode(image, name)


def _decode(image: PILImage.Image, name: str) -> PILImage.Image:
    try:
        image.load()
        image = _to_rgb(_upright(image), name)
        factor = _large_factor(image)
        return image.reduce(factor) if factor > 1 else image
    except InputError:
        raise
    except Exception as error:  # see _open
        raise InputError(f"{name}: cannot be decoded: {_reason(error)}") from None


def _large_factor(image: PILImage.Image) -> int:
    return math.ceil(math.sqrt(image.width * image.height / LARGE_PIXELS))


def _upright(image: PILImage.Image) -> PILImage.Image:
    ImageOps = require("PIL.ImageOps", "cli")
    try:
        turned = image.getexif().get(0x0112, 1) != 1
    except Exception:  # a broken EXIF block says nothing about the pixels
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: PILImage.Image, name: str) -> PILImage.Image:
    Image = require("PIL.Image", "cli")
    if image.mode.startswith("I;16"):
        return _from_array(np.asarray(image).astype(np.uint16), name)
    if image.mode == "I":  # what Pillow makes of some 16-bit files; nothing says the range of real 32-bit ones
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name}: 32-bit pixels from {values.min()} to {values.max()}, expected 0 to 65535")
        return _from_array(values.astype(np.uint16), name)
    if image.mode == "F":
        return _from_array(np.asarray(image), name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: np.ndarray, name: str = "the given array") -> PILImage.Image:
    Image = require("PIL.Image", "cli")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise InputError(f"{name}: expected shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array.astype(np.uint32) * 255 + 32767) // 65535
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # written so that NaN fails
            raise InputError(f"{name}: float pixels from {array.min():g} to {array.max():g}, expected 0 to 1")
        array = array * 255 + 0.5
    elif array.dtype != np.uint8:
        raise InputError(f"{name}: expected pixels of uint8, uint16, bool or float, got {array.dtype}")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)), name)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
