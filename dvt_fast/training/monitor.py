"""What a training shows: numbers as lines of `log.jsonl` and as TensorBoard scalars, and pictures of held-out images.

Both follow a resumed run: what was logged after the checkpoint that it goes on from is taken back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
        self.path, self._watch, self._board = folder / LOG, watch, None
        if active:
            self._cut(step)
            board = require("torch.utils.tensorboard", "train")
            try:
                self._board = board.SummaryWriter(str(folder / BOARD), purge_step=step + 1)
            except OSError as error:
                raise OutputError(f"{folder / BOARD}: cannot be written: {error.strerror or error}") from None

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
        for name, value in values.items():
            self._board.add_scalar(TAGS[name], value, step)
        if self._watch:
            self._watch(record)

    def panel(self, step: int, before: np.ndarray, target: np.ndarray, after: np.ndarray) -> None:
        """A picture of a few images' features [n, h, w, C]: as they were, as wanted, as they became."""
        if self._board is not None:
            self._board.add_image("held_out/before_target_after", draw(before, target, after), step, dataformats="HWC")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def _cut(self, step: int) -> None:
        """Take back the lines after `step`, and what is no line: the end of one that was being written."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"{self.path}: cannot be read: {error}") from None
        kept = [line for line in lines if _step_of(line) <= step]
        write_whole(self.path, "".join(line + "\n" for line in kept).encode())


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
