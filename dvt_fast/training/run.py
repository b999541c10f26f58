"""From a task and its samples to the weights to keep: the split, the order, resuming, the loop and its log."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from ..dataset.store import Store as FolderStore
from ..errors import InputError
from ..files import check_folder
from ..progress import Progress
from .checkpoint import Store
from .data import Reader, Source
from .devices import default_precision, launch, repeatable
from .loop import Loop, Outcome, Task
from .monitor import Monitor, Watch
from .options import TrainingOptions
from .order import held_out

WORKERS = 2  # threads that read ahead


@dataclass(frozen=True)
class Summary:
    """What a training gave. file: the result; images: trained on; held_out: kept for scoring; score: mean cosine of the
    held-out images' tokens to their targets, "before" of the features as they were and "after" of the result, None
    without such images; failed: a line for each image that could not be used."""

    file: str
    step: int
    images: int
    held_out: int
    score: dict[str, float] | None
    stopped_early: bool
    resumed_from: int | None
    seconds: float
    images_per_second: float
    failed: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Trained:
    """module: the averaged weights. how: what the result's file says of the training, JSON types."""

    module: torch.nn.Module
    outcome: Outcome
    score: dict[str, float] | None
    images: int
    held_out: int
    how: dict[str, Any]

    def summary(self, file: Path, failed: list[str]) -> Summary:
        o = self.outcome
        return Summary(
            str(file), o.step, self.images, self.held_out, self.score, o.stopped_early, o.resumed_from,
            round(o.seconds, 3), round(o.images_per_second, 2), failed,
        )  # fmt: skip


def read_options(options: Mapping[str, Any], device: str, **defaults: Any) -> TrainingOptions:
    """`TrainingOptions` of keywords; None is a default, of the precision that which suits the device."""
    given = {name: value for name, value in options.items() if value is not None}
    return TrainingOptions.read({"precision": default_precision(device)} | defaults | given)


@contextmanager
def session(options: TrainingOptions, device: str, out: str | os.PathLike[str]) -> Iterator[Fabric]:
    """The processes of a training, within which the folder `out` is theirs alone: see `devices.launch`.

    Raises `InputError` and `OutputError` before anything is computed.
    """
    if "://" in os.fspath(out):
        raise InputError(f"out must be a folder, got {os.fspath(out)!r}, a URL")
    fabric = launch(device, options.precision)
    if options.batch % fabric.world_size:
        raise InputError(f"batch {options.batch} does not divide into {fabric.world_size} processes")
    with ExitStack() as stack:
        if fabric.is_global_zero:
            stack.enter_context(FolderStore(check_folder(out)).lock())
        stack.enter_context(repeatable(fabric.device))
        yield fabric
        fabric.barrier()  # the result is there for all when the first process has written it


def run(
    task: Task,
    source: Source,
    options: TrainingOptions,
    fabric: Fabric,
    out: str | os.PathLike[str],
    settings: Mapping[str, Any],
    *,
    workers: int,
    memory: int,
    resume: bool,
    progress: Progress | None,
    watch: Watch | None,
    failed: Sequence[str],
    begin: Callable[[Reader, Sequence[int]], None] | None = None,
) -> Trained:
    """Train, or go on from the newest checkpoint in the folder `out`.

    settings: what makes two trainings the same, beside the options and the images. memory: bytes of samples to keep in
    this process. failed: a line for each image that cannot be used. begin: called with the reader and the items to
    train on before the first step of a new training.
    """
    first, folder = fabric.is_global_zero, Path(out)
    scored = held_out(source.hashes, options.held_out)
    chosen = set(scored)
    items = [item for item in range(len(source.hashes)) if item not in chosen]
    items.sort(key=source.hashes.__getitem__)  # so that the order of files means nothing
    if not items:
        raise InputError(f"no image is left to train on: {len(chosen)} of {len(source.hashes)} are held out")
    if options.patience and not scored:
        raise InputError("patience needs held-out images to score: held_out is 0 or there is only one image")
    data = {"images": len(items), "held_out": len(scored), "contents": _digest(source.hashes)}
    store = Store(folder, {**settings, "data": data, "options": options.settings()})
    if first:
        store.tidy()
        if not resume:
            store.clear()
    newest = fabric.broadcast(store.newest(failed) if first else None)

    reader = Reader(source, memory, workers, pinned=fabric.device.type == "cuda")
    if newest is None and begin:
        begin(reader, items)
    loop = Loop(task, reader, items, scored, options, fabric, store)
    if newest is not None:
        loop.restore(newest)
    with Monitor(folder, loop.step, first, watch) as monitor:
        outcome = loop.run(monitor, progress if first else None)
    kept = outcome.best[1] if options.patience and outcome.best else outcome.score
    score = {name: round(value, 6) for name, value in asdict(kept).items()} if kept else None
    how = {"steps": outcome.step, "score": score, "data": data, "options": options.settings()}
    return Trained(loop.ema.eval(), outcome, score, len(items), len(scored), how)


def _digest(hashes: Sequence[str]) -> str:
    """16 hex digits that stand for a set of contents."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:16]
