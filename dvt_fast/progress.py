"""Progress callbacks: told how far the work is, and asked whether it is to go on."""

from __future__ import annotations

from collections.abc import Callable

from .errors import Cancelled

# progress(done, total, what): what is "views", "steps" or "images"; returning False stops the work with `Cancelled`.
Progress = Callable[[int, int, str], bool | None]


def report(progress: Progress | None, done: int, total: int, what: str) -> None:
    """Tell `progress`, where there is one; raise `Cancelled` where it returns False."""
    if progress is not None and progress(done, total, what) is False:
        raise Cancelled(f"cancelled after {done} of {total} {what}")
