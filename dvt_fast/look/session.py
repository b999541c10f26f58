"""Images that are worked on one at a time, in one thread, when somebody looks at them.

A page asks for an image and goes on asking while it waits; so whoever no longer asks has gone. The image asked for last
is next, and work that nobody waits for is given up for work that somebody waits for.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import Cancelled
from ..progress import Progress
from .model import Shown

KEPT_BYTES = 2**28  # of results; at 37 x 37 patches of 768 channels, those of some 60 images
GONE_AFTER = 3.0  # seconds without a question; the page asks several times a second


class Session:
    """The images of one run of the server, and what has been made of them.

    images: their files. make(path, progress): what is shown of one; may raise anything. explain(path, error): a line
    for the page. kept_bytes: results are kept up to this size, those looked at last and at least one.
    """

    def __init__(
        self,
        images: Sequence[Path],
        make: Callable[[Path, Progress], Shown],
        explain: Callable[[Path, Exception], str],
        kept_bytes: int = KEPT_BYTES,
    ):
        self.names = names(images)
        self._images = list(images)
        self._make, self._explain, self._kept_bytes = make, explain, kept_bytes
        self._change = threading.Condition()  # guards all below
        self._ready: OrderedDict[int, Shown] = OrderedDict()  # looked at last is last
        self._failed: dict[int, str] = {}
        self._asked: dict[int, float] = {}  # those that are waited for, and when a page last asked
        self._working: int | None = None
        self._progress: dict[str, Any] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="dvt-fast look", daemon=True)
        self._thread.start()

    def ask(self, index: int, again: bool = False) -> dict[str, Any]:
        """How it stands with an image, which is now waited for. again: try once more where it has failed.

        Returns JSON types: state "waiting", "working" (with done, total and what, once they are known), "ready" or
        "failed" (with error). Raises `IndexError` for an index that is none.
        """
        if not 0 <= index < len(self._images):
            raise IndexError(index)
        with self._change:
            if again:
                self._failed.pop(index, None)
            if index in self._ready:
                self._ready.move_to_end(index)
                return {"state": "ready"}
            if index in self._failed:
                return {"state": "failed", "error": self._failed[index]}
            self._asked[index] = time.monotonic()
            self._change.notify()
            return {"state": "working", **self._progress} if index == self._working else {"state": "waiting"}

    def shown(self, index: int) -> Shown | None:
        """What was made of an image; None where there is nothing, or no longer."""
        with self._change:
            return self._ready.get(index)

    def close(self, wait: float = 5.0) -> None:
        """Give up what is under way; waits so many seconds for it to end."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(wait)

    def _work(self) -> None:
        while (index := self._next()) is not None:
            path = self._images[index]
            shown, error = None, ""
            try:
                shown = self._make(path, self._step)
            except Cancelled:
                pass
            except Exception as failure:  # whatever a file does, the next one may be good
                error = self._explain(path, failure)
            with self._change:
                self._working = None
                del self._asked[index]
                if shown is not None:
                    self._keep(index, shown)
                elif error:
                    self._failed[index] = error

    def _next(self) -> int | None:
        """The image to work on, as soon as there is one; None is the end."""
        with self._change:
            while not self._closed:
                self._asked = {index: asked for index, asked in self._asked.items() if not _gone(asked)}
                if self._asked:
                    self._working, self._progress = max(self._asked, key=self._asked.__getitem__), {}
                    return self._working
                self._change.wait()
            return None

    def _step(self, done: int, total: int, what: str) -> bool:
        with self._change:
            self._progress = {"done": done, "total": total, "what": what}
            if self._closed or self._working is None:
                return False
            others = (asked for index, asked in self._asked.items() if index != self._working)
            return not (_gone(self._asked[self._working]) and any(not _gone(asked) for asked in others))

    def _keep(self, index: int, shown: Shown) -> None:
        self._ready[index] = shown
        while len(self._ready) > 1 and sum(map(len, self._ready.values())) > self._kept_bytes:
            self._ready.popitem(last=False)


def names(images: Sequence[Path]) -> list[str]:
    """The images' paths from the folder that all are in."""
    paths = [os.path.abspath(image) for image in images]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder) for path in paths]


def _gone(asked: float) -> bool:
    return time.monotonic() - asked > GONE_AFTER
