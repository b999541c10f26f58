"""One task on one set of data for several variants: features made together, rows stored one by one, then the report."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import machine
from ..errors import Cancelled, DvtError, InputError, MissingExtraError, OutputError
from .data.describe import Data, describe, problems_of, readable
from .report import write_report
from .store import Store, as_json
from .tasks import task_called
from .variants import Variant, check_names

if TYPE_CHECKING:
    from ..progress import Progress
    from .features import Features


@dataclass
class Ran:
    """What a run left behind.

    path: the file of results. document: what is in it. kept: names of variants whose rows were there. failed: a line
    for each variant that has no row now. problems: a line for each image that was left out.
    """

    path: Path
    document: dict[str, Any]
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(
    task: str,
    features: Features,
    variants: Sequence[Variant],
    data: Data,
    settings: Any = None,
    *,
    out: Path,
    name: str,
    read: dict[str, Any] | None = None,
    folder: Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Ran:
    """Measure `variants` and write `out/<task>-<name>.json` and `out/report.html`.

    features: with a cache. settings: of the task, None is the full recipe. read: the options that the data were read
    with. folder: of the data; stored lines about left-out images name them within it. again: rows that are there are
    made again. progress: progress(done, total, what). note: told which variant is under way. say: told what else
    matters, line by line.

    A variant that fails does not stop the others, and neither does an image that cannot be read: it is left out for all
    of them. What is done stays, and so does the report, however the run ends. Raises `InputError`,
    `MissingExtraError` and `OutputError` for what stops all variants, and `Cancelled`.
    """
    found = task_called(task)
    settings = found.settings() if settings is None else settings
    if not isinstance(settings, found.settings_class):
        raise InputError(f"settings of {task} must be a {found.settings_class.__name__}, got {type(settings).__name__}")
    check_names(list(variants))
    store = Store(
        out,
        task,
        name,
        data=describe(data, read),
        vit=features.vit.describe(),
        vit_key=features.vit_key + (json.dumps(machine.processor()) if found.timed else ""),
        settings=as_json(dataclasses.asdict(settings)),
        again=again,
        say=say,
    )
    wanted = [variant for variant in variants if not store.has(variant)]
    ran = Ran(store.path, store.document, [variant.name for variant in variants if variant not in wanted])
    try:
        if wanted:
            if note:
                note("features")
            data, unread = _prepare(found, features, wanted, data, settings, progress)
            lines = [*problems_of(data), *unread]
            store.document["problems"] = [_within(folder, line) for line in lines] if folder else lines
        ran.problems = store.document["problems"]
        for variant in wanted:
            if note:
                note(variant.name)
            started = time.perf_counter()
            try:
                outcome = found.run(features, variant, data, settings, progress)
            except (Cancelled, MissingExtraError, OutputError):
                raise
            except DvtError as error:
                ran.failed.append(f"{variant.name}: {error}")
                continue
            store.add(variant, outcome, time.perf_counter() - started)
    finally:
        if store.path.exists():
            write_report(out)
    return ran


def _within(folder: Path, line: str) -> str:
    """A line without `folder` before the paths in it, but not within them: s is no folder of images/a.png."""
    return re.sub(rf"(?<![\w./-]){re.escape(str(folder))}/", "", line)


def _prepare(
    task: Any, features: Features, variants: list[Variant], data: Data, settings: Any, progress: Progress | None
) -> tuple[Data, list[str]]:
    """Make the features of all variants, and leave out images that cannot be read; a line for each of these."""
    frames = task.frames(data, settings)
    if not frames:
        return readable(data)
    if not features.prepare(variants, frames, progress):
        return data, []
    # What failed for another reason than the file, NaN say, fails the variant when it asks for these features.
    fewer, unread = readable(data)
    if unread:
        features.prepare(variants, task.frames(fewer, settings), progress)
    return fewer, unread
