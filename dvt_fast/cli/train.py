"""`dvt-fast train`: pairs in, a denoiser out."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from ..views import DEFAULT_PLAN
from . import common, training
from .training import Defaults

# Of --on-the-fly; a dataset knows them itself, but for where its ViT's weights are now.
STAGE1 = ("vit", "weights", "size", "layer", "norm", "stride", "solver", "views", "option")


class Kind(str, Enum):
    block = "block"
    block_nopos = "block-nopos"
    rotary = "rotary"
    registers = "registers"
    conv1 = "conv1"
    conv3 = "conv3"
    map = "map"


class Start(str, Enum):
    artifacts = "artifacts"
    random = "random"


def _model(*names: str, metavar: str = "N", **settings: Any) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel="Denoiser", **settings)


def command(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="A dataset; with --on-the-fly, images.", show_default=False),
    ],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The folder to write to.")] = "denoiser",
    on_the_fly: Annotated[
        bool, typer.Option("--on-the-fly", help="Make the pairs of images when they are needed; store none.")
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the images of a dataset of semantics are now.", show_default="as then"),
    ] = None,
    kind: Annotated[Kind, _model(metavar="NAME", help=f"{', '.join(kind.value for kind in Kind)}.")] = Kind.block,
    blocks: Annotated[int, _model(help="Blocks in a row.", min=1)] = 1,
    heads: Annotated[int | None, _model(help="Of the attention.", min=1, show_default="of 64 channels each")] = None,
    start: Annotated[
        Start, _model(metavar="NAME", help="Position embedding at first: minus the mean artifacts, or random.")
    ] = Start.artifacts,
    steps: training.Steps = Defaults.steps,
    batch: training.Batch = Defaults.batch,
    blr: training.Blr = Defaults.blr,
    final_lr: training.FinalLr = Defaults.final_lr,
    warmup: training.Warmup = Defaults.warmup,
    weight_decay: training.WeightDecay = Defaults.weight_decay,
    clip: training.Clip = Defaults.clip,
    ema: training.Ema = Defaults.ema,
    precision: training.PrecisionName = None,
    seed: training.Seed = 0,
    held_out: training.HeldOut = Defaults.held_out,
    every: training.Every = Defaults.every,
    patience: training.Patience = Defaults.patience,
    variants: training.Variants = Defaults.variants,
    log_every: training.LogEvery = Defaults.log_every,
    vit: common.Name = "dvt_mini",
    weights: common.Weights = None,
    size: common.Size = None,
    layer: common.Layer = -1,
    norm: common.Norm = True,
    stride: common.Stride = None,
    solver: common.SolverName = common.Solver.direct,
    views: common.Plan = DEFAULT_PLAN,
    option: common.SolverOption = None,
    device: training.Device = "cpu",
    workers: training.Workers = 2,
    memory: training.Memory = None,
    resume: training.Resume = True,
    threads: common.Threads = 0,
    as_json: training.AsJson = False,
    debug: common.Debug = False,
) -> None:
    """Train a denoiser on the pairs of a dataset, or of images.

    The output folder gets denoiser.safetensors, checkpoints, log.jsonl and a log for TensorBoard. The same command
    again goes on from the newest checkpoint, and is refused where the settings are others. For several GPUs:
    torchrun --nproc-per-node 8 -m dvt_fast.cli train DATA --device cuda. Images that cannot be used are reported, and
    the exit code is then 1.
    """
    if on_the_fly:
        paths: Any = data
        model: Any = common.vit_options(vit, weights, size, layer, norm, stride)
    else:
        given = [name for name in STAGE1 if common.is_given(context, name)]
        given = [name for name in given if name != "weights"]
        if given:
            raise typer.BadParameter("only with --on-the-fly: a dataset has its own", param_hint=f"--{given[0]}")
        if len(data) != 1:
            raise typer.BadParameter("one dataset is needed; images are for --on-the-fly", param_hint="DATA")
        paths, model = data[0], {"weights": weights} if weights else None
    common.check_backends()

    from ..training import train

    training.carry_out(
        train, data=paths, out=out, on_the_fly=on_the_fly, vit=model, images=images,
        views=common.parse_plan(views), solver=solver.value,
        solver_options=common.parse_solver_options(option, (*STAGE1, "seed")),
        kind=kind.value, num_blocks=blocks, num_heads=heads, start=start.value,
        steps=steps, batch=batch, blr=blr, final_lr=final_lr, warmup=warmup, weight_decay=weight_decay, clip=clip,
        ema=ema, precision=precision and precision.value, seed=seed, held_out=held_out, every=every,
        patience=patience, variants=variants, log_every=log_every,
        device=device, workers=workers, memory=memory, resume=resume, threads=threads, as_json=as_json,
    )  # fmt: skip
