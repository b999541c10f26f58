"""`dvt-fast distill`: a ViT and its denoiser in, a plain ViT out."""

from __future__ import annotations

from typing import Annotated

import typer

from . import common, training
from .training import Defaults


def command(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATHS", help="Image files, folders, glob patterns or URLs.", show_default=False),
    ],
    denoiser: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A file, hf://OWNER/REPO/path, voc_denoised or imgnet_denoised.",
            show_default="the one that comes with dvt_mini",
        ),
    ] = None,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The folder to write to.")] = "distilled",
    vit: common.Name = "dvt_mini",
    weights: common.Weights = None,
    size: common.Size = None,
    layer: common.Layer = -1,
    norm: common.Norm = True,
    stride: common.Stride = None,
    steps: training.Steps = Defaults.steps,
    batch: training.Batch = Defaults.batch,
    blr: training.Blr = 2e-4,
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
    device: training.Device = "cpu",
    workers: training.Workers = 2,
    memory: training.Memory = None,
    resume: training.Resume = True,
    threads: common.Threads = 0,
    as_json: training.AsJson = False,
    debug: common.Debug = False,
) -> None:
    """Distil a ViT and its denoiser into a plain ViT of the same kind, on images.

    The output folder gets distilled.safetensors, for --weights with the same --vit, --size, --layer, --stride and
    --norm, and checkpoints and logs as of dvt-fast train. The same command again goes on from the newest checkpoint.
    Images that cannot be used are reported, and the exit code is then 1.
    """
    common.check_backends()

    from ..training import distill

    training.carry_out(
        distill, images=paths, out=out, denoiser=denoiser,
        vit=common.vit_options(vit, weights, size, layer, norm, stride),
        steps=steps, batch=batch, blr=blr, final_lr=final_lr, warmup=warmup, weight_decay=weight_decay, clip=clip,
        ema=ema, precision=precision and precision.value, seed=seed, held_out=held_out, every=every,
        patience=patience, variants=variants, log_every=log_every,
        device=device, workers=workers, memory=memory, resume=resume, threads=threads, as_json=as_json,
    )  # fmt: skip
