"""`solver="average"`: shifted-view averaging without a solve, the baseline that the solvers must beat at equal time.

Every view's features are spread on a grid over the image (bilinear, as in the direct solver) and divided by their
coverage; artifacts, which sit at another place of the image in every view, average out. G is the mean of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import _native
from ..options import Options, option
from ..options import grid as read_grid
from .bilinear_field import BilinearField
from .checks import check_finite
from .direct import fit_grid
from .gauge import gauge
from .result import Solution


@dataclass(frozen=True)
class AverageOptions(Options):
    """Options of `solver="average"`. grid: nodes a side, as in the direct solver."""

    solver: ClassVar[str] = "average"

    grid: tuple[int, int] | None = option(None, read_grid)


def solve_average(features: np.ndarray, coords: np.ndarray, options: AverageOptions) -> Solution:
    """features float32 [V, H, W, C] and coords float32 [V, H, W, 2], contiguous; the last view is the whole image."""
    check_finite(features)
    views, h, w, channels = features.shape
    ny, nx = fit_grid(coords, options.grid)
    rows, places = features.reshape(-1, channels), coords.reshape(-1, 2)
    ones = np.ones(len(rows), np.float32)
    sums, _ = _native.scatter(ny, nx, places, ones, rows)
    coverage, _ = _native.scatter(ny, nx, places, ones, ones[:, None])
    nodes = _fill_holes(sums, coverage[..., 0])
    artifacts = (features - BilinearField(nodes).query(coords)).mean(0)
    constant = gauge(artifacts.reshape(-1, channels))
    artifacts -= constant
    field = BilinearField(nodes + constant)
    semantics = field.patch_means(coords[-1])
    return Solution(semantics, artifacts, features[-1] - semantics - artifacts, field, {"views": views})


def _fill_holes(sums: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """sums / coverage; nodes that no row reached take the mean of their neighbours, from the rim of a hole inwards."""
    known = coverage > 1e-6
    nodes = np.where(known[..., None], sums / np.maximum(coverage, 1e-6)[..., None], 0).astype(np.float32)
    while not known.all():
        padded, seen = np.pad(nodes, ((1, 1), (1, 1), (0, 0))), np.pad(known, 1)
        total, count = np.zeros_like(nodes), np.zeros(known.shape, np.float32)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            window = (slice(dy, dy + known.shape[0]), slice(dx, dx + known.shape[1]))
            total += padded[window] * seen[window][..., None]
            count += seen[window]
        reached = ~known & (count > 0)
        nodes[reached] = total[reached] / count[reached][:, None]
        known |= reached
    return nodes
