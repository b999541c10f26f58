"""`dvt-fast decompose`: images in; for each, a safetensors file with its features taken apart, and a picture."""

from __future__ import annotations

import errno
import inspect
import io
import json
import time
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Cancelled, InputError, OutputError
from ..extras import require
from ..files import check_folder, write_together
from ..runtime import set_num_threads
from ..views import DEFAULT_PLAN, plan_boxes
from . import common
from .progress import Bar

# What fails the writing of one file and will fail that of all others: a full disk, a quota, a disk or folder that may
# not be written. Anything else (a name that the file system refuses, say) is the failure of one image.
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def command(
    paths: common.Images,
    vit: common.Name = "dvt_mini",
    weights: common.Weights = None,
    solver: common.SolverName = common.Solver.direct,
    views: common.Plan = DEFAULT_PLAN,
    size: common.Size = None,
    layer: common.Layer = -1,
    norm: common.Norm = True,
    stride: common.Stride = None,
    seed: common.Seed = 0,
    option: common.SolverOption = None,
    out: Annotated[Path, typer.Option(help="The folder to write to; made where it is missing.")] = Path("out"),
    patch: Annotated[
        str | None,
        typer.Option(metavar="ROW,COLUMN", help="The patch whose similarities are drawn.", show_default="chosen"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an image on stdout.")] = False,
    threads: common.Threads = 0,
    debug: common.Debug = False,
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
            vit_options=common.vit_options(vit, weights, size, layer, norm, stride),
            options={"views": common.parse_plan(views), "solver": solver.value, "seed": seed},
            solver_options=common.parse_solver_options(option, inspect.signature(command).parameters),
            patch=common.parse_pair(patch, ",", "--patch") if patch else None,
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
    common.check_backends()
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
                failed.append(common.reason(path, error))
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
