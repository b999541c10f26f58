"""What samples are made of: pairs of a dataset, pairs made on the fly, or images alone.

Raw features that were not kept are computed from the image by the ViT. On the CPU that is done image by image, so that
they do not depend, by rounding, on which others were in the batch; a CUDA device takes those of a batch together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric

from ..dataset.inputs import Source as File
from ..dataset.inputs import decode_image, find_sources
from ..dataset.store import Store
from ..errors import DvtError, InputError
from ..progress import Progress, report
from ..stage1 import decompose
from .crops import Box, box_of, crop_pixels, crop_semantics
from .data import Item, Sample, Source, half

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..dataset.reader import PairDataset
    from ..vit import ViT


class RawFeatures:
    """Raw features of views of images, float16 [h, w, C] each; for several threads, one at a time."""

    def __init__(self, vit: ViT):
        self.vit, self._lock = vit, Lock()

    def __call__(self, views: Sequence[tuple[PILImage.Image, Box]], names: Sequence[str]) -> list[np.ndarray]:
        """Of images, each seen through its box; names: for messages."""
        inputs = [self.vit.to_input(crop_pixels(image, box, self.vit.size)[None])[0] for image, box in views]
        together = len(inputs) if self.vit.device.type == "cuda" else 1
        found: list[np.ndarray] = []
        for start in range(0, len(inputs), together):
            with self._lock:
                features = self.vit.features(torch.stack(inputs[start : start + together])).cpu().numpy()
            found += [half(x, f"{name}: raw") for x, name in zip(features, names[start:])]
        return found


class StoredPairs(Source):
    """The pairs of a dataset. vit: computes raw features that the dataset does not keep: of crops, and perhaps all."""

    def __init__(self, dataset: PairDataset, vit: ViT | None, usable: Sequence[int] | None = None):
        self.dataset, self.raw = dataset, RawFeatures(vit) if vit else None
        self.usable = range(len(dataset)) if usable is None else usable
        records = [dataset.records[i] for i in self.usable]
        self.names, self.hashes = [record.place for record in records], [str(record.hash) for record in records]

    def load(self, items: Sequence[Item]) -> list[Sample]:
        samples: list[Sample] = []
        views, places = [], []  # to be computed, and whose they are
        for place, (item, variant) in enumerate(items):
            raw, semantics = self.dataset.read(self.usable[item])
            target = self._checked(semantics, item, "semantics")
            if raw is not None and variant == 0:
                samples.append({"raw": self._checked(raw, item, "raw"), "target": target})
                continue
            assert self.raw is not None
            box = box_of(self.hashes[item], variant)
            views.append((self.dataset.open_image(self.usable[item]), box))
            places.append(place)
            samples.append({"target": crop_semantics(target, box, self.raw.vit)})
        if self.raw:
            names = [self.names[items[place][0]] for place in places]
            for place, raw in zip(places, self.raw(views, names)):
                samples[place]["raw"] = raw
        return samples

    def _checked(self, features: np.ndarray, item: int, what: str) -> np.ndarray:
        expected = (*self.dataset.grid, self.dataset.dim)
        if features.shape != expected:
            raise InputError(
                f"{self.names[item]}: its pair holds {what} of shape {list(features.shape)}, expected {list(expected)}"
            )
        return half(features, f"{self.names[item]}: {what}")


class ImageFiles:
    """Image files, each content once: what can be read when training begins must still be the same later on.

    files, hashes: the files, local or remote, and the sha256 of each.
    """

    def __init__(self, files: Sequence[File], hashes: Sequence[str]):
        self.files, self.hashes = files, hashes
        self.names = [file.place for file in files]
        self._folders = {file.folder: Store(file.folder) for file in files}

    @classmethod
    def find(cls, images: Any, fabric: Fabric, workers: int, progress: Progress | None) -> tuple[ImageFiles, list[str]]:
        """The usable ones among files, folders, patterns and URLs, and a line for each that is not; the first process
        looks for all. Raises `InputError` where none is found or none is usable."""
        found: Any = None
        if fabric.is_global_zero:
            files = find_sources(images)
            everything = cls(files, [""] * len(files))
            by_hash: dict[str, File] = {}
            results = examine(everything._digest, range(len(files)), workers, progress)
            failed = [str(result) for result in results if isinstance(result, DvtError)]
            for file, result in zip(files, results):
                if isinstance(result, str):
                    by_hash.setdefault(result, file)
            if not by_hash:
                raise InputError(f"none of {len(files)} images can be used; the first: {failed[0]}")
            found = by_hash, failed
        by_hash, failed = fabric.broadcast(found)
        return cls(list(by_hash.values()), list(by_hash)), failed

    def open(self, item: int) -> PILImage.Image:
        """An image, upright and RGB. `InputError` where it is not what it was."""
        data = self._read(item)
        if hashlib.sha256(data).hexdigest() != self.hashes[item]:
            raise InputError(f"{self.names[item]}: its content has changed since training began")
        return decode_image(data, self.names[item])

    def _digest(self, item: int) -> str:
        data = self._read(item)
        decode_image(data, self.names[item])
        return hashlib.sha256(data).hexdigest()

    def _read(self, item: int) -> bytes:
        return self._folders[self.files[item].folder].read(self.files[item].image)


class FreshPairs(Source):
    """Pairs made when they are asked for, by stage 1 on images. memory: bytes of semantics to keep, as every view of
    an image has its part of the same; those beyond are found again each time."""

    def __init__(self, files: ImageFiles, vit: ViT, how: Mapping[str, Any], memory: int):
        self.files, self.raw, self.how = files, RawFeatures(vit), dict(how)
        self._room, self._kept, self._lock = memory, dict[int, np.ndarray](), Lock()
        self.names, self.hashes = files.names, files.hashes

    def load(self, items: Sequence[Item]) -> list[Sample]:
        views = [(self.files.open(item), box_of(self.hashes[item], variant)) for item, variant in items]
        samples: list[Sample] = []
        for (image, box), (item, _) in zip(views, items):
            samples.append({"target": crop_semantics(self._semantics(item, image), box, self.raw.vit)})
        for sample, raw in zip(samples, self.raw(views, [self.names[item] for item, _ in items])):
            sample["raw"] = raw
        return samples

    def _semantics(self, item: int, image: PILImage.Image) -> np.ndarray:
        if item in self._kept:
            return self._kept[item]
        found = half(decompose(image, self.raw.vit, **self.how).semantics, f"{self.names[item]}: semantics")
        with self._lock:
            if found.nbytes <= self._room and item not in self._kept:
                self._room -= found.nbytes
                self._kept[item] = found
        return found


class Pictures(Source):
    """Images alone, at a ViT's size: "pixels" uint8 [height, width, 3]."""

    def __init__(self, files: ImageFiles, size: tuple[int, int]):
        self.files, self.size = files, size
        self.names, self.hashes = files.names, files.hashes

    def load(self, items: Sequence[Item]) -> list[Sample]:
        return [
            {"pixels": crop_pixels(self.files.open(item), box_of(self.hashes[item], variant), self.size)}
            for item, variant in items
        ]


def examine(check: Callable[[Any], Any], what: Sequence[Any], workers: int, progress: Progress | None) -> list[Any]:
    """`check` of each of `what`, by threads: its result, or the `DvtError` that it raised."""

    def attempt(one: Any) -> Any:
        try:
            return check(one)
        except DvtError as error:
            return error

    results = []
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for result in pool.map(attempt, what):
            results.append(result)
            report(progress, len(results), len(what), "images")
    finally:
        pool.shutdown(cancel_futures=True)
    return results
