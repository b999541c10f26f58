"""The artifacts of a ViT, which are nearly the same for every image: measured once, taken off ever after."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import like, to_numpy
from .errors import InputError
from .files import pack_safetensors, read_safetensors, write_whole
from .progress import report
from .solvers.gauge import gauge
from .views import DEFAULT_PLAN
from .vit import difference

if TYPE_CHECKING:
    from .images import ImageSource
    from .progress import Progress
    from .views import Plan
    from .vit import ViT

FORMAT, VERSION = "dvt_fast.artifact_map", 1

# What two ViTs must share for one map to serve both; the weights last, as they are those of this layer and norm.
SAME = ("name", "size", "stride", "layer", "norm", "weights")


@dataclass(frozen=True, repr=False)
class ArtifactMap:
    """G of one ViT at one input size.

    values: float32 [H, W, C], by patch index; its robust mean over the patches
    (`solvers.gauge`) is 0. meta: how it was made (JSON types), with
    "agreement", the share of the variance of G over the images that position explains: 1 where all images agree,
    1 / n for n images that have nothing in common.
    """

    values: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def calibrate(
        cls,
        vit: ViT,
        images: Iterable[ImageSource],
        views: Plan = DEFAULT_PLAN,
        *,
        seed: int = 0,
        progress: Progress | None = None,
        **options: Any,
    ) -> ArtifactMap:
        """The median over images of the G that `decompose` finds in each.

        The median, because G of one image holds some of its content and content differs between images. progress:
        called as progress(done, total, "images"); returning False stops with `Cancelled`. options: of the direct
        solver.
        """
        from .stage1 import decompose

        if isinstance(images, (str, os.PathLike)):
            raise InputError(
                f"images must be several images, got one path: {images}; `images.find_images` expands folders"
            )
        images = list(images)
        if not images:
            raise InputError("an artifact map needs at least one image")
        maps = []
        for done, image in enumerate(images, 1):
            maps.append(decompose(image, vit, views, "direct", seed=seed, **options).artifacts)
            report(progress, done, len(images), "images")
        found = np.stack(maps)
        middle = np.median(found, 0)
        middle -= gauge(middle.reshape(-1, middle.shape[-1]))
        meta = {"vit": vit.describe(), "images": len(images), "agreement": position_share(found)}
        return cls(middle.astype(np.float32), meta)

    def __repr__(self) -> str:
        h, w, c = self.values.shape
        return f"ArtifactMap({h}x{w} patches, {c} channels, vit={self.meta.get('vit', {}).get('name')!r})"

    def check(self, vit: ViT) -> None:
        """`InputError` naming the first setting in which `vit` differs from the one that the map was measured on.

        A map without such a record (made from an array) is taken on trust.
        """
        made = self.meta.get("vit")
        if not made:
            return
        differs = difference(made, vit.describe(), SAME)
        if differs:
            raise InputError(f"the artifact map was measured on a ViT with {differs}: calibrate a map for it")

    def subtract(self, features: Any) -> Any:
        """features [..., H, W, C] without the artifacts, of the kind that came."""
        array = to_numpy(features, "features")
        if array.shape[-3:] != self.values.shape:
            raise InputError(f"features must end in shape {list(self.values.shape)}, got {list(array.shape)}")
        return like(array - self.values.astype(array.dtype, copy=False), features)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all."""
        write_whole(path, pack_safetensors({"artifacts": self.values}, FORMAT, VERSION, meta=self.meta))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ArtifactMap:
        """Read a file of `save`; `InputError` for a file that is not one."""
        header, arrays = read_safetensors(Path(path), FORMAT, VERSION)
        if "artifacts" not in arrays:
            raise InputError(f"{path}: holds no 'artifacts'")
        return cls(arrays["artifacts"], header.get("meta", {}))


def position_share(maps: np.ndarray) -> float:
    """Share of the variance of maps [n, H, W, C] that position explains: 1/n for unrelated maps, 1 for equal ones."""
    mean = maps.mean((0, 1, 2))
    total = ((maps - mean) ** 2).sum()
    return float(((maps.mean(0) - mean) ** 2).sum() * len(maps) / total) if total > 0 else 0.0
