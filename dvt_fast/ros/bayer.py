"""Colour pictures from Bayer mosaics, whose pixels have one of three colours each: bilinear interpolation.

A missing colour is the mean of the nearest pixels that have it: two beside or above one another, four across, or four
on the diagonals. Borders mirror without repeating the edge, which keeps the order of the colours.
"""

from __future__ import annotations

import numpy as np


def demosaic(mosaic: np.ndarray, pattern: str) -> np.ndarray:
    """A mosaic [H, W] of uint8 or uint16, H and W at least 2, as RGB [H, W, 3] of the same type.

    pattern: the colours of its first two rows, row by row: "rggb", "bggr", "gbrg" or "grbg".
    """
    height, width = mosaic.shape
    red, blue = divmod(pattern.index("r"), 2), divmod(pattern.index("b"), 2)
    padded = np.pad(mosaic, 1, mode="reflect").astype(np.uint32)  # four of 16 bits do not fit in 16
    rgb = np.empty((height, width, 3), mosaic.dtype)
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):  # the four places in the pattern

        def at(down: int, right: int, y: int = y, x: int = x) -> np.ndarray:
            """Of each pixel of this place the one so far down and to the right."""
            return padded[1 + y + down : 1 + height + down : 2, 1 + x + right : 1 + width + right : 2]

        pixels = rgb[y::2, x::2]
        across = (at(0, -1) + at(0, 1) + 1) // 2
        along = (at(-1, 0) + at(1, 0) + 1) // 2
        if (y, x) in (red, blue):
            own, other = (0, 2) if (y, x) == red else (2, 0)
            pixels[..., own] = at(0, 0)
            pixels[..., 1] = (at(0, -1) + at(0, 1) + at(-1, 0) + at(1, 0) + 2) // 4
            pixels[..., other] = (at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1) + 2) // 4
        else:
            pixels[..., 0] = across if y == red[0] else along
            pixels[..., 1] = at(0, 0)
            pixels[..., 2] = across if y == blue[0] else along
    return rgb
