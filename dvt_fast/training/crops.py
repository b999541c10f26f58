"""Other views of an image to train on: crops of it, half of them mirrored, each with its part of the semantics.

An artifact stays where it is in the frame, whatever the frame shows. So every crop, run through the ViT, is one more
example of the artifacts, and its clean features are known: those of the image, at the crop's places. Few images then
train a denoiser well that the whole images alone would overfit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..images import resize
from ..views import WHOLE, view_coords

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..vit import ViT

Box = tuple[float, float, float, float, float]  # x, y, w, h in units of the image, and whether mirrored

# Not less: the semantics have one value a patch of the whole image, and a smaller crop would show only their blur.
AREA = (0.3, 1.0)
ASPECT = 4 / 3


def box_of(hash: str, variant: int) -> Box:
    """The view of an image that is its `variant`: the whole for 0, else a crop that depends on nothing but the hash of
    the content (hexadecimal) and the number."""
    if variant == 0:
        return WHOLE
    bits = np.random.PCG64([int(hash[:16], 16), variant]).random_raw(5)  # whose stream NumPy keeps, unlike Generator's
    area, aspect, x, y, mirror = (float(value) for value in bits / 2.0**64)
    area = AREA[0] + (AREA[1] - AREA[0]) * area
    aspect = math.exp(math.log(ASPECT) * (2 * aspect - 1))
    w, h = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
    return x * (1 - w), y * (1 - h), w, h, float(mirror < 0.5)


def crop_pixels(image: PILImage.Image, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The part `box` of an image, resampled to `size` and mirrored where it says so: uint8 [height, width, 3]."""
    pixels = resize(image, size, box[:4])
    return np.ascontiguousarray(pixels[:, ::-1]) if box[4] else pixels


def crop_semantics(semantics: np.ndarray, box: Box, vit: ViT | tuple[int, int]) -> np.ndarray:
    """Semantics [h, w, C] of a whole image at the patches of a crop: bilinear between them, of the same shape and type.
    vit: the ViT whose patches they are, or, as in `view_coords`, the number of patches that lie side by side.

    Crops are axis-aligned, so it is two products with matrices of interpolation weights.
    """
    if box == WHOLE:
        return semantics
    crop, whole = view_coords(np.array([box, WHOLE]), vit)
    along_y = _interpolation(whole[:, 0, 1], crop[:, 0, 1])
    along_x = _interpolation(whole[0, :, 0], crop[0, :, 0])
    rows = np.einsum("ih,hwc->iwc", along_y, semantics.astype(np.float32))
    return np.matmul(along_x, rows).astype(semantics.dtype)


def _interpolation(nodes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Weights [places, nodes] of linear interpolation between evenly spaced nodes, constant beyond the outer ones."""
    weights = np.zeros((len(places), len(nodes)), np.float32)
    if len(nodes) == 1:
        return weights + 1
    at = np.clip((places - nodes[0]) / (nodes[1] - nodes[0]), 0, len(nodes) - 1)
    below = np.minimum(at.astype(int), len(nodes) - 2)
    row = np.arange(len(places))
    weights[row, below] = 1 - (at - below)
    weights[row, below + 1] = at - below
    return weights
