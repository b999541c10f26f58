"""Nearest-neighbour segmentation of patches: each takes the class that the training patches most like it have.

Nothing is trained, so that it tells how features lie rather than what a head can make of them. The protocol is that of
the paper's ablation; the reference implementation has no code for it, so what follows is ours: cosine similarity, a
bank of all training patches, and mIoU on patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InputError, NonFiniteError
from ..progress import report
from ..visual import directions
from . import dense
from .data.labelled import SegmentationData
from .frames import Frame, random_frames, whole_frames
from .outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..progress import Progress
    from .features import FeatureSource
    from .variants import Variant

ROWS = 512  # patches that are compared with the bank at a time
VOTES = ("majority", "similarity")


@dataclass(frozen=True)
class KnnSettings:
    """k: neighbours. vote: "majority", or "similarity" weighs each neighbour by its cosine, at least 0. limit: of the
    bank, patches drawn at random with `seed`; None is all. device: torch's name of where they are compared."""

    k: int = 20
    vote: str = "majority"
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.k < 1 or (self.limit is not None and self.limit < 1):
            raise InputError(f"k and limit must be at least 1, got {self.k} and {self.limit}")
        if self.vote not in VOTES:
            raise InputError(f"vote must be one of {', '.join(VOTES)}, got {self.vote!r}")

    @classmethod
    def quick(cls) -> KnnSettings:
        """A bank of at most 20,000 patches."""
        return cls(limit=20_000)


def frames(data: SegmentationData, settings: KnnSettings) -> list[Frame]:
    """All frames whose features `knn` asks for."""
    val = [item.image for item in data.val]
    return whole_frames([item.image for item in data.train]) + whole_frames(val) + random_frames(val)


def knn(
    features: FeatureSource,
    variant: Variant,
    data: SegmentationData,
    settings: KnnSettings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Score the classes of the patches of data.val, each named by its neighbours among those of data.train.

    The class of a patch is that of most of its pixels; patches that are mostly unlabelled are in neither. Where
    classes have as many votes the first counts, and of patches that are equally near the first in the bank.
    "mIoU, crops": the same on one random crop of each test image, every second one mirrored. Intervals are over test
    images.

    Raises `InputError` for an empty split or one without labelled patches, `NonFiniteError`, and what
    `features.load` raises.
    """
    settings = settings or KnnSettings()
    dense.check_splits(data.name, data.train, data.val)
    grid, classes = features.grid, len(data.classes)
    bank_labels = np.stack([dense.patch_labels(item.read(), grid, classes) for item in data.train]).ravel()
    there = np.flatnonzero(bank_labels >= 0)
    if not len(there):
        raise InputError(f"{data.name}: no labelled patch in the split train")
    if settings.limit is not None and len(there) > settings.limit:
        there = np.sort(np.random.default_rng(settings.seed).permutation(there)[: settings.limit])
    train = _loaded(features, variant, whole_frames([item.image for item in data.train]), progress)
    bank = Bank(train.reshape(-1, train.shape[-1])[there], bank_labels[there], settings)

    images = [item.image for item in data.val]
    truths = [item.read() for item in data.val]
    shown = {"": whole_frames(images), ", crops": random_frames(images)}
    done, total = 0, len(images) * len(shown)
    counts: dict[str, np.ndarray] = {}
    pictured: list[tuple[np.ndarray, np.ndarray]] = []
    for name, cuts in shown.items():
        counted = []
        for i, (tokens, cut) in enumerate(zip(_loaded(features, variant, cuts, progress), cuts, strict=True)):
            truth = dense.patch_labels(cut.cut(truths[i]), grid, classes)
            guess = bank.classify(tokens.reshape(-1, tokens.shape[-1]), classes).reshape(grid)
            counted.append([dense.count_classes(guess, truth, classes)])
            if not name and i in dense.shown(len(images)):
                pictured.append((guess, truth))
            done += 1
            report(progress, done, total, "images")
        counts[name] = np.array(counted)
    if not counts[""][:, :, 1].any():
        raise InputError(f"{data.name}: no labelled patch in the split val")
    scores = dense.class_scores(counts[""]) | {
        f"{key}, crops": score for key, score in dense.class_scores(counts[", crops"], ["mIoU"]).items()
    }
    details = dense.class_details(counts[""], data.classes) | {
        "samples": {"train": len(data.train), "bank": len(there), "val": len(images)}
    }
    guesses, seen = zip(*pictured, strict=True)
    items = [data.val[i] for i in dense.shown(len(images))]
    picture = dense.class_picture(f"Nearest neighbours, {variant.name}", items, guesses, seen, data.classes)
    return Outcome(scores, details, {"examples": picture})


def _loaded(features: FeatureSource, variant: Variant, cuts: Sequence[Frame], progress: Progress | None) -> np.ndarray:
    tokens = features.load(variant, cuts, progress)
    if not np.isfinite(tokens).all():
        raise NonFiniteError(f"variant {variant.name}: its features hold NaN or infinity")
    return tokens


class Bank:
    """Labelled features to be compared with. features: [N, C]. labels: [N], from 0."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, settings: KnnSettings):
        self._settings = settings
        self._labels = labels.astype(np.int64)
        self._k = min(settings.k, len(labels))
        self._directions = self._prepared(features)

    def classify(self, features: np.ndarray, classes: int) -> np.ndarray:
        """The class of each of [n, C]: int64 [n]."""
        found = []
        for queries in self._prepared(features).split(ROWS):
            cosines, nearest = self._nearest(queries @ self._directions.T)
            weights = np.ones_like(cosines) if self._settings.vote == "majority" else cosines.clip(0)
            at = np.arange(len(queries))[:, None] * classes + self._labels[nearest]
            votes = np.bincount(at.ravel(), weights.ravel(), len(queries) * classes)
            found.append(votes.reshape(-1, classes).argmax(1))
        return np.concatenate(found)

    def _nearest(self, cosines: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The k largest of each row and where they are; of equal ones at the end of the k, the first."""
        k = self._k
        values, indices = cosines.topk(min(k + 1, cosines.shape[1]), sorted=True)
        if values.shape[1] > k:
            for row in torch.nonzero(values[:, k - 1] == values[:, k]).ravel().tolist():
                order = torch.argsort(cosines[row], descending=True, stable=True)[:k]
                values[row, :k], indices[row, :k] = cosines[row, order], order
        return values[:, :k].cpu().numpy(), indices[:, :k].cpu().numpy()

    def _prepared(self, features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(directions(features)).to(self._settings.device)
