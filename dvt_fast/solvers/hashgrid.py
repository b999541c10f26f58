"""`solver="hashgrid"`: the paper's recipe, as one native call a fit (Yang et al., "Denoising Vision Transformers")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from .. import _native
from ..arrays import last_view
from ..devices import Device, current_stream
from ..errors import InputError
from ..options import Options, choice, flag, not_negative, number, option, positive, seed, whole
from ..progress import Progress
from .gauge import gauge
from .hash_grid_field import HashGridField, growth
from .patches import patch_means
from .result import Solution

# Steps between two looks at the progress callback and at Ctrl-C: under a second at the official size.
REPORT_EVERY = 10
REPORT_EVERY_CUDA = 200


def read_betas(name: str, value: Any) -> tuple[float, float]:
    """Adam's two decay rates."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{name} must be a pair of numbers, got {value!r}")
    first, second = (number(lambda x: 0 <= x < 1, "be in [0, 1)")(f"{name}[{i}]", beta) for i, beta in enumerate(value))
    if first <= 0.5:
        raise InputError(f"{name}[0] must be above 0.5, got {first}")
    return first, second


@dataclass(frozen=True)
class HashgridOptions(Options):
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
    patch_means: the semantics are F averaged over each patch (3 x 3 points), as `direct` has them, not F at its centre.
        From few views it serves heads better (docs/results.md): the whole view's rows lie at just these centres, where
        a fine grid may learn them by heart. F is averaged on the CPU, also for a device.
    compute: what products multiply, with sums in float32. The CPU has "float32"; a CUDA device has "tf32" (its
        default), "bfloat16" and "float32" (three products of tf32 each). deterministic: on CUDA, the same bits for the
        same seed, by sums in fixed point; without it they are float atomics, whose order is not fixed. The CPU always
        is.

    The defaults are the paper's, for 768 views of 37 x 37 patches and 25,000 steps. Fewer patches or steps want a
    smaller grid, or its finest levels learn each view's noise: for 161 views of 24 x 24 patches and 2,000 steps,
    benchmarks/planted.py takes n_levels=8, max_resolution=64, log2_hashmap_size=14, and
    benchmarks/results/planted.json says what that reaches.
    """

    solver: ClassVar[str] = "hashgrid"

    steps: int = option(25000, whole(1, 2**30))
    batch: int = option(2048, whole(1, 2**20))
    seed: int = option(0, seed)
    n_levels: int = option(16, whole(1, 32))
    n_features_per_level: int = option(8, choice(1, 2, 4, 8))
    log2_hashmap_size: int = option(20, whole(3, 26))
    base_resolution: int = option(16, whole(2, 10**6))
    max_resolution: int = option(1024, whole(2, 10**6))
    hidden_dim: int | None = option(None, whole(1, 2**16))
    residual_dim: int | None = option(None, whole(1, 2**16))
    lr: float = option(0.01, positive)
    lr_final: float = option(0.001, not_negative)
    warmup: float = option(0.1, number(lambda x: 0 <= x <= 1, "be in [0, 1]"))
    betas: tuple[float, float] = option((0.9, 0.99), read_betas)
    eps: float = option(1e-15, not_negative)
    weight_decay: float = option(1e-5, not_negative)
    residual_mse: float = option(0.1, not_negative)
    residual_l1: float = option(0.02, not_negative)
    loss_scale: float = option(1024.0, positive)
    patch_means: bool = option(False, flag)
    compute: str | None = option(None, choice("float32", "tf32", "bfloat16"))
    deterministic: bool = option(True, flag)

    def check(self) -> None:
        """Raise `InputError` where options do not go together."""
        if self.max_resolution < self.base_resolution:
            raise InputError(
                f"max_resolution must be at least base_resolution, got {self.max_resolution} and {self.base_resolution}"
            )

    def grid_config(self) -> dict[str, Any]:
        """The hash grid's keys, as `HashGrid` and tiny-cuda-nn name them."""
        names = ("n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution")
        config: dict[str, Any] = {name: int(getattr(self, name)) for name in names}
        return config | {"per_level_scale": growth(self.base_resolution, self.max_resolution, self.n_levels)}

    def native(self) -> _native.HashgridOptions:
        """The same for the native code."""
        apart = ("max_resolution", "patch_means", "compute", "deterministic")
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        rest |= {"hidden_dim": self.hidden_dim or 0, "residual_dim": self.residual_dim or 0, "betas": tuple(self.betas)}
        return _native.HashgridOptions(**(rest | self.grid_config()))


