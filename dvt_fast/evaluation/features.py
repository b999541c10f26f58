"""The features of frames under several variants: computed when first asked for, kept on disk, read back afterwards.

What costs is the ViT's forward passes over the views of stage 1, so all variants of one plan share them. A file holds
the features of one frame under one variant, and its name says what they depend on: a run that was stopped goes on where
it was, and another ViT, option or image is another file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..arrays import to_numpy
from ..artifact_map import ArtifactMap
from ..errors import InputError, NonFiniteError
from ..files import check_folder, pack_safetensors, read_safetensors, write_whole
from ..images import reduce_for
from ..progress import report
from ..stage1 import solve
from ..views import iter_views, plan_boxes, view_coords
from .frames import Frame
from .variants import Variant

if TYPE_CHECKING:
    from ..decomposition import Decomposition
    from ..progress import Progress
    from ..vit import ViT

FORMAT, VERSION = "dvt_fast.evaluation.features", 1
COORDINATE_WAVES = 8  # frequencies of the control "coordinates", each as sine and cosine of x and y


class FeatureSource(Protocol):
    """What tasks ask for features."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), patches of a frame."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, which every frame is resized to."""

    def load(self, variant: Variant, frames: Sequence[Frame], progress: Progress | None = None) -> np.ndarray:
        """float32 [n, h, w, C]."""


class Features:
    """The features of one ViT, kept in a folder.

    cache: the folder, made where it is missing; None keeps nothing. batch_size: of the ViT's forward passes.
    """

    def __init__(self, vit: ViT, cache: Path | None = None, batch_size: int = 32):
        self.vit = vit
        self._batch = batch_size
        self._maps: dict[str, ArtifactMap] = {}
        self._denoisers: dict[str | None, Any] = {}
        self._cache = None
        if cache is not None:
            self._cache = check_folder(Path(cache) / self.vit_key)

    @property
    def grid(self) -> tuple[int, int]:
        return self.vit.grid

    @property
    def size(self) -> tuple[int, int]:
        return self.vit.size

    @cached_property
    def vit_key(self) -> str:
        """16 hex digits for what raw features depend on beside the image."""
        described = {k: v for k, v in self.vit.describe().items() if k != "weights"}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    def load(self, variant: Variant, frames: Sequence[Frame], progress: Progress | None = None) -> np.ndarray:
        """float32 [n, h, w, C]: from the cache, or computed and put there. progress: progress(done, total, "frames").

        Raises `InputError` for an image that cannot be read or a denoiser of another ViT, `NonFiniteError`, ...
        """
        found = []
        for done, frame in enumerate(frames, 1):
            features = self._kept(variant, frame)
            if features is None:
                features = self._compute([variant], frame)[variant.name]
                self._keep(variant, frame, features)
            found.append(features)
            report(progress, done, len(frames), "frames")
        if not found:
            raise InputError("no frame to take features of")
        return np.stack(found)

    def prepare(
        self, variants: Sequence[Variant], frames: Sequence[Frame], progress: Progress | None = None
    ) -> list[str]:
        """Compute what is not kept yet, of all variants together, so that they share forward passes.

        A frame that fails does not stop the others. Returns one line for each that failed.
        """
        if self._cache is None:
            raise InputError("features can only be prepared with a cache")
        failed = []
        for done, frame in enumerate(frames, 1):
            missing = [variant for variant in variants if not self._path(variant, frame).is_file()]
            if missing:
                try:
                    for name, features in self._compute(missing, frame).items():
                        self._keep(next(v for v in missing if v.name == name), frame, features)
                except (InputError, NonFiniteError) as error:
                    failed.append(str(error))
            report(progress, done, len(frames), "frames")
        return failed

    def _path(self, variant: Variant, frame: Frame) -> Path:
        assert self._cache is not None
        return self._cache / variant.key / f"{frame.key}.safetensors"

    def _kept(self, variant: Variant, frame: Frame) -> np.ndarray | None:
        if self._cache is None or variant.kind == "coordinates":
            return None
        path = self._path(variant, frame)
        if not path.is_file():
            return None
        return read_safetensors(path, FORMAT, VERSION)[1]["features"]

    def _keep(self, variant: Variant, frame: Frame, features: np.ndarray) -> None:
        if not np.isfinite(features).all():
            raise NonFiniteError(f"{frame.image}: the features of variant {variant.name} hold NaN or infinity")
        if self._cache is None or variant.kind == "coordinates":
            return
        path = self._path(variant, frame)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, pack_safetensors({"features": features}, FORMAT, VERSION, variant=variant.as_dict()))

    def _compute(self, variants: Sequence[Variant], frame: Frame) -> dict[str, np.ndarray]:
        """The features of one frame by the names of the variants."""
        found: dict[str, np.ndarray] = {}
        picture = None
        raw: np.ndarray | None = None
        plans: dict[str, list[Variant]] = {}
        for variant in variants:
            if variant.is_stage1:
                plans.setdefault(json.dumps([variant.views, variant.seed]), []).append(variant)
        with _naming(frame):
            for same in plans.values():
                picture = picture or frame.picture()
                boxes = plan_boxes(same[0].views, same[0].seed)
                batches = [self._forward(batch) for batch, _ in iter_views(picture, boxes, self.vit, self._batch)]
                views, coords = np.concatenate(batches), view_coords(boxes, self.vit)
                smallest = float(boxes[:, 2].min()), float(boxes[:, 3].min())
                if reduce_for(picture, self.size, smallest)[0] is picture:  # else its whole view is of fewer pixels
                    raw = views[-1]
                solved: dict[str, Decomposition] = {}
                for variant in same:
                    solver = json.dumps([variant.kind, variant.solver_options], sort_keys=True)
                    if solver not in solved:
                        solved[solver] = solve(views, coords, variant.kind, **variant.solver_options)
                    found[variant.name] = _part(solved[solver], variant.part)
            for variant in variants:
                if variant.kind == "coordinates":
                    found[variant.name] = coordinate_waves(self.grid)
                elif not variant.is_stage1:
                    if raw is None:
                        raw = self._forward(self.vit.transform(frame.picture())[None])[0]
                    found[variant.name] = self._from_raw(variant, raw)
        return found

    def _forward(self, images: Any) -> np.ndarray:
        return to_numpy(self.vit.features(images))

    def _from_raw(self, variant: Variant, raw: np.ndarray) -> np.ndarray:
        if variant.kind == "map":
            assert variant.file is not None
            if variant.file not in self._maps:
                self._maps[variant.file] = ArtifactMap.load(variant.file)
                self._maps[variant.file].check(self.vit)
            return self._maps[variant.file].subtract(raw)
        if variant.kind == "stage2":
            from ..denoiser.checkpoint import load_denoiser

            if variant.file not in self._denoisers:
                self._denoisers[variant.file] = load_denoiser(variant.file, self.vit)
            return to_numpy(self._denoisers[variant.file].denoise(raw))
        return raw


def coordinate_waves(grid: tuple[int, int]) -> np.ndarray:
    """Sines and cosines of the places of the patches along y and x, of 1 to 11 half periods: float32 [h, w, 32]."""
    halves = np.pi * 2.0 ** (np.arange(COORDINATE_WAVES) / 2)
    along = [(np.arange(n)[:, None] + 0.5) / n * halves for n in grid]
    y, x = (np.concatenate([np.sin(a), np.cos(a)], 1) for a in along)
    both = np.broadcast_arrays(y[:, None], x[None])
    return np.concatenate(both, -1).astype(np.float32)


def _part(found: Decomposition, part: str) -> np.ndarray:
    if part == "raw - artifacts":
        return np.asarray(found.raw - found.artifacts)
    return np.asarray(getattr(found, part))


@contextmanager
def _naming(frame: Frame) -> Iterator[None]:
    """Errors of what is done within name the image."""
    try:
        yield
    except (InputError, NonFiniteError) as error:
        text = str(error)
        raise type(error)(text if text.startswith(str(frame.image)) else f"{frame.image}: {text}") from None
