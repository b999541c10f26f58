"""The command line as a whole: its commands and its own options."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import dataset, decompose, denoise, distill, doctor, evaluate, export, look, train

app = typer.Typer(
    name="dvt-fast",
    help="Denoising Vision Transformers: clean dense features, fast.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # paragraphs of docstrings are wrapped to the terminal, not where the source breaks
    add_completion=False,
    pretty_exceptions_enable=False,  # errors made for users are one line; the others are bugs, whose traceback helps
)
app.command("dataset")(dataset.command)
app.command("decompose")(decompose.command)
app.command("denoise")(denoise.command)
app.command("distill")(distill.command)
app.command("doctor")(doctor.command)
app.add_typer(evaluate.app, name="eval")
app.command("export")(export.command)
app.command("look")(look.command)
app.command("train")(train.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dvt-fast {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""
