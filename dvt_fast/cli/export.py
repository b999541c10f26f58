"""`dvt-fast export`: a ViT and its denoiser in one file, for the engine in C, C++ and Python."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import hub
from ..errors import InputError
from ..extras import require
from ..files import check_folder, write_whole
from ..vit import MINI
from . import common, models

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..vit import ViT


class Part(str, Enum):
    vit = "vit"
    denoiser = "denoiser"


class Dtype(str, Enum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def command(
    context: typer.Context,
    denoiser: models.DenoiserFile = None,
    only: Annotated[
        Part | None,
        typer.Option(metavar="PART", help="Export vit alone, or denoiser alone.", show_default="both"),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(metavar="NAME", help=f"Of the stored weights: {', '.join(kind.value for kind in Dtype)}.")
    ] = Dtype.float32,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")] = Path(
        "engine.safetensors"
    ),
    vit: common.Name = MINI,
    weights: common.Weights = None,
    size: common.Size = None,
    layer: common.Layer = -1,
    norm: common.Norm = True,
    stride: common.Stride = None,
    debug: common.Debug = False,
) -> None:
    """Write a ViT, then its denoiser, as one file for the engine.

    The engine runs the file without Python and without torch. A ViT of which it cannot run a layer is refused, and the
    message names the layer.

    The ViT is the one that the denoiser was trained for, as its file says; give options of the ViT to change it, and
    with files that do not say. The size becomes the default of the engine, which can run at others.
    """
    asked = common.vit_options(vit, weights, size, layer, norm, stride)
    chosen = {"name" if name == "vit" else name for name in context.params if common.is_given(context, name)}
    if only is Part.vit and denoiser is not None:
        raise typer.BadParameter("is of no use with --only vit", param_hint="--denoiser")
    if only is None and denoiser is None and vit != MINI:
        raise InputError(f"no denoiser comes with {vit}: give one by --denoiser, or --only vit to export the ViT alone")

    require("torch", "vit")
    check_folder(out.parent)
    from ..engine.export import to_bytes

    model, cleaner = _parts(only, denoiser, asked, chosen & asked.keys())
    data = to_bytes(model, cleaner, dtype.value)
    write_whole(out, data)
    what = ", then ".join(_named(part) for part in (model, cleaner) if part is not None)
    typer.echo(f"{out}: {what}; {dtype.value}, {len(data) / 2**20:.1f} MiB")


def _parts(
    only: Part | None, spec: str | None, asked: dict[str, Any], chosen: set[str]
) -> tuple[ViT | None, Denoiser | None]:
    """What to export."""
    if only is Part.vit:
        from ..vit import ViT

        return ViT(**asked), None
    if only is Part.denoiser and spec is not None and spec not in hub.DENOISERS:
        from ..denoiser import Denoiser
        from ..denoiser.checkpoint import local

        return None, Denoiser.from_checkpoint(local(spec))  # its ViT need not be here
    model, denoiser = models.load_models(spec, asked, chosen)
    return (None if only is Part.denoiser else model), denoiser


def _named(part: ViT | Denoiser) -> str:
    what = f"{part.grid[0]} x {part.grid[1]} patches of {part.dim} channels"
    if hasattr(part, "kind"):
        return f"a denoiser of kind {part.kind} for {what}"
    if part.layer < part.depth - 1:
        what += f", block {part.layer + 1} of {part.depth}"
    if not part.norm:
        what += ", before the final norm"
    return f"{part.name} at {part.size[0]} x {part.size[1]} ({what})"