def solve_hashgrid(
    features: np.ndarray, coords: np.ndarray, options: HashgridOptions, progress: Progress | None = None
) -> Solution:
    """features: float32 or float16 [V, H, W, C]; coords: float32 [V, H, W, 2]; contiguous, the whole image last.

    progress: called as progress(done, steps, "steps") every few steps; returning False stops the fit with `Cancelled`,
    and so does Ctrl-C with KeyboardInterrupt. Raises `NonFiniteError`, naming the view of a NaN or infinity in the
    features, or the step at which the loss became one.
    """
    if options.compute not in (None, "float32"):
        raise InputError(f"compute must be 'float32' on the CPU, got {options.compute!r}")
    fitter = _native.HashgridFitter(features, coords, options.native())
    _run(fitter, options, REPORT_EVERY, progress)
    semantics, artifacts, field = _parts(fitter, coords[-1], options)
    residual = features[-1].astype(np.float32) - semantics - artifacts
    return Solution(semantics, artifacts, residual, field, _info(fitter, options))


def solve_hashgrid_cuda(
    problems: Sequence[tuple[Any, np.ndarray]],
    options: HashgridOptions,
    device: Device,
    progress: Progress | None = None,
) -> list[Solution]:
    """The same on a CUDA device for one image or several, whose steps take turns there: what one leaves idle, another
    fills.

    problems: (features, coords) of each image; features float32, float16 or bfloat16 on the device. progress is
    called, and looked at, between graphs of steps, with the steps of all images.
    """
    fitters = [
        _native.CudaHashgridFitter(
            features,
            coords,
            options.native(),
            compute=options.compute or "tf32",
            deterministic=options.deterministic,
            device=device.index,
            stream=current_stream(device),
        )
        for features, coords in problems
    ]
    if len(fitters) == 1:
        _run(fitters[0], options, REPORT_EVERY_CUDA, progress)
    else:
        _native.cuda_run_together(fitters, options.steps, REPORT_EVERY_CUDA, _report(progress))
    found = []
    for fitter, (features, coords) in zip(fitters, problems):
        semantics, artifacts, field = _parts(fitter, coords[-1], options)
        raw = last_view(features)
        info = _info(fitter, options) | {"compute": options.compute or "tf32", "device_bytes": fitter.device_bytes}
        found.append(Solution(semantics, artifacts, raw - semantics - artifacts, field, info, raw))
    return found


def _parts(fitter: Any, centres: np.ndarray, options: HashgridOptions) -> tuple[np.ndarray, np.ndarray, HashGridField]:
    """F of the patches with these centres, G, and F anywhere, in the gauge."""
    semantics, artifacts, _ = fitter.decomposition()
    constant = gauge(artifacts.reshape(-1, artifacts.shape[-1]))
    field = _field(fitter, options, constant)
    semantics = patch_means(field.query, centres) if options.patch_means else semantics + constant
    return semantics, artifacts - constant, field


def _report(progress: Progress | None) -> Any:
    return None if progress is None else lambda step, steps, loss: progress(step, steps, "steps")


def _run(fitter: Any, options: HashgridOptions, report_every: int, progress: Progress | None) -> None:
    fitter.run(options.steps, report_every=report_every, progress=_report(progress))


def _field(fitter: Any, options: HashgridOptions, constant: np.ndarray) -> HashGridField:
    parameters = fitter.parameters()
    parameters["field"][-len(constant) :] += constant  # the last bias: F takes the constant everywhere
    return HashGridField(parameters["grid"], parameters["field"], tuple(fitter.field_widths), options.grid_config())


def _info(fitter: Any, options: HashgridOptions) -> dict[str, Any]:
    return {"steps": options.steps, "losses": fitter.losses}
