"""`solver="direct"`: stage 1 as one linear least-squares problem, solved exactly in native code.

The formulas are in csrc/field/direct_solver/direct_solver.h. Here: the options and their defaults, the grid that fits
the views, and the stream that takes views as they come.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import _native
from ..arrays import to_numpy
from ..artifact_map import ArtifactMap
from ..errors import InputError, NonFiniteError
from ..options import Options, choice, flag, not_negative, number, option, positive, whole
from ..options import grid as read_grid
from .bilinear_field import BilinearField
from .gauge import gauge
from .result import Solution


def read_artifacts(name: str, value: Any) -> np.ndarray:
    """An artifact map, the path of one, or its values, as float32 [H, W, C]."""
    if isinstance(value, (str, os.PathLike)):
        value = ArtifactMap.load(value)
    known = to_numpy(value.values if isinstance(value, ArtifactMap) else value, name)
    if known.ndim != 3:
        raise InputError(f"{name} must be an ArtifactMap or an array of shape [H, W, C], got shape {list(known.shape)}")
    with np.errstate(over="ignore"):
        known = np.ascontiguousarray(known, np.float32)
    if not np.isfinite(known).all():
        raise NonFiniteError(f"{name} contain NaN or infinity")
    return known


@dataclass(frozen=True)
class DirectOptions(Options):
    """Options of `solver="direct"`.

    grid: nodes of F a side, an int or (Ry, Rx); None fits them to the views, one node a patch of the finer views.
    smoothness: lambda, the weight of |grad F|^2 against one row of data, so that more views smooth less; None estimates
        it, as the variance of the residual over that of F from node to node, from the second pass on.
    passes: 1 is plain least squares; more reweight the rows by 1 / max(1, e / (outlier_threshold * median e))^2, so
        that outlier tokens lose their say. e is the residual norm, or the median of that over the views of the row's
        patch, if that is larger: where only an outlying patch sees F, F follows it, and a residual there tells nothing.
    residual: how many times a gain field, h = A_p * (F(x) - mean F) channel by channel, and (F, G) are fitted in turn.
    cosine: weigh rows by 1 + C / (2 |y|^2), the quadratic form of MSE + (1 - cos).
    artifact_ridge: mu, how many rows of "G is zero" (or of the prior) each patch is given; None estimates it, as the
        variance of the residual over that of G, from the second pass on.
    artifacts: a known artifact map, an `ArtifactMap`, its path or an array [H, W, C]: subtracted where artifact_ridge
        is None (the default with a map), else the value that artifact_ridge pulls G to.
    solve_artifacts: False keeps G at zero, for clean features from few views of a single image.
    method: "schur", "pcg" or "auto", the cheaper one.
    tolerance, max_iterations: of "pcg".
    """

    solver: ClassVar[str] = "direct"

    grid: tuple[int, int] | None = option(None, read_grid)
    smoothness: float | None = option(None, positive)
    passes: int = option(4, whole(1, 1000))
    outlier_threshold: float = option(1.5, positive)
    residual: int = option(0, whole(0, 1000))
    cosine: bool = option(False, flag)
    artifact_ridge: float | None = option(None, not_negative)
    artifacts: np.ndarray | None = option(None, read_artifacts)  # noqa: RUF009, it makes a field
    solve_artifacts: bool = option(True, flag)
    method: str = option("auto", choice("auto", "schur", "pcg"))
    tolerance: float = option(1e-5, number(lambda x: 0 < x < 1, "be between 0 and 1"))
    max_iterations: int = option(200, whole(1, 10**6))


def fit_grid(coords: np.ndarray, grid: int | tuple[int, int] | None) -> tuple[int, int]:
    """Nodes (Ry, Rx) of F's grid for views at coords [V, H, W, 2].

    One node a patch of the finer views: the pitch that a tenth of the views are at or below. Finer nodes would be
    seen by too few rows, coarser ones would blur what the close-up views show.
    """
    if grid is not None:
        return read_grid("grid", grid)
    return _nodes_along(coords[:, :, 0, 1]), _nodes_along(coords[:, 0, :, 0])


def _nodes_along(lines: np.ndarray) -> int:
    """Nodes of one axis for patch centres [V, n] along it."""
    n = lines.shape[1]
    pitch = np.abs(lines[:, -1] - lines[:, 0]) / max(1, n - 1)
    pitch = pitch[pitch > 0]
    finest = float(np.quantile(pitch, 0.1)) if len(pitch) else 1.0
    return int(np.clip(round(1 / finest), max(2, n), max(2, 3 * n)))


class DirectStream:
    """Takes the views of one image as they come, then solves.

    coords: [V, H, W, 2] of all the views to come (they fix the grid); the last view is the whole image.
    borrow: the features given to `add` stay alive and unchanged until `finish` (else a float16 copy is kept where the
    passes need one).
    """

    def __init__(self, coords: np.ndarray, channels: int, options: DirectOptions, borrow: bool = False):
        views, h, w, _ = coords.shape
        self.options = options
        self.coords = coords.reshape(views, h * w, 2)
        self.shape = (h, w, channels)
        if options.artifacts is not None and options.artifacts.shape != self.shape:
            raise InputError(f"artifacts must have shape {list(self.shape)}, got {list(options.artifacts.shape)}")
        ny, nx = fit_grid(coords, options.grid)
        keep = "nothing" if options.passes == 1 and options.residual == 0 else "borrow" if borrow else "half"
        self._solver = _native.DirectSolver(ny, nx, h * w, channels, keep, options.cosine)
        self._added = 0

    def add(self, features: np.ndarray) -> None:
        """The next views: float32 [n, H, W, C], contiguous."""
        n, (h, w, c) = len(features), self.shape
        self._solver.add(features.reshape(n, h * w, c), self.coords[self._added : self._added + n])
        self._added += n
        self._last = features[-1]

    def finish(self) -> Solution:
        """Solves for what was added."""
        o, (h, w, c) = self.options, self.shape
        prior = None
        fixed = not o.solve_artifacts
        if o.artifacts is not None:
            fixed = fixed or o.artifact_ridge is None
            prior = o.artifacts.reshape(h * w, c)
        elif fixed:
            prior = np.zeros((h * w, c), np.float32)
        nodes, artifacts, info = self._solver.solve(
            smoothness=o.smoothness,
            artifact_ridge=o.artifact_ridge,
            passes=o.passes,
            residual=o.residual,
            outlier_threshold=o.outlier_threshold,
            prior=prior,
            fix_artifacts=fixed,
            method=o.method,
            tolerance=o.tolerance,
            max_iterations=o.max_iterations,
        )
        constant = gauge(artifacts)
        artifacts -= constant
        nodes += constant
        field = BilinearField(nodes)
        semantics = field.patch_means(self.coords[self._added - 1].reshape(h, w, 2))
        artifacts = artifacts.reshape(h, w, c)
        return Solution(semantics, artifacts, self._last - semantics - artifacts, field, dict(info))


def solve_direct(features: np.ndarray, coords: np.ndarray, options: DirectOptions) -> Solution:
    """features float32 [V, H, W, C] and coords float32 [V, H, W, 2], contiguous; the last view is the whole image."""
    stream = DirectStream(coords, features.shape[-1], options, borrow=True)
    stream.add(features)
    return stream.finish()
