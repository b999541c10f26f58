"""`dvt-fast decompose`: images in; for each, a safetensors file with its features taken apart, and a picture."""

from __future__ import annotations

import errno
import inspect
import io
import json
import time
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Cancelled, DvtError, InputError, OutputError
from ..extras import require
from ..files import check_folder, write_together
from ..runtime import backends, set_num_threads
from ..views import DEFAULT_PLAN, PLANS, plan_boxes
from .progress import Bar

# What fails the writing of one file and will fail that of all others: a full disk, a quota, a disk or folder that may
# not be written. Anything else (a name that the file system refuses, say) is the failure of one image.
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class Solver(str, Enum):
    direct = "direct"
    hashgrid = "hashgrid"
    average = "average"


def command(
    paths: Annotated[list[str], typer.Argument(help="Image files, folders or glob patterns.", show_default=False)],
    vit: Annotated[
        str, typer.Option(help="A timm model name, or dvt_mini, which comes with the package.")
    ] = "dvt_mini",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Local weights: .safetensors, or a torch checkpoint.", show_default="timm's"),
    ] = None,
    solver: Annotated[Solver, typer.Option(help="How F and G are found.")] = Solver.direct,
    views: Annotated[
        str, typer.Option(help=f"A plan ({', '.join(PLANS)}) or a number of random crops.")
    ] = DEFAULT_PLAN,
    size: Annotated[
        str | None, typer.Option(help="Input size: 518, or 392x518 (height x width).", show_default="the model's own")
    ] = None,
    layer: Annotated[int, typer.Option(help="The block whose output is used; -1 is the last.")] = -1,
    norm: Annotated[bool, typer.Option(help="Apply the model's final norm.")] = True,
    stride: Annotated[
        int | None, typer.Option(help="Pixels from patch to patch.", show_default="the patch size")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random crops and of the hashgrid solver.", min=0)] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the solver, such as steps=2000."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write to; made where it is missing.")] = Path("out"),
    patch: Annotated[
        str | None,
        typer.Option(metavar="ROW,COLUMN", help="The patch whose similarities are drawn.", show_default="chosen"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an image on stdout.")] = False,
    threads: Annotated[int, typer.Option(help="Processor threads; 0 is all of them.", min=0)] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take the features of images apart: semantics F, position artifacts G and a residual.

    For each image, NAME.safetensors (raw, semantics, artifacts, residual, and F as a function of place) and NAME.png
    (a picture to look at) appear in the output folder, whole or not at all. An image that fails is reported, and the
    others are still done; the exit code is then 1.
    """
    failed: list[str] = []
    try:
        _run(
            paths, failed, as_json=as_json, debug=debug, out=out, threads=threads,
            vit_options={"name": vit, "weights": weights, "size": _size(size), "layer": layer, "norm": norm,
                         "stride": stride},
            options={"views": int(views) if views.isdecimal() else views, "solver": solver.value, "seed": seed},
            solver_options=_solver_options(option or []),
            patch=_pair(patch, ",", "--patch") if patch else None,
        )  # fmt: skip
    except (KeyboardInterrupt, Cancelled):
        typer.echo("stopped; the files written so far are whole", err=True)
        raise typer.Exit(130) from None
    finally:
        if failed:
            typer.echo("\n  ".join([f"{len(failed)} failed:", *failed]), err=True)
    if failed:
        raise typer.Exit(1)


def _run(
    paths: list[str],
    failed: list[str],
    as_json: bool,
    debug: bool,
    out: Path,
    threads: int,
    vit_options: dict[str, Any],
    options: dict[str, Any],
    solver_options: dict[str, Any],
    patch: tuple[int, int] | None,
) -> None:
    """Decompose every image; appends a line to `failed` for each that could not be."""
    from ..images import find_images
    from ..stage1 import parse_options

    # What would fail for every image fails here, once, and before torch takes its seconds to import.
    require("PIL.Image", "vit")
    for backend in backends():
        if not backend.available:
            raise DvtError(f"{backend.name}: {backend.reason}")
    plan_boxes(options["views"], options["seed"])
    parse_options(options["solver"], solver_options)
    images = find_images(paths)
    folder = check_folder(out)

    from .. import ViT, decompose

    if threads:
        set_num_threads(threads)
        require("torch", "vit").set_num_threads(threads)
    vit = ViT(**vit_options)
    if patch and not (patch[0] < vit.grid[0] and patch[1] < vit.grid[1]):
        raise InputError(f"--patch {patch[0]},{patch[1]} is outside the {vit.grid[0]} x {vit.grid[1]} patches")
    with Bar(len(images), counts="steps" if options["solver"] == "hashgrid" else "views") as bar:
        for path, stem in zip(images, output_stems(images, folder), strict=True):
            bar.begin(path.name)
            started = time.perf_counter()
            try:
                d = decompose(str(path), vit, progress=bar.step, **(options | solver_options))
                files = _write(d, path, folder / stem, patch)
            except Cancelled:
                raise
            except Exception as error:
                if debug or (isinstance(error, OutputError) and error.errno in HOPELESS):
                    raise
                failed.append(_reason(path, error))
                if as_json:
                    bar.say(json.dumps({"image": str(path), "error": failed[-1]}))
                continue
            seconds = time.perf_counter() - started
            if as_json:
                h, w, c = d.raw.shape
                bar.say(json.dumps({"image": str(path), **files, "shape": [h, w, c], "seconds": round(seconds, 3)}))
            else:
                bar.say(f"{path}: {files['picture']} and {Path(files['features']).name} ({seconds:.1f} s)")


def _write(d: Any, image: Path, target: Path, patch: tuple[int, int] | None) -> dict[str, str]:
    """Write both files of one image, and return their paths; where that fails, older ones stay as they are."""
    picture = io.BytesIO()
    d.panel(image, patch).save(picture, "PNG", optimize=True)
    features = target.with_name(target.name + ".safetensors")
    panel = target.with_name(target.name + ".png")
    write_together({features: d.to_bytes(), panel: picture.getvalue()})
    return {"features": str(features), "picture": str(panel)}


def output_stems(images: list[Path], folder: Path) -> list[str]:
    """One name an image: its own, with a number where another has it (or has it in other case), or where the picture
    would overwrite an input."""
    inputs = {path.resolve() for path in images}
    stems: list[str] = []
    taken: set[str] = set()
    for image in images:
        for n in count(1):
            stem = image.stem if n == 1 else f"{image.stem}-{n}"
            if stem.casefold() not in taken and (folder / f"{stem}.png").resolve() not in inputs:
                break
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _reason(path: Path, error: Exception) -> str:
    """What went wrong with which image, in one line; of what is not one of our errors also the type."""
    text = " ".join(str(error).split())
    if not isinstance(error, DvtError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    return text if text.startswith(str(path)) else f"{path}: {text}"


def _size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    return int(text) if text.isdecimal() else _pair(text, "x", "--size")


def _pair(text: str, separator: str, name: str) -> tuple[int, int]:
    parts = [part.strip() for part in text.split(separator)]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(
            f"expected two whole numbers with '{separator}' between, got '{text}'", param_hint=name
        )
    return int(parts[0]), int(parts[1])


def _solver_options(texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a dict; values are JSON where they parse as such, else text."""
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"expected NAME=VALUE, got '{text}'", param_hint="--option")
        if name in inspect.signature(command).parameters:
            raise InputError(f"{name} is set by the command itself, not by --option: see --help")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options
