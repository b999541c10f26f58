"""Stage 1: the features of one image, taken apart. `solve` works on features, `decompose` on an image and a ViT."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .arrays import give_back, last_view, to_numpy
from .artifact_map import ArtifactMap
from .decomposition import Decomposition
from .devices import Device, compute_device, current_stream, device_of, parse_device
from .errors import InputError
from .options import Options
from .progress import Progress, report
from .solvers.average import AverageOptions, solve_average
from .solvers.checks import check_problem, check_problem_cuda
from .solvers.direct import DirectOptions, DirectStream, solve_direct
from .solvers.hashgrid import HashgridOptions, solve_hashgrid, solve_hashgrid_cuda
from .solvers.result import Solution
from .views import DEFAULT_PLAN, iter_views, plan_boxes, view_coords

if TYPE_CHECKING:
    from .images import ImageSource
    from .solvers.cuda import DirectStreamCuda
    from .views import Plan
    from .vit import ViT

SOLVERS: dict[str, type[Options]] = {"direct": DirectOptions, "hashgrid": HashgridOptions, "average": AverageOptions}


def solve(
    features: Any,
    coords: Any,
    solver: str = "direct",
    *,
    device: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Decomposition:
    """Stage 1 on the features of many views of one image.

    features: [V, H, W, C] float32, float16 or bfloat16; the last view is the whole image. coords: [V, H, W, 2], (x, y)
    of each patch in the image, in [0, 1]. NumPy arrays, torch tensors or anything with DLPack, in main memory or on a
    CUDA device; the result is torch tensors where the features are, NumPy arrays for what lies in main memory, and
    arrays that speak DLPack otherwise.

    device: where to solve, "cpu", "cuda" or "cuda:N"; None is where the features lie, or the CPU where this build
    cannot compute there. Features that lie elsewhere are copied there. `meta["device"]` says which it was.

    solver: "direct" (exact least squares, `solvers.direct.DirectOptions`), "hashgrid" (the paper's recipe,
    `solvers.hashgrid.HashgridOptions`) or "average" (the baseline). options: the solver's own. progress: called as
    progress(done, steps, "steps") by "hashgrid"; returning False stops the fit.

    Raises `InputError` (shapes, coordinates, an unknown solver or option), `NonFiniteError` (NaN or infinity; the
    message names the view), `UnsupportedError` (a device that is not there), `OutOfMemoryError` and `Cancelled`.
    """
    start = time.perf_counter()
    parsed = parse_options(solver, options)
    where = compute_device(device, device_of(features))
    if where.is_cuda:
        views, places = check_problem_cuda(features, coords, where)
        solution = _solve_cuda(views, places, parsed, where, progress)
        raw = last_view(views)
    else:
        views, places = check_problem(features, coords, keep_half=solver == "hashgrid")
        solution = _solve(views, places, parsed, progress)
        raw = views[-1].astype(np.float32, copy=False)
    meta = {"solver": solver, "options": _plain(options), "views": len(places), "version": __version__}
    meta |= {"device": str(where), "info": solution.info, "seconds": {"solve": time.perf_counter() - start}}
    return _decomposition(raw, solution, meta, features)


def decompose(
    image: ImageSource,
    vit: ViT,
    views: Plan = DEFAULT_PLAN,
    solver: str = "direct",
    *,
    seed: int = 0,
    coords: str = "center",
    batch_size: int = 16,
    device: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Decomposition:
    """Stage 1 on one image: takes views of it, runs the ViT, and solves; "direct" takes the features in as they come.

    image: a path, a PIL image or an array (see `images.load_image`). views: a plan or a number of random crops (see
    `views.plan_boxes`). seed: of random crops and of the hashgrid solver. coords: "center" or "official". progress:
    called as progress(done, total, "views"), then as in `solve`; returning False stops the work. device: where to
    solve, as in `solve`; None is the ViT's. Returns float32 NumPy arrays. Raises what `load_image`, `plan_boxes` and
    `solve` raise.
    """
    start = time.perf_counter()
    if isinstance(vit, str):
        raise InputError(f"vit must be a dvt_fast.ViT, got str: dvt_fast.ViT({vit!r}) makes one")
    known = options.get("artifacts")
    if isinstance(known, (str, os.PathLike)):
        known = options["artifacts"] = ArtifactMap.load(known)
    if isinstance(known, ArtifactMap):
        known.check(vit)
    if solver == "hashgrid":
        options["seed"] = seed  # of its initial values and its batches
    parsed = parse_options(solver, options)
    where = compute_device(device, parse_device(vit.device))
    boxes = plan_boxes(views, seed)
    places = np.ascontiguousarray(view_coords(boxes, vit, coords))
    stream = _direct_stream(places, vit.dim, parsed, where) if isinstance(parsed, DirectOptions) else None
    kept: Any = None  # all features, for solvers that need them at once
    done = 0
    solving = 0.0
    for batch, _ in iter_views(image, boxes, vit, batch_size, coords):
        features = vit.features(batch)
        if not where.is_cuda:
            features = to_numpy(features).astype(np.float32, copy=False)
        before = time.perf_counter()
        if stream:
            stream.add(_on_device(features, where) if where.is_cuda else features)
        else:
            kept = _bank(features, len(boxes)) if kept is None else kept
            kept[done : done + len(features)] = features
        solving += time.perf_counter() - before
        done += len(features)
        report(progress, done, len(boxes), "views")
    before = time.perf_counter()
    if stream:
        solution = stream.finish()
    elif where.is_cuda:
        solution = _solve_cuda(*check_problem_cuda(kept, places, where), parsed, where, progress)
    else:
        solution = _solve(*check_problem(kept, places), parsed, progress)
    now = time.perf_counter()
    meta = {"solver": solver, "options": _plain(options), "views": len(boxes), "plan": _plain(views), "seed": seed}
    meta |= {"coords": coords, "vit": vit.describe(), "version": __version__, "info": solution.info}
    meta |= {"device": str(where), "seconds": {"total": now - start, "solve": solving + now - before}}
    return _decomposition(last_view(features), solution, meta, places)


def parse_options(solver: str, options: Mapping[str, Any]) -> Options:
    """The options of a solver; `InputError` for an unknown solver or option, or one of another kind or out of range."""
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise InputError(f"unknown solver {solver!r}; expected one of {', '.join(SOLVERS)}")
    return SOLVERS[solver].parse(options)


def _direct_stream(
    coords: np.ndarray, channels: int, options: DirectOptions, where: Device
) -> DirectStream | DirectStreamCuda:
    if where.is_cuda:
        from .solvers.cuda import DirectStreamCuda

        return DirectStreamCuda(coords, channels, options, where)
    return DirectStream(coords, channels, options)


def _on_device(features: Any, where: Device) -> Any:
    """A batch of features on the device that solves: as it is where it lies there."""
    from . import _native

    if device_of(features) == where:
        return features
    array = np.ascontiguousarray(to_numpy(features), np.float32)
    return _native.DeviceArray.from_numpy(array, "float32", where.index, current_stream(where))


def _bank(features: Any, views: int) -> Any:
    """Room for the features of so many views, of the kind of a batch of them."""
    shape = (views, *features.shape[1:])
    return np.empty(shape, features.dtype) if isinstance(features, np.ndarray) else features.new_empty(shape)


def _solve_cuda(
    features: Any, coords: np.ndarray, options: Options, where: Device, progress: Progress | None
) -> Solution:
    from .solvers.cuda import solve_average_cuda, solve_direct_cuda

    if isinstance(options, DirectOptions):
        return solve_direct_cuda(features, coords, options, where)
    if isinstance(options, HashgridOptions):
        return solve_hashgrid_cuda(features, coords, options, where, progress)
    assert isinstance(options, AverageOptions)
    return solve_average_cuda(features, coords, options, where)


def _solve(features: np.ndarray, coords: np.ndarray, options: Options, progress: Progress | None) -> Solution:
    if isinstance(options, DirectOptions):
        return solve_direct(features, coords, options)
    if isinstance(options, HashgridOptions):
        return solve_hashgrid(features, coords, options, progress)
    assert isinstance(options, AverageOptions)
    return solve_average(features, coords, options)


def _decomposition(raw: np.ndarray, solution: Solution, meta: dict[str, Any], kind: Any) -> Decomposition:
    found = (raw, solution.semantics, solution.artifacts, solution.residual)
    raw, semantics, artifacts, residual = (give_back(part, kind) for part in found)
    return Decomposition(raw, semantics, artifacts, residual, solution.field, meta)


def _plain(value: Any) -> Any:
    """`value` with nothing but JSON types: what is larger than a handful of numbers becomes its name."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return value.item() if isinstance(value, np.generic) else type(value).__name__
