"""Reading a dataset: what training uses."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from . import manifest, pairs, settings
from .inputs import decode_image
from .store import Store

if TYPE_CHECKING:
    from PIL import Image as PILImage


class PairDataset:
    """The finished pairs of a dataset, one for each distinct image, in the manifest's order.

    url: the folder or URL that `build_dataset` wrote to. images: a folder or URL to find the images in, where they are
    no longer where they were.

    settings: what the pairs were made with. vit_options: keyword arguments for `dvt_fast.ViT`. grid: patches (h, w).
    dim: channels. keep: "both", or "semantics". records: see `manifest.Record`. files: of every
    pair that a row names, a failed image's too.

    Raises `InputError` where there is no dataset, no finished pair, no permission to read, or a newer format.
    """

    def __init__(self, url: str | os.PathLike[str], images: str | os.PathLike[str] | None = None):
        self.store = Store(url)
        content = settings.read(self.store)
        if content is None:
            raise InputError(f"{self.store.url}: not a dataset, as it holds no {settings.FILE}")
        self.settings: dict[str, Any] = content["settings"]
        self.vit_options: dict[str, Any] = content["vit_options"]
        self.grid: tuple[int, int] = tuple(self.settings["vit"]["grid"])
        self.dim: int = self.settings["vit"]["dim"]
        self.keep: str = self.settings["keep"]
        data = self.store.read_or_none(manifest.FILE)
        rows = manifest.parse(data, self.store.locate(manifest.FILE), self.settings) if data is not None else []
        self.records: list[manifest.Record] = [row for row in rows if row.state == "done"]
        self.files: set[str] = {row.file for row in rows if row.hash}
        if not self.records:
            raise InputError(f"{self.store.url}: holds no finished pair yet; dvt-fast dataset makes them")
        self._images = Store(images) if images is not None else None

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"PairDataset({self.store.url!r}, {len(self)} pairs of {self.grid}, {self.dim} channels)"

    def read(self, i: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Raw features (None where only the semantics were kept) and semantics: float32 [h, w, C] each.

        Raises `InputError` naming the file where it is absent, damaged or of another ViT.
        """
        name = self.records[i].file
        pair = pairs.unpack_pair(self.store.read(name), self.store.locate(name))
        if pair.semantics.shape != (*self.grid, self.dim) or (pair.raw is None) != (self.keep == "semantics"):
            raise InputError(f"{self.store.locate(name)}: of another dataset than {self.store.url}")
        return pair.raw, pair.semantics

    def open_image(self, i: int) -> PILImage.Image:
        """The image of a pair, upright and RGB. Raises `InputError` where it is absent or not what it was."""
        record = self.records[i]
        store = self._images or Store(record.folder)
        data = store.read(record.image)
        if hashlib.sha256(data).hexdigest() != record.hash:
            raise InputError(f"{store.locate(record.image)}: its content has changed since its pair was made")
        return decode_image(data, store.locate(record.image))
