"""`solver="direct"`: stage 1 as one linear least-squares problem, solved exactly in native code.

The formulas are in csrc/field/direct_solver/direct_solver.h. Here: the options and their defaults, the grid that fits
the views, and the stream that takes views as they come.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .. import _native
from ..errors import InputError
from .bilinear_field import BilinearField
from .result import Solution

OUTLYING, GAUGE_STEPS = 3.0, 10


@dataclass(frozen=True)
class DirectOptions:
    """Options of `solver="direct"`.

    grid: nodes of F a side, an int or (Ry, Rx); None fits them to the views, one node a patch of the finer views.
    smoothness: lambda, the weight of |grad F|^2 against one row of data; in rows, so that more views smooth less.
    passes: 1 is plain least squares; more reweight the rows by 1 / max(1, e / (outlier_threshold * median e))^2, e the
        residual norm, so that outlier tokens lose their say.
    residual: how many times a gain field, h = A_p * (F(x) - mean F) channel by channel, and (F, G) are fitted in turn.
    cosine: weigh rows by 1 + C / (2 |y|^2), the quadratic form of MSE + (1 - cos).
    artifact_ridge: mu, how many rows of "G is zero" (or of the prior) each patch is given; None estimates it, as the
        variance of the residual over that of G, from the second pass on.
    artifacts: a known artifact map [H, W, C] or `ArtifactMap`: subtracted where artifact_ridge is None (the default
        with a map), else the value that artifact_ridge pulls G to.
    solve_artifacts: False keeps G at zero, for clean features from few views of a single image.
    method: "schur", "pcg" or "auto", the cheaper one.
    tolerance, max_iterations: of "pcg".
    """

    grid: int | tuple[int, int] | None = None
    smoothness: float = 0.5
    passes: int = 4
    outlier_threshold: float = 1.5
    residual: int = 0
    cosine: bool = False
    artifact_ridge: float | None = None
    artifacts: Any = None
    solve_artifacts: bool = True
    method: str = "auto"
    tolerance: float = 1e-5
    max_iterations: int = 200

    @classmethod
    def parse(cls, options: dict[str, Any]) -> DirectOptions:
        """Options from keywords; an unknown one is an `InputError` that names those there are."""
        names = [f.name for f in fields(cls)]
        for name in options:
            if name not in names:
                raise InputError(f"unknown option {name!r} of solver 'direct'; expected one of {', '.join(names)}")
        parsed = cls(**options)
        if parsed.method not in ("auto", "schur", "pcg"):
            raise InputError(f"method must be 'auto', 'schur' or 'pcg', got {parsed.method!r}")
        if not isinstance(parsed.passes, int) or parsed.passes < 1:
            raise InputError(f"passes must be a whole number of at least 1, got {parsed.passes!r}")
        return parsed


def fit_grid(coords: np.ndarray, grid: int | tuple[int, int] | None) -> tuple[int, int]:
    """Nodes (Ry, Rx) of F's grid for views at coords [V, H, W, 2].

    One node a patch of the finer views: the pitch that a tenth of the views are at or below. Finer nodes would be
    seen by too few rows, coarser ones would blur what the close-up views show.
    """
    if grid is not None:
        pair = (grid, grid) if isinstance(grid, (int, np.integer)) else tuple(grid)
        if len(pair) != 2 or min(pair) < 2:
            raise InputError(f"grid must be at least 2 nodes a side, got {grid!r}")
        return int(pair[0]), int(pair[1])
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
            values = getattr(o.artifacts, "values", o.artifacts)
            prior = np.ascontiguousarray(values, np.float32)
            if prior.shape != (h, w, c):
                raise InputError(f"artifacts must have shape {[h, w, c]}, got {list(prior.shape)}")
            fixed = fixed or o.artifact_ridge is None
            prior = prior.reshape(h * w, c)
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


def gauge(artifacts: np.ndarray) -> np.ndarray:
    """The constant that G [patches, C] gives to F: its mean over the patches, without those that stand far out.

    Views cannot tell where a constant belongs, so G is taken to have mean zero. A few giant tokens (ViTs have some with
    25 times the median norm) must not count in that mean: they would move all of F by their share. Patches further
    from the centre than OUTLYING times the median distance lose weight with the square of their distance.
    """
    centre = artifacts.mean(0)
    for _ in range(GAUGE_STEPS):
        distance = np.linalg.norm(artifacts - centre, axis=1)
        weights = 1 / np.maximum(1, distance / max(OUTLYING * float(np.median(distance)), 1e-30)) ** 2
        centre = (weights @ artifacts) / weights.sum()
    return centre.astype(np.float32)


def solve_direct(features: np.ndarray, coords: np.ndarray, **options: Any) -> Solution:
    """features float32 [V, H, W, C] and coords float32 [V, H, W, 2], contiguous; the last view is the whole image."""
    stream = DirectStream(coords, features.shape[-1], DirectOptions.parse(options), borrow=True)
    stream.add(features)
    return stream.finish()
