"""`dvt-fast decompose`: images in; for each, a safetensors file with its features taken apart, and a picture."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ..extras import require
from ..files import check_folder
from ..views import DEFAULT_PLAN, plan_boxes
from . import common
from .each_image import AsJson, Out, Patch, check_patch, each_image, parse_patch


def command(
    paths: common.Images,
    vit: common.Name = "dvt_mini",
    weights: common.Weights = None,
    solver: common.SolverName = common.Solver.direct,
    views: common.Plan = DEFAULT_PLAN,
    size: common.Size = None,
    layer: common.Layer = -1,
    norm: common.Norm = True,
    stride: common.Stride = None,
    device: common.Device = "cpu",
    seed: common.Seed = 0,
    option: common.SolverOption = None,
    out: Out = Path("out"),
    patch: Patch = None,
    as_json: AsJson = False,
    threads: common.Threads = 0,
    debug: common.Debug = False,
) -> None:
    """Take the features of images apart: semantics F, position artifacts G and a residual.

    For each image, NAME.safetensors (raw, semantics, artifacts, residual, and F as a function of place) and NAME.png
    (a picture to look at) appear in the output folder, whole or not at all. An image that fails is reported, and the
    others are still done; the exit code is then 1.
    """
    vit_options = common.vit_options(vit, weights, size, layer, norm, stride, device)
    options: dict[str, Any] = {"views": common.parse_plan(views), "solver": solver.value, "seed": seed}
    solver_options = common.parse_solver_options(option, inspect.signature(command).parameters)
    wanted_patch = parse_patch(patch)

    # What would fail for every image fails here, once, and before torch takes its seconds to import.
    require("PIL.Image", "vit")
    check_stage1(options, solver_options)
    from ..images import find_images

    images = find_images(paths)
    folder = check_folder(out)

    from .. import ViT, decompose

    common.set_threads(threads)
    model = ViT(**vit_options)
    check_patch(wanted_patch, model)
    each_image(
        images,
        folder,
        lambda image, progress: decompose(image, model, progress=progress, **options, **solver_options),
        patch=wanted_patch,
        as_json=as_json,
        debug=debug,
        counts=slow_steps(solver),
    )


def check_stage1(options: dict[str, Any], solver_options: dict[str, Any]) -> None:
    """Raise what `dvt_fast.decompose` would say about its options or this machine, whatever the image."""
    from ..stage1 import parse_options

    common.check_backends()
    plan_boxes(options["views"], options["seed"])
    parse_options(options["solver"], solver_options)


def slow_steps(solver: common.Solver) -> str:
    """The steps of stage 1 that take the time: see `Bar`."""
    return "steps" if solver is common.Solver.hashgrid else "views"
