"""A page of labelled pictures, drawn with Pillow: a heading, and rows of equal tiles with captions and colour bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import visual
from .extras import require

if TYPE_CHECKING:
    from PIL import Image as PILImage

MARGIN, GAP, LABEL, CAPTION, BAR = 28, 18, 30, 30, 46  # pixels: around, between, above, below a tile; a colour bar
HEADING, LINE = 62, 26  # the title, and each line under it or at the foot of the page
TILE = 264  # width of a tile, or its height where the image is upright
INK, FAINT, EDGE = (24, 24, 27), (113, 113, 122), (228, 228, 231)
PAPER, MARK = (255, 255, 255), (236, 39, 102)
SEPARATOR = "  ·  "


class Page:
    """A white page with a grid of equal tiles.

    aspect: width over height of a tile. below: for each row what stands under its tiles: CAPTION (one line of
    captions), BAR (a colour bar with numbers) or their sum. about: what the line under the title says, in parts
    between which it may be broken. foot: lines at the bottom.
    """

    def __init__(
        self,
        aspect: float,
        columns: int,
        below: Sequence[int],
        title: str,
        about: Sequence[str] = (),
        foot: Sequence[str] = (),
    ):
        self._pil = require("PIL.Image", "cli")
        aspect = min(max(aspect, 0.4), 2.5)
        self.tile_w = round(TILE * min(1, max(aspect, 0.7)))
        self.tile_h = round(self.tile_w / aspect)
        self.columns, self._below = columns, below
        inner = columns * self.tile_w + (columns - 1) * GAP
        about_lines = self._broken(about, 17, inner)
        top = MARGIN + HEADING - LINE // 2 + LINE * len(about_lines)
        self.rows = [top + LABEL]
        for height in below:
            self.rows.append(self.rows[-1] + self.tile_h + height + GAP + LABEL)
        bottom = self.rows.pop() - LABEL - GAP
        size = (inner + 2 * MARGIN, bottom + LINE * len(foot) + MARGIN)
        self.image = self._pil.new("RGB", size, PAPER)
        self._draw = require("PIL.ImageDraw", "cli").Draw(self.image)
        self._text(MARGIN, MARGIN - 6, title, 30, width=inner)
        for i, line in enumerate(about_lines):
            self._text(MARGIN, MARGIN + 34 + LINE * i, line, 17, FAINT, width=inner)
        for i, line in enumerate(foot):
            self._text(MARGIN, bottom + 8 + LINE * i, line, 17, width=inner)

    def tile(self, row: int, column: int, label: str, content: Any, caption: str = "") -> None:
        """content: a picture, or colours uint8 [h, w, 3] whose cells are drawn with sharp edges."""
        x, y = self.corner(row, column)
        if isinstance(content, np.ndarray):
            tile = self._pil.fromarray(content).resize((self.tile_w, self.tile_h), self._pil.Resampling.NEAREST)
        else:
            tile = content.resize((self.tile_w, self.tile_h), self._pil.Resampling.LANCZOS)
        self._draw.rectangle((x - 1, y - 1, x + self.tile_w, y + self.tile_h), None, EDGE)  # white cells end somewhere
        self.image.paste(tile, (x, y))
        self._text(x, y - LABEL + 4, label, 18, width=self.tile_w)
        self._text(x, y + self.tile_h + 6, caption, 15, FAINT, width=self.tile_w)

    def smooth(self, colors: np.ndarray) -> PILImage.Image:
        """Colours as a picture, whose tile is interpolated instead of drawn in cells."""
        return self._pil.fromarray(colors)

    def over(self, picture: PILImage.Image, colors: np.ndarray) -> PILImage.Image:
        """Colours [h, w, 3] in sharp cells over a grey version of `picture`."""
        grey = picture.resize((self.tile_w, self.tile_h), self._pil.Resampling.LANCZOS).convert("L").convert("RGB")
        return self._pil.blend(grey, self._pil.fromarray(colors).resize(grey.size, self._pil.Resampling.NEAREST), 0.45)

    def note(self, row: int, text: str, column: int = 1, columns: int | None = None) -> None:
        """A line under `columns` tiles of a row from `column` on; None is all to the last."""
        x, y = self.corner(row, column)
        columns = self.columns - column if columns is None else columns
        width = columns * (self.tile_w + GAP) - GAP
        self._text(x, y + self.tile_h + 6, text, 15, FAINT, width=width)

    def mark(self, row: int, column: int, patch: tuple[int, int], grid: tuple[int, int]) -> None:
        """A frame around a patch."""
        x, y = self.corner(row, column)
        left, right = (x + round(self.tile_w * (patch[1] + i) / grid[1]) for i in (0, 1))
        top, bottom = (y + round(self.tile_h * (patch[0] + i) / grid[0]) for i in (0, 1))
        for grow, color, width in ((4, PAPER, 1), (3, MARK, 3)):  # grows outwards: the patch itself stays visible
            self._draw.rectangle((left - grow, top - grow, right + grow - 1, bottom + grow - 1), None, color, width)

    def bar(self, row: int, name: str, low: float, high: float, logarithmic: bool = False, column: int = 1) -> None:
        """A colour bar with numbers, under the tiles of a row from `column` to the last."""
        x, y = self.corner(row, column)
        y += self.tile_h + self._below[row] - BAR + 8
        name_width = int(self._text(x, y - 3, name, 15, FAINT)) + 14
        x, width = x + name_width, self.corner(row, self.columns - 1)[0] + self.tile_w - x - name_width
        ramp = visual.scale_colors(np.linspace(0, 1, width), 0, 1)[None].repeat(12, axis=0)
        self.image.paste(self._pil.fromarray(ramp), (x, y))
        for value in ticks(low, high, logarithmic):
            part = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
            at = x + round(part * (width - 1))
            self._draw.line((at, y + 12, at, y + 16), fill=FAINT)
            self._text(at, y + 18, number(value), 14, FAINT, anchor="ma" if part < 0.97 else "ra")

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """(x, y) of the top left pixel of a tile."""
        return MARGIN + column * (self.tile_w + GAP), self.rows[row]

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        size: int,
        fill: tuple[int, int, int] = INK,
        anchor: str = "la",
        width: float = math.inf,
    ) -> float:
        """Draw one line, smaller where it would be wider than `width`; returns its width."""
        font = self._font(size)
        while size > 9 and font.getlength(text) > width:
            size, y = size - 1, y + 0.5
            font = self._font(size)
        self._draw.text((x, y), text, fill, font, anchor)
        return font.getlength(text)

    def _broken(self, parts: Sequence[str], size: int, width: float) -> list[str]:
        """Parts in as few lines as fit in `width`."""
        lines: list[str] = []
        for part in parts:
            longer = f"{lines[-1]}{SEPARATOR}{part}" if lines else part
            if lines and self._font(size).getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
        return lines

    def _font(self, size: int) -> Any:
        return require("PIL.ImageFont", "cli").load_default(size)


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers within a range: about five, or 1-2-5 steps on a logarithmic scale."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    else:
        steps = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100)
        step = next(s for s in steps if (high - low) / s <= 6)
        values = [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [value for value in values if low <= value <= high]


def number(value: float) -> str:
    """A number for people: three digits, or all of those before the point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
