"""How much features tell of where in the frame a patch is, which features of the image's content should not.

"MIC": the maximal information coefficient between a channel and x or y of the patch, as the DVT paper measures it:
within an image, of the channel that tells most. It asks for any relation, and so it also sees content: a smooth map of
anything is a function of the place, and cleaner features, being smoother, may score higher. The other numbers compare
images with each other, and content that differs between them drops out: "MIC, images together", the same coefficient
over patches of all images; "position share"; and "same-place excess", how much more alike tokens of one place are than
those of any two. Those are lower where features are cleaner. And photographs have their subject in the middle and the
sky on top: so MIC and the share are there for random crops, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native
from ..arrays import to_numpy
from ..errors import InputError
from ..page import BAR, CAPTION, Page, number
from ..progress import report
from ..visual import directions, scale_colors
from .frames import Frame, random_frames
from .outcome import LEVEL, Outcome, Score, bootstrap

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..progress import Progress
    from .features import FeatureSource
    from .variants import Variant

GROUPS = 8  # of images, left out one after the other where leaving out single ones would take too long
FEWEST = 3  # images: with two, leaving one out leaves nothing to compare it with
CORNERS = ([0, 0, -1, -1], [0, -1, 0, -1])  # rows and columns
EXPLAINED = (
    "n unrelated images have a share of 1/n and not 0, as their mean still holds 1/n of their variance; "
    "corrected is (share - 1/n) / (1 - 1/n), 0 for those and 1 where all images are the same"
)


@dataclass(frozen=True)
class MicSettings:
    """alpha: grids of the coefficient have at most n^alpha cells, of n patches. clumps: of its search, for each column.
    limit: of images, evenly spread over those given; None is all. together: patches of all images in the coefficient
    over images. draws: of the bootstrap. seed: of the bootstrap and of the patches that are drawn or shuffled."""

    alpha: float = 0.6
    clumps: int = 15
    limit: int | None = None
    together: int = 4096
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1 or self.clumps < 1:
            raise InputError(
                f"alpha must be above 0 and at most 1, clumps at least 1, got {self.alpha} and {self.clumps}"
            )
        if self.together < 4:
            raise InputError(f"together must be at least 4 patches, got {self.together}")
        if self.limit is not None and self.limit < FEWEST:
            raise InputError(f"limit must be at least {FEWEST} images, which are compared, got {self.limit}")

    @classmethod
    def quick(cls) -> MicSettings:
        """At most 10 images, and fewer patches of them together."""
        return cls(limit=10, together=1024)


def maximal_information(values: Any, target: Any, alpha: float = 0.6, clumps: int = 15) -> np.ndarray:
    """The maximal information coefficient of each channel with a variable: float64 [C], from 0 to 1.

    values: real numbers [n, C]. target: [n]. 0 for what is constant, 1 for a function without noise; for independent
    variables it is above 0, more so the smaller n. alpha: grids have at most max(n^alpha, 4) cells. clumps: of the
    search, for each column; 15 is the authors' own. Source: D. Reshef et al., "Detecting Novel Associations in Large
    Data Sets", Science 334 (2011) 1518-1524, whose supplement has the approximation; csrc/mic/mic.h has it in short.

    Raises `InputError` for other shapes, fewer than 4 points and settings out of range, `NonFiniteError`.
    """
    columns, other = to_numpy(values, "values"), to_numpy(target, "target")
    if columns.ndim != 2 or other.shape != columns.shape[:1]:
        raise InputError(
            f"values must be [n, C] and target [n], got shapes {list(columns.shape)} and {list(other.shape)}"
        )
    channels = np.ascontiguousarray(columns.T, np.float64)
    return _native.mic(channels, np.ascontiguousarray(other, np.float64), alpha, clumps)


def frames(data: Sequence[Frame], settings: MicSettings) -> list[Frame]:
    """All frames whose features `mic` asks for. Raises `InputError` for fewer than three images."""
    chosen = _chosen(data, settings)
    return chosen + _crops(chosen)


def _chosen(data: Sequence[Frame], settings: MicSettings) -> list[Frame]:
    count = len(data) if settings.limit is None else min(settings.limit, len(data))
    if count < FEWEST:
        raise InputError(f"mic compares images: it needs at least {FEWEST}, got {count}")
    return [data[i * len(data) // count] for i in range(count)]


def _crops(chosen: Sequence[Frame]) -> list[Frame]:
    return random_frames([frame.image for frame in chosen])


def mic(
    features: FeatureSource,
    variant: Variant,
    data: Sequence[Frame],
    settings: MicSettings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Measure how much the features of images tell of the place of a patch.

    Scores: "MIC", the mean over images, and over x and y, of the channel that tells most; "MIC, images together", the
    same over patches drawn from all images; "position share", see `artifact_map.position_share`; "same-place
    similarity", the mean cosine of tokens at one place of two images, and "same-place excess", how much that is above
    the mean cosine of tokens at any two places. "MIC, crops" and "position share, crops" are those of a random crop of
    each image, every second one mirrored.
    Details: the MIC of x and y alone, of the mean channel, and of an image whose patches were shuffled, which is what
    chance gives; the share without its floor of 1 / n; the similarity of the four corners, and of tokens at any two
    places of two images, which is what the features have in common whatever the place.

    Raises `InputError` for fewer than three images, `NonFiniteError`, and what `features.load` raises.
    """
    settings = settings or MicSettings()
    chosen = _chosen(data, settings)
    maps = features.load(variant, chosen, progress)
    cropped = features.load(variant, _crops(chosen))
    found = []
    for done, image in enumerate([*maps, *cropped], 1):
        found.append(_place_information(image, settings))
        report(progress, done, 2 * len(maps), "images")
    information = np.stack(found[: len(maps)])  # [n, 2, C]
    best = information.max(2)
    each, each_crop = best.mean(1), np.stack(found[len(maps) :]).max(2).mean(1)

    def mean_of(values: np.ndarray) -> Score:
        draws, seed = settings.draws, settings.seed
        return bootstrap(lambda i: float(values[i].mean()), len(values), draws=draws, seed=seed, higher=False)

    together, chance = _together(maps, settings)
    products = _Products.of(maps)
    share = _jackknife(products.share, len(maps))
    scores = {
        "position share": share,
        "position share, crops": _jackknife(_Products.of(cropped).share, len(cropped)),
        "same-place excess": _jackknife(
            lambda i: _between(products.cosines, i) - _between(products.anywhere, i), len(maps)
        ),
        "MIC, images together": together,
        # Neither is lower for cleaner features: the one also rises where they are smoother, the other where they have
        # more in common whatever the place.
        "MIC": replace(mean_of(each), higher=None),
        "MIC, crops": replace(mean_of(each_crop), higher=None),
        "same-place similarity": replace(_jackknife(lambda i: _between(products.cosines, i), len(maps)), higher=None),
    }
    details = {
        "settings": asdict(settings),
        "images": len(maps),
        "MIC": {
            "x": float(best[:, 0].mean()),
            "y": float(best[:, 1].mean()),
            "mean over channels": float(information.mean()),
            "patches shuffled": _shuffled(maps[0], settings),
        },
        "MIC by image": each.tolist(),
        "MIC, images together": {"patches shuffled": chance},
        "position share": {
            "floor": 1 / len(maps),
            **_named("corrected", _corrected(share, len(maps))),
            "explanation": EXPLAINED,
        },
        "same-place similarity": {
            **_named("four corners", _jackknife(lambda i: _between(products.corners, i), len(maps))),
            "any two places": _between(products.anywhere, np.arange(len(maps))),
        },
    }
    return Outcome(scores, details, {"places": _picture(maps, scores)})


