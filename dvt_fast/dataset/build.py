"""Images to pairs: what `dvt-fast dataset` does.

The manifest says what is finished, and the pairs' files say what the manifest does not know yet; a run does the rest.
So it does not matter how the last one ended. An image that cannot be done is one failed row, and is tried again by the
next run; a storage that cannot be used ends the run, as every image would fail.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..artifact_map import ArtifactMap
from ..errors import DvtError, InputError, OutputError
from ..extras import require
from ..options import whole
from ..progress import Progress, report
from ..views import DEFAULT_PLAN
from .cluster import check_request, connected, count_workers, run_actors
from .inputs import find_sources
from .local import place_workers, run_here, run_processes
from .settings import make_settings
from .store import RETRIES, Store
from .table import Table
from .worker import Job, Outcome, Task

if TYPE_CHECKING:
    from ..views import Plan

ENGINES = ("local", "ray")


@dataclass
class Summary:
    """What a run did.

    images: given. made: pairs computed. skipped: finished before. duplicates: rows whose content another row has.
    failed: a line for each image that could not be done. kept: rows of earlier runs' images that were not given now.
    pruned: files removed. seconds: of the whole run. pair_bytes: of a pair's file, the mean. reference_bytes: of the
    same as two float32 arrays.
    """

    images: int
    made: int = 0
    skipped: int = 0
    duplicates: int = 0
    failed: list[str] = field(default_factory=list)
    kept: int = 0
    pruned: int = 0
    seconds: float = 0.0
    pair_bytes: float = 0.0
    reference_bytes: int = 0

    @property
    def rate(self) -> float:
        """Pairs computed a second."""
        return self.made / self.seconds if self.seconds > 0 else 0.0


def build_dataset(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    vit: Mapping[str, Any],
    *,
    views: Plan = DEFAULT_PLAN,
    solver: str = "direct",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    coords: str = "center",
    keep: str = "semantics",
    dtype: str = "float16",
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    device: str | None = None,
    retries: int = 2,
    storage_retries: int = RETRIES,
    prune: bool = False,
    save_every: float = 120.0,
    progress: Progress | None = None,
) -> Summary:
    """Stage 1 on every image, stored as pairs for stage 2 to learn from. Runs on where an earlier run ended.

    images: files, folders, patterns, and URLs of fsspec; the workers must reach them. out: a folder or a URL.
    vit: the keyword arguments of `dvt_fast.ViT`. views, solver, options, seed, coords: as `decompose` takes them.
    keep: "semantics" alone (raw features are computed again when training needs them), or "both".
    dtype: "float16", or "int8" with a float32 scale for each token.

    engine: "local", processes of this machine, or "ray", actors on the cluster at `address`. workers: how many; None is
    one a GPU where the device is "cuda", else one for each `threads` cores; 0 computes in this process. threads: of
    each worker. device: of each worker's ViT; None is what `vit` says, else "cpu".
    retries: how often an image whose worker died is tried again. storage_retries: how often a passing failure of the
    storage is. prune: remove rows and files of images that are not given. save_every: seconds between two manifests.
    progress: called as progress(done, total, "images"); returning False stops with `Cancelled`, and what is finished
    stays.

    Raises `InputError` (no images, another ViT, or a dataset of other settings, naming them), `OutputError` (the
    storage) and `MissingExtraError`. A failed image is a line in the summary and a row in the manifest.
    """
    start = time.perf_counter()
    _check_arguments(engine, threads, workers=workers, retries=retries, storage_retries=storage_retries)
    device = device or str(vit.get("device", "cpu"))
    if engine == "ray":
        check_request(workers, device)
    require("pyarrow", "train")
    sources = find_sources(images)
    store = Store(out, storage_retries)
    if store.url.startswith("memory://") and (engine != "local" or workers != 0):
        raise InputError(f"{store.url}: memory is of one process: workers must be 0")
    job = _make_job(
        store, {name: value for name, value in vit.items() if name != "device"}, threads, options or {},
        views=views, coords=coords, solver=solver, seed=seed, keep=keep, dtype=dtype,
    )  # fmt: skip
    with store.lock():
        table = Table(store, job.settings, job.vit_options, sources)
        if prune:
            table.forget_others()
        tasks = table.tasks()
        outcomes = _outcomes(job, tasks, engine, address, workers, device, retries)
        try:
            with contextlib.closing(outcomes):
                for done, (task, outcome) in enumerate(outcomes, 1):
                    if outcome.fatal:
                        raise outcome.fatal
                    table.enter(task, outcome)
                    report(progress, done, len(tasks), "images")
                    table.save_now_and_then(save_every)
        except BaseException as error:
            with contextlib.suppress(DvtError):  # what ended the run is the one to be told
                if not isinstance(error, OutputError):
                    table.save()
                table.clean(prune=False)
            raise
        table.save()
        pruned = table.clean(prune)
    return _summary(table, pruned, time.perf_counter() - start)


def _outcomes(
    job: Job,
    tasks: list[Task],
    engine: str,
    address: str | None,
    workers: int | None,
    device: str,
    retries: int,
) -> Generator[tuple[Task, Outcome], None, None]:
    """Every task done, by the engine asked for; closing the iterator ends the engine."""
    if not tasks:
        return
    if engine == "ray":
        with connected(address) as ray:
            count, gpus = count_workers(ray, workers, job.threads, device)
            yield from run_actors(ray, job, tasks, min(count, len(tasks)), gpus, device, retries)
    elif workers == 0:
        yield from run_here(job, tasks, device)
    else:
        found = place_workers(device, workers, job.threads)
        yield from run_processes(job, tasks, found[: len(tasks)], retries)


def _make_job(store: Store, arguments: dict[str, Any], threads: int, options: Mapping[str, Any], **plan: Any) -> Job:
    """What the workers need to know. The ViT is built here once, on the CPU, to be described and to fail early."""
    from ..vit import ViT

    vit = ViT(**arguments)
    options = dict(options)
    known = options.get("artifacts")
    if isinstance(known, (str, os.PathLike)):
        known = options["artifacts"] = ArtifactMap.load(known)  # so that workers elsewhere need no file
    if isinstance(known, ArtifactMap):
        known.check(vit)
    described = vit.describe()
    rebuild = {name: described[name] for name in ("name", "size", "stride", "layer", "mean", "std")}
    rebuild |= {
        "weights": _from_everywhere(arguments.get("weights")),
        "norm": vit.norm,
        "seed": arguments.get("seed", 0),
    }
    return Job(store, rebuild, options, make_settings(vit, options=options, **plan), threads)


def _summary(table: Table, pruned: int, seconds: float) -> Summary:
    rows = list(table)
    done = [row for row in rows[: len(table.sources)] if row.state == "done"]
    failed = [str(row.error) for row in rows if row.state == "failed"] + table.lost
    h, w = table.made_with["vit"]["grid"]
    return Summary(
        images=len(table.sources),
        made=len(table.made),
        skipped=len(done) - len(table.made),
        duplicates=sum(row.state == "duplicate" for row in rows[: len(table.sources)]),
        failed=failed,
        kept=table.kept,
        pruned=pruned,
        seconds=seconds,
        pair_bytes=sum(row.file_bytes or 0 for row in done) / max(1, len(done)),
        reference_bytes=2 * 4 * h * w * table.made_with["vit"]["dim"],
    )


def _check_arguments(engine: str, threads: int, **numbers: int | None) -> None:
    if engine not in ENGINES:
        raise InputError(f"engine must be {' or '.join(map(repr, ENGINES))}, got {engine!r}")
    whole(1, 4096)("threads", threads)
    for name, value in numbers.items():
        if value is not None:
            whole(0, 4096)(name, value)


def _from_everywhere(weights: str | os.PathLike[str] | None) -> str | None:
    """The weights of a ViT; a path as it is from every folder of this machine."""
    if weights is None:
        return None
    return os.path.abspath(weights) if os.path.isfile(weights) else os.fspath(weights)
