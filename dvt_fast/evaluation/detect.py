"""Object detection on frozen features: a light detector is trained on them, and scored as COCO does.

A variant is only as good as what a small network can do with it: pyramid and head are all that is trained. Each channel
is standardised by its mean and deviation over the training features, as the batch norm of a linear head does, and with
`positions` a fixed sinusoidal position embedding is added, as the paper does for detection: denoising takes places out
of the features, and boxes are places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, NonFiniteError
from ..extras import require
from ..progress import report
from .average_precision import AveragePrecision, Found
from .frames import Frame, random_frames, whole_frames
from .outcome import Outcome, Score, bootstrap

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..progress import Progress
    from .data.labelled import BoxData, Boxed
    from .detector import Detector, Inputs
    from .features import FeatureSource
    from .variants import Variant

SCORES = {"mAP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # of the thresholds
WIDTHS = 32  # channels of a group in torchvision's head, so its width is a multiple of it
SHOWN, SURE = 6, 0.3  # images of the picture, and the score from which on their boxes are drawn
TRUTH, FOUND = (22, 163, 74), (236, 39, 102)  # colours
SHEET = (3, 320, 240)  # columns of the picture, width and height of an image in it
LEGEND = 20  # height of the line below them


@dataclass(frozen=True)
class DetectSettings:
    """The recipe; the default is 12 passes over the 16,551 training images of VOC 2007 + 2012.

    iterations, batch: of training. rate, weight_decay: AdamW's; the rate rises over the share `warmup` of the
    iterations and falls to zero along a cosine. width: channels of pyramid and head, a multiple of 32. convs: of each
    tower of the head. positions: whether the position embedding is added. flips: whether mirrored frames are trained
    on, too; they double the features to compute. seeds: one detector each. crops: whether the control on random crops
    of the test images is made; a box with less than the share `visible` of its area in the crop does not count. draws:
    of the bootstrap. device: where to train.
    """

    iterations: int = 12_400
    batch: int = 16
    rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    width: int = 128
    convs: int = 4
    positions: bool = True
    flips: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)
    crops: bool = True
    visible: float = 0.25
    draws: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "convs", "draws"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width < WIDTHS or self.width % WIDTHS:
            raise InputError(f"width must be a multiple of {WIDTHS}, got {self.width}")
        if not self.rate > 0 or not self.weight_decay >= 0 or not 0 <= self.warmup < 1 or not 0 < self.visible <= 1:
            raise InputError(f"rate, weight_decay, warmup or visible out of range: {self}")
        if not self.seeds:
            raise InputError("seeds must be at least one seed, got none")

    @classmethod
    def quick(cls) -> DetectSettings:
        """For a hundred images and two cores: one detector, in less than a minute."""
        return cls(iterations=240, batch=8, rate=1e-3, warmup=0.1, width=64, convs=2, flips=False, seeds=(0,))


def frames(data: BoxData, settings: DetectSettings) -> list[Frame]:
    """All frames whose features `detect` asks for. Raises `InputError` where it has nothing to train on or to find."""
    _check(data)
    train = _train_frames(data, settings)
    val = [item.image for item in data.val]
    return [*train, *whole_frames(val), *(random_frames(val) if settings.crops else [])]


def detect(
    features: FeatureSource,
    variant: Variant,
    data: BoxData,
    settings: DetectSettings,
    progress: Progress | None = None,
) -> Outcome:
    """Train on data.train, score on data.val: "mAP" (COCO's, over IoU 0.5 to 0.95), "AP50", "AP75", and "mAP, crops".

    Intervals are over resampled test images, of the mean over the seeds. Details: "AP by class"; "absent", classes
    without an object in the test images (their AP is None); "objects" and "images" by split; "loss" at the end, by
    seed. The picture "detections" shows test images with their objects and the first detector's boxes. progress:
    "frames", then progress(done, total, "iterations").

    Raises `InputError` where there is nothing to train on or to find, `NonFiniteError` where training diverges.
    """
    from .detector import Inputs, train_detector

    objects = _check(data)
    shown = _train_frames(data, settings)
    truth = [_in_frame(item, frame) for item, frame in zip([*data.train] * (1 + settings.flips), shown, strict=True)]
    inputs = Inputs(features.load(variant, shown, progress), features.grid, settings.positions, settings.device)
    goals = [_to_size(found, size, features.size) for found, size in truth]
    total = settings.iterations * len(settings.seeds)
    detectors, losses = [], []
    for index, seed in enumerate(settings.seeds):

        def told(done: int, before: int = index * settings.iterations) -> None:
            report(progress, before + done, total, "iterations")

        detector, loss = train_detector(inputs, goals, features.size, len(data.classes), settings, seed, told)
        if not np.isfinite(loss):
            raise NonFiniteError(f"{variant.name}: the detector's loss is {loss} with seed {seed}: lower the rate")
        detectors.append(detector)
        losses.append(loss)

    whole = whole_frames([item.image for item in data.val])
    found, precision = _test(detectors, inputs, features, variant, data, whole, settings, progress)
    scores = {name: _score(precision, part, len(whole), settings) for name, part in SCORES.items()}
    if settings.crops:
        crops = random_frames([item.image for item in data.val])
        _, cropped = _test(detectors, inputs, features, variant, data, crops, settings, progress)
        scores["mAP, crops"] = _score(cropped, SCORES["mAP"], len(crops), settings)
    by_class = np.mean([p.official.mean(0) for p in precision], 0)
    names = dict(zip(data.classes, by_class.tolist(), strict=True))
    details: dict[str, Any] = {
        "AP by class": {name: value if np.isfinite(value) else None for name, value in names.items()},
        "absent": [name for name, value in names.items() if not np.isfinite(value)],
        "images": {"train": len(data.train), "val": len(data.val)},
        "objects": objects,
        "loss": losses,
    }
    return Outcome(scores, details, {"detections": _picture(data, found[0])})


def _test(
    detectors: Sequence[Detector],
    inputs: Inputs,
    features: FeatureSource,
    variant: Variant,
    data: BoxData,
    frames: Sequence[Frame],
    settings: DetectSettings,
    progress: Progress | None,
) -> tuple[list[list[Found]], list[AveragePrecision]]:
    """Boxes of each frame of the test images in its pixels, and their precision, by detector."""
    truth = [_in_frame(item, frame, settings.visible) for item, frame in zip(data.val, frames, strict=True)]
    loaded = features.load(variant, frames, progress)
    found: list[list[Found]] = []
    for detector in detectors:
        boxes: list[Found] = []
        for start in range(0, len(frames), settings.batch):
            for one in detector.detect(inputs(loaded[start : start + settings.batch])):
                values = [one[name].cpu().numpy() for name in ("boxes", "labels", "scores")]
                size = truth[len(boxes)][1]
                boxes.append(_to_size(Found(*values), features.size[::-1], size[::-1]))
        found.append(boxes)
    objects = [one for one, _ in truth]
    return found, [AveragePrecision(objects, boxes, len(data.classes)) for boxes in found]


def _score(precision: Sequence[AveragePrecision], thresholds: slice, images: int, settings: DetectSettings) -> Score:
    def mean(by_class: np.ndarray) -> float:
        values = by_class[thresholds]
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")

    def resampled(drawn: np.ndarray) -> float:
        return float(np.mean([mean(one.resampled(drawn)) for one in precision]))

    seeds = [mean(one.official) for one in precision]
    score = bootstrap(resampled, images, draws=settings.draws, seeds=seeds if len(seeds) > 1 else ())
    return replace(score, value=float(np.mean(seeds)))


def _check(data: BoxData) -> dict[str, int]:
    """How many objects there are in each part."""
    objects = {split: sum(len(item.boxes) for item in getattr(data, split)) for split in ("train", "val")}
    if not objects["train"]:
        what = "objects" if data.train else "images"
        raise InputError(f"{data.name}: no {what} to train a detector on: read it with val_fraction=0.3, say")
    if not objects["val"]:
        raise InputError(f"{data.name}: no objects in the test images, so nothing to find")
    return objects


def _train_frames(data: BoxData, settings: DetectSettings) -> list[Frame]:
    frames = whole_frames([item.image for item in data.train])
    return frames + ([replace(frame, flip=True) for frame in frames] if settings.flips else [])


def _in_frame(item: Boxed, frame: Frame, visible: float = 0.0) -> tuple[Found, tuple[int, int]]:
    """Objects in pixels of the frame, see `Boxed.cut`, and the frame's (width, height) in pixels of the image."""
    inside = item.cut(frame, visible)
    return Found.objects(inside.boxes, inside.classes), inside.size


def _to_size(found: Found, width_height: tuple[int, int], size: tuple[int, int]) -> Found:
    """Boxes of a frame of (width, height) in pixels of one of `size` (height, width)."""
    factors = np.array([size[1] / width_height[0], size[0] / width_height[1]] * 2)
    return replace(found, boxes=found.boxes * factors)


def _picture(data: BoxData, found: Sequence[Found]) -> PILImage.Image:
    """Test images, evenly chosen, with their objects and what was surely found."""
    pil, drawing = require("PIL.Image", "eval"), require("PIL.ImageDraw", "eval")
    columns, width, height = SHEET
    shown = np.unique(np.linspace(0, len(data.val) - 1, SHOWN).round().astype(int)).tolist()
    rows = -(-len(shown) // columns)
    sheet = pil.new("RGB", (min(columns, len(shown)) * width, rows * height + LEGEND), "white")
    legend = drawing.Draw(sheet)
    legend.text((4, rows * height + 4), "objects", TRUTH)
    legend.text((60, rows * height + 4), f"found, with a score of {SURE} or more", FOUND)
    for place, index in enumerate(shown):
        item = data.val[index]
        picture = Frame(item.image).picture()
        factor = min((width - 6) / item.size[0], (height - 6) / item.size[1])
        picture = picture.resize([max(1, round(side * factor)) for side in item.size])
        draw = drawing.Draw(picture)
        for box in item.boxes:
            draw.rectangle((box * factor).tolist(), outline=TRUTH, width=2)
        sure = found[index].scores >= SURE
        for box, k, score in zip(found[index].boxes[sure], found[index].classes[sure], found[index].scores[sure]):
            draw.rectangle((box * factor).tolist(), outline=FOUND, width=2)
            name, corner = f"{data.classes[k]} {score:.2f}", (box[:2] * factor + 3).tolist()
            draw.rectangle(draw.textbbox(corner, name), fill=FOUND)
            draw.text(corner, name, "white")
        sheet.paste(picture, (place % columns * width, place // columns * height))
    return sheet
