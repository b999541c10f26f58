"""LOST: the box of one object an image, found from patch features without any training (Siméoni et al., BMVC 2021).

An object is what is like itself and unlike most of the image. In the graph of positive correlations between patches the
one of lowest degree is the seed; those of the k lowest degrees that correlate positively with it are its set; patches
whose summed correlation with the set is positive make the mask, and the part of it around the seed has the box.

Boxes that never look at the image are scored beside it: published numbers can be near theirs. LOST itself uses the keys
of the last attention; here it is given what a variant has. Features with a large mean correlate positively everywhere:
then all degrees are equal, the seed is the first patch and the box the whole image, so the Gram matrix is an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..extras import require
from ..progress import Progress, report
from ..visual import directions
from .frames import Frame, random_frames, whole_frames
from .outcome import Outcome, Score, bootstrap

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from .data.labelled import BoxData, Boxed
    from .features import FeatureSource
    from .variants import Variant

GRAMS = ("features", "centred", "cosine")
ENOUGH = 0.5  # the IoU from which an object is found
CENTRE = (0.5 - 0.5**0.5 / 2, 0.5 - 0.5**0.5 / 2, 0.5 + 0.5**0.5 / 2, 0.5 + 0.5**0.5 / 2)  # half the area
WHOLE = (0.0, 0.0, 1.0, 1.0)
FIXED_STEPS = 8  # edges of the boxes among which the best fixed one is looked for, a side
NEARLY_WHOLE = 0.95
VISIBLE = 0.25  # the share of an object that a crop must hold for it to be one there
PICTURES, TILE, COLUMNS, GAP = 6, (320, 240), 3, 6
PINK, LIGHT, DARK = (255, 60, 160), (255, 255, 255), (20, 20, 20)


@dataclass(frozen=True)
class DiscoverSettings:
    """gram: what is multiplied: "features" as they are (LOST), "centred", without their mean over the image, or
    "cosine", at length 1. bias: subtracted from the products, as in some reproductions; in their unit. k: patches of
    lowest degree that may join the set. min_patches: a seed whose mask is smaller is passed over for the one of the
    next degree; 1 is LOST as published. draws: of the bootstrap over images."""

    gram: str = "features"
    bias: float = 0.0
    k: int = 100
    min_patches: int = 1
    draws: int = 1000

    def __post_init__(self) -> None:
        if self.gram not in GRAMS:
            raise InputError(f"gram must be one of {', '.join(GRAMS)}, got {self.gram!r}")
        if self.k < 1 or self.min_patches < 1 or self.draws < 1 or not np.isfinite(self.bias):
            raise InputError("k, min_patches and draws must be at least 1, and bias finite")

    @classmethod
    def quick(cls) -> DiscoverSettings:
        """The same: nothing is trained."""
        return cls()


class Found(NamedTuple):
    """seed: (row, column). mask: bool [h, w]. box: (left, top, right, bottom) in units of the image."""

    seed: tuple[int, int]
    mask: np.ndarray
    box: np.ndarray


def lost(features: np.ndarray, settings: DiscoverSettings = DiscoverSettings()) -> Found:
    """The object that LOST finds in features [h, w, C]. Of patches of one degree the first in reading order counts."""
    h, w, c = features.shape
    tokens = features.reshape(-1, c).astype(np.float64)  # sums near 0 decide: their signs are not to be rounding's
    if settings.gram == "centred":
        tokens = tokens - tokens.mean(0)
    elif settings.gram == "cosine":
        tokens = directions(tokens)
    products = tokens @ tokens.T - settings.bias
    positive = products > 0
    np.fill_diagonal(positive, False)
    order = np.argsort(positive.sum(1), kind="stable")
    for seed in order:
        mask = _mask(products, int(seed), order[: settings.k], (h, w))
        if mask.sum() >= settings.min_patches:
            break
    else:
        seed = order[0]
        mask = _mask(products, int(seed), order[: settings.k], (h, w))
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = np.array((columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h))
    return Found((int(seed) // w, int(seed) % w), mask, box)


def _mask(products: np.ndarray, seed: int, lowest: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The patches around the seed, side by side, whose summed correlation with its set is positive."""
    joined = np.union1d(lowest[products[seed, lowest] > 0], [seed])
    parts, _ = require("scipy.ndimage", "eval").label(products[joined].sum(0).reshape(grid) > 0)
    own = parts.flat[seed]
    mask = parts == own if own else np.zeros(grid, bool)
    mask.flat[seed] = True  # which only a bias can have put outside
    return mask


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and [m, 4], (left, top, right, bottom): float64 [n, m]."""
    boxes, others = np.asarray(boxes, np.float64)[:, None], np.asarray(others, np.float64)[None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    shared = sides.clip(0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)


def frames(data: BoxData, settings: DiscoverSettings) -> list[Frame]:
    """What `discover` takes features of. Raises `InputError` where no image has an object."""
    images = _with_objects(data)
    return whole_frames([one.image for one in images]) + [frame for frame, _ in _crops(images)]


def discover(
    features: FeatureSource,
    variant: Variant,
    data: BoxData,
    settings: DiscoverSettings = DiscoverSettings(),
    progress: Progress | None = None,
) -> Outcome:
    """CorLoc: the share of images whose box has an IoU of at least 0.5 with any of its objects, and the mean of the
    best IoU; the same for boxes that never look at the image.

    All images count, of both parts, as nothing is trained; those without objects cannot. Intervals are over images.
    The best fixed box is chosen with the labels at hand, so it is a bound of what one box for all images can reach.
    "CorLoc, crops" is that of random crops of the images, every second one mirrored, in which objects are not where
    photographers put them; of objects of which a quarter is inside, and beside it that of the centre box there.
    Raises `InputError` where no image has an object.
    """
    images = _with_objects(data)
    crops = _crops(images)
    shown = [*whole_frames([one.image for one in images]), *(frame for frame, _ in crops)]
    boxes = []
    for done, frame in enumerate(shown, 1):
        boxes.append(lost(features.load(variant, [frame])[0], settings).box)
        report(progress, done, len(shown), "images")
    found = np.stack(boxes[: len(images)])

    fixed = _fixed_boxes()
    overlaps = np.stack([_best_ious(fixed, one) for one in images])
    best = max(range(len(fixed)), key=lambda i: ((overlaps[:, i] >= ENOUGH).mean(), overlaps[:, i].mean()))
    own = np.array([_best_ious(box[None], one)[0] for box, one in zip(found, images)])
    in_crops = {
        "CorLoc, crops": np.array(
            [_best_ious(box[None], one)[0] for box, (_, one) in zip(boxes[len(images) :], crops)]
        ),
        "CorLoc, crops, centre box": np.array([_best_ious(np.array([CENTRE]), one)[0] for _, one in crops]),
    }
    controls = {
        "centre box": np.array([_best_ious(np.array([CENTRE]), one)[0] for one in images]),
        "whole image": np.array([_best_ious(np.array([WHOLE]), one)[0] for one in images]),
        "best fixed box": overlaps[:, best],
    }
    areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    details: dict[str, Any] = {
        "settings": asdict(settings),
        "images": len(images),
        "without objects": len(data.train) + len(data.val) - len(images),
        "crops with objects": len(crops),
        "mean area": float(areas.mean()),
        "share of nearly whole images": float((areas >= NEARLY_WHOLE).mean()),
        "centre box": list(CENTRE),
        "best fixed box": fixed[best].tolist(),
    }
    scores = _scores(own, controls, settings.draws)
    for name, values in in_crops.items() if crops else ():
        scores[name] = _mean(values >= ENOUGH, settings.draws, None if name.endswith("box") else True)
    return Outcome(scores, details, {"boxes": _sheet(images, found)})


def _with_objects(data: BoxData) -> list[Boxed]:
    images = [one for one in (*data.train, *data.val) if len(one.boxes)]
    if not images:
        raise InputError(f"{data.name}: no image has an object to discover")
    return images


def _crops(images: Sequence[Boxed]) -> list[tuple[Frame, Boxed]]:
    """A random crop of each image, and what is in it, where there is something."""
    cut = [(frame, one.cut(frame, VISIBLE)) for frame, one in zip(random_frames([o.image for o in images]), images)]
    return [(frame, one) for frame, one in cut if len(one.boxes)]


def _scores(own: np.ndarray, controls: dict[str, np.ndarray], draws: int) -> dict[str, Score]:
    """From the best IoU of each image. A control is no variant: neither more nor less of it is better."""
    hits = own >= ENOUGH
    return (
        {"CorLoc": _mean(hits, draws)}
        | {"CorLoc over centre box": _mean(hits.astype(float) - (controls["centre box"] >= ENOUGH), draws)}
        | {"mean IoU": _mean(own, draws)}
        | {f"CorLoc, {name}": _mean(values >= ENOUGH, draws, None) for name, values in controls.items()}
        | {f"mean IoU, {name}": _mean(values, draws, None) for name, values in controls.items()}
    )


def _mean(values: np.ndarray, draws: int, higher: bool | None = True) -> Score:
    return bootstrap(lambda chosen: float(values[chosen].mean()), len(values), draws=draws, higher=higher)


def _best_ious(boxes: np.ndarray, one: Boxed) -> np.ndarray:
    """The best IoU of each of boxes [n, 4], in units of the image, with any object of it: [n]."""
    return iou(boxes * np.tile(one.size, 2), one.boxes).max(1)


def _fixed_boxes() -> np.ndarray:
    """All boxes with edges at eighths, in units of the image: [1296, 4]."""
    spans = [(i, j) for i in range(FIXED_STEPS) for j in range(i + 1, FIXED_STEPS + 1)]
    return np.array([(x[0], y[0], x[1], y[1]) for y in spans for x in spans], np.float64) / FIXED_STEPS


def _sheet(images: Sequence[Boxed], found: np.ndarray) -> PILImage.Image:
    """Some of the images, evenly spaced, with what was found (pink) and the objects (white)."""
    Image, ImageDraw = require("PIL.Image", "cli"), require("PIL.ImageDraw", "cli")
    count = min(PICTURES, len(images))
    columns, rows = min(COLUMNS, count), -(-count // COLUMNS)
    sheet = Image.new("RGB", (columns * (TILE[0] + GAP) - GAP, rows * (TILE[1] + GAP) - GAP), "white")
    for place in range(count):
        index = place * len(images) // count
        one = images[index]
        picture = whole_frames([one.image])[0].picture()
        scale = min(TILE[0] / picture.width, TILE[1] / picture.height)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(picture)
        pixels = np.tile(picture.size, 2)
        outlines = [(box / np.tile(one.size, 2) * pixels, LIGHT, 1) for box in one.boxes]
        for edges, color, line in (*outlines, (found[index] * pixels, PINK, 3)):
            _outline(draw, edges, picture.size, color, line)
        x, y = (place % COLUMNS) * (TILE[0] + GAP), (place // COLUMNS) * (TILE[1] + GAP)
        sheet.paste(picture, (x + (TILE[0] - picture.width) // 2, y + (TILE[1] - picture.height) // 2))
    return sheet


def _outline(draw: Any, edges: np.ndarray, size: tuple[int, int], color: tuple[int, int, int], line: int) -> None:
    """A box (left, top, right, bottom) in pixels, with a dark rim so that it shows on white as well."""
    left, top, right, bottom = (round(float(edge)) for edge in edges - (0, 0, 1, 1))
    for grow, ink, thick in ((1, DARK, line + 2), (0, color, line)):
        x, y = max(left - grow, 0), max(top - grow, 0)
        draw.rectangle(
            (x, y, max(x, min(right + grow, size[0] - 1)), max(y, min(bottom + grow, size[1] - 1))), None, ink, thick
        )
