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
from ..images import resize
from ..progress import Progress, report
from ..stage1 import decompose
from .data import Item, Sample, Source, half

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..dataset.reader import PairDataset
    from ..vit import ViT


class RawFeatures:
    """Raw features of whole images, float16 [h, w, C] each; for several threads, one at a time."""

    def __init__(self, vit: ViT):
        self.vit, self._lock = vit, Lock()

    def __call__(self, images: Sequence[tuple[PILImage.Image, bool]], names: Sequence[str]) -> list[np.ndarray]:
        """Of images, mirrored where the second of the pair says so; names: for messages."""
        inputs = [self.vit.transform(image) for image, _ in images]
        inputs = [x.flip(-1) if mirrored else x for x, (_, mirrored) in zip(inputs, images)]
        together = len(inputs) if self.vit.device.type == "cuda" else 1
        found: list[np.ndarray] = []
        for start in range(0, len(inputs), together):
            with self._lock:
                features = self.vit.features(torch.stack(inputs[start : start + together])).cpu().numpy()
            found += [half(x, f"{name}: raw") for x, name in zip(features, names[start:])]
        return found


class StoredPairs(Source):
    """The pairs of a dataset. vit: computes raw features where the dataset does not keep them."""

    def __init__(self, dataset: PairDataset, vit: ViT | None, usable: Sequence[int] | None = None):
        self.dataset, self.raw = dataset, RawFeatures(vit) if vit else None
        self.usable = range(len(dataset)) if usable is None else usable
        records = [dataset.records[i] for i in self.usable]
        self.names, self.hashes = [record.place for record in records], [str(record.hash) for record in records]

    def load(self, items: Sequence[Item]) -> list[Sample]:
        samples, images = [], []
        for item, mirrored in items:
            raw, semantics = self.dataset.read(self.usable[item])
            target = self._checked(semantics, item, "semantics")
            if self.raw:
                images.append((self.dataset.open_image(self.usable[item]), mirrored))
                samples.append({"target": np.ascontiguousarray(target[:, ::-1]) if mirrored else target})
            else:
                assert raw is not None
                samples.append({"raw": self._checked(raw, item, "raw"), "target": target})
        if self.raw:
            names = [self.names[item] for item, _ in items]
            for sample, raw in zip(samples, self.raw(images, names)):
                sample["raw"] = raw
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
    """Pairs made when they are asked for, by stage 1 on images."""

    def __init__(self, files: ImageFiles, vit: ViT, how: Mapping[str, Any]):
        self.files, self.raw, self.how = files, RawFeatures(vit), dict(how)
        self.names, self.hashes = files.names, files.hashes

    def load(self, items: Sequence[Item]) -> list[Sample]:
        images = [(self.files.open(item), mirrored) for item, mirrored in items]
        names = [self.names[item] for item, _ in items]
        samples: list[Sample] = []
        for (image, mirrored), name in zip(images, names):
            target = half(decompose(image, self.raw.vit, **self.how).semantics, f"{name}: semantics")
            samples.append({"target": np.ascontiguousarray(target[:, ::-1]) if mirrored else target})
        for sample, raw in zip(samples, self.raw(images, names)):
            sample["raw"] = raw
        return samples


class Pictures(Source):
    """Images alone, at a ViT's size: "pixels" uint8 [height, width, 3]."""

    def __init__(self, files: ImageFiles, size: tuple[int, int]):
        self.files, self.size = files, size
        self.names, self.hashes = files.names, files.hashes

    def load(self, items: Sequence[Item]) -> list[Sample]:
        return [{"pixels": self._pixels(item, mirrored)} for item, mirrored in items]

    def _pixels(self, item: int, mirrored: bool) -> np.ndarray:
        pixels = resize(self.files.open(item), self.size)
        return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


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
