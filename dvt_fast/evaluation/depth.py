"""Depth by linear heads on frozen features: RMSE, AbsRel and delta1 where the truth is known, and RMSE on crops.

The recipe is the reference's, which is that of DINOv2: bins of depth whose weights are the head's outputs, a
scale-invariant loss of log depth and one of its gradients. Its optimiser also cycles momentum, its features have the
class token beside each patch, its images are turned, cropped and coloured at random, and its predictions are means
over an image and its mirror image: none of that is done here. Its gradient loss takes differences along the axes of
the batch and the channel; ours are along those of the image, as published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import visual
from ..errors import InputError
from ..images import load_image
from ..page import BAR, CAPTION, Page
from . import dense
from .data.labelled import DepthData
from .frames import Frame, random_frames, whole_frames
from .heads import HeadSettings, train_heads, upsample
from .outcome import Outcome, Score, bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image as PILImage

    from ..progress import Progress
    from .data.labelled import Labelled
    from .features import FeatureSource
    from .variants import Variant

WARMING = 100  # first iterations, in which the loss sees the mean of log depth alone
MEAN_WEIGHT = 0.15  # of the squared mean of log errors beside their variance
LOG_SHIFT = 1e-3  # metres added before a logarithm
FLOOR = 0.1  # added to the outputs, so that no bin has weight 0
STEPS = (1, 2, 4, 6)  # of pixels, the scales of the gradient loss
METRICS = {"RMSE": False, "AbsRel": False, "delta1": True}  # whether more is better


@dataclass(frozen=True)
class DepthSettings(HeadSettings):
    """How heads are trained (see `HeadSettings`), with the reference's values for depth.

    bins: from min_depth to max_depth metres, evenly; depth outside is neither trained on nor measured. upsample: how
    many times finer than patches the bins' weights are. gradient: weight of the gradient loss.
    """

    iterations: int = 38_400
    rate: float = 5e-3
    decay: float = 0.01
    warmup: int = 12_800
    schedule: str = "cosine"
    clip: float | None = 35.0
    norm: bool = False
    bins: int = 256
    min_depth: float = 1e-3
    max_depth: float = 10.0
    upsample: int = 4
    gradient: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2 or self.upsample < 1:
            raise InputError(f"bins must be at least 2 and upsample 1, got {self.bins} and {self.upsample}")
        if not 0 <= self.min_depth < self.max_depth:
            raise InputError(f"min_depth must be below max_depth, got {self.min_depth} and {self.max_depth}")

    @classmethod
    def quick(cls) -> DepthSettings:
        """Few iterations at a higher rate, bins on patches, the loss on four by four points a patch. With a BatchNorm:
        so few iterations without one would measure the scale of the features."""
        return cls(iterations=300, warmup=60, batch=8, rate=0.02, norm=True, flip=False, loss_scale=4, upsample=1)


def frames(data: DepthData, settings: DepthSettings) -> list[Frame]:
    """All frames whose features `depth` asks for."""
    val = [item.image for item in data.val]
    return _training_frames(data, settings) + whole_frames(val) + random_frames(val)


def depth(
    features: FeatureSource,
    variant: Variant,
    data: DepthData,
    settings: DepthSettings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train heads on data.train, and score their mean on data.val at the full resolution of the depth.

    RMSE and AbsRel (less is better) and delta1, the share of pixels whose ratio to the truth is below 1.25, are means
    over images of an image's value over its valid pixels, as the reference has them; means over pixels are in the
    details. "RMSE, crops" scores the same heads on a random crop of each test image, every second one mirrored. A crop
    that is shown as an image looks nearer than it is, so that this number only compares variants: it is no accuracy.
    Intervals are over test images; frames of one room are alike, which makes them too narrow.

    Raises `InputError` for an empty split or one without valid depth, `NonFiniteError`, and what `features.load`
    raises.
    """
    settings = settings or DepthSettings()
    dense.check_splits(data.name, data.train, data.val)
    shown, truth = _training(features, data, settings)
    iteration = 0

    def loss(logits: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        nonlocal iteration
        iteration += 1
        target = truth[picks.to(truth.device)].to(logits.device)
        return depth_loss(depth_of(logits, settings), target, settings, warming=iteration <= WARMING)

    tokens = features.load(variant, shown, progress)
    std = (3 * tokens.shape[-1]) ** -0.5  # that of torch's own first weights
    heads, losses = train_heads(tokens, settings.bins, loss, settings, variant, progress, std)

    images = [item.image for item in data.val]
    found: dict[str, list[np.ndarray]] = {"": [], ", crops": []}
    valid: list[int] = []
    pictured: list[tuple[np.ndarray, np.ndarray]] = []
    for name, cuts in (("", whole_frames(images)), (", crops", random_frames(images))):
        for i, tokens in enumerate(features.load(variant, cuts, progress)):
            there = cuts[i].cut(data.val[i].read())
            with torch.no_grad():
                coarse = depth_of(heads.predict(tokens[None]), settings)[:, 0]
                guess = upsample(coarse, (there.shape[0], there.shape[1])).cpu().numpy()
            found[name].append(np.stack([image_errors(one, there, settings) for one in guess]))
            if not name:
                valid.append(int(_valid(there, settings).sum()))
                if i in dense.shown(len(images)):
                    pictured.append((guess[0], there))
    if not any(valid):
        raise InputError(f"{data.name}: no valid depth in the split val")
    errors = np.stack(found[""])  # [n, S, metrics]
    scores = {name: _score(errors[..., i], higher) for i, (name, higher) in enumerate(METRICS.items())}
    scores["RMSE, crops"] = _score(np.stack(found[", crops"])[..., 0], False)
    details = {
        "over pixels": _over_pixels(errors, np.array(valid)),
        "seeds": list(range(settings.seeds)),
        "iterations": settings.iterations,
        "training loss": losses,
        "samples": {"train": len(data.train), "frames": len(shown), "val": len(images), "pixels": sum(valid)},
    }
    items = [data.val[i] for i in dense.shown(len(images))]
    return Outcome(scores, details, {"examples": _picture(f"Linear depth, {variant.name}", items, pictured, settings)})


def depth_of(logits: torch.Tensor, settings: DepthSettings) -> torch.Tensor:
    """Metres [S, B, h, w] (times settings.upsample) of logits [S, bins, B, h, w]: the mean of the bins, weighted."""
    h, w = logits.shape[-2:]
    weights = upsample(logits, (h * settings.upsample, w * settings.upsample)).relu() + FLOOR
    bins = torch.linspace(settings.min_depth, settings.max_depth, settings.bins, device=logits.device)
    sums = torch.stack([bins, torch.ones_like(bins)]) @ weights.flatten(2)
    return (sums[:, 0] / sums[:, 1]).unflatten(-1, weights.shape[2:])


def depth_loss(
    predicted: torch.Tensor, truth: torch.Tensor, settings: DepthSettings, warming: bool = False
) -> torch.Tensor:
    """[S], of depth [S, B, h, w] against [S, B, height, width], over valid pixels of the whole batch together.

    sqrt(var(e) + 0.15 mean(e)^2) of the errors e of log depth, while warming without the variance; and, weighted, the
    sum of |differences| of e two pixels apart, a valid pixel, over four scales.
    """
    there = _valid(truth, settings)
    fine = upsample(predicted, (truth.shape[-2], truth.shape[-1]))
    known = torch.where(there, truth, 1.0)
    error = torch.where(there, torch.log(fine + LOG_SHIFT) - torch.log(known + LOG_SHIFT), 0.0)
    count = there.flatten(1).sum(1)
    mean = error.flatten(1).sum(1) / count.clamp_min(1)
    inside = MEAN_WEIGHT * mean.square()
    if not warming:
        off = torch.where(there, error - mean[:, None, None, None], 0.0)
        inside = inside + off.square().flatten(1).sum(1) / (count - 1).clamp_min(1)
    # the root has no slope at 0, where there is no valid pixel
    total = torch.where(inside > 0, inside, 1.0).sqrt() * (inside > 0)
    for step in STEPS:
        part, mask = error[..., ::step, ::step], there[..., ::step, ::step]
        down = (part[..., 2:, :] - part[..., :-2, :]).abs() * (mask[..., 2:, :] & mask[..., :-2, :])
        across = (part[..., 2:] - part[..., :-2]).abs() * (mask[..., 2:] & mask[..., :-2])
        sums = down.flatten(1).sum(1) + across.flatten(1).sum(1)
        total = total + settings.gradient * sums / mask.flatten(1).sum(1).clamp_min(1)
    return total


def image_errors(predicted: np.ndarray, truth: np.ndarray, settings: DepthSettings) -> np.ndarray:
    """float64 [3], in the order of METRICS, over the valid pixels of [height, width]; NaN where there are none."""
    there = _valid(truth, settings)
    if not there.any():
        return np.full(len(METRICS), np.nan)
    guess, known = predicted[there].astype(np.float64), truth[there].astype(np.float64)
    off = np.abs(guess - known)
    near = np.maximum(guess / known, known / guess) < 1.25
    return np.array([np.sqrt(np.square(off).mean()), (off / known).mean(), near.mean()])


def _valid(truth, settings: DepthSettings):  # type: ignore[no-untyped-def]  # arrays and tensors alike
    return (truth > settings.min_depth) & (truth < settings.max_depth)  # NaN is neither


def _training_frames(data: DepthData, settings: DepthSettings) -> list[Frame]:
    return [one for frame in whole_frames([item.image for item in data.train]) for one in settings.mirrored(frame)]


def _training(features: FeatureSource, data: DepthData, settings: DepthSettings) -> tuple[list[Frame], torch.Tensor]:
    """The frames to train on and their depth, [n, height, width], at the resolution of the loss."""
    size = settings.loss_size(features.grid, features.size)
    shown = _training_frames(data, settings)
    maps = {item.image: item.read() for item in data.train}
    truth = torch.from_numpy(np.stack([dense.nearest(frame.cut(maps[frame.image]), size) for frame in shown]))
    if not _valid(truth, settings).any():
        raise InputError(
            f"{data.name}: no depth between {settings.min_depth:g} and {settings.max_depth:g} m in the split train"
        )
    return shown, truth


def _score(values: np.ndarray, higher: bool) -> Score:
    """Of [n, S]: the mean over images and seeds; images without valid pixels are left out."""
    there = ~np.isnan(values[:, 0])
    kept = np.where(there[:, None], values, 0)

    def mean(images: np.ndarray) -> np.ndarray:
        return kept[images].sum(0) / there[images].sum() if there[images].any() else np.full(values.shape[1], np.nan)

    everything = np.arange(len(values))
    seeds = tuple(mean(everything)) if values.shape[1] > 1 else ()
    return bootstrap(lambda images: float(mean(images).mean()), len(values), seeds=seeds, higher=higher)


def _over_pixels(errors: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """The metrics over all valid pixels together, a mean over seeds, from those of images."""
    there = valid > 0
    rmse, *others = np.moveaxis(errors[there], -1, 0)
    means = [np.average(values, 0, valid[there]) for values in (np.square(rmse), *others)]
    means[0] = np.sqrt(means[0])
    return {name: float(value.mean()) for name, value in zip(METRICS, means, strict=True)}


def _picture(
    title: str, items: Sequence[Labelled], pictured: Sequence[tuple[np.ndarray, np.ndarray]], settings: DepthSettings
) -> PILImage.Image:
    """Image, depth and prediction of some test images on one scale; grey where there is no depth."""
    known = np.concatenate([truth[_valid(truth, settings)] for _, truth in pictured])
    low, high = (float(v) for v in np.quantile(known, (0.01, 0.99))) if len(known) else (0.0, settings.max_depth)
    high = max(high, low + 0.01)
    pictures = [load_image(item.image) for item in items]
    below = [CAPTION] * (len(items) - 1) + [CAPTION + BAR]
    page = Page(pictures[0].width / pictures[0].height, 3, below, title)
    for row, (item, picture, (guess, truth)) in enumerate(zip(items, pictures, pictured, strict=True)):
        there = _valid(truth, settings)
        colors = np.where(there[..., None], visual.scale_colors(np.where(there, truth, low), low, high), 200)
        error = image_errors(guess, truth, settings)
        page.tile(row, 0, "Image", picture, item.image.name)
        page.tile(row, 1, "Depth", colors.astype(np.uint8))
        page.tile(row, 2, "Prediction", visual.scale_colors(guess, low, high), f"RMSE {error[0]:.3f} m")
    page.bar(len(items) - 1, "Metres", low, high)
    return page.image
