"""Maps of classes: resized, counted, scored and drawn. What segmentation by heads and by neighbours share."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import visual
from ..errors import InputError
from ..extras import require
from ..images import load_image
from ..page import CAPTION, INK, MARGIN, PAPER, Page
from .data.labelled import Labelled
from .outcome import Score, bootstrap

if TYPE_CHECKING:
    from PIL import Image as PILImage

SHOWN = 3  # images in a picture
UNLABELLED = (0, 0, 0)


def check_splits(name: str, train: Sequence[Any], val: Sequence[Any]) -> None:
    """`InputError` where a split has no image."""
    for split, items in (("train", train), ("val", val)):
        if not items:
            raise InputError(f"{name}: the split {split} is empty, expected at least one image with its label")


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map of labels [height, width] at another size: of each new pixel, the one under its centre."""
    rows, columns = ((np.arange(to) * 2 + 1) * n // (2 * to) for n, to in zip(labels.shape, size, strict=True))
    return labels[rows[:, None], columns]


def patch_labels(labels: np.ndarray, grid: tuple[int, int], classes: int) -> np.ndarray:
    """The class of most pixels of each patch, the lowest of several: int16 [h, w]; -1 where most are unlabelled.

    A pixel belongs to the patch that its centre lies in.
    """
    h, w = grid
    rows, columns = ((np.arange(n) * 2 + 1) * to // (2 * n) for n, to in zip(labels.shape, grid, strict=True))
    at = (rows[:, None] * w + columns) * (classes + 1) + np.where(labels < 0, classes, labels)
    pixels = np.bincount(at.ravel(), minlength=h * w * (classes + 1)).reshape(h, w, classes + 1)
    labelled, unlabelled = pixels[..., :-1].sum(-1), pixels[..., -1]
    found = pixels[..., :-1].argmax(-1)
    return np.where((labelled > 0) & (labelled >= unlabelled), found, -1).astype(np.int16)


def count_classes(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """int64 [3, K]: for each class the pixels found right, those that are of it, and those predicted as it.

    predicted, truth: class indices of one shape; pixels whose truth is negative count nowhere.
    """
    predicted, truth = predicted[truth >= 0], truth[truth >= 0]
    counted = (truth[predicted == truth], truth, predicted)
    return np.stack([np.bincount(values, minlength=classes) for values in counted])


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union [..., K] of counts [..., 3, K]; NaN for a class that no pixel is of."""
    right, truth, predicted = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    return _ratio(right, np.where(truth > 0, truth + predicted - right, 0))


def _recall(counts: np.ndarray) -> np.ndarray:
    return _ratio(counts[..., 0, :], counts[..., 1, :])


def _overall(counts: np.ndarray) -> np.ndarray:
    return _ratio(counts[..., 0, :].sum(-1, keepdims=True), counts[..., 1, :].sum(-1, keepdims=True))


# Of counts [..., 3, K], the values whose mean is the metric.
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mIoU": class_iou, "aAcc": _overall, "mAcc": _recall}


def class_scores(counts: np.ndarray, names: Sequence[str] = tuple(METRICS)) -> dict[str, Score]:
    """Scores of counts [n, S, 3, K] of n images and S seeds, with intervals over images of the mean over seeds.

    Counts are of all images together, as usual: mIoU and mAcc are means over the classes that are there. A class that
    a resample has no pixel of keeps its value of all images: without it, the mean would be over other classes. NaN
    where no pixel is labelled.
    """
    n, seeds = counts.shape[:2]
    flat = counts.reshape(n, -1).astype(np.float64)

    def scores(name: str, images: np.ndarray) -> np.ndarray:
        values = METRICS[name]((np.bincount(images, minlength=n) @ flat).reshape(counts.shape[1:]))
        return _mean_present(np.where(np.isnan(values), whole[name], values))

    everything = np.arange(n)
    whole = {name: METRICS[name](counts.sum(0)) for name in names}
    found = {}
    for name in names:
        each = tuple(scores(name, everything)) if seeds > 1 else ()
        found[name] = bootstrap(lambda images, name=name: float(scores(name, images).mean()), n, seeds=each)  # type: ignore[misc]
    return found


def class_details(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The IoU of each class by name, a mean over seeds, None for those that are absent, which are also listed."""
    found = dict(zip(classes, class_iou(counts.sum(0)).mean(0), strict=True))
    return {
        "IoU": {name: None if np.isnan(value) else float(value) for name, value in found.items()},
        "absent": [name for name, value in found.items() if np.isnan(value)],
    }


def palette(classes: int) -> np.ndarray:
    """uint8 [classes, 3]: one colour a class, the same in all pictures; the first are safe for the colour-blind."""
    more = [colorsys.hls_to_rgb(i * 0.618034 % 1, 0.35 + 0.15 * (i % 3), 0.65) for i in range(classes)]
    return np.concatenate([visual.CLUSTER_COLORS, (np.array(more).reshape(-1, 3) * 255).astype(np.uint8)])[:classes]


def shown(items: int) -> list[int]:
    """Which of the test images a picture shows: the first, the last and one between, where there are so many."""
    return sorted({int(i) for i in np.linspace(0, items - 1, SHOWN).round()})


def class_picture(
    title: str,
    items: Sequence[Labelled],
    predicted: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    names: Sequence[str],
) -> PILImage.Image:
    """Image, truth and prediction of some test images, and a legend of the classes in them. Truths and predictions:
    class indices [height, width], negative where there is none (black)."""
    colors = np.concatenate([palette(len(names)), np.array([UNLABELLED], np.uint8)])
    pictures = [load_image(item.image) for item in items]
    page = Page(pictures[0].width / pictures[0].height, 3, [CAPTION] * len(items), title)
    for row, (item, picture, guess, truth) in enumerate(zip(items, pictures, predicted, truths, strict=True)):
        right = float(_ratio(((guess == truth) & (truth >= 0)).sum(), (truth >= 0).sum()))
        page.tile(row, 0, "Image", picture, item.image.name)
        page.tile(row, 1, "Truth", colors[truth])
        page.tile(row, 2, "Prediction", colors[guess], f"right: {right:.1%} of what is labelled")
    used = np.unique(np.concatenate([maps.ravel() for maps in (*predicted, *truths)]))
    return _with_legend(page.image, [(names[i], colors[i]) for i in used if i >= 0] + [("unlabelled", colors[-1])])


def _with_legend(picture: PILImage.Image, entries: Sequence[tuple[str, np.ndarray]]) -> PILImage.Image:
    Image, Draw, Font = (require(f"PIL.{part}", "cli") for part in ("Image", "ImageDraw", "ImageFont"))
    font, side, line = Font.load_default(15), 16, 24
    places, x, y = [], MARGIN, picture.height
    for name, _ in entries:
        width = side + 8 + int(font.getlength(name)) + 18
        if x > MARGIN and x + width > picture.width - MARGIN:
            x, y = MARGIN, y + line
        places.append((x, y))
        x += width
    whole = Image.new("RGB", (picture.width, y + line + MARGIN // 2), PAPER)
    whole.paste(picture, (0, 0))
    draw = Draw.Draw(whole)
    for (x, y), (name, color) in zip(places, entries, strict=True):
        draw.rectangle((x, y, x + side, y + side), tuple(int(v) for v in color))
        draw.text((x + side + 8, y), name, INK, font)
    return whole


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """part / whole; NaN where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean_present(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0).sum(-1), there.sum(-1))
