"""What `dvt-fast train` and `dvt-fast distill` share: the options of a training, its progress and its result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Cancelled
from ..training.options import TrainingOptions
from . import common
from .progress import Tally

if TYPE_CHECKING:
    from ..training import Summary

GIB = 2**30
Defaults = TrainingOptions


class Precision(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def _training(*names: str, metavar: str = "N", **settings: Any) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel="Training", **settings)


def _run(*names: str, metavar: str = "N", **settings: Any) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel="Run", **settings)


Steps = Annotated[int, _training(help="Of the optimiser.")]
Batch = Annotated[int, _training(help="Images a step, over all processes.")]
Blr = Annotated[
    float | None,
    _training(
        metavar="X",
        help="Learning rate for a batch of 256; goes with the root of the batch.",
        show_default="2 / channels",
    ),
]
FinalLr = Annotated[float, _training(help="Learning rate at the end.")]
Warmup = Annotated[float, _training(help="Share of the steps in which the learning rate rises.")]
WeightDecay = Annotated[float, _training(help="Of AdamW.")]
Clip = Annotated[float, _training(help="Largest norm of the gradient; 0 for any.")]
Ema = Annotated[float, _training(help="Decay of the averaged weights, which are the result; 0 for no average.")]
PrecisionName = Annotated[
    Precision | None,
    _training(metavar="NAME", help="fp32, bf16 or fp16.", show_default="fp32 on a CPU, bf16 on a GPU that has it"),
]
Seed = Annotated[int, _training(help="Of the order of the images, the first weights and random crops.", min=0)]
HeldOut = Annotated[float, _training(help="Share of the images kept for scoring.")]
Every = Annotated[int, _training(help="Steps from one scoring and checkpoint to the next.")]
Patience = Annotated[
    int, _training(help="Stop after so many scorings without a better one, and give the best; 0 for never.")
]
Variants = Annotated[int, _training(help="Views of each image: the whole and random crops; 1 is the whole alone.")]
LogEvery = Annotated[int, _training(help="Steps from one line of the log to the next.")]

Device = Annotated[str, _run(metavar="NAME", help="cpu, cuda or cuda:1; with torchrun cpu or cuda.")]
Workers = Annotated[int, _run(help="Threads that read ahead.", min=0)]
Memory = Annotated[
    float | None,
    _run(metavar="GIB", help="For samples kept in memory.", min=0, show_default="a quarter"),
]
Resume = Annotated[
    bool,
    _run(
        "--resume/--no-resume",
        metavar="",
        help="Go on from the newest checkpoint, or delete them and start over.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def carry_out(
    work: Callable[..., Summary], *, memory: float | None, threads: int, as_json: bool, **arguments: Any
) -> None:
    """Run `work` with its progress shown, and print its summary; exits with 1 where images could not be used."""
    common.set_threads(threads)
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes one shows and prints
    try:
        with Tally() if first else nullcontext() as tally:
            summary = work(
                memory=None if memory is None else int(memory * GIB),
                progress=tally.step if tally else None,
                watch=(lambda record: tally.note(_note(record))) if tally else None,
                **arguments,
            )
    except (KeyboardInterrupt, Cancelled):
        if first:
            typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    if not first:
        return
    typer.echo(json.dumps(summary.as_dict()) if as_json else _text(summary))
    if summary.failed:
        typer.echo("\n  ".join([f"{len(summary.failed)} failed:", *summary.failed]), err=True)
        raise typer.Exit(1)


def _note(record: dict[str, Any]) -> str:
    """A line of the log, for the progress bar."""
    if "loss" in record:
        return f"loss {record['loss']:.4f}, {record['images_per_second']:.0f} images/s"
    return f"held-out cosine {record['held_out_cosine']:.4f}, was {record['held_out_before']:.4f}"


def _text(summary: Summary) -> str:
    """The summary for people."""
    since = f" from step {summary.resumed_from}" if summary.resumed_from else ""
    stopped = ", stopped early" if summary.stopped_early else ""
    lines = [
        f"{summary.file}: {summary.step} steps{since}{stopped} on {summary.images} images, {summary.seconds:.1f} s"
    ]
    if summary.score:
        before, after = summary.score["before"], summary.score["after"]
        lines.append(f"held-out cosine {after:.4f}, was {before:.4f} ({summary.held_out} images)")
    return "\n".join(lines)
