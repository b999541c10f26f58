"""The loop of the commands that turn each image into two files: NAME.safetensors with features and NAME.png to look at.

An image that fails does not stop the others, and its files are both new or both as they were. What fails every image
(a full disk) stops the run.
"""

from __future__ import annotations

import errno
import io
import json
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from ..errors import Cancelled, InputError, OutputError
from ..files import write_together
from .common import parse_pair, reason
from .progress import Bar

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..progress import Progress
    from ..vit import ViT

Out = Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write to; made where it is missing.")]
Patch = Annotated[
    str | None,
    typer.Option(metavar="ROW,COLUMN", help="The patch whose similarities are drawn.", show_default="chosen"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object an image on stdout.")]

# What fails the writing of one file and will fail that of all others: a full disk, a quota, a disk or folder that may
# not be written. Anything else (a name that the file system refuses, say) is the failure of one image.
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class Result(Protocol):
    """What is made of an image: raw is [H, W, C]."""

    raw: Any

    def to_bytes(self) -> bytes: ...

    def panel(self, image: Any = None, patch: tuple[int, int] | None = None) -> PILImage.Image: ...


def each_image(
    images: list[Path],
    folder: Path,
    make: Callable[[str, Progress], Any],
    *,
    patch: tuple[int, int] | None,
    as_json: bool,
    debug: bool,
    counts: str = "views",
    suffix: str = "",
    numbers: Callable[[Any], dict[str, Any]] | None = None,
) -> None:
    """Make, write and report the `Result` of each image; lists those that failed, and then exits with 1.

    make(path, progress): the result of one image. patch: for its picture. counts: the steps of `progress` that take
    the time. suffix: of the files' names, before the extension. numbers(result): more to print with --json.
    """
    failed: list[str] = []
    try:
        with Bar(len(images), counts) as bar:
            for path, stem in zip(images, output_stems(images, folder, suffix), strict=True):
                bar.begin(path.name)
                started = time.perf_counter()
                try:
                    result = make(str(path), bar.step)
                    files = _write(result, path, folder / stem, patch)
                except Cancelled:
                    raise
                except Exception as error:
                    if debug or (isinstance(error, OutputError) and error.errno in HOPELESS):
                        raise
                    failed.append(reason(path, error))
                    if as_json:
                        bar.say(json.dumps({"image": str(path), "error": failed[-1]}))
                    continue
                seconds = time.perf_counter() - started
                if as_json:
                    row = {"image": str(path), **files, "shape": list(result.raw.shape), "seconds": round(seconds, 3)}
                    bar.say(json.dumps(row | (numbers(result) if numbers else {})))
                else:
                    bar.say(f"{path}: {files['picture']} and {Path(files['features']).name} ({seconds:.1f} s)")
    except (KeyboardInterrupt, Cancelled):
        typer.echo("stopped; the files written so far are whole", err=True)
        raise typer.Exit(130) from None
    finally:
        if failed:
            typer.echo("\n  ".join([f"{len(failed)} failed:", *failed]), err=True)
    if failed:
        raise typer.Exit(1)


def parse_patch(text: str | None) -> tuple[int, int] | None:
    """ROW,COLUMN, or nothing."""
    return parse_pair(text, ",", "--patch") if text else None


def check_patch(patch: tuple[int, int] | None, vit: ViT) -> None:
    """`InputError` for a patch that `vit` has not."""
    if patch and not (patch[0] < vit.grid[0] and patch[1] < vit.grid[1]):
        raise InputError(f"--patch {patch[0]},{patch[1]} is outside the {vit.grid[0]} x {vit.grid[1]} patches")


def _write(result: Result, image: Path, target: Path, patch: tuple[int, int] | None) -> dict[str, str]:
    """Write both files of one image, and return their paths; where that fails, older ones stay as they are."""
    picture = io.BytesIO()
    result.panel(image, patch).save(picture, "PNG", optimize=True)
    features = target.with_name(target.name + ".safetensors")
    panel = target.with_name(target.name + ".png")
    write_together({features: result.to_bytes(), panel: picture.getvalue()})
    return {"features": str(features), "picture": str(panel)}


def output_stems(images: list[Path], folder: Path, suffix: str = "") -> list[str]:
    """One name an image: its own and the suffix, with a number where another has it (or has it in other case), or
    where the picture would overwrite an input."""
    inputs = {path.resolve() for path in images}
    stems: list[str] = []
    taken: set[str] = set()
    for image in images:
        for n in count(1):
            stem = image.stem + suffix if n == 1 else f"{image.stem}-{n}{suffix}"
            if stem.casefold() not in taken and (folder / f"{stem}.png").resolve() not in inputs:
                break
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
