"""The features of a video in files: a folder of parts, each of which is whole or absent.

A part, `part-000000.safetensors` and so on, holds the next frames: `features` [n, h, w, C] and, where they were asked
for, `raw` [n, h, w, C], in float32 or float16. Its header (JSON under "dvt_fast" in the metadata, as in every file of
the package) says in "frames", for each: id, captured, stamp, age, missed_deadline, drops_before, and of the frame's
meta what JSON can hold; times are in seconds, and `captured` plus "epoch" is the time since 1970. A process that is
killed loses the part that it had not written yet, at most `PART_FRAMES` frames or `PART_BYTES`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import check_folder, pack_safetensors, read_safetensors, write_whole
from ..stream.result import Result

FORMAT, VERSION = "dvt_fast.stream", 1
PART_FRAMES, PART_BYTES = 64, 2**25
DTYPES = ("float32", "float16")
TOLD = ("id", "captured", "stamp", "age", "missed_deadline", "drops_before")


class FeatureSink:
    """Writes the features of results to a folder, part by part; `read_features` gives them back.

    raw: the raw ones, too. dtype: "float32", or "float16" in half the space. The folder is made where it is missing,
    and must not hold features yet: those of two runs are not mixed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, raw: bool = False, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise InputError(f"dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
        self.folder = check_folder(Path(folder).expanduser())
        if parts_in(self.folder):
            raise InputError(f"{self.folder}: holds features already: choose another folder, or remove them")
        self._raw, self._dtype = raw, np.dtype(dtype)
        self._epoch = time.time() - time.monotonic()
        self._parts = 0
        self._frames: list[dict[str, Any]] = []
        self._arrays: dict[str, list[np.ndarray]] = {}

    def write(self, result: Result) -> None:
        """Raises also `NonFiniteError` for features with NaN or infinity, which are not kept."""
        arrays = {"features": result.features}
        if self._raw:
            if result.raw is None:
                raise InputError("the results hold no raw features: open the stream with raw=True")
            arrays["raw"] = result.raw
        for name, array in arrays.items():
            self._arrays.setdefault(name, []).append(array.astype(self._dtype))  # a copy: its memory serves again
        self._frames.append({name: getattr(result, name) for name in TOLD} | {"meta": _plain(result.meta)})
        size = sum(array.nbytes for kind in self._arrays.values() for array in kind)
        if len(self._frames) >= PART_FRAMES or size >= PART_BYTES:
            self._flush()

    def close(self) -> None:
        if self._frames:
            self._flush()

    def _flush(self) -> None:
        frames, arrays = self._frames, {name: np.stack(kind) for name, kind in self._arrays.items()}
        self._frames, self._arrays = [], {}  # gone, whatever happens: what cannot be kept is not tried again
        data = pack_safetensors(arrays, FORMAT, VERSION, frames=frames, epoch=self._epoch)
        write_whole(self.folder / f"part-{self._parts:06}.safetensors", data)
        self._parts += 1


def read_features(folder: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Each frame that a `FeatureSink` kept, in order: what is told of it (see this file's top, and "epoch"), and its
    arrays: "features" [h, w, C] and, where they were kept, "raw".

    Raises `InputError` for a folder without features, and for a part that is not one.
    """
    parts = parts_in(Path(folder))
    if not parts:
        raise InputError(f"{folder}: holds no features")
    for part in parts:
        header, arrays = read_safetensors(part, FORMAT, VERSION)
        frames = header.get("frames")
        if not isinstance(frames, list) or any(len(array) != len(frames) for array in arrays.values()):
            raise InputError(f"{part}: does not say of each frame which it is")
        for i, frame in enumerate(frames):
            yield frame | {"epoch": header.get("epoch")}, {name: array[i] for name, array in arrays.items()}


def parts_in(folder: Path) -> list[Path]:
    """The parts in a folder, in order."""
    return sorted(folder.glob("part-??????.safetensors"))


def _plain(meta: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a frame's meta."""
    kept = {}
    for name, value in meta.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        kept[name] = value
    return kept
