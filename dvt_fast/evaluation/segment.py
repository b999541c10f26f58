"""Semantic segmentation by linear heads on frozen features: mIoU, aAcc and mAcc, and mIoU on crops as a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InputError
from . import dense
from .data.labelled import Labelled, SegmentationData
from .frames import Frame, random_frames, sliding_frames, whole_frames
from .heads import Heads, HeadSettings, train_heads, upsample
from .outcome import Outcome

if TYPE_CHECKING:
    from ..progress import Progress
    from .features import FeatureSource
    from .variants import Variant

CHUNK = 8  # test images whose features are in memory at a time


@dataclass(frozen=True)
class SegmentSettings(HeadSettings):
    """How heads are trained (see `HeadSettings`) and used.

    inference: "whole", an image is one frame; or "slide", frames are windows over it, in training too, and logits are
    averaged where windows overlap. window: (height, width) of one in units of the image's shorter side; stride: the
    step between two in units of the window.
    """

    inference: str = "whole"
    window: tuple[float, float] = (1.0, 1.0)
    stride: float = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inference not in ("whole", "slide"):
            raise InputError(f'inference must be "whole" or "slide", got {self.inference!r}')
        if not (len(self.window) == 2 and min(self.window) > 0 and 0 < self.stride <= 1):
            raise InputError(
                f"window must be two numbers above 0 and stride in (0, 1], got {self.window} and {self.stride}"
            )

    @classmethod
    def quick(cls) -> SegmentSettings:
        """A fortieth of the iterations, whole images as they are, and a loss on two by two points a patch."""
        return cls(iterations=1000, warmup=40, flip=False, loss_scale=2)

    def frames(self, item: Labelled, truth: np.ndarray | None = None) -> list[Frame]:
        """The frames of one image, its labels read where its size matters and they are not given."""
        if self.inference == "whole":
            return whole_frames([item.image])
        size = _size(item.read() if truth is None else truth)
        window = [max(1, round(side * min(size))) for side in self.window]
        step = [max(1, round(side * self.stride)) for side in window]
        return sliding_frames(item.image, size, (window[0], window[1]), (step[0], step[1]))

    def training_frames(self, item: Labelled, truth: np.ndarray | None = None) -> list[Frame]:
        """Those that heads are trained on: with each, its mirror image where `flip` is on."""
        return [one for frame in self.frames(item, truth) for one in self.mirrored(frame)]


def frames(data: SegmentationData, settings: SegmentSettings) -> list[Frame]:
    """All frames whose features `segment` asks for."""
    train = [frame for item in data.train for frame in settings.training_frames(item)]
    val = [frame for item in data.val for frame in settings.frames(item)]
    return train + val + random_frames([item.image for item in data.val])


def segment(
    features: FeatureSource,
    variant: Variant,
    data: SegmentationData,
    settings: SegmentSettings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train heads on the frames of data.train, and score their mean on data.val at the full resolution of the labels.

    The recipe is the reference's (AdamW, linear warm-up, linear decay, 40,000 iterations of 16 frames, cross-entropy),
    but for what kept features forbid: it trains on random crops of images resized by 0.5 to 2, mirrored and with other
    colours; here frames are whole images or windows, and mirrored where settings.flip is on. Its loss divides by all
    pixels, ours by those labelled. "mIoU, crops" scores the same heads on one random crop of each test image, every
    second one mirrored, as one frame each: what they know of places alone is wrong there. Intervals are over test
    images; those of one drive or room are alike, which makes them too narrow.

    Raises `InputError` for an empty split or one without labelled pixels, `NonFiniteError`, and what
    `features.load` raises.
    """
    settings = settings or SegmentSettings()
    dense.check_splits(data.name, data.train, data.val)
    shown, labels = _training(features, data, settings)
    heads, losses = train_heads(
        features.load(variant, shown, progress),
        len(data.classes),
        lambda logits, picks: cross_entropy(logits, labels[picks.to(labels.device)].to(logits.device)),
        settings,
        variant,
        progress,
    )
    whole, crops = [], []
    chosen = dense.shown(len(data.val))
    examples: list[tuple[np.ndarray, np.ndarray]] = []
    cuts = random_frames([item.image for item in data.val])
    for start in range(0, len(data.val), CHUNK):
        items = data.val[start : start + CHUNK]
        truths = [item.read() for item in items]
        windows = [settings.frames(item, truth) for item, truth in zip(items, truths, strict=True)]
        found = iter(features.load(variant, [frame for part in windows for frame in part], progress))
        cropped = features.load(variant, cuts[start : start + CHUNK], progress)
        for i, truth in enumerate(truths):
            own = np.stack([next(found) for _ in windows[i]])
            guess = _predict(heads, own, windows[i], _size(truth))
            whole.append([dense.count_classes(one, truth, len(data.classes)) for one in guess])
            if start + i in chosen:
                examples.append((guess[0], truth))
            cut = cuts[start + i].cut(truth)
            guess = _predict(heads, cropped[i : i + 1], [], _size(cut))
            crops.append([dense.count_classes(one, cut, len(data.classes)) for one in guess])
    counts, cropped_counts = np.array(whole), np.array(crops)
    if not counts[:, :, 1].any():
        raise InputError(f"{data.name}: no labelled pixel in the split val")
    scores = dense.class_scores(counts)
    scores["mIoU, crops"] = dense.class_scores(cropped_counts, ["mIoU"])["mIoU"]
    details = dense.class_details(counts, data.classes) | {
        "seeds": list(range(settings.seeds)),
        "iterations": settings.iterations,
        "training loss": losses,
        "samples": {"train": len(data.train), "frames": len(shown), "val": len(data.val)},
    }
    picture = dense.class_picture(
        f"Linear segmentation, {variant.name}",
        [data.val[i] for i in chosen],
        [guess for guess, _ in examples],
        [truth for _, truth in examples],
        data.classes,
    )
    return Outcome(scores, details, {"examples": picture})


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[S], means over labelled pixels, of logits [S, K, B, h, w] against classes [S, B, height, width], -1: none."""
    fine = upsample(logits, (labels.shape[-2], labels.shape[-1])).flatten(2)
    truth = labels.flatten(1).long()
    each = torch.nn.functional.cross_entropy(fine, truth, ignore_index=-1, reduction="none")
    return each.sum(1) / (truth >= 0).sum(1).clamp_min(1)


def _training(
    features: FeatureSource, data: SegmentationData, settings: SegmentSettings
) -> tuple[list[Frame], torch.Tensor]:
    """The frames to train on and their labels, int16 [n, height, width], at the resolution of the loss."""
    size = settings.loss_size(features.grid, features.size)
    frames: list[Frame] = []
    labels: list[np.ndarray] = []
    for item in data.train:
        truth = item.read()
        found = settings.training_frames(item, truth)
        frames += found
        labels += [dense.nearest(frame.cut(truth), size) for frame in found]
    if not any((one >= 0).any() for one in labels):
        raise InputError(f"{data.name}: no labelled pixel in the split train")
    return frames, torch.from_numpy(np.stack(labels))


def _predict(heads: Heads, features: np.ndarray, frames: Sequence[Frame], size: tuple[int, int]) -> np.ndarray:
    """Classes [S, height, width] from the features [n, h, w, C] of an image's frames, or of one that is all of it."""
    logits = heads.predict(features)
    if len(features) == 1:
        return upsample(logits[:, :, 0], size).max(1).indices.cpu().numpy()
    total = logits.new_zeros(*logits.shape[:2], *size)
    times = logits.new_zeros(size)
    for i, frame in enumerate(frames):
        left, top, right, bottom = frame.edges(size[1], size[0])
        total[:, :, top:bottom, left:right] += upsample(logits[:, :, i], (bottom - top, right - left))
        times[top:bottom, left:right] += 1
    return (total / times).max(1).indices.cpu().numpy()


def _size(labels: np.ndarray) -> tuple[int, int]:
    return labels.shape[0], labels.shape[1]
