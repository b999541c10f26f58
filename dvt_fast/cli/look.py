"""`dvt-fast look`: a page in the browser, served from here, to look at images and their features."""

from __future__ import annotations

import inspect
import os
import secrets
import sys
import traceback
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..extras import require
from ..images import find_images, load_image
from ..views import DEFAULT_PLAN
from ..vit import MINI
from . import common, models
from .decompose import check_stage1

if TYPE_CHECKING:
    from ..look.model import Shown
    from ..progress import Progress

LOCAL, PORT = "127.0.0.1", 8765
BATCH = 4  # views at a time: as fast as more, on a CPU, and progress can be seen


def command(
    context: typer.Context,
    paths: common.Images,
    stage2: Annotated[bool, typer.Option("--stage2", help="Clean by a trained denoiser, in place of stage 1.")] = False,
    denoiser: models.DenoiserFile = None,
    vit: common.Name = MINI,
    weights: common.Weights = None,
    size: common.Size = None,
    layer: common.Layer = -1,
    norm: common.Norm = True,
    stride: common.Stride = None,
    device: common.Device = "cpu",
    solver: common.SolverName = common.Solver.direct,
    views: common.Plan = DEFAULT_PLAN,
    seed: common.Seed = 0,
    option: common.SolverOption = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen there: others can look, who know the token.")
    ] = LOCAL,
    port: Annotated[int, typer.Option(metavar="N", help="0 is any that is free.", min=0, max=65535)] = PORT,
    token: Annotated[
        bool, typer.Option("--token", help="Ask for a token here too: for a machine with other users.")
    ] = False,
    browser: Annotated[bool, typer.Option(help="Open the page, where there is a display.")] = True,
    threads: common.Threads = 0,
    debug: common.Debug = False,
) -> None:
    """Look at images and their features in the browser, raw against clean.

    The page is served by this command until Ctrl-C, to this machine only, and asks nothing of any other. An image is
    worked on when it is looked at. Clean is stage 1's F, or with --stage2 or --denoiser what a trained denoiser gives.
    """
    stage2 = stage2 or denoiser is not None
    given = {name for name in inspect.signature(command).parameters if common.is_given(context, name)}
    for name in ("views", "solver", "seed", "option"):
        if name in given and stage2:
            raise typer.BadParameter("is an option of stage 1: not with --stage2 or --denoiser", param_hint=f"--{name}")
    vit_options = common.vit_options(vit, weights, size, layer, norm, stride, device)
    solver_options = common.parse_solver_options(option, inspect.signature(command).parameters)
    options: dict[str, Any] = {"views": common.parse_plan(views), "solver": solver.value, "seed": seed}

    # What would fail for every image fails here, once, and before torch takes its seconds to import.
    for package, extra in (("PIL.Image", "vit"), ("starlette", "look"), ("uvicorn", "look")):
        require(package, extra)
    if not stage2:
        check_stage1(options, solver_options)
    images = find_images(paths)
    from ..look.model import of_stage1, of_stage2, show
    from ..look.server import Address, is_local, listen, make_app, serve
    from ..look.session import Session

    listener = listen(host, port)
    require("torch", "vit")
    from .. import ViT, decompose, denoise

    common.set_threads(threads)
    if stage2:
        chosen = {"name" if name == "vit" else name for name in given} & vit_options.keys()
        model, loaded = models.load_models(denoiser, vit_options, chosen)
    else:
        model, loaded = ViT(**vit_options), None

    def make(path: Path, progress: Progress) -> Shown:
        picture = load_image(path)
        if stage2:
            return show(picture, of_stage2(denoise(picture, model, loaded)))
        found = decompose(picture, model, progress=progress, batch_size=BATCH, **options, **solver_options)
        return show(picture, of_stage1(found))

    def explain(path: Path, error: Exception) -> str:
        if debug:
            traceback.print_exception(error)
        return common.reason(path, error)

    needed = token or not is_local(host)
    address = Address(host, listener.getsockname()[1], secrets.token_urlsafe() if needed else None)
    session = Session(images, make, explain)
    try:
        typer.echo(f"{address.url}  (Ctrl-C ends)")
        if browser and _has_display():
            webbrowser.open(address.url)
        serve(make_app(session, address), listener)
    finally:
        session.close()


def _has_display() -> bool:
    """Whether a browser with a window can open; one in the terminal would take it over."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
