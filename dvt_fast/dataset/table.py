"""The manifest while a run fills it: which images are settled, which are still to be done, and what became of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import InputError
from . import manifest, settings
from .inputs import Source
from .manifest import Record
from .pairs import FOLDER, file_of, unpack_pair
from .store import Store, is_temporary
from .worker import Outcome, Task


class Table:
    """The rows of the images given, in their order, then those of earlier runs' images that were not given now.

    rows: None for an image that is still to be done. made: hashes of the pairs computed in this run. lost: a line for
    each earlier image whose pair is gone, and which was not given to make it again.

    Opening it writes `dataset.json` where there is none. Raises `InputError` for a dataset of other settings.
    """

    def __init__(
        self, store: Store, made_with: Mapping[str, Any], vit_options: Mapping[str, Any], sources: Sequence[Source]
    ):
        self.store, self.made_with, self.sources = store, made_with, sources
        content = settings.read(store)
        # Where nothing was finished, a run that failed at once binds nobody to what it was asked for.
        unfinished = content is not None and not store.list(FOLDER)
        if content is not None and not unfinished:
            settings.refuse_others(store.url, content["settings"], made_with)
        self._saved = store.read_or_none(manifest.FILE)
        earlier: dict[str, Record] = {}
        if self._saved is not None and not unfinished:
            try:
                rows = manifest.parse(self._saved, store.locate(manifest.FILE), made_with)
            except manifest.Damaged:  # the pairs' own files say it all again
                rows = []
            earlier = {row.place: row for row in rows if row.hash is not None}
        if content is None or unfinished:
            store.write(settings.FILE, settings.to_bytes(made_with, vit_options))
        sizes = store.list(FOLDER) if earlier else {}

        def whole(row: Record) -> bool:
            return sizes.get(row.file) == row.file_bytes

        self.rows: list[Record | None] = []
        self._before: dict[int, Record] = {}  # of images that are to be done: what they had
        for i, source in enumerate(sources):
            row = earlier.pop(source.place, None)
            if row is not None and not whole(row):
                row = None
            same = row is not None and row.error is None and (row.bytes, row.stamp) == (source.bytes, source.stamp)
            self.rows.append(row if same else None)
            if row is not None and not same:
                self._before[i] = row
        earlier = {place: row for place, row in earlier.items() if row.error is None}
        self._others = [row for row in earlier.values() if whole(row)]
        self.lost = [
            f"{row.place}: its pair is gone or damaged, and it was not given now to make it again"
            for row in earlier.values()
            if not whole(row)
        ]
        self.made: set[str] = set()
        self._unsure: set[str] = set()  # hashes of which more than one pair was written, or may have been
        self._last_save = time.monotonic()
        self._saving = 0.0  # what the last one took

    def __iter__(self) -> Iterator[Record]:
        """Every row that there is."""
        yield from (row for row in self.rows if row is not None)
        yield from self._others

    @property
    def kept(self) -> int:
        """Rows of images that were not given now."""
        return len(self._others)

    def tasks(self) -> list[Task]:
        """What is to be done."""
        return [Task(i, s.folder, s.image) for i, s in enumerate(self.sources) if self.rows[i] is None]

    def enter(self, task: Task, outcome: Outcome) -> None:
        """What became of an image. One that failed keeps the pair that it had: it may be out of reach for a while."""
        source = self.sources[task.index]
        folder, image = manifest.printable(source.folder), manifest.printable(source.image)
        row = Record(folder, image, bytes=source.bytes, stamp=source.stamp, error=outcome.error)
        for name, value in outcome.facts.items():
            setattr(row, name, value)
        before = self._before.get(task.index)
        if outcome.error is not None and before is not None:
            row.hash, row.file_bytes, row.file_sha256 = before.hash, before.file_bytes, before.file_sha256
        self.rows[task.index] = row
        if outcome.made:
            hash = outcome.facts["hash"]
            (self._unsure if hash in self.made else self.made).add(hash)

    def forget_others(self) -> None:
        """Drop the rows of images that were not given now."""
        self._others, self.lost = [], []

    def save(self) -> None:
        """Write the manifest, where it is another one now."""
        start = time.monotonic()
        seen: dict[str, str | None] = {}
        for row in self:
            if row.hash is None or row.error is not None:
                row.state = "failed"
            else:
                row.state = "duplicate" if row.hash in seen else "done"
                if seen.setdefault(row.hash, row.file_sha256) != row.file_sha256:
                    self._unsure.add(row.hash)
        self._read_again()
        data = manifest.to_bytes(self, self.made_with)
        if data != self._saved:
            self.store.write(manifest.FILE, data)
            self._saved = data
        self._last_save = time.monotonic()
        self._saving = self._last_save - start

    def _read_again(self) -> None:
        """Enter what is stored of pairs that were made more than once: machines may differ in the last bits, and of two
        that do the same content at once, the last to write is the one whose file stays."""
        found: dict[str | None, dict[str, Any]] = {}
        for hash in self._unsure:
            name = file_of(hash)
            data = self.store.read_or_none(name)
            with contextlib.suppress(InputError):  # gone or damaged: the next run makes it anew
                found[hash] = manifest.facts_of(data, unpack_pair(data, name)) if data is not None else {}
        for row in self if found else ():
            if row.error is None:
                for name, value in found.get(row.hash, {}).items():
                    setattr(row, name, value)
        self._unsure.clear()

    def save_now_and_then(self, every: float) -> None:
        """Save where the last time is `every` seconds ago, and so seldom that it takes a twentieth of the time."""
        if time.monotonic() - self._last_save >= max(every, 20 * self._saving):
            self.save()

    def clean(self, prune: bool) -> int:
        """Remove what killed writers left, and with `prune` every pair that no row names, a failed one's neither: how
        many those were."""
        self.store.sweep(FOLDER)
        if not prune:
            return 0
        named = {row.file for row in self}
        extra = [name for name in self.store.list(FOLDER) if name not in named and not is_temporary(name)]
        for name in extra:
            self.store.remove(name)
        return len(extra)
