"""Arrays whose memory is used again, once nobody holds them."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np


class Buffers:
    """Gives float32 arrays of one shape; the memory of one serves a later one when the last reference to it is gone.

    References count whoever made them: a view, a tensor that shares the memory. So nothing that is still held is ever
    overwritten, and a reader who lets go of each result before the next causes no allocation at all.
    """

    KEPT = 8  # at most, of the memory that nobody holds

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self._free: deque[np.ndarray] = deque(maxlen=self.KEPT)  # append and pop are atomic: arrays go in any thread

    def take(self) -> np.ndarray:
        """An array of unknown content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self.shape, np.float32)
        return np.asarray(_Loan(memory, self._free))


class _Loan:
    """What an array, and all that is made of it, refer to as the owner of their memory: it goes with the last one."""

    def __init__(self, memory: np.ndarray, free: deque[np.ndarray]):
        self._memory, self._free = memory, free

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)
