"""What a training shows: numbers as lines of `log.jsonl` and as TensorBoard scalars, and pictures of held-out images.

Both follow a resumed run: what was logged after the checkpoint that it goes on from is taken back.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import OutputError
from ..extras import require
from ..files import write_whole
from ..visual import ColorBasis

LOG, BOARD = "log.jsonl", "tensorboard"
PANEL_SIDE = 160  # pixels at least, of one picture in the panel

# TensorBoard's names: what belongs together gets one heading.
TAGS = {
    "loss": "train/loss",
    "mse": "train/mse",
    "cosine": "train/cosine",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "images_per_second": "train/images_per_second",
    "held_out_before": "held_out/cosine_before",
    "held_out_cosine": "held_out/cosine",
}

Watch = Callable[[dict[str, Any]], None]  # called with each line of the log


class Monitor:
    """The log of one training in `folder`, a context manager. step: of the checkpoint that the run goes on from.

    active: of several processes only the first writes. watch: called with each line of the log.
    """

    def __init__(self, folder: Path, step: int, active: bool = True, watch: Watch | None = None):
        self.path, self._watch = folder / LOG, watch
        self._board: Board | None = None
        if active:
            self._cut(step)
            self._board = Board(folder / BOARD, step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step; names are keys of `TAGS`."""
        if self._board is None:
            return
        record = {"step": step} | {name: float(f"{value:.7g}") for name, value in values.items()}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        self._board.scalars(step, {TAGS[name]: value for name, value in values.items()})
        if self._watch:
            self._watch(record)

    def panel(self, step: int, before: np.ndarray, target: np.ndarray, after: np.ndarray) -> None:
        """A picture of a few images' features [n, h, w, C]: as they were, as wanted, as they became."""
        if self._board is not None:
            self._board.image(step, "held_out/before_target_after", draw(before, target, after))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            with suppress(OutputError) if error else nullcontext():  # which would hide what ended the training
                self._board.close()

    def _cut(self, step: int) -> None:
        """Take back the lines after `step`, and what is no line: the end of one that was being written."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"{self.path}: cannot be read: {error}") from None
        kept = [line for line in lines if _step_of(line) <= step]
        write_whole(self.path, "".join(line + "\n" for line in kept).encode())


class Board:
    """A new file for TensorBoard in `folder`, which hides what older ones there hold of `step` and later.

    TensorBoard's own writer has a thread that dies with a traceback on a full disk; this one writes at once.
    """

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        self._summary = require("torch.utils.tensorboard.summary", "train")
        self._event = require("tensorboard.compat.proto.event_pb2", "train")
        records = require("tensorboard.summary.writer.record_writer", "train")
        now = time.time_ns()
        # by name TensorBoard knows its files and puts them in order: seconds, the machine, and what is this one's own
        name = f"events.out.tfevents.{now // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{now % 10**9}"
        with self._one_line():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / name, "xb")  # noqa: SIM115 - closed by `close`
        self._records = records.RecordWriter(self._file)
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write([{"step": 0, "file_version": "brain.Event:2"}, {"step": step, "session_log": start}])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step by their tags."""
        self._write([{"step": step, "summary": self._summary.scalar(tag, value)} for tag, value in values.items()])

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """A picture of a step, uint8 [height, width, 3]."""
        self._write([{"step": step, "summary": self._summary.image(tag, picture, dataformats="HWC")}])

    def close(self) -> None:
        with self._one_line():
            self._file.close()

    def _write(self, events: Sequence[Mapping[str, Any]]) -> None:
        with self._one_line():
            for fields in events:
                event = self._event.Event(wall_time=time.time(), **fields)
                self._records.write(event.SerializeToString())
            self._file.flush()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror or error}") from None


def draw(before: np.ndarray, target: np.ndarray, after: np.ndarray) -> np.ndarray:
    """A row an image: before, target, after [n, h, w, C], in colours of one basis: uint8 [n * side, 3 * side, 3]."""
    basis = ColorBasis.fit(before, target)
    times = -(-PANEL_SIDE // max(before.shape[1:3]))
    rows = np.concatenate([basis.colors(part) for part in (before, target, after)], axis=2)  # [n, h, 3 w, 3]
    return rows.reshape(-1, *rows.shape[2:]).repeat(times, axis=0).repeat(times, axis=1)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
