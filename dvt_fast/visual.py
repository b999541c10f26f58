"""Features for the eye: colours, clusters and similarities of patch tokens, in NumPy.

Everything is robust to a few tokens of enormous norm (on some ViTs the corner tokens have 25 times the median norm),
because those are the very artifacts that a picture is to show: they must not own the colour basis, its range or the
clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

# Colour-blind safe (Okabe and Ito), most different first.
CLUSTER_COLORS = np.array(
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)], np.uint8
)
# Dark blue over green to yellow, as lightness alone also reads.
_SCALE = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
     (170, 220, 50), (253, 231, 37)], np.float32
)  # fmt: skip

# What differs by less is rounding, and is not drawn as contrast: the range of a colour, as a part of the usual norm,
# and 1 - cosine of two tokens of different clusters (an angle of 0.8 degrees).
MIN_RANGE = 1e-4
ALIKE = 1e-4


@dataclass(frozen=True)
class ColorBasis:
    """Three directions in feature space as red, green and blue.

    mean: [C], the grey point of features. axes: [C, 3], orthonormal. low, high: [3], what is drawn as 0 and 255.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(cls, *parts: np.ndarray, like: ColorBasis | None = None) -> ColorBasis:
        """The three principal directions of the usual tokens of `parts` ([..., C] each), with a range for 98 % of them.

        Usual: within three times the median distance from the median token. like: an earlier basis; the new one spans
        the same space as without it, turned so that its axes are as near to the earlier ones as they can be.
        """
        tokens = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts]).astype(np.float64)
        distance = np.linalg.norm(tokens - np.median(tokens, axis=0), axis=1)
        usual = tokens[distance <= 3 * np.median(distance)]
        mean = usual.mean(axis=0)
        axes = (
            _principal_axes(usual - mean) if like is None else _principal_axes(usual - mean, rounds=5, start=like.axes)
        )
        axes = np.pad(axes, ((0, 0), (0, 3 - axes.shape[1])))  # fewer than three channels: the other colours are flat
        if like is None:  # eigenvectors have no sign of their own
            axes *= np.where(axes[np.abs(axes).argmax(axis=0), range(3)] < 0, -1, 1)
        else:
            left, _, right = np.linalg.svd(axes.T @ like.axes)
            axes = axes @ (left @ right)
        low, high = np.percentile((usual - mean) @ axes, (1, 99), axis=0)
        narrow = MIN_RANGE * np.median(np.linalg.norm(tokens, axis=1)) + 1e-12
        widen = np.maximum(narrow - (high - low), 0) / 2
        return cls(mean, axes, low - widen, high + widen)

    def colors(self, features: np.ndarray) -> np.ndarray:
        """Features [..., C] as uint8 [..., 3]."""
        return _to_bytes(((features - self.mean) @ self.axes - self.low) / (self.high - self.low))

    def offset_colors(self, offsets: np.ndarray) -> np.ndarray:
        """Differences of features, such as artifacts, at the same scale: zero is mid-grey, and colours add up."""
        return _to_bytes(0.5 + offsets @ self.axes / (self.high - self.low))


def scale_colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers as colours from dark (`low`) to bright (`high`): uint8 [..., 3]."""
    place = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(_SCALE) - 1)
    below = np.minimum(place.astype(int), len(_SCALE) - 2)
    part = (place - below)[..., None]
    return ((1 - part) * _SCALE[below] + part * _SCALE[below + 1] + 0.5).astype(np.uint8)


def kmeans(features: np.ndarray, k: int, seed: int = 0, rounds: int = 30) -> np.ndarray:
    """Cluster tokens [..., C] by direction (spherical k-means, k-means++ start): int [...] labels from 0 to k - 1.

    Fewer labels are used where there are fewer directions; features that are all alike make one cluster.
    """
    tokens = directions(features).reshape(-1, features.shape[-1])
    k = min(k, len(tokens))
    rng = np.random.default_rng(seed)
    centers = tokens[rng.integers(len(tokens))][None]
    while len(centers) < k:
        distance = 1 - (tokens @ centers.T).max(axis=1)
        distance[distance < ALIKE] = 0
        if not distance.any():
            break
        centers = np.concatenate([centers, tokens[rng.choice(len(tokens), p=distance / distance.sum())][None]])
    labels = np.full(len(tokens), -1)
    for _ in range(rounds):
        before, labels = labels, (tokens @ centers.T).argmax(axis=1)
        if np.array_equal(before, labels):
            break
        centers = np.stack([tokens[labels == i].sum(0) if (labels == i).any() else c for i, c in enumerate(centers)])
        centers = directions(centers)
    return labels.reshape(features.shape[:-1])


def match_labels(labels: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """Rename `labels` so that they agree with `reference` in as many places as possible; k of at most 6."""
    overlap = np.zeros((k, k), int)
    np.add.at(overlap, (labels.ravel(), reference.ravel()), 1)
    best = max(permutations(range(k)), key=lambda names: overlap[range(k), names].sum())
    return np.array(best)[labels]


def directions(features: np.ndarray) -> np.ndarray:
    """Tokens [..., C] at norm 1; those that are zero stay zero."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def similarity(features: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
    """Cosine of every token [H, W, C] with the one at patch (row, column): [H, W]."""
    unit = directions(features)
    return unit @ unit[patch]


def telling_patch(features: np.ndarray) -> tuple[int, int]:
    """A patch (row, column) worth asking about: the inner one closest to a tenth of the image, against the rest.

    So it lies on an object of some size; a patch like no other, or like the whole background, would show little.
    """
    h, w, c = features.shape
    unit = directions(features)
    rows, columns = slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)
    inner = unit[rows, columns]
    near = np.sort(inner.reshape(-1, c) @ unit.reshape(-1, c).T, axis=1)
    contrast = near[:, -max(1, h * w // 10) :].mean(axis=1) - near.mean(axis=1)
    row, column = np.unravel_index(contrast.argmax(), inner.shape[:2])
    return int(row) + h // 4, int(column) + w // 4


def _principal_axes(centered: np.ndarray, n: int = 3, rounds: int = 30, start: np.ndarray | None = None) -> np.ndarray:
    """The first n principal directions of [N, C]: [C, n]. Subspace iteration, as C^3 work would take seconds.

    start: [C, n], directions that are nearly these.
    """
    channels = centered.shape[1]
    space = np.random.default_rng(0).standard_normal((channels, min(channels, 2 * n + 2)))
    if start is not None:
        space[:, :n] = start[:, : space.shape[1]] * np.sqrt(channels)
    for _ in range(rounds):
        space = np.linalg.qr(centered.T @ (centered @ space))[0]
    return space @ np.linalg.svd(centered @ space, full_matrices=False)[2][:n].T


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
