"""The features of every frame of a source, as it comes: one thread captures, one computes, and the reader takes.

    source -> [arrived] -> [waiting] -> [working] -> [finished] -> the reader
       capture thread               compute thread

Each place holds one frame at most, so nothing can age in a queue; a thread moves a frame on when the next place is
free, and the policy says which frame goes where it is not. Frames are numbered as they come, and results keep their
order: the drops before a result are the numbers it skips.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..errors import InputError
from .buffers import Buffers
from .result import Result
from .source import Frame
from .sources import as_source
from .statistics import Statistics

POLICIES = ("latest", "block", "drop_new")


@dataclass(eq=False, slots=True)
class _Numbered:
    """A frame, or what became of it, and its number among all frames that came in."""

    number: int
    content: Any  # Frame, Result or the BaseException that computing its features raised


class Stream:
    """Features of the frames of `source`, in order.

    session: a `Session` that takes images, one at a time; the stream alone uses it until it is closed. source: a
    `Source`, or what makes one: the path of a video or folder, a camera ("camera:0"), an iterable of images (uint8
    [H, W, 3]; an iterator counts as live, a sequence does not).

    policy: what happens to frames that arrive while earlier ones are in work.
      "latest": the newest frame and the newest result replace those that wait. The youngest features, some frames lost.
      "drop_new": a frame that finds another one waiting is dropped. No work is ever done in vain.
      "block": nothing is dropped; the source waits, or its frames age.
    A source that is not live waits to be read, so nothing arrives too early and no policy drops anything.
    deadline_ms: the age beyond which a result is marked as `missed_deadline`; None for none. raw: give the ViT's own
    features, too.

    Iterate over it, or `read`; it starts with the first of these, or with `with`, and closes itself at the end. What
    computing a frame raises comes out of the next read; the stream goes on after it. What the source raises comes out
    after the frames before it, and ends the stream.
    """

    CLOSING = 2.0  # seconds that `close` waits for a source that does not come back from its read

    def __init__(
        self, session: Any, source: Any, policy: str = "latest", deadline_ms: float | None = None, *, raw: bool = False
    ):
        if policy not in POLICIES:
            raise InputError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        if deadline_ms is not None and not deadline_ms > 0:
            raise InputError(f"deadline_ms must be positive, got {deadline_ms}")
        if not hasattr(session, "grid"):
            raise InputError(f"expected a session: engine.session(), got {type(session).__name__}")
        if session.input != "image" or session.batch != 1:
            raise InputError(
                f"a stream needs a session for one image at a time, got one for batches of {session.batch} with input "
                f"{session.input!r}: engine.session(input='image')"
            )
        self.session = session
        self.source = as_source(source)
        self.policy = policy
        self.deadline = None if deadline_ms is None else deadline_ms / 1e3  # seconds
        self._replaces = self.source.live and policy == "latest"
        self._refuses = self.source.live and policy == "drop_new"
        shape = (*session.grid, session.dim)
        self._buffers = {name: Buffers(shape) for name in (("out", "raw") if raw else ("out",))}

        self._changed = threading.Condition()  # guards all that follows
        self.stats = Statistics(self._changed, self._pending, policy, self.deadline, self.source.live)
        self._arrived: _Numbered | None = None
        self._waiting: _Numbered | None = None
        self._working: _Numbered | None = None
        self._finished: _Numbered | None = None
        self._lost: dict[str, int] = {}  # of what the source has lost: how much of it is counted
        self._source_ended = self._work_ended = self._closed = False
        self._source_error: BaseException | None = None
        self._last_delivered = 0
        self._threads: list[threading.Thread] = []

    def read(self, timeout: float | None = None) -> Result | None:
        """The next result, waited for; None after the last one and after `close`.

        Raises what computing the features raised, what ended the source, and `TimeoutError` where nothing came for
        `timeout` seconds.
        """
        self._start()
        with self._changed:
            if not self._changed.wait_for(self._readable, timeout):
                raise TimeoutError(f"no result for {timeout} seconds")
            done, self._finished = self._finished, None
            self._changed.notify_all()
            if done is None:
                error, self._source_error = self._source_error, None
            elif isinstance(done.content, Result):
                return self._deliver(done.number, done.content)
            else:
                error = done.content
        if done is None:
            with suppress(Exception) if error is not None else nullcontext():  # what ended the source is told
                self.close()
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        """Stop, and close the source. Frames in flight are dropped as "closed"; the one in work is finished first.

        Returns soon even where the source hangs: a read that does not come back is left behind. May be called twice,
        and from any thread.
        """
        with self._changed:
            self._closed = True
            self._source_error = None
            self._drop("_waiting", "closed")
            self._drop("_finished", "closed")
            self._changed.notify_all()
        atexit.unregister(self.close)
        try:
            self.source.close()
        finally:
            here = threading.current_thread()
            for thread, patience in zip(self._threads, (self.CLOSING, None)):
                if thread is not here:
                    thread.join(patience)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Result:
        result = self.read()
        if result is None:
            raise StopIteration
        return result

    def __enter__(self) -> Stream:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Stream(policy={self.policy!r}, {self.stats!r})"

    def _start(self) -> None:
        with self._changed:
            if self._threads or self._closed:
                return
            # Daemons, as a source may never come back. `close` at exit, before the interpreter goes away under them.
            self._threads = [
                threading.Thread(target=self._capture, name="dvt-capture", daemon=True),
                threading.Thread(target=self._compute, name="dvt-compute", daemon=True),
            ]
            atexit.register(self.close)
            for thread in self._threads:
                thread.start()

    def _pending(self) -> int:
        """How many frames are in flight; the caller holds the lock, as for the next four."""
        held = (self._arrived, self._waiting, self._working, self._finished)
        return sum(one is not None and not isinstance(one.content, BaseException) for one in held)

    def _drop(self, place: str, cause: str) -> None:
        """Empty a place; an error that lay there was counted when it came up."""
        one: _Numbered | None = getattr(self, place)
        if one is not None and not isinstance(one.content, BaseException):
            self.stats._dropped(cause)
        setattr(self, place, None)

    def _move(self, place: str, to: str) -> None:
        """Move on what is in a place, once the next one is free."""
        self._changed.wait_for(lambda: getattr(self, to) is None or self._closed)
        if self._closed:
            self._drop(place, "closed")
        else:
            setattr(self, to, getattr(self, place))
            setattr(self, place, None)
        self._changed.notify_all()

    def _readable(self) -> bool:
        return self._finished is not None or self._work_ended or self._closed

    def _deliver(self, number: int, result: Result) -> Result:
        now = time.monotonic()
        result.age = now - result.captured
        result.missed_deadline = self.deadline is not None and result.age > self.deadline
        result.drops_before = number - self._last_delivered - 1
        self._last_delivered = number
        self.stats._delivers(result, now)
        return result

    def _capture(self) -> None:
        """The thread that reads the source."""
        error: BaseException | None = None
        try:
            while True:
                frame = self.source.read()
                with self._changed:
                    if self._closed:
                        break  # what came after the end is nobody's
                    self._count_losses()
                    if frame is None:
                        break
                    self._offer(frame)
        except BaseException as raised:
            error = raised
        with self._changed:
            if not self._closed:
                self._count_losses()
                self._source_error = error
            self._source_ended = True
            self._changed.notify_all()
        with suppress(Exception):  # nothing that matters is left to go wrong
            self.source.close()

    def _count_losses(self) -> None:
        for cause, lost in self.source.lost.items():
            new = lost - self._lost.get(cause, 0)
            if new > 0:
                self._lost[cause] = lost
                self.stats._came(new)
                self.stats._dropped(cause, new)

    def _offer(self, frame: Frame) -> None:
        self._arrived = _Numbered(self.stats._came(), frame)
        if self._refuses and self._waiting is not None:
            self._drop("_arrived", "busy")
            return
        if self._replaces:
            self._drop("_waiting", "overtaken")
        self._move("_arrived", to="_waiting")

    def _compute(self) -> None:
        """The thread that runs the session."""
        while self._compute_next():
            pass
        with self._changed:
            self._work_ended = True
            self._changed.notify_all()

    def _compute_next(self) -> bool:
        """Compute one frame; whether there was one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._source_ended or self._closed)
            if self._waiting is None:
                return False
            self._move("_waiting", to="_working")
            if self._working is None:  # closed meanwhile
                return False
            number, frame = self._working.number, self._working.content
        outcome: Result | BaseException
        try:
            outcome = self._run(frame)
        except BaseException as raised:
            outcome = raised
        with self._changed:
            self._working = _Numbered(number, outcome)
            if isinstance(outcome, BaseException):
                self.stats._dropped("error")
            elif self._replaces and self._finished is not None and isinstance(self._finished.content, Result):
                self._drop("_finished", "overtaken")
            self._move("_working", to="_finished")
        return True

    def _run(self, frame: Frame) -> Result:
        started = time.monotonic()
        arrays = {name: buffers.take() for name, buffers in self._buffers.items()}
        features = self.session.run(frame.image, **arrays)
        return Result(
            frame.id,
            frame.image,
            features,
            frame.captured,
            frame.stamp,
            raw=arrays.get("raw"),
            started=started,
            finished=time.monotonic(),
            meta=frame.meta,
            live=self.source.live,
        )
