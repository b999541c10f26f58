"""Which sample comes when, without any state: a function of the seed and the sample's number alone.

Sample number p belongs to epoch p // n, and each epoch is a permutation of its own. A run that resumes at step s goes
on with sample s * batch, whatever number of processes and readers it had or has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

HASH_DIGITS = 16  # of a content hash that decide where it belongs


class Order:
    """The samples of a data set of `n` items: number p -> (item, whether it is mirrored).

    flip: mirror half of the samples. The permutation sorts the raw bits of PCG64, whose stream NumPy keeps from version
    to version, unlike that of `Generator.permutation`.
    """

    def __init__(self, n: int, seed: int, flip: bool = False):
        self.n, self.seed, self.flip = n, seed, flip
        self._epoch = lru_cache(maxsize=2)(self._draw)  # a batch may lie in two

    def __getitem__(self, number: int) -> tuple[int, bool]:
        epoch, place = divmod(number, self.n)
        items, mirrored = self._epoch(epoch)
        return int(items[place]), bool(mirrored[place])

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[tuple[int, bool]]:
        """The part of process `rank` of `world` in the batch of a step; `size` is that of the whole batch."""
        part = size // world
        start = step * size + rank * part
        return [self[number] for number in range(start, start + part)]

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        bits = np.random.PCG64([self.seed, epoch]).random_raw(self.n)
        items = np.argsort(bits, kind="stable")
        return items, (bits[items] & 1 > 0) & self.flip


def held_out(hashes: Sequence[str], share: float) -> list[int]:
    """The items kept from training: those whose content hash, as a number in [0, 1), is under `share`, by hash.

    An item stays on its side when others come or go. With a share above 0 at least one item is held out (the lowest
    hash) where there are two or more.
    """
    values = [int(text[:HASH_DIGITS], 16) / 16**HASH_DIGITS for text in hashes]
    by_hash = sorted(range(len(values)), key=values.__getitem__)
    below = [item for item in by_hash if values[item] < share]
    return below or (by_hash[:1] if share > 0 and len(by_hash) > 1 else [])
