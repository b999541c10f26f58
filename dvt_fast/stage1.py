"""Stage 1: the features of one image, taken apart. `solve` works on features, `decompose` on an image and a ViT."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .arrays import like, to_numpy
from .decomposition import Decomposition
from .errors import InputError
from .solvers.checks import check_problem
from .solvers.direct import DirectOptions, DirectStream, solve_direct
from .solvers.result import Solution
from .views import DEFAULT_PLAN, iter_views, plan_boxes, view_coords

if TYPE_CHECKING:
    from .images import ImageSource
    from .views import Plan
    from .vit import ViT

SOLVERS = ("direct", "hashgrid", "average")
# progress(done, total, what): what is "views" or "steps".
Progress = Callable[[int, int, str], None]


def solve(
    features: Any, coords: Any, solver: str = "direct", *, progress: Progress | None = None, **options: Any
) -> Decomposition:
    """Stage 1 on the features of many views of one image.

    features: [V, H, W, C] float32, float16 or bfloat16; the last view is the whole image. coords: [V, H, W, 2], (x, y)
    of each patch in the image, in [0, 1]. NumPy arrays, torch tensors or anything with DLPack; the result is of the
    features' kind, on their device. solver: "direct" (exact least squares, `solvers.direct.DirectOptions`),
    "hashgrid" (the paper's recipe, `solvers.hashgrid.HashgridOptions`) or "average" (the baseline). options: the
    solver's own. progress: called as progress(done, steps, "steps") by "hashgrid".

    Raises `InputError` (shapes, coordinates, an unknown solver or option), `NonFiniteError` (NaN or infinity; the
    message names the view) and `Cancelled`.
    """
    start = time.perf_counter()
    views, places = check_problem(features, coords)
    solution = _solver(solver)(views, places, progress=progress, **options)
    meta = {"solver": solver, "options": _plain(options), "views": len(views), "version": __version__}
    meta |= {"info": solution.info, "seconds": {"solve": time.perf_counter() - start}}
    return _decomposition(views[-1], solution, meta, features)


def decompose(
    image: ImageSource,
    vit: ViT,
    views: Plan = DEFAULT_PLAN,
    solver: str = "direct",
    *,
    seed: int = 0,
    coords: str = "center",
    batch_size: int = 16,
    progress: Progress | None = None,
    **options: Any,
) -> Decomposition:
    """Stage 1 on one image: takes views of it, runs the ViT, and solves; "direct" takes the features in as they come.

    image: a path, a PIL image or an array (see `images.load_image`). views: a plan or a number of random crops (see
    `views.plan_boxes`). seed: of random crops and of the hashgrid solver. coords: "center" or "official". progress:
    called as progress(done, total, "views"), then as in `solve`. Returns float32 NumPy arrays. Raises what
    `load_image`, `plan_boxes` and `solve` raise.
    """
    start = time.perf_counter()
    make = _solver(solver)
    boxes = plan_boxes(views, seed)
    places = np.ascontiguousarray(view_coords(boxes, vit, coords))
    if solver == "hashgrid":
        options["seed"] = seed  # of its initial values and its batches
    stream = DirectStream(places, vit.dim, DirectOptions.parse(options)) if solver == "direct" else None
    kept = np.empty((0 if stream else len(boxes), *vit.grid, vit.dim), np.float32)
    done = 0
    solving = 0.0
    for batch, _ in iter_views(image, boxes, vit, batch_size, coords):
        features = to_numpy(vit.features(batch)).astype(np.float32, copy=False)
        before = time.perf_counter()
        if stream:
            stream.add(features)
        else:
            kept[done : done + len(features)] = features
        solving += time.perf_counter() - before
        done += len(features)
        if progress:
            progress(done, len(boxes), "views")
    before = time.perf_counter()
    if stream:
        solution = stream.finish()
    else:
        check_problem(kept, places)
        solution = make(kept, places, progress=progress, **options)
    now = time.perf_counter()
    meta = {"solver": solver, "options": _plain(options), "views": len(boxes), "plan": _plain(views), "seed": seed}
    meta |= {"coords": coords, "vit": vit.describe(), "version": __version__, "info": solution.info}
    meta["seconds"] = {"total": now - start, "solve": solving + now - before}
    return _decomposition(features[-1], solution, meta, features)


def _solver(name: str) -> Callable[..., Solution]:
    if name == "direct":
        return lambda features, coords, progress=None, **options: solve_direct(features, coords, **options)
    if name == "hashgrid":
        from .solvers.hashgrid import solve_hashgrid

        return solve_hashgrid
    if name == "average":
        from .solvers.average import solve_average

        return lambda features, coords, progress=None, **options: solve_average(features, coords, **options)
    raise InputError(f"unknown solver {name!r}; expected one of {', '.join(SOLVERS)}")


def _decomposition(raw: np.ndarray, solution: Solution, meta: dict[str, Any], kind: Any) -> Decomposition:
    found = (raw, solution.semantics, solution.artifacts, solution.residual)
    raw, semantics, artifacts, residual = (like(part, kind) for part in found)
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
