"""What several commands share: options, declared once, the texts they are read from, and one-line reasons."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import hub
from ..errors import DvtError, InputError
from ..extras import require
from ..options import parse_values
from ..runtime import backends, set_num_threads
from ..views import PLANS


class Solver(str, Enum):
    direct = "direct"
    hashgrid = "hashgrid"
    average = "average"


# Options of `dvt_fast.ViT` and of `dvt_fast.decompose`; --help shows them under headings of their own.
_vit = partial(typer.Option, rich_help_panel="ViT")
_stage1 = partial(typer.Option, rich_help_panel="Stage 1")

# `vit_options` makes keyword arguments of these.
Name = Annotated[
    str, _vit("--vit", metavar="NAME", help="A timm model name, or dvt_mini, which comes with the package.")
]
Weights = Annotated[
    str | None,
    _vit(
        metavar="FILE",
        help=f"A file (.safetensors, or a torch checkpoint), {hub.SCHEME}OWNER/REPO/path, or those that the authors of "
        f"DVT published: {' or '.join(hub.DISTILLED)}.",
        show_default="timm's",
    ),
]
Size = Annotated[
    str | None,
    _vit(metavar="SIZE", help="Input size: 518, or 392x518 (height x width).", show_default="the model's own"),
]
Layer = Annotated[int, _vit(metavar="N", help="The block whose output is used, counted from 0; -1 is the last.")]
Norm = Annotated[bool, _vit(help="Apply the model's final norm.")]
Stride = Annotated[int | None, _vit(metavar="N", help="Pixels from patch to patch.", show_default="the patch size")]
Device = Annotated[str, _vit(metavar="NAME", help="Where all is computed: cpu, cuda, cuda:1.")]

Images = Annotated[
    list[str], typer.Argument(metavar="PATHS", help="Image files, folders or glob patterns.", show_default=False)
]
Plan = Annotated[str, _stage1("--views", metavar="PLAN", help=f"{', '.join(PLANS)}, or a number of random crops.")]
SolverName = Annotated[
    Solver, _stage1("--solver", metavar="NAME", help="How F and G are found: direct, hashgrid or average.")
]
Seed = Annotated[int, _stage1(metavar="N", help="Of random crops and of the hashgrid solver.", min=0)]
SolverOption = Annotated[
    list[str] | None,
    _stage1("--option", "-o", metavar="NAME=VALUE", help="An option of the solver, such as steps=2000."),
]

Threads = Annotated[int, typer.Option(metavar="N", help="Processor threads; 0 is all of them.", min=0)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line says the parameter `name`, be it with the value that is the default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def vit_options(
    name: str, weights: str | None, size: str | None, layer: int, norm: bool, stride: int | None, device: str = "cpu"
) -> dict[str, Any]:
    """The keyword arguments of `dvt_fast.ViT`."""
    return {"name": name, "weights": weights, "size": parse_size(size), "layer": layer, "norm": norm,
            "stride": stride, "device": device}  # fmt: skip


def parse_plan(text: str) -> str | int:
    """A plan's name, or a number of random crops."""
    return int(text) if text.isdecimal() else text


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """518, or 392x518."""
    if text is None:
        return None
    return int(text) if text.isdecimal() else parse_pair(text, "x", "--size")


def parse_pair(text: str, separator: str, name: str) -> tuple[int, int]:
    """Two whole numbers with `separator` between them; name: the option that the text is of."""
    parts = [part.strip() for part in text.split(separator)]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(
            f"expected two whole numbers with '{separator}' between, got '{text}'", param_hint=name
        )
    return int(parts[0]), int(parts[1])


def parse_solver_options(texts: Iterable[str] | None, taken: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE texts of --option as a dict. taken: names that the command itself has options for."""
    options = parse_values(texts, "--option")
    for name in taken:
        if name in options:
            raise InputError(f"{name} is set by the command itself, not by --option: see --help")
    return options


def check_backends() -> None:
    """Raise the reason why the native code cannot compute here, where it cannot."""
    cpu = next(backend for backend in backends() if backend.name == "cpu")
    if not cpu.available:
        raise DvtError(f"{cpu.name}: {cpu.reason}")


def set_threads(threads: int) -> None:
    """Let the native code and torch use this many threads; 0 leaves both as they are."""
    if threads:
        set_num_threads(threads)
        require("torch", "vit").set_num_threads(threads)


def reason(image: str | Path, error: Exception) -> str:
    """What went wrong with which image, in one line; of what is not one of our errors also the type."""
    text = " ".join(str(error).split())
    if not isinstance(error, DvtError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    return text if text.startswith(str(image)) else f"{image}: {text}"
