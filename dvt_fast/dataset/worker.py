"""One worker: a ViT that stays loaded, and images that become pairs, one after the other.

The same class serves every engine: in this process, in processes of this machine, and as an actor on a cluster.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..decomposition import Decomposition
from ..errors import DvtError, InputError
from . import manifest, pairs, settings
from .inputs import decode_image
from .store import Store, Unreachable


@dataclass(frozen=True)
class Job:
    """What all workers of a run have in common.

    vit_options: of `dvt_fast.ViT`, without the device. options: of the solver, with a known artifact map as values.
    settings: what the pairs must agree with (see `settings`). threads: of each worker.
    """

    store: Store
    vit_options: dict[str, Any]
    options: dict[str, Any]
    settings: dict[str, Any]
    threads: int


@dataclass(frozen=True)
class Task:
    """One image to be done: its index in the input, its folder or URL, and its path in there."""

    index: int
    folder: str
    image: str

    @property
    def place(self) -> str:
        """The image's path or URL."""
        return f"{self.folder.rstrip('/')}/{self.image}"


@dataclass
class Outcome:
    """What became of an image. facts: fields of its record. error: why it failed, in one line. made: whether its pair
    was computed, not found. fatal: what ends the run, as it would fail every image."""

    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    made: bool = False
    fatal: DvtError | None = None


class Worker:
    """Makes pairs. own_process: this process does nothing else, so that it may end where its device is lost.

    Raises what `dvt_fast.ViT` raises, and `InputError` where this machine's ViT is another one.
    """

    def __init__(self, job: Job, device: str, own_process: bool = False):
        import torch

        from ..runtime import set_num_threads
        from ..vit import ViT

        torch.set_num_threads(job.threads)
        set_num_threads(job.threads)
        self.job, self.own_process = job, own_process
        self.hash = settings.digest(job.settings)
        self.vit = ViT(**job.vit_options, device=device)
        settings.refuse_others("the ViT of a worker", {"vit": job.settings["vit"]}, {"vit": self.vit.describe()})
        self._folders: dict[str, Store] = {}

    def process(self, task: Task) -> Outcome:
        """Read, hash, compute, write. An image that cannot be done is an outcome, not an error; so is what cannot go
        on: the storage, and the device of a process that may not end."""
        place = task.place
        if place != manifest.printable(place):
            return Outcome(error=f"{manifest.printable(place)}: its name is not UTF-8: rename it")
        try:
            data = self._folder(task.folder).read(task.image)
            hash = hashlib.sha256(data).hexdigest()
            found = self.find(hash)
            if found:
                return Outcome(found)
            content = self._compute(data, hash, place)
        except Unreachable as error:
            return Outcome(fatal=error)
        except Exception as error:
            if self._device_works():
                return Outcome(error=reason(place, error))
            if self.own_process:
                os._exit(1)  # the engine starts another one, which may fare better
            lost = f"device {str(self.vit.device)!r} no longer computes, restart the program: {reason(place, error)}"
            return Outcome(fatal=DvtError(lost))
        name = pairs.file_of(hash)
        try:
            self.job.store.write(name, content)
        except DvtError as error:
            return Outcome(fatal=error)
        return Outcome(manifest.facts_of(content, pairs.unpack_pair(content, name)), made=True)

    def find(self, hash: str) -> dict[str, Any] | None:
        """The facts of a pair that is there already: whole, and of these settings."""
        name = pairs.file_of(hash)
        try:
            data = self.job.store.read_or_none(name)
        except InputError as error:
            raise Unreachable(str(error)) from None  # forbidden, say: the next one would be, too
        if data is None:
            return None
        try:
            pair = pairs.unpack_pair(data, name)
        except InputError:  # damaged: it is made anew
            return None
        same = pair.header.get("settings") == self.hash and pair.header.get("hash") == hash
        return manifest.facts_of(data, pair) if same else None

    def _compute(self, data: bytes, hash: str, place: str) -> bytes:
        """The bytes of the pair of an image, from those of its file."""
        from ..stage1 import decompose

        made = self.job.settings
        image = decode_image(data, place)
        plan = {name: made[name] for name in ("views", "solver", "seed", "coords")}
        d = decompose(image, self.vit, **plan, **self.job.options)
        if made["keep"] == "semantics":  # training computes the raw features again
            pairs.check_range("raw", d.raw)
        header = {"hash": hash, "settings": self.hash, "width": image.width, "height": image.height, **measures(d)}
        return pairs.pack_pair(d.raw if made["keep"] == "both" else None, d.semantics, made["dtype"], header)

    def _folder(self, folder: str) -> Store:
        if folder not in self._folders:
            self._folders[folder] = Store(folder, self.job.store.retries)
        return self._folders[folder]

    def _device_works(self) -> bool:
        """False where the CUDA device no longer computes for this process: every later image would fail, too."""
        import torch

        if self.vit.device.type == "cuda":
            try:
                torch.ones(1, device=self.vit.device).item()
            except Exception:
                return False
        return True


def measures(d: Decomposition) -> dict[str, float]:
    """Numbers by which a pair can be judged, to six digits: see `manifest.Record`."""
    raw, semantics = (part.reshape(-1, part.shape[-1]).astype(np.float64) for part in (d.raw, d.semantics))
    raw_norm, semantics_norm = (np.linalg.norm(part, axis=1) for part in (raw, semantics))
    cosine = (raw * semantics).sum(axis=1) / np.maximum(raw_norm * semantics_norm, 1e-30)
    found = {
        "residual": np.linalg.norm(d.residual.astype(np.float64)) / max(float(np.linalg.norm(raw)), 1e-30),
        "cosine": cosine.mean(),
        "raw_norm": np.median(raw_norm),
        "semantics_norm": np.median(semantics_norm),
    }
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def gave_up(task: Task, deaths: int, cause: str) -> Outcome:
    """The outcome of an image whose worker died every time."""
    return Outcome(error=f"{manifest.printable(task.place)}: its worker died {deaths} times ({cause})")


def reason(place: str, error: Exception) -> str:
    """Why an image failed, in one line that names it; of what is not one of our errors also the type."""
    text = " ".join(str(error).split())
    if not isinstance(error, DvtError):
        text = f"{type(error).__name__}: {text}"
    return text if text.startswith(place) else f"{place}: {text}"
