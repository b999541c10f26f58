"""What the page shows of one image, as two byte strings: the picture, and all numbers in one safetensors file.

The numbers are few but for the features themselves. Those go to the browser once, as unit vectors in 16-bit fixed
point: the cosines of a chosen patch are then one product of a matrix and a vector there, a few milliseconds for
37 x 37 patches of 768 channels, and never more than 1e-4 off. Everything else is made here by what draws the panels,
so that page and panel show the same.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import visual
from ..arrays import to_numpy
from ..extras import require
from ..files import pack_safetensors
from ..panel import CLUSTERS, SIMILAR, about_stage1, about_stage2, log_range

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..decomposition import Decomposition
    from ..stage2 import Denoised

FORMAT, VERSION = "dvt_fast.look", 1
UNIT = 32767  # 1 in fixed point
PICTURE_SIDE = 1280  # pixels of the longer side of the picture: as large as a page shows it
SCALE_STEPS = 256


@dataclass(frozen=True)
class Parts:
    """Features before and after, and what makes the difference.

    raw, clean, offset: [H, W, C] float32. names, titles: of the three, short and long. shift: [C], a constant that may
    stand in clean as well as in offset; for the colours it is added to the one and taken from the other. about: how
    they were made, in short texts.
    """

    raw: np.ndarray
    clean: np.ndarray
    offset: np.ndarray
    names: tuple[str, str, str]
    titles: tuple[str, str, str]
    shift: np.ndarray
    about: list[str]


@dataclass(frozen=True)
class Shown:
    """One image for the page. picture: a JPEG file. data: a safetensors file, see `show`."""

    picture: bytes
    data: bytes

    def __len__(self) -> int:
        return len(self.picture) + len(self.data)


def of_stage1(d: Decomposition) -> Parts:
    """Raw, semantics F and artifacts G. Colours are for the G whose median is 0, as in `Decomposition.panel`."""
    artifacts = to_numpy(d.artifacts)
    names, titles = ("raw", "F", "G"), ("Raw features", "Semantics F", "Artifacts G")
    shift = np.median(artifacts, axis=(0, 1))
    return Parts(to_numpy(d.raw), to_numpy(d.semantics), artifacts, names, titles, shift, about_stage1(d))


def of_stage2(d: Denoised) -> Parts:
    """Raw, denoised, and what was removed."""
    raw, clean = to_numpy(d.raw), to_numpy(d.denoised)
    names, titles = ("raw", "denoised", "removed"), ("Raw features", "Denoised features", "Removed")
    return Parts(raw, clean, raw - clean, names, titles, np.zeros(raw.shape[-1]), about_stage2(d))


def show(picture: PILImage.Image, parts: Parts) -> Shown:
    """What the page shows of `picture` (RGB).

    Arrays of the file, the first axis counting raw, clean and, where there are three, offset: unit int16 [2, H, W, C],
    colors uint8 [3, H, W, 3], norms float32 [3, H, W], labels uint8 [2, H, W]; and the palettes: scale uint8 [256, 3],
    clusters uint8 [6, 3]. Its header: names, titles and about of `parts`; aspect, width over height; patch, the (row,
    column) to begin with; range, the smallest and the largest norm on their scale; similar, where the scale of
    similarities begins at most.
    """
    raw, clean, offset = parts.raw, parts.clean, parts.offset
    basis = visual.ColorBasis.fit(raw, clean + parts.shift)
    colors = basis.colors(raw), basis.colors(clean + parts.shift), basis.offset_colors(offset - parts.shift)
    norms = [np.linalg.norm(part, axis=-1).astype(np.float32) for part in (raw, clean, offset)]
    wanted = visual.kmeans(clean, CLUSTERS)
    labels = visual.match_labels(visual.kmeans(raw, CLUSTERS), wanted, CLUSTERS), wanted
    arrays = {
        "unit": np.stack([np.rint(visual.directions(part) * UNIT).astype(np.int16) for part in (raw, clean)]),
        "colors": np.stack(colors),
        "norms": np.stack(norms),
        "labels": np.stack(labels).astype(np.uint8),
        "scale": visual.scale_colors(np.linspace(0, 1, SCALE_STEPS), 0, 1),
        "clusters": visual.CLUSTER_COLORS,
    }
    header = {
        "names": parts.names,
        "titles": parts.titles,
        "about": parts.about,
        "aspect": picture.width / picture.height,
        "patch": visual.telling_patch(clean),
        "range": log_range(norms),
        "similar": SIMILAR,
    }
    return Shown(_jpeg(picture), pack_safetensors(arrays, FORMAT, VERSION, **header))


def _jpeg(picture: PILImage.Image) -> bytes:
    Image = require("PIL.Image", "cli")
    factor = min(1.0, PICTURE_SIDE / max(picture.size))
    if factor < 1:
        size = [max(1, round(side * factor)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