def _place_information(image: np.ndarray, settings: MicSettings) -> np.ndarray:
    """The coefficient of each channel of an image [h, w, C] with x and y of the patch: [2, C]."""
    h, w, c = image.shape
    y, x = np.divmod(np.arange(h * w), w)
    tokens = image.reshape(-1, c)
    return np.stack([maximal_information(tokens, at, settings.alpha, settings.clumps) for at in (x / w, y / h)])


def _shuffled(image: np.ndarray, settings: MicSettings) -> float:
    """The coefficient of the best channel, where no channel can know the place."""
    tokens = image.reshape(-1, image.shape[-1])
    moved = np.random.default_rng(settings.seed).permutation(tokens).reshape(image.shape)
    return float(_place_information(moved, settings).max(1).mean())


def _together(maps: np.ndarray, settings: MicSettings) -> tuple[Score, float]:
    """The coefficient over patches of all images, of the best channel, mean of x and y, and the same for patches that
    were shuffled. The interval leaves out a group of images at a time, and draws as many patches from the others."""
    n, h, w, c = maps.shape
    random = np.random.default_rng(settings.seed)
    groups = np.array_split(random.permutation(n), min(GROUPS, n))

    def best(images: np.ndarray, shuffle: bool = False) -> float:
        count = min(settings.together, len(images) * h * w)
        # As many of each image as possible, and the places of each drawn anew.
        order = np.concatenate([random.permutation(h * w) + i * h * w for i in images]).reshape(len(images), -1)
        rows = order.T.ravel()[:count]
        y, x = np.divmod(rows % (h * w), w)
        tokens = maps.reshape(-1, c)[random.permutation(rows) if shuffle else rows]
        found = [maximal_information(tokens, at, settings.alpha, settings.clumps).max() for at in (x / w, y / h)]
        return float(np.mean(found))

    value = best(np.arange(n))
    without = np.array([best(np.setdiff1d(np.arange(n), group)) for group in groups])
    error = np.sqrt((len(groups) - 1) * without.var())
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * float(error)
    return Score(value, value - reach, value + reach, higher=False), best(np.arange(n), shuffle=True)


