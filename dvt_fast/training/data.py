"""Samples for training: read by threads ahead of the steps that need them, and kept in memory while there is room.

Threads, not processes: reading a file, decoding an image, converting and copying arrays all let go of Python's lock, so
that a few threads read as fast as processes would; they start at once, share one memory of samples, pass errors on as
they are, and need no picklable data set, no shared memory and no guard in the calling script.

A sample is a dict of arrays. Features are float16 in it whether it was kept or read again, so that how much memory
there is changes no bit of the result.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from ..errors import NonFiniteError

Sample = dict[str, np.ndarray]
Batch = dict[str, torch.Tensor]
Item = tuple[int, int]  # which item of a source, and which variant of it: 0 as it is, others as `crops` has them

INFINITE = 0x7C00  # the exponent of infinity and NaN in float16
MEMORY_SHARE = 0.25  # of the machine's memory, for samples


class Source(ABC):
    """Where samples come from. names: of the items, for messages; hashes: of their contents, hexadecimal."""

    names: Sequence[str]
    hashes: Sequence[str]

    @abstractmethod
    def load(self, items: Sequence[Item]) -> list[Sample]:
        """Samples of a few items; called from several threads at a time."""


class Reader:
    """Batches of samples from `source`.

    memory: bytes of samples to keep. What comes first stays: an epoch takes each sample once, and anything that
    makes room for the new would have thrown away each sample just before its turn. workers: threads that read ahead;
    0 reads in the caller's own, when asked. pinned: batches in memory that a CUDA device copies from by itself.
    """

    def __init__(self, source: Source, memory: int, workers: int, pinned: bool = False):
        self.source, self.workers, self.pinned = source, workers, pinned
        self._room, self._kept, self._lock = memory, dict[Item, Sample](), Lock()

    def stream(self, batches: Iterable[Sequence[Item]]) -> Generator[Batch, None, None]:
        """The batches, in their order; up to one a worker is under way beside the one in use."""
        if not self.workers:
            yield from map(self.read, batches)
            return
        pool = ThreadPoolExecutor(self.workers, "dvt-reader")
        try:
            ahead: deque[Future[Batch]] = deque()
            for batch in batches:
                ahead.append(pool.submit(self.read, batch))
                if len(ahead) > self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, items: Sequence[Item]) -> Batch:
        """One batch: each array of the samples, stacked."""
        samples = {item: self._kept[item] for item in items if item in self._kept}
        missing = list(dict.fromkeys(item for item in items if item not in samples))
        if missing:
            loaded = dict(zip(missing, self.source.load(missing), strict=True))
            samples |= loaded
            with self._lock:
                for item, sample in loaded.items():
                    size = sum(array.nbytes for array in sample.values())
                    if size <= self._room and item not in self._kept:
                        self._room -= size
                        self._kept[item] = sample
        return {name: self._stack([samples[item][name] for item in items]) for name in samples[items[0]]}

    def _stack(self, arrays: list[np.ndarray]) -> torch.Tensor:
        kind = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        stacked = torch.empty((len(arrays), *arrays[0].shape), dtype=kind, pin_memory=self.pinned)
        np.stack(arrays, out=stacked.numpy())
        return stacked


def half(features: np.ndarray, what: str) -> np.ndarray:
    """Features as float16, contiguous. `NonFiniteError` naming `what` for NaN, infinity or what float16 cannot hold."""
    # torch's conversion and a look at the exponents: with NumPy's own this was most of the time of reading a pair
    values = torch.from_numpy(np.ascontiguousarray(features)).half().numpy()
    if (values.view(np.uint16) & INFINITE).max(initial=0) == INFINITE:
        odd = "holds NaN or infinity" if not np.isfinite(features).all() else "is beyond float16 (65504)"
        raise NonFiniteError(f"{what} {odd}: leave this image out or correct it")
    return values


def share_of_memory(memory: int | None) -> int:
    """Bytes of samples for this process to keep, of `memory` for all of them on this machine; None: a quarter of what
    may be used here."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    if memory is not None:
        return memory // processes
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container; absent or "max" without one
    with suppress(OSError, ValueError):
        total = min(total, int(limit.read_text()))
    return int(total * MEMORY_SHARE) // processes
