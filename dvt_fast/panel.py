"""The picture of a decomposition: five columns (the image, raw, F, G, residual) and three rows, drawn with Pillow.

Row 1, colours: three principal directions as red, green and blue, one basis and one range for all four parts, so that
raw is the sum of the others also in colour. Row 2, token norms on one logarithmic scale, because an artifact may have
25 times the norm of everything else. Row 3, what the features are used for: clusters of raw and of F, and the
similarity to one patch in raw and in F.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import visual
from .arrays import to_numpy
from .errors import InputError
from .extras import require
from .images import load_image

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from .decomposition import Decomposition

CLUSTERS = 6
MARGIN, GAP, LABEL, CAPTION, BAR = 28, 18, 30, 30, 46  # pixels: around, between, above, below a tile; a colour bar
TILE = 264  # width of a tile, or its height where the image is upright
INK, FAINT, PAPER, MARK = (24, 24, 27), (113, 113, 122), (255, 255, 255), (236, 39, 102)
QUERY_SCALE = 4


def draw(d: Decomposition, image: Any = None, patch: tuple[int, int] | None = None) -> PILImage.Image:
    """The picture of `d`; see `Decomposition.panel`. Raises `InputError` for a patch outside the grid."""
    raw, semantics, artifacts, residual = (to_numpy(part) for part in (d.raw, d.semantics, d.artifacts, d.residual))
    h, w, _ = raw.shape
    if patch is None:
        patch = visual.telling_patch(semantics)
    elif not (0 <= patch[0] < h and 0 <= patch[1] < w):
        raise InputError(f"patch must be (row, column) within {h} x {w} patches, got {tuple(patch)}")

    picture = None if image is None else load_image(image)
    aspect = picture.width / picture.height if picture else w / h
    page = _Page(aspect)
    page.heading("Raw = semantics F + artifacts G + residual", _describe(d))

    # Row 1: colours. A constant may stand in F as well as in G. By convention G's robust mean over
    # the patches is 0; drawn is the G whose median is 0 channel by channel, so that its usual patch is grey.
    constant = np.median(artifacts, axis=(0, 1))
    basis = visual.ColorBasis.fit(raw, semantics + constant)
    if picture:
        page.tile(0, 0, "Input", picture)
    page.tile(0, 1, "Raw features", basis.colors(raw))
    page.tile(0, 2, "Semantics F", basis.colors(semantics + constant))
    page.tile(0, 3, "Artifacts G", basis.offset_colors(artifacts - constant))
    page.tile(0, 4, "Residual", basis.offset_colors(residual))
    page.note(
        0, "PCA as RGB, one basis and one range for all: colours add up. Grey is the median of G, and no residual."
    )

    # Row 2: norms.
    fine = d.query(_patch_centers(h * QUERY_SCALE, w * QUERY_SCALE))
    page.tile(1, 0, f"F, {QUERY_SCALE} times finer", page.smooth(basis.colors(fine + constant)))
    norms = [np.linalg.norm(part, axis=-1) for part in (raw, semantics, artifacts, residual)]
    low, high = _log_range(norms)
    for column, (name, norm) in enumerate(zip(("raw", "F", "G", "residual"), norms), start=1):
        colors = visual.scale_colors(np.log(np.maximum(norm, low)), math.log(low), math.log(high))
        caption = f"median {_number(float(np.median(norm)))}, largest {_number(float(norm.max()))}"
        page.tile(1, column, f"Norm of {name}", colors, caption)
    page.bar(1, "Norm", low, high, logarithmic=True)

    # Row 3: uses.
    if picture:
        page.tile(2, 0, f"Patch ({patch[0]}, {patch[1]})", picture)
        page.mark(2, 0, patch, (h, w))
    clusters = visual.kmeans(semantics, min(CLUSTERS, h * w))
    raw_clusters = visual.match_labels(visual.kmeans(raw, min(CLUSTERS, h * w)), clusters, CLUSTERS)
    page.tile(2, 1, f"{CLUSTERS} clusters of raw", visual.CLUSTER_COLORS[raw_clusters])
    page.tile(2, 2, f"{CLUSTERS} clusters of F", visual.CLUSTER_COLORS[clusters])
    near = [visual.similarity(part, patch) for part in (raw, semantics)]
    low = min(float(np.percentile(values, 2)) for values in near)
    for column, (name, values) in enumerate(zip(("raw", "F"), near), start=3):
        page.tile(2, column, f"Similarity in {name}", visual.scale_colors(values, low, 1))
        page.mark(2, column, patch, (h, w))
    page.note(2, "Clusters by direction; matched colours.")
    page.bar(2, "Cosine to the mark", low, 1, first_column=3)
    return page.image


class _Page:
    """A white page with a grid of equal tiles."""

    def __init__(self, aspect: float):
        self._pil = require("PIL.Image", "cli")
        aspect = min(max(aspect, 0.4), 2.5)
        self.tile_w = round(TILE * min(1, max(aspect, 0.7)))
        self.tile_h = round(self.tile_w / aspect)
        self.top = MARGIN + 76
        # Below the tiles of a row: one line of captions, a colour bar with numbers, or both.
        self.rows = [self.top + LABEL]
        for below in (CAPTION, CAPTION + BAR, BAR):
            self.rows.append(self.rows[-1] + self.tile_h + below + GAP + LABEL)
        width = 2 * MARGIN + 5 * self.tile_w + 4 * GAP
        height = self.rows.pop() - LABEL - GAP + MARGIN
        self.image = self._pil.new("RGB", (width, height), PAPER)
        self._draw = require("PIL.ImageDraw", "cli").Draw(self.image)

    def heading(self, title: str, subtitle: str) -> None:
        self._text(MARGIN, MARGIN - 6, title, 30)
        self._text(MARGIN, MARGIN + 34, subtitle, 17, FAINT)

    def tile(self, row: int, column: int, label: str, content: Any, caption: str = "") -> None:
        """content: a picture, or colours uint8 [h, w, 3] whose cells are drawn with sharp edges."""
        x, y = self._corner(row, column)
        if isinstance(content, np.ndarray):
            tile = self._pil.fromarray(content).resize((self.tile_w, self.tile_h), self._pil.Resampling.NEAREST)
        else:
            tile = content.resize((self.tile_w, self.tile_h), self._pil.Resampling.LANCZOS)
        self.image.paste(tile, (x, y))
        self._text(x, y - LABEL + 4, label, 18)
        self._text(x, y + self.tile_h + 6, caption, 15, FAINT)

    def smooth(self, colors: np.ndarray) -> PILImage.Image:
        """Colours as a picture, whose tile is interpolated instead of drawn in cells."""
        return self._pil.fromarray(colors)

    def note(self, row: int, text: str) -> None:
        """A line under a row, from the second column on."""
        x, y = self._corner(row, 1)
        self._text(x, y + self.tile_h + 6, text, 15, FAINT)

    def mark(self, row: int, column: int, patch: tuple[int, int], grid: tuple[int, int]) -> None:
        """A frame around a patch."""
        x, y = self._corner(row, column)
        left, right = (x + round(self.tile_w * (patch[1] + i) / grid[1]) for i in (0, 1))
        top, bottom = (y + round(self.tile_h * (patch[0] + i) / grid[0]) for i in (0, 1))
        for grow, color, width in ((4, PAPER, 1), (3, MARK, 3)):  # grows outwards: the patch itself stays visible
            self._draw.rectangle((left - grow, top - grow, right + grow - 1, bottom + grow - 1), None, color, width)

    def bar(
        self, row: int, name: str, low: float, high: float, logarithmic: bool = False, first_column: int = 1
    ) -> None:
        """A colour bar with numbers, under the tiles of a row from `first_column` to the last."""
        x, y = self._corner(row, first_column)
        y += self.tile_h + (CAPTION + 6 if row == 1 else 10)
        name_width = int(self._text(x, y - 3, name, 15, FAINT)) + 14
        x, width = x + name_width, self._corner(row, 4)[0] + self.tile_w - x - name_width
        ramp = visual.scale_colors(np.linspace(0, 1, width), 0, 1)[None].repeat(12, axis=0)
        self.image.paste(self._pil.fromarray(ramp), (x, y))
        for value in _ticks(low, high, logarithmic):
            part = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
            at = x + round(part * (width - 1))
            self._draw.line((at, y + 12, at, y + 16), fill=FAINT)
            self._text(at, y + 18, _number(value), 14, FAINT, anchor="ma" if part < 0.97 else "ra")

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        return MARGIN + column * (self.tile_w + GAP), self.rows[row]

    def _text(
        self, x: float, y: float, text: str, size: int, fill: tuple[int, int, int] = INK, anchor: str = "la"
    ) -> float:
        font = require("PIL.ImageFont", "cli").load_default(size)
        self._draw.text((x, y), text, fill, font, anchor)
        return self._draw.textlength(text, font)


def _describe(d: Decomposition) -> str:
    """One line on how it was made, of what `meta` says."""
    h, w, c = d.raw.shape
    vit, seconds = d.meta.get("vit") or {}, d.meta.get("seconds") or {}
    parts = [vit.get("name"), f"{h} x {w} patches, {c} channels"]
    if {"layer", "depth", "norm"} <= vit.keys():
        parts.insert(1, f"block {vit['layer'] + 1} of {vit['depth']}, norm: {vit['norm']}")
    if "solver" in d.meta:
        parts.append(f"solver {d.meta['solver']}, {d.meta.get('views')} views")
    if "total" in seconds:
        parts.append(f"{seconds['total']:.2f} s")
    return "  ·  ".join(part for part in parts if part)


def _patch_centers(h: int, w: int) -> np.ndarray:
    """(x, y) of the cells of an h x w grid over the whole image: float32 [h, w, 2]."""
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    return np.stack([x, y], axis=-1).astype(np.float32)


def _log_range(norms: list[np.ndarray]) -> tuple[float, float]:
    """From a little below the usual norm of the smallest part to the largest norm: at most three decades."""
    high = max(float(norm.max()) for norm in norms) or 1.0
    low = min(float(np.percentile(norm, 5)) for norm in norms)
    return min(max(low, high / 1000), high / 2), high


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers within a range: about five, or 1-2-5 steps on a logarithmic scale."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    else:
        step = next(s for s in (0.05, 0.1, 0.2, 0.25, 0.5, 1) if (high - low) / s <= 6)
        values = [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [value for value in values if low <= value <= high]


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
