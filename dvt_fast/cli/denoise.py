"""`dvt-fast denoise`: images in; for each, its features before and after a trained denoiser, and a picture.

A video, a camera or a bag goes another way, through the engine: see `denoise_stream.py`."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from ..extras import require
from ..files import check_folder
from ..images import find_images
from ..views import DEFAULT_PLAN
from ..vit import MINI
from . import common, models
from . import denoise_stream as streams
from .decompose import check_stage1, slow_steps
from .each_image import AsJson, Patch, check_patch, each_image, parse_patch

SUFFIX = "-denoised"
FOLDER = Path("out")

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="The folder to write to, made where it is missing; or of a stream the file: a video (.mp4, .mkv, .mov), "
        "pictures (out/%06d.png) or a bag (.mcap, .db3).",
        show_default=str(FOLDER),
    ),
]


def command(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATHS",
            help="Image files, folders or glob patterns; or a video, camera:0, /dev/video0 or a ROS bag.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", metavar="PATH", help="One more of PATHS; may be given several times.")
    ] = None,
    denoiser: models.DenoiserFile = None,
    stage1: Annotated[bool, typer.Option("--stage1", help="Run stage 1 too, and compare.")] = False,
    vit: common.Name = MINI,
    weights: common.Weights = None,
    size: common.Size = None,
    layer: common.Layer = -1,
    norm: common.Norm = True,
    stride: common.Stride = None,
    device: common.Device = "cpu",
    solver: common.SolverName = common.Solver.direct,
    views: common.Plan = DEFAULT_PLAN,
    seed: common.Seed = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="An option of the solver, such as passes=2.", rich_help_panel="Stage 1"
        ),
    ] = None,
    engine: streams.EngineFile = None,
    dtype: streams.DtypeName = streams.Dtype.float32,
    policy: streams.PolicyName = streams.Policy.latest,
    deadline: streams.Deadline = None,
    rate: streams.Rate = None,
    realtime: streams.Realtime = False,
    frames: streams.Frames = None,
    seconds: streams.Seconds = None,
    topic: streams.Topic = None,
    features: streams.Features = None,
    raw: streams.Raw = False,
    rerun: streams.Rerun = None,
    stats: streams.Stats = None,
    out: Out = None,
    patch: Patch = None,
    as_json: AsJson = False,
    threads: common.Threads = 0,
    debug: common.Debug = False,
) -> None:
    """Clean the features of images, or of a video, camera or bag, with a trained denoiser.

    For each image, NAME-denoised.safetensors (raw and denoised, with --stage1 also its semantics F) and
    NAME-denoised.png (a picture to look at) appear in the output folder, whole or not at all. An image that fails is
    reported, and the others are still done; the exit code is then 1.

    A video, a camera or a bag, and images whose output is a video or a bag, go through the engine as a stream. Of a
    video or camera, NAME-denoised.mp4 appears in the output folder, which shows each frame beside its raw and its
    denoised features; of a bag, the bag NAME-denoised with its features. Ctrl-C finishes the files.

    The ViT is the one that the denoiser was trained for, as its file says; give options of the ViT to change it, and
    with files that do not say. The options of stage 1 need --stage1.
    """
    names = [*(paths or ()), *(image or ())]
    if not names:
        raise typer.BadParameter("expected images, a folder, a pattern, a video, a camera or a bag", param_hint="PATHS")
    given = {name for name in inspect.signature(command).parameters if common.is_given(context, name)}
    for name in ("views", "solver", "seed", "option"):
        if name in given and not stage1:
            raise typer.BadParameter("is an option of stage 1: give --stage1, too", param_hint=f"--{name}")
    vit_options = common.vit_options(vit, weights, size, layer, norm, stride, device)
    chosen = {"name" if name == "vit" else name for name in given} & vit_options.keys()
    if streams.is_stream(names, out):
        _refuse(given & {"stage1", "patch"}, "is for images, not for streams")
        values = context.params
        job = streams.Job(
            names=names,
            asked=vit_options,
            chosen=chosen,
            **{field.name: values[field.name] for field in dataclasses.fields(streams.Job) if field.name in values},
        )
        streams.denoise_stream(job, FOLDER)
        return
    _refuse(given & set(streams.OPTIONS), "is for streams: for images give --out a video (.mp4), a bag or out/%06d.png")

    solver_options = common.parse_solver_options(option, inspect.signature(command).parameters)
    options: dict[str, Any] = {"solver": solver.value, "seed": seed}
    plan = common.parse_plan(views)
    wanted_patch = parse_patch(patch)

    # What would fail for every image fails here, once, and before torch takes its seconds to import.
    require("PIL.Image", "vit")
    if stage1:
        check_stage1(options | {"views": plan}, solver_options)
        options = {"stage1": plan, **options, **solver_options}
    images = find_images(names)
    folder = check_folder(out or FOLDER)

    require("torch", "vit")
    from .. import denoise

    common.set_threads(threads)
    model, loaded = models.load_models(denoiser, vit_options, chosen)
    check_patch(wanted_patch, model)
    each_image(
        images,
        folder,
        lambda image, progress: denoise(image, model, loaded, progress=progress, **(options if stage1 else {})),
        patch=wanted_patch,
        as_json=as_json,
        debug=debug,
        counts=slow_steps(solver),
        suffix=SUFFIX,
        numbers=lambda result: {"cosine": result.cosines()} if stage1 else {},
    )


def _refuse(given: set[str], why: str) -> None:
    if given:
        raise typer.BadParameter(why, param_hint=f"--{min(given)}")
