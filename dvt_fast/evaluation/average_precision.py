"""COCO's average precision of boxes, on the images as they are and on resampled ones.

pycocotools matches detections to objects, image by image, and gives the value. For an interval images are drawn again
and again: their matches stay, so only the sums are made anew, here in arrays, where pycocotools loops in Python.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..extras import require

LIMIT = 100  # detections an image that count, the best ones
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of intersection over union
EVERYTHING = [0.0, 1e10]  # areas that count


@dataclass(frozen=True)
class Found:
    """Boxes of one image. boxes: [n, 4], (left, top, right, bottom). classes: [n] indices. scores: [n], higher is
    surer; of objects to be found, ones."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    @classmethod
    def objects(cls, boxes: np.ndarray, classes: np.ndarray) -> Found:
        """The truth of an image."""
        return cls(np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(classes), np.ones(len(classes)))


class AveragePrecision:
    """truth, found: of each image. classes: how many there are.

    Attributes: official, pycocotools' own average precision [10, classes], by threshold (`THRESHOLDS`) and class, NaN
    where no image has an object of the class.
    """

    def __init__(self, truth: Sequence[Found], found: Sequence[Found], classes: int):
        evaluation = _evaluate(truth, found, classes)
        precision = evaluation.eval["precision"][:, :, :, 0, 0]  # [threshold, recall, class]; -1 where there is none
        self.official = np.where(precision[:, 0] < 0, np.nan, precision.mean(1))
        self._recalls = evaluation.params.recThrs
        images = len(truth)
        self._classes = [_Matches(evaluation.evalImgs[k * images : (k + 1) * images]) for k in range(classes)]

    def resampled(self, images: np.ndarray) -> np.ndarray:
        """[10, classes] as `official`, where `images`, indices with repetitions, are the images."""
        return np.stack([matches.precision(images, self._recalls) for matches in self._classes], 1)


class _Matches:
    """What was matched of one class. images: of pycocotools, a dict for each image, None where it has neither."""

    def __init__(self, images: Sequence[dict[str, Any] | None]):
        self._objects = np.array([0 if e is None else len(e["gtIds"]) for e in images])
        scores = [np.zeros(0) if e is None else np.asarray(e["dtScores"], np.float64) for e in images]
        matched = [np.zeros((len(THRESHOLDS), 0), bool) if e is None else e["dtMatches"] > 0 for e in images]
        order = np.argsort(-np.concatenate(scores), kind="stable")
        self._image = np.repeat(np.arange(len(images)), [len(s) for s in scores])[order]  # of each detection
        self._matched = np.concatenate(matched, 1)[:, order]

    def precision(self, images: np.ndarray, recalls: np.ndarray) -> np.ndarray:
        """The mean over `recalls` of the best precision at that recall or more: [10], NaN without any object."""
        times = np.bincount(images, minlength=len(self._objects))
        objects = times @ self._objects
        if objects == 0:
            return np.full(len(THRESHOLDS), np.nan)
        matched = np.repeat(self._matched, times[self._image], axis=1)
        right = np.cumsum(matched, 1, dtype=np.float64)
        precision = right / (np.arange(1, matched.shape[1] + 1) + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], 1)  # a recall that is never reached
        at = [np.searchsorted(row / objects, recalls, side="left") for row in right]
        return np.array([row[places].mean() for row, places in zip(best, at, strict=True)])


def _evaluate(truth: Sequence[Found], found: Sequence[Found], classes: int) -> Any:
    """pycocotools' evaluation, without what it prints. Image i and class k have the ids i and k; boxes count from 1,
    since it takes the id 0 for no match."""
    coco = require("pycocotools.coco", "eval")
    cocoeval = require("pycocotools.cocoeval", "eval")
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for boxes in (truth, found):
            made = coco.COCO()
            made.dataset = {
                "images": [{"id": i} for i in range(len(truth))],
                "categories": [{"id": k} for k in range(classes)],
                "annotations": _annotations(boxes),
            }
            made.createIndex()
            sets.append(made)
        evaluation = cocoeval.COCOeval(*sets, "bbox")
        evaluation.params.iouThrs = THRESHOLDS
        evaluation.params.maxDets = [LIMIT]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [EVERYTHING], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _annotations(images: Sequence[Found]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image, found in enumerate(images):
        for (left, top, right, bottom), k, score in zip(
            found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True
        ):
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": k, "bbox": box, "area": box[2] * box[3]}
                | {"score": score, "iscrowd": 0}
            )
    return annotations
