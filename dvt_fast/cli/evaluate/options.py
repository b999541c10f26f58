"""The options that the commands of `dvt-fast eval` share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_labels = partial(typer.Option, rich_help_panel="Data")
_variants = partial(typer.Option, rich_help_panel="Variants")

Variants = Annotated[
    list[str] | None,
    _variants(
        "--variant",
        "-v",
        metavar="VARIANT",
        help="What is made of the features: raw, coordinates (a control), average, direct, hashgrid, stage2, map:FILE "
        "or stage2:FILE; with a name and settings: few=direct,views=realtime,passes=1. May be repeated.",
        show_default="raw, average, direct, and stage2 where the ViT has a denoiser",
    ),
]
Denoisers = Annotated[
    list[str] | None,
    _variants("--denoiser", metavar="FILE", help="A trained denoiser, as a further variant. May be repeated."),
]
Layout = Annotated[str, _labels(metavar="NAME", help="How the folder holds its labels: see docs/data-layouts.md.")]
Read = Annotated[
    list[str] | None,
    _labels("--read", metavar="NAME=VALUE", help="How labels are read: ignore=[11], val_fraction=0.3, scale=5000."),
]
TrainImages = Annotated[
    int | None, _labels(metavar="N", help="At most so many, evenly spaced.", min=1, show_default="all")
]
ValImages = Annotated[
    int | None, _labels(metavar="N", help="At most so many, evenly spaced.", min=1, show_default="all")
]
Quick = Annotated[bool, typer.Option("--quick", help="A shorter recipe, for a first look.")]
Seeds = Annotated[int | None, typer.Option(metavar="N", help="How many heads are trained.", min=1)]
Setting = Annotated[
    list[str] | None,
    typer.Option("--setting", "-s", metavar="NAME=VALUE", help="A setting of the task, such as iterations=2000."),
]
Out = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Where results and the report go; what is there is added to.")
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Of the run.", show_default="the folder's")]
Cache = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where features are kept.", show_default="OUT/features")
]
Again = Annotated[bool, typer.Option("--again", help="Measure again what is measured already.")]
Compare = Annotated[
    list[Path] | None,
    typer.Option("--compare", metavar="FOLDER", help="Results of another OUT, to put beside these. May be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a run on stdout.")]
