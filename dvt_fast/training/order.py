"""Which sample comes when, without any state: a function of the seed and the sample's number alone.

A sample is an item and the number of one of its variants, 0 being the item as it is (see `crops`). Sample number p
belongs to epoch p // n, and each epoch is a permutation of its own. A run that resumes at step s goes on with sample
s * batch, whatever number of processes and readers it had or has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

HASH_DIGITS = 16  # of a content hash that decide where it belongs


class Order:
    """The samples of a data set of `n` items: number p -> (item, variant).

    variants: of each item; one an epoch, in turn, and at any time as many items are at one as at another. The
    permutation sorts the raw bits of PCG64, whose stream NumPy keeps from version to version, unlike that of
    `Generator.permutation`.
    """

    def __init__(self, n: int, seed: int, variants: int = 1):
        self.n, self.seed, self.variants = n, seed, variants
        self._epoch = lru_cache(maxsize=2)(self._draw)  # a batch may lie in two

    def __getitem__(self, number: int) -> tuple[int, int]:
        epoch, place = divmod(number, self.n)
        item = int(self._epoch(epoch)[place])
        return item, (epoch + item) % self.variants

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """The part of process `rank` of `world` in the batch of a step; `size` is that of the whole batch."""
        part = size // world
        start = step * size + rank * part
        return [self[number] for number in range(start, start + part)]

    def _draw(self, epoch: int) -> np.ndarray:
        return np.argsort(np.random.PCG64([self.seed, epoch]).random_raw(self.n), kind="stable")


def held_out(hashes: Sequence[str], share: float) -> list[int]:
    """The items kept from training: those whose content hash, as a number in [0, 1), is under `share`, by hash.

    An item stays on its side when others come or go. With a share above 0 at least one item is held out (the lowest
    hash) where there are two or more.
    """
    values = [int(text[:HASH_DIGITS], 16) / 16**HASH_DIGITS for text in hashes]
    by_hash = sorted(range(len(values)), key=values.__getitem__)
    below = [item for item in by_hash if values[item] < share]
    return below or (by_hash[:1] if share > 0 and len(by_hash) > 1 else [])
