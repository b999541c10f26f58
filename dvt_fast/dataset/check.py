"""Every file of a dataset against its manifest: what is missing, what is damaged, and what no row names."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ..errors import InputError
from ..progress import Progress, report
from .manifest import Record
from .pairs import FOLDER, unpack_pair
from .reader import PairDataset
from .settings import digest
from .store import is_temporary

MISSING = "missing"
READERS = 16  # threads: reading waits for the storage, and hashing lets go of the interpreter


@dataclass
class Report:
    """What was found. pairs: checked. missing, damaged, extra: a line for each file. removed: of those, how many."""

    pairs: int
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    removed: int = 0

    @property
    def good(self) -> bool:
        return not (self.missing or self.damaged or self.extra)


def check_dataset(url: str | os.PathLike[str], *, prune: bool = False, progress: Progress | None = None) -> Report:
    """Read every pair of a dataset, and compare it with its row: size, sha256, numbers, shapes and settings.

    prune: remove what is damaged or extra, so that the next `build_dataset` makes anew what it should. No build may run
    meanwhile, as its new pairs are in no manifest yet: in a folder one of the two is refused; a bucket has no locks,
    and there it is for you to see to. progress: called as progress(done, total, "pairs"); returning False stops with
    `Cancelled`.

    Raises what `PairDataset` raises, `InputError` where the storage cannot be read, and `OutputError` where nothing can
    be removed.
    """
    dataset = PairDataset(url)
    if not prune:
        return _check(dataset, False, progress)
    with dataset.store.lock():
        return _check(PairDataset(url), True, progress)  # read again: as it is now that no one writes


def _check(dataset: PairDataset, prune: bool, progress: Progress | None) -> Report:
    store, rows = dataset.store, dataset.records
    present = store.list(FOLDER)
    result = Report(len(rows))
    damaged = []
    for done, (row, problem) in enumerate(_problems(dataset, present), 1):
        if problem:
            line = f"{store.locate(row.file)}: {problem} (the pair of {row.place})"
            (result.missing if problem == MISSING else result.damaged).append(line)
            damaged += [row.file] if problem != MISSING else []
        report(progress, done, len(rows), "pairs")
    extra = sorted(name for name in present if name not in dataset.files)
    for name in extra:
        what = "what a killed writer left" if is_temporary(name) else "no row of the manifest names it"
        result.extra.append(f"{store.locate(name)}: {what}")
    if prune:
        for name in damaged + extra:
            store.remove(name)
        result.removed = len(damaged) + len(extra)
    return result


def _problems(dataset: PairDataset, present: dict[str, int]) -> Iterator[tuple[Record, str | None]]:
    """Every row, in order, and what is wrong with its file; a few are read ahead."""
    settings_hash = digest(dataset.settings)
    ahead: deque[tuple[Record, Future[str | None]]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for row in dataset.records:
            ahead.append((row, pool.submit(_problem, dataset, row, settings_hash, row.file in present)))
            if len(ahead) >= 4 * READERS:
                first, found = ahead.popleft()
                yield first, found.result()
        for row, found in ahead:
            yield row, found.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _problem(dataset: PairDataset, row: Record, settings_hash: str, present: bool) -> str | None:
    data = dataset.store.read_or_none(row.file) if present else None
    if data is None:
        return MISSING
    if len(data) != row.file_bytes:
        return f"{len(data)} bytes, expected {row.file_bytes}"
    if hashlib.sha256(data).hexdigest() != row.file_sha256:
        return "its sha256 is not the manifest's"
    try:
        pair = unpack_pair(data, row.file)
    except InputError as error:
        return str(error).removeprefix(f"{row.file}: ")
    expected = (*dataset.grid, dataset.dim)
    if pair.semantics.shape != expected or (pair.raw is None) != (dataset.keep == "semantics"):
        return f"holds shape {list(pair.semantics.shape)}, expected {list(expected)} of {dataset.keep}"
    if (pair.header.get("settings"), pair.header.get("hash")) != (settings_hash, row.hash):
        return "of another image or other settings than its row"
    return None
