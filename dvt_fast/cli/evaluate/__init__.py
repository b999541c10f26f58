"""`dvt-fast eval`: what features are good for, before and after denoising, on labelled images."""

from __future__ import annotations

import typer

from ...evaluation.tasks import TASKS
from . import commands

app = typer.Typer(
    help="Measure features before and after denoising.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
for task in TASKS.values():
    app.command(task.name, short_help=f"{task.title}.")(commands.measure(task))
app.command("run")(commands.run_config)
app.command("report")(commands.report)
