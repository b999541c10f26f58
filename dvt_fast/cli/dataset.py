"""`dvt-fast dataset`: images in, pairs of raw features and stage-1 semantics out, for stage 2 to learn from."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Cancelled
from ..views import DEFAULT_PLAN
from ..vit import MINI
from . import common
from .progress import Tally

if TYPE_CHECKING:
    from ..dataset import Report, Summary

SHOWN = 100  # lines about failed images or bad files; the manifest has them all


class Engine(str, Enum):
    local = "local"
    ray = "ray"


class Keep(str, Enum):
    both = "both"
    semantics = "semantics"


class Dtype(str, Enum):
    float16 = "float16"
    int8 = "int8"


def _run(*names: str, metavar: str = "N", **settings: object) -> typer.models.OptionInfo:
    return typer.Option(*names, metavar=metavar, rich_help_panel="Run", **settings)  # type: ignore[arg-type]


def command(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATHS", help="Image files, folders, glob patterns or URLs.", show_default=False),
    ] = None,
    out: Annotated[
        str,
        typer.Option(metavar="URL", help="The folder to write to, or s3://bucket/folder, gs://bucket/folder."),
    ] = "dataset",
    keep: Annotated[
        Keep,
        typer.Option(
            metavar="PARTS",
            help="semantics alone, or both, with the raw features: twice the space, and images need not stay.",
        ),
    ] = Keep.semantics,
    dtype: Annotated[
        Dtype, typer.Option(metavar="NAME", help="float16, or int8 with a scale for each token.")
    ] = Dtype.float16,
    check: Annotated[
        bool, typer.Option("--check", help="Compare every file with the manifest, and compute nothing.")
    ] = False,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove pairs of images not in PATHS; with --check, bad and extra files."),
    ] = False,
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
    option: common.SolverOption = None,
    engine: Annotated[
        Engine, _run(metavar="NAME", help="local: processes of this machine; ray: actors on a cluster.")
    ] = Engine.local,
    address: Annotated[
        str | None,
        _run(metavar="HOST:PORT", help="Of the Ray cluster, or auto.", show_default="RAY_ADDRESS, else a new one"),
    ] = None,
    workers: Annotated[
        int | None,
        _run(help="How many; 0 computes in this process.", min=0, show_default="one a GPU, or one for --threads cores"),
    ] = None,
    threads: Annotated[int, _run(help="Processor threads of each worker.", min=1)] = 1,
    retries: Annotated[int, _run(help="How often an image is tried again whose worker died.", min=0)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    debug: common.Debug = False,
) -> None:
    """Stage 1 on many images, stored as pairs to train a denoiser on.

    The output gets one small file an image, whole or not at all, and manifest.parquet, a table of all images.
    The same command again goes on where the last run ended, however that was, and tries failed images again; it is
    refused where the settings are others. An image that fails is reported, the others are still done, and the exit
    code is then 1.
    """
    if bool(paths) == check:
        raise typer.BadParameter("none are needed with --check" if check else "some are needed", param_hint="PATHS")
    try:
        if check:
            _check(out, prune, as_json)
            return
        common.check_backends()
        from ..dataset import build_dataset

        # What libraries print (Ray, of a node that died) must not mix with the result.
        with Tally() as tally, contextlib.redirect_stdout(sys.stderr):
            summary = build_dataset(
                paths or [],
                out,
                common.vit_options(vit, weights, size, layer, norm, stride, device),
                views=common.parse_plan(views),
                solver=solver.value,
                options=common.parse_solver_options(option, inspect.signature(command).parameters),
                seed=seed,
                keep=keep.value,
                dtype=dtype.value,
                engine=engine.value,
                address=address,
                workers=workers,
                threads=threads,
                retries=retries,
                prune=prune,
                progress=tally.step,
            )
    except (KeyboardInterrupt, Cancelled):
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(summary) | {"rate": summary.rate}))
    else:
        typer.echo(_text(summary))
    if summary.failed:
        _list(f"{len(summary.failed)} failed:", summary.failed)
        raise typer.Exit(1)


def _text(summary: Summary) -> str:
    """The summary for people."""
    counts = [f"{summary.made} done", f"{summary.skipped} done before", f"{summary.duplicates} duplicates"]
    lines = [f"{summary.images} images: {', '.join(counts)}, {len(summary.failed)} failed"]
    if summary.made:
        lines[0] += f"; {summary.seconds:.1f} s, {summary.rate:.2f} images/s"
    if summary.pair_bytes:
        ratio = summary.reference_bytes / summary.pair_bytes
        lines.append(
            f"{summary.pair_bytes:,.0f} bytes an image, {ratio:.1f} times less than raw and semantics in float32"
        )
    if summary.kept:
        lines.append(f"{summary.kept} more of earlier runs are kept; --prune removes them")
    if summary.pruned:
        lines.append(f"{summary.pruned} files removed")
    return "\n".join(lines)


def _check(out: str, prune: bool, as_json: bool) -> None:
    from ..dataset import check_dataset

    with Tally() as tally:
        report = check_dataset(out, prune=prune, progress=tally.step)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report) | {"good": report.good}))
    else:
        typer.echo(_report_text(report))
    for lines, what in ((report.missing, "missing"), (report.damaged, "damaged"), (report.extra, "extra")):
        if lines:
            _list(f"{len(lines)} {what}:", lines)
    if not report.good:
        raise typer.Exit(1)


def _report_text(report: Report) -> str:
    if report.good:
        return f"{report.pairs} pairs: every file is as the manifest has it"
    counts = f"{len(report.missing)} missing, {len(report.damaged)} damaged, {len(report.extra)} extra"
    hint = (
        f"{report.removed} files removed; dvt-fast dataset makes anew what is needed"
        if report.removed
        else "dvt-fast dataset makes anew what is missing or cut, and --check --prune removes the rest"
    )
    return f"{report.pairs} pairs: {counts}; {hint}"


def _list(title: str, lines: list[str]) -> None:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    typer.echo("\n  ".join([title, *lines[:SHOWN], *more]), err=True)
