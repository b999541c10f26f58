"""One picture a frame: the frame itself beside the colours of its raw and its denoised features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..extras import require
from ..page import EDGE, FAINT, GAP, INK, MARGIN, PAPER
from ..stream.result import Result
from .colors import StableColors

if TYPE_CHECKING:
    from PIL import Image as PILImage

LABEL, FOOT = 36, 30  # pixels above and below the tiles


class Painter:
    """Draws results in colours that stay stable, all at the size that the first one sets. Needs Pillow ([cli]).

    height: of the tiles, in pixels; a frame that is lower is not enlarged beyond twice its size. A frame of another
    shape is fitted into the tile of the first.
    """

    def __init__(self, height: int = 360):
        self._pil = require("PIL.Image", "cli")
        self._drawing = require("PIL.ImageDraw", "cli")
        font = require("PIL.ImageFont", "cli").load_default
        self._fonts = {size: font(size) for size in (20, 15)}
        self._height = height
        self._colors = StableColors()
        self._empty: PILImage.Image | None = None
        self._tile = (0, 0)

    def draw(self, result: Result) -> np.ndarray:
        """uint8 [H, W, 3]; height and width are even, and the same for every frame."""
        features = {"Features": result.features}
        if result.raw is not None:
            features = {"Raw": result.raw, "Denoised": result.features}
        basis = self._colors.update(*features.values())
        if self._empty is None:
            self._empty = self._background(result.image, ["Frame", *features])
        page = self._empty.copy()
        height, width = result.image.shape[:2]
        inner = self._inside(width / height)
        frame = self._pil.fromarray(result.image).resize(inner, self._pil.Resampling.BILINEAR, reducing_gap=2.0)
        tiles = [frame, *(self._pil.fromarray(basis.colors(part)) for part in features.values())]
        for i, tile in enumerate(tiles):
            x, y = self._corner(i)
            place = (x + (self._tile[0] - inner[0]) // 2, y + (self._tile[1] - inner[1]) // 2)
            page.paste(tile.resize(inner, self._pil.Resampling.NEAREST), place)
        drawing = self._drawing.Draw(page)
        foot = (MARGIN, LABEL + self._tile[1] + 8)
        drawing.text(foot, describe(result), FAINT, self._fonts[15])
        return np.asarray(page)

    def _background(self, image: np.ndarray, names: list[str]) -> PILImage.Image:
        """The page without pictures: labels and edges."""
        height = min(self._height, 2 * image.shape[0])
        aspect = min(max(image.shape[1] / image.shape[0], 0.4), 2.5)
        self._tile = (round(height * aspect), height)
        width = 2 * MARGIN + len(names) * self._tile[0] + (len(names) - 1) * GAP
        size = (width + width % 2, (LABEL + self._tile[1] + FOOT + 1) // 2 * 2)
        page = self._pil.new("RGB", size, PAPER)
        drawing = self._drawing.Draw(page)
        for i, name in enumerate(names):
            x, y = self._corner(i)
            drawing.text((x, 7), name, INK, self._fonts[20])
            drawing.rectangle((x - 1, y - 1, x + self._tile[0], y + self._tile[1]), None, EDGE)
        return page

    def _corner(self, column: int) -> tuple[int, int]:
        return MARGIN + column * (self._tile[0] + GAP), LABEL

    def _inside(self, aspect: float) -> tuple[int, int]:
        """The largest (width, height) of an aspect that fits into a tile."""
        width, height = self._tile
        return (
            (width, max(1, round(width / aspect)))
            if aspect > width / height
            else (max(1, round(height * aspect)), height)
        )


def describe(result: Result) -> str:
    """A line for people: which frame, when, how old, what was dropped."""
    parts = [f"frame {result.id}"]
    if result.stamp is not None:
        parts.append(f"{result.stamp:.2f} s")
    if result.live:
        parts.append(f"age {1e3 * result.age:.0f} ms")
    if result.missed_deadline:
        parts.append("deadline missed")
    if result.drops_before:
        parts.append(f"{result.drops_before} dropped before")
    return "  ·  ".join(parts)
