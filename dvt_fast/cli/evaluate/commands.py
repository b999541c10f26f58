"""The commands of `dvt-fast eval`: one a task, one for a configuration of many, one for the report alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ...evaluation.tasks import Task
from ...options import parse_values
from ...vit import MINI
from .. import common
from . import options, show
from .config import read_config
from .jobs import Job, carry_out, variants_of


def measure(task: Task) -> Callable[..., None]:
    """The command of a task."""

    def command(
        paths: Any,
        variant: options.Variants = None,
        denoiser: options.Denoisers = None,
        vit: common.Name = MINI,
        weights: common.Weights = None,
        size: common.Size = None,
        layer: common.Layer = -1,
        norm: common.Norm = True,
        stride: common.Stride = None,
        device: common.Device = "cpu",
        layout: options.Layout = "auto",
        read: options.Read = None,
        train_images: options.TrainImages = None,
        val_images: options.ValImages = None,
        quick: options.Quick = False,
        seeds: options.Seeds = None,
        setting: options.Setting = None,
        out: options.Out = Path("eval"),
        name: options.Name = None,
        cache: options.Cache = None,
        again: options.Again = False,
        compare: options.Compare = None,
        as_json: options.AsJson = False,
        threads: common.Threads = 0,
        debug: common.Debug = False,
    ) -> None:
        job = Job(
            task=task,
            paths=[paths] if isinstance(paths, Path) else paths,
            vit=common.vit_options(vit, weights, size, layer, norm, stride, device),
            variants=variants_of(variant, denoiser),
            layout=layout,
            read=parse_values(read, "--read"),
            train_images=train_images,
            val_images=val_images,
            quick=quick,
            seeds=seeds,
            settings=parse_values(setting, "--setting"),
            name=name,
        )
        carry_out([job], out, cache, again=again, compare=compare or [], as_json=as_json, threads=threads)

    help_text = "The folder of images and labels." if task.data else "Image files, folders or glob patterns."
    argument = typer.Argument(metavar="FOLDER" if task.data else "PATHS", help=help_text, show_default=False)
    command.__annotations__["paths"] = Annotated[Path if task.data else list[Path], argument]
    # Its help shows what the task can take.
    signature, without = inspect.signature(command, eval_str=True), set()
    if not task.data:
        without |= {"layout", "read", "train_images"}
    if not task.heads:
        without.add("seeds")
    kept = [parameter for name, parameter in signature.parameters.items() if name not in without]
    command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    command.__doc__ = f"""{task.about}

    Writes OUT/{task.name}-NAME.json and OUT/report.html. The same command again goes on where the last run ended. A
    variant that fails and an image that cannot be used are reported, the others are still done, and the exit code is
    then 1.
    """
    return command


def run_config(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A TOML file: see docs/evaluation.md.", show_default=False)
    ],
    data_root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Where relative paths are looked for, before CONFIG's folder. May be repeated."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="TASK-NAME", help="This run alone. May be repeated.")
    ] = None,
    quick: options.Quick = False,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where ViTs run.", show_default="CONFIG's, or cpu")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where results and the report go.", show_default="CONFIG's, or eval"),
    ] = None,
    cache: options.Cache = None,
    again: options.Again = False,
    compare: options.Compare = None,
    as_json: options.AsJson = False,
    threads: common.Threads = 0,
    debug: common.Debug = False,
) -> None:
    """Many tasks, ViTs and variants, as a file says.

    Nothing is computed before all of the file is understood. The same command again goes on where the last run ended.
    """
    jobs, folder = read_config(config, data_root or [], quick=quick, device=device, only=only or [])
    carry_out(jobs, out or folder, cache, again=again, compare=compare or [], as_json=as_json, threads=threads)


def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder of results.", show_default=False)],
    compare: options.Compare = None,
    debug: common.Debug = False,
) -> None:
    """Write OUT/report.html of the results in OUT.

    With --compare, results of other folders stand beside those of the same task and name: the difference for each
    variant of the same name, with its interval, and what else was not the same.
    """
    from ...evaluation.report import write_report

    path = write_report(out, compare or [])
    for other in compare or []:
        show.comparison(out, other)
    typer.echo(f"report: {path}")
