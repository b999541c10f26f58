"""Stage 1: the features of one image, taken apart. `solve` works on features, `decompose` on an image and a ViT."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .arrays import give_back, last_view, to_numpy
from .artifact_map import ArtifactMap
from .decomposition import Decomposition
from .devices import CPU, Device, compute_device, current_stream, device_of, device_of_tensors
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
        (solution,) = _solve_cuda([(views, places)], parsed, where, progress)
    else:
        views, places = check_problem(features, coords, keep_half=solver == "hashgrid")
        solution = _solve(views, places, parsed, progress)
    meta = _solve_meta(solver, options, where, len(places), solution, time.perf_counter() - start)
    return _decomposition(views, solution, meta, features)


def solve_many(
    features: Sequence[Any],
    coords: Sequence[Any],
    solver: str = "hashgrid",
    *,
    device: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Decomposition]:
    """Stage 1 on several images: a list of what `solve` takes for each.

    On a CUDA device the fits of "hashgrid" run together, so that one fills what another leaves idle; all else is one
    after the other. The arguments and errors are those of `solve`; progress counts the steps of all images.
    """
    if len(features) != len(coords):
        raise InputError(f"features and coords must be of as many images, got {len(features)} and {len(coords)}")
    where = compute_device(device, device_of(features[0])) if len(features) else CPU
    if solver != "hashgrid" or not where.is_cuda:
        return [solve(f, c, solver, device=device, progress=progress, **options) for f, c in zip(features, coords)]
    start = time.perf_counter()
    parsed = parse_options(solver, options)
    problems = [check_problem_cuda(f, c, where) for f, c in zip(features, coords)]
    solutions = _solve_cuda(problems, parsed, where, progress)
    seconds = time.perf_counter() - start
    found = []
    for (views, places), solution, given in zip(problems, solutions, features):
        meta = _solve_meta(solver, options, where, len(places), solution, seconds)
        found.append(_decomposition(views, solution, meta, given))
    return found


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
    where = compute_device(device, device_of_tensors(vit.device))
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
        (solution,) = _solve_cuda([check_problem_cuda(kept, places, where)], parsed, where, progress)
    else:
        solution = _solve(*check_problem(kept, places), parsed, progress)
    now = time.perf_counter()
    meta = {"solver": solver, "options": _plain(options), "views": len(boxes), "plan": _plain(views), "seed": seed}
    meta |= {"coords": coords, "vit": vit.describe(), "version": __version__, "info": solution.info}
    meta |= {"device": str(where), "seconds": {"total": now - start, "solve": solving + now - before}}
    return _decomposition(features, solution, meta, places)


def parse_options(solver: str, options: Mapping[str, Any]) -> Options:
    """The options of a solver; `InputError` for an unknown solver or option, or one of another kind or out of range."""
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise InputError(f"unknown solver {solver!r}; expected one of {', '.join(SOLVERS)}")
    return SOLVERS[solver].parse(options)


def _solve_meta(
    solver: str, options: Mapping[str, Any], where: Device, views: int, solution: Solution, seconds: float
) -> dict[str, Any]:
    meta = {"solver": solver, "options": _plain(options), "views": views, "version": __version__}
    return meta | {"device": str(where), "info": solution.info, "seconds": {"solve": seconds}}


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
    problems: Sequence[tuple[Any, np.ndarray]], options: Options, where: Device, progress: Progress | None
) -> list[Solution]:
    from .solvers.cuda import solve_average_cuda, solve_direct_cuda

    if isinstance(options, HashgridOptions):
        return solve_hashgrid_cuda(problems, options, where, progress)
    if isinstance(options, DirectOptions):
        return [solve_direct_cuda(features, coords, options, where) for features, coords in problems]
    assert isinstance(options, AverageOptions)
    return [solve_average_cuda(features, coords, options, where) for features, coords in problems]


def _solve(features: np.ndarray, coords: np.ndarray, options: Options, progress: Progress | None) -> Solution:
    if isinstance(options, DirectOptions):
        return solve_direct(features, coords, options)
    if isinstance(options, HashgridOptions):
        return solve_hashgrid(features, coords, options, progress)
    assert isinstance(options, AverageOptions)
    return solve_average(features, coords, options)


def _decomposition(views: Any, solution: Solution, meta: dict[str, Any], kind: Any) -> Decomposition:
    raw = last_view(views) if solution.raw is None else solution.raw
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
