"""What is to be measured, checked as a whole before anything is computed, and then done one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ... import hub
from ...errors import Cancelled, DvtError, InputError
from ...evaluation.data.describe import Data, describe, thin
from ...evaluation.store import check_name, name_for
from ...evaluation.tasks import Task
from ...evaluation.variants import Variant, check_names, parse_variant
from ...files import check_folder
from ...vit import MINI
from .. import common
from ..progress import Tally
from . import show

if TYPE_CHECKING:
    from ...evaluation.features import Features
    from ...vit import ViT

DEFAULT = ("raw", "average", "direct")  # and stage2, where the ViT has a denoiser


@dataclass
class Job:
    """One run. vit: keyword arguments of `ViT`. variants: None is `DEFAULT`. suffix: of the name, where there are
    several ViTs. The other fields are as the options of the command."""

    task: Task
    paths: Sequence[Path]
    vit: dict[str, Any]
    variants: list[Variant] | None = None
    layout: str = "auto"
    read: dict[str, Any] = field(default_factory=dict)
    train_images: int | None = None
    val_images: int | None = None
    quick: bool = False
    seeds: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    suffix: str = ""


@dataclass
class _Ready:
    """A job whose parts are at hand."""

    job: Job
    name: str
    data: Data
    settings: Any
    features: Features
    variants: list[Variant]


def variants_of(texts: Iterable[str] | None, denoisers: Sequence[str] | None) -> list[Variant] | None:
    """The variants that are asked for, a further one for each denoiser; None for the default."""
    if not texts and not denoisers:
        return None
    found = [parse_variant(text) for text in texts or DEFAULT]
    stems = [Path(file).stem for file in denoisers or ()]
    for file, stem in zip(denoisers or (), stems):
        # best.safetensors of several runs: their folders tell them apart
        name = stem if stems.count(stem) == 1 else f"{Path(file).parent.name}/{stem}"
        found.append(Variant(f"stage2 {name}", "stage2", file))
    return check_names(found)


def carry_out(
    jobs: Sequence[Job],
    out: Path,
    cache: Path | None,
    *,
    again: bool,
    compare: Sequence[Path],
    as_json: bool,
    threads: int,
) -> None:
    """Do all jobs, print what came out, and write the report; exits with 1 where something is missing from it."""
    common.check_backends()
    from ...evaluation.report import read_results, write_report

    for other in compare:
        if not other.is_dir():
            raise InputError(f"{other}: no such folder to compare with")
        read_results(other)
    from ...evaluation.run import run

    check_folder(out)
    common.set_threads(threads)
    ready = _prepare(jobs, check_folder(cache or out / "features"))
    failed: list[str] = []
    left_out: dict[str, None] = {}
    try:
        with Tally() as tally:
            for one in ready:
                title = f"{one.job.task.name} {one.name}"

                def progress(done: int, total: int, what: str, title: str = title) -> None:
                    tally.step(done, total, f"{what} of {title}")

                ran = run(
                    one.job.task.name,
                    one.features,
                    one.variants,
                    one.data,
                    one.settings,
                    out=out,
                    name=one.name,
                    read=one.job.read,
                    folder=one.job.paths[0] if one.job.task.data else None,
                    again=again,
                    progress=progress,
                    note=tally.note,
                    say=lambda line: typer.echo(line, err=True),
                )
                tally.note("")
                failed += [f"{title}: {line}" for line in ran.failed]
                left_out |= dict.fromkeys(ran.problems)
                if as_json:
                    typer.echo(json.dumps(ran.document, ensure_ascii=False))
                elif ran.document["rows"]:
                    show.scores(ran.document, ran.kept)
    except (KeyboardInterrupt, Cancelled):
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    if any(out.glob("*.json")):
        path = write_report(out, compare)
        if not as_json:
            for other in compare:
                show.comparison(out, other)
            typer.echo(f"report: {path}")
    for lines, what in ((failed, "failed"), (list(left_out), "left out")):
        if lines:
            typer.echo("\n  ".join([f"{len(lines)} {what}:", *lines]), err=True)
    if failed or left_out:
        raise typer.Exit(1)


def _prepare(jobs: Sequence[Job], cache: Path) -> list[_Ready]:
    """Read all that the jobs name; the first thing that is wrong with any of them is raised."""
    from ...evaluation.features import Features

    settings = [_settings(job) for job in jobs]
    vits: dict[str, Features] = {}
    sets: dict[str, Data] = {}
    ready: list[_Ready] = []
    for job, chosen in zip(jobs, settings):
        key = json.dumps([job.task.data, *map(str, job.paths), job.layout, job.read])
        if key not in sets:
            sets[key] = job.task.read(job.paths, job.layout, job.read)
        data = thin(sets[key], job.train_images, job.val_images)
        name = check_name((job.name or name_for(describe(data)["name"])) + job.suffix)
        if any((one.job.task, one.name) == (job.task, name) for one in ready):
            raise InputError(f"two runs of {job.task.name} are called {name}: name them")
        spec = json.dumps(job.vit, sort_keys=True)
        if spec not in vits:
            from ...vit import ViT

            vits[spec] = Features(ViT(**job.vit), cache)
        features = vits[spec]
        variants = _default(features.vit) if job.variants is None else job.variants
        _check_files(variants, features.vit)
        ready.append(_Ready(job, name, data, chosen, features, variants))
    return ready


def _settings(job: Job) -> Any:
    values, known = dict(job.settings), job.task.settings()
    if hasattr(known, "device"):
        values.setdefault("device", job.vit.get("device", "cpu"))
    if job.seeds is not None:
        default = getattr(known, "seeds", None)
        if default is None:
            raise InputError(f"{job.task.name} trains no heads: it takes no seeds")
        values.setdefault("seeds", list(range(job.seeds)) if isinstance(default, tuple) else job.seeds)
    return job.task.settings(job.quick, **values)


def _default(vit: ViT) -> list[Variant]:
    found = [parse_variant(text) for text in DEFAULT]
    stage2 = Variant("stage2", "stage2")
    if vit.name == MINI:
        try:
            _check_files([stage2], vit)
            found.append(stage2)
        except DvtError:  # it is for the weights and the block that come with it
            pass
    return found


def _check_files(variants: Iterable[Variant], vit: ViT) -> None:
    """Raise what is wrong with the files of variants, before hours are spent on the others."""
    for variant in variants:
        if variant.kind == "stage2":
            from ...denoiser.checkpoint import load_denoiser

            load_denoiser(variant.file, vit)
        elif variant.kind == "map":
            from ...artifact_map import ArtifactMap

            assert variant.file is not None
            ArtifactMap.load(variant.file).check(vit)


def is_path(file: str) -> bool:
    """Whether a denoiser or weights are a path, and no name of something published."""
    names = (*hub.DENOISERS, *hub.DISTILLED, "random")
    return not file.startswith(hub.SCHEME) and file not in names
