"""Progress bars with the time left: on stderr, where that is a terminal."""

from __future__ import annotations

import datetime
import time
from types import TracebackType

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bar:
    """Progress over items that have steps of their own; the time left counts the steps too. Only on a terminal.

    Use as a context manager: `begin` an item, tell its `step`s, `say` its result. counts: the kind of step that takes
    the time; of the others only the number is shown.
    """

    def __init__(self, total: int, counts: str):
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            redirect_stdout=False,  # results go to stdout unchanged
            disable=not console.is_terminal,
        )
        self._total = total
        self._counts = counts
        self._task = self._progress.add_task("", total=total, detail="")
        self._done = -1

    def begin(self, name: str) -> None:
        """The next item is under way."""
        self._done += 1
        self._name = f"{escape(name)} ({self._done + 1} of {self._total})"
        self._progress.update(self._task, description=self._name, completed=self._done, detail="")

    def step(self, done: int, total: int, what: str) -> None:
        """`done` of the current item's `total` steps of the kind `what` are done."""
        part = done / total if what == self._counts else 0.0
        self._progress.update(self._task, completed=self._done + part, detail=f"{done}/{total} {what}")

    def say(self, line: str) -> None:
        """Print a line on stdout, above the bar."""
        self._progress.stop()
        try:
            typer.echo(line)
        finally:
            self._progress.start()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Tally:
    """Progress over many short items, with their rate; where stderr is no terminal, a line now and then.

    Use as a context manager; `step` is a progress callback (see `dvt_fast.progress`). Items of another kind begin anew.
    """

    LINE_EVERY = 60.0  # seconds

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left{task.fields[note]}"),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            disable=not self._console.is_terminal,
            speed_estimate_period=120.0,
        )
        self._task: TaskID | None = None
        self._what, self._first, self._note = "", 0, ""
        self._start = self._last_line = time.monotonic()

    def step(self, done: int, total: int, what: str) -> None:
        """`done` of `total` are done."""
        if self._task is None or what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
                self._start = time.monotonic()
            self._what, self._first = what, done - 1  # those before were done by an earlier run
            self._task = self._progress.add_task(what, total=total, completed=self._first, rate="", note="")
        seconds = max(time.monotonic() - self._start, 1e-9)
        new = max(done - self._first, 1)
        rate = f"{new / seconds:.2f}/s" if new >= seconds else f"{seconds / new:.1f} s each"
        self._progress.update(self._task, completed=done, rate=rate, note=self._note)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= self.LINE_EVERY:
            self._last_line = time.monotonic()
            left = datetime.timedelta(seconds=round(seconds / new * (total - done)))
            typer.echo(f"{done:,} of {total:,} {what}, {rate}, {left} left{self._note}", err=True)

    def note(self, text: str) -> None:
        """Show `text` behind the time left, from the next step on."""
        self._note = f"; {text}" if text else ""

    def __enter__(self) -> Tally:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class FrameBar:
    """Progress over the frames of a stream, of which nobody may know how many will come: the rate, the age, the drops.

    Use as a context manager; `step` after each frame. Where stderr is no terminal, a line now and then.
    """

    REDRAW_EVERY, LINE_EVERY = 0.25, 60.0  # seconds

    def __init__(self, name: str, total: int | None):
        self.frames = 0
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            *([TimeRemainingColumn(), TextColumn("left")] if total else []),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            disable=not self._console.is_terminal,
        )
        self._every = self.REDRAW_EVERY if self._console.is_terminal else self.LINE_EVERY
        self._name, self._total = name, total
        self._task = self._progress.add_task(escape(name), total=total, detail="")
        self._drawn, self._drawn_frames = time.monotonic(), 0

    def step(self, age: float | None, dropped: int) -> None:
        """One more frame was done; age: of its features, in seconds, where it has one. dropped: frames so far."""
        self.frames += 1
        now = time.monotonic()
        if now - self._drawn < self._every:
            return
        rate = (self.frames - self._drawn_frames) / (now - self._drawn)
        self._drawn, self._drawn_frames = now, self.frames
        of = f" of {self._total:,}" if self._total else ""
        done = self.frames + dropped  # dropped frames are among the total
        old = "" if age is None else f", age {1e3 * age:.0f} ms"
        detail = f"{done:,}{of} frames, {rate:.1f}/s{old}, {dropped:,} dropped"
        self._progress.update(self._task, completed=done, detail=detail)
        if not self._console.is_terminal:
            typer.echo(f"{self._name}: {detail}", err=True)

    def __enter__(self) -> FrameBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
