"""`solver="hashgrid"`: the paper's recipe, as one native call a fit (Yang et al., "Denoising Vision Transformers")."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .. import _native
from ..errors import InputError
from .hash_grid_field import HashGridField, growth
from .result import Solution

# Steps between two looks at the progress callback and at Ctrl-C: under a second at the official size.
REPORT_EVERY = 10


@dataclass(frozen=True)
class HashgridOptions:
    """Options of `solver="hashgrid"`.

    steps: Adam steps, the first half for F and G, the second for F and the residual predictor h with G frozen.
    batch: random patches a step. seed: of the initial values and the patches.
    n_levels, n_features_per_level, log2_hashmap_size, base_resolution, max_resolution: the hash grid.
    hidden_dim: of F's MLP, None is C / 2. residual_dim: of h's, None is C / 4.
    lr, lr_final, warmup: the rate rises to lr over the share `warmup` of the steps, then falls as a cosine to lr_final.
    betas, eps, weight_decay: Adam's; the decay is coupled (added to the gradient).
    residual_mse, residual_l1: weights of h's two losses.
    loss_scale: multiplies the gradients and not the decay. The paper's implementation scales its loss by 1024 and
        never unscales it, so its decay is in effect 1/1024 of weight_decay; with loss_scale=1 the decay outweighs the
        loss (whose mean over C channels makes small gradients) and pulls G to zero.

    The defaults are the paper's, for 768 views of 37 x 37 patches and 25,000 steps. Fewer patches or steps want a
    smaller grid, or its finest levels learn each view's noise: on benchmarks/planted.py (161 views of 24 x 24 patches,
    2,000 steps) n_levels=8, max_resolution=64, log2_hashmap_size=14 brings the error of F from 0.15 to 0.03, in a fifth
    of the time.
    """

    steps: int = 25000
    batch: int = 2048
    seed: int = 0
    n_levels: int = 16
    n_features_per_level: int = 8
    log2_hashmap_size: int = 20
    base_resolution: int = 16
    max_resolution: int = 1024
    hidden_dim: int | None = None
    residual_dim: int | None = None
    lr: float = 0.01
    lr_final: float = 0.001
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-15
    weight_decay: float = 1e-5
    residual_mse: float = 0.1
    residual_l1: float = 0.02
    loss_scale: float = 1024.0

    @classmethod
    def parse(cls, options: dict[str, Any]) -> HashgridOptions:
        """Options from keywords; an unknown one, or one of another kind, is an `InputError`."""
        known = {f.name: f for f in fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise InputError(f"unknown option {name!r} of solver 'hashgrid'; expected one of {', '.join(known)}")
            if value is None and known[name].default is None:
                continue
            whole = isinstance(known[name].default, int) or known[name].default is None
            if name == "betas":
                fits = len(value) == 2 if isinstance(value, (tuple, list)) else False
            else:
                fits = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
            if not fits:
                kind = "a pair of numbers" if name == "betas" else "a whole number" if whole else "a number"
                raise InputError(f"{name} must be {kind}, got {value!r}")
        parsed = cls(**options)
        for name in ("hidden_dim", "residual_dim"):
            value = getattr(parsed, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if parsed.seed < 0:
            raise InputError(f"seed must be at least 0, got {parsed.seed}")
        if not 2 <= parsed.base_resolution <= parsed.max_resolution:
            raise InputError(
                f"max_resolution must be at least base_resolution, and that at least 2, got {parsed.max_resolution} "
                f"and {parsed.base_resolution}"
            )
        return parsed

    def grid_config(self) -> dict[str, Any]:
        """The hash grid's keys, as `HashGrid` and tiny-cuda-nn name them."""
        names = ("n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution")
        config: dict[str, Any] = {name: int(getattr(self, name)) for name in names}
        return config | {"per_level_scale": growth(self.base_resolution, self.max_resolution, self.n_levels)}

    def native(self) -> _native.HashgridOptions:
        """The same for the native code."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "max_resolution"}
        rest |= {"hidden_dim": self.hidden_dim or 0, "residual_dim": self.residual_dim or 0, "betas": tuple(self.betas)}
        return _native.HashgridOptions(**(rest | self.grid_config()))


def solve_hashgrid(
    features: np.ndarray,
    coords: np.ndarray,
    *,
    progress: Callable[[int, int, str], Any] | None = None,
    **options: Any,
) -> Solution:
    """features: float32 or float16 [V, H, W, C]; coords: float32 [V, H, W, 2]; contiguous, the whole image last.

    progress: called as progress(done, steps, "steps") every few steps; returning False stops the fit with `Cancelled`,
    and so does Ctrl-C with KeyboardInterrupt. Raises `NonFiniteError`, naming the view of a NaN or infinity in the
    features, or the step at which the loss became one.
    """
    parsed = HashgridOptions.parse(options)
    fitter = _native.HashgridFitter(features, coords, parsed.native())
    report = None if progress is None else lambda step, steps, loss: progress(step, steps, "steps")
    fitter.run(parsed.steps, report_every=REPORT_EVERY, progress=report)
    fitter.apply_gauge()
    semantics, artifacts, _ = fitter.decomposition()
    parameters = fitter.parameters()
    field = HashGridField(parameters["grid"], parameters["field"], tuple(fitter.field_widths), parsed.grid_config())
    residual = features[-1].astype(np.float32) - semantics - artifacts
    return Solution(semantics, artifacts, residual, field, {"steps": parsed.steps, "losses": fitter.losses})