@dataclass(frozen=True)
class _Products:
    """Inner products of images with each other, [n, n] each, from which every choice of images has its numbers at once.

    tokens: summed over places. means: of the mean token, times the number of places. cosines: of tokens at one place,
    mean over places. corners: mean over the four corners. anywhere: mean over all pairs of places.
    """

    tokens: np.ndarray
    means: np.ndarray
    cosines: np.ndarray
    corners: np.ndarray
    anywhere: np.ndarray

    @classmethod
    def of(cls, maps: np.ndarray) -> _Products:
        """maps [n, h, w, C]. In float64, a row of places at a time: all at once would be gigabytes."""
        n, h, w, c = maps.shape
        # Variance does not change with the origin; at a token of their own, constant features have exactly none.
        origin = maps[0, 0, 0].astype(np.float64)
        tokens, cosines = np.zeros((2, n, n))
        mean, mean_direction = np.zeros((2, n, c))
        for row in range(h):
            part = maps[:, row].astype(np.float64)
            unit = directions(part)
            tokens += _gram(part - origin)
            cosines += _gram(unit)
            mean += (part - origin).sum(1) / (h * w)
            mean_direction += unit.sum(1) / (h * w)
        corners = _gram(directions(maps[:, CORNERS[0], CORNERS[1]].astype(np.float64))) / 4
        return cls(tokens, _gram(mean) * (h * w), cosines / (h * w), corners, _gram(mean_direction))

    def share(self, chosen: np.ndarray) -> float:
        """`position_share` of these images, each at most once."""
        tokens, means = (product[np.ix_(chosen, chosen)] for product in (self.tokens, self.means))
        total = np.trace(tokens) / len(chosen) - means.mean()
        return float((tokens.mean() - means.mean()) / total) if total > 0 else 0.0


def _gram(vectors: np.ndarray) -> np.ndarray:
    flat = vectors.reshape(len(vectors), -1)
    return flat @ flat.T


def _between(products: np.ndarray, chosen: np.ndarray) -> float:
    """The mean over pairs of two different images."""
    some = products[np.ix_(chosen, chosen)]
    return float((some.sum() - np.trace(some)) / (len(chosen) * (len(chosen) - 1)))


def _jackknife(statistic: Callable[[np.ndarray], float], items: int) -> Score:
    """The statistic with a 95 % interval from its values without one item at a time.

    Not the bootstrap of other scores: that draws with replacement, and an image that is drawn twice agrees with itself
    at every place, which would add about 1 / n to the share and to the similarity of every draw, and move the interval
    above the value. Without one item no item is there twice.
    """
    every = np.arange(items)
    value = statistic(every)
    without = np.array([statistic(np.delete(every, i)) for i in every])
    error = np.sqrt((items - 1) * without.var())
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * float(error)
    return Score(value, value - reach, value + reach, higher=False)


def _corrected(share: Score, images: int) -> Score:
    """The share without what unrelated images would have."""
    low, value, high = ((v - 1 / images) / (1 - 1 / images) for v in (share.low or 0.0, share.value, share.high or 0.0))
    return Score(value, low, high, higher=False)


def _named(name: str, score: Score) -> dict[str, float | None]:
    return {name: score.value, f"{name}, low": score.low, f"{name}, high": score.high}


def _picture(maps: np.ndarray, scores: dict[str, Score]) -> PILImage.Image:
    """By place: the share of the variance there that the place explains, and the cosine between images."""
    n, h, w, _ = maps.shape
    shares, cosines = np.zeros((2, h, w))
    overall = maps.mean((0, 1, 2), dtype=np.float64)
    for row in range(h):
        part = maps[:, row].astype(np.float64) - overall
        variance = (part**2).sum(-1).mean(0)
        shares[row] = (part.mean(0) ** 2).sum(-1) / np.where(variance > 0, variance, 1)
        unit = directions(maps[:, row].astype(np.float64))
        cosines[row] = ((unit.sum(0) ** 2).sum(-1) - (unit**2).sum((0, 2))) / (n * (n - 1))
    page = Page(w / h, 2, (CAPTION + BAR,), "What the place alone tells", [f"{n} images, {h} x {w} patches"])
    for column, (name, values) in enumerate({"position share": shares, "same-place similarity": cosines}.items()):
        caption = f"over all places {number(scores[name].value)}"
        page.tile(0, column, name.capitalize(), scale_colors(values, 0, 1), caption)
    page.bar(0, "By place", 0, 1, column=0)
    return page.image
