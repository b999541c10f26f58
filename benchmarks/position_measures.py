"""What position_embedding.py measures of feature maps float32 [n, h, w, C]: position in them, and their worth."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from real_vit import CLASSES, UNLABELLED, mean_iou
from torch import Tensor

from dvt_fast.artifact_map import position_share


def majority(labels: Tensor, patch: int) -> np.ndarray:
    """The most frequent label of each patch: labels [n, 1, H, W] to int [n, h, w]."""
    counts = F.avg_pool2d(F.one_hot(labels[:, 0].long(), CLASSES + 1).permute(0, 3, 1, 2).float(), patch)
    return counts.argmax(1).numpy()


def shuffled(images: Tensor, patch: int, seed: int = 0) -> Tensor:
    """images [n, 3, H, W], the patches of each in a random order of its own."""
    n, _, h, w = images.shape
    columns = F.unfold(images, patch, stride=patch)
    random = np.random.default_rng(seed)
    order = torch.from_numpy(np.stack([random.permutation(columns.shape[-1]) for _ in range(n)]))
    return F.fold(columns.gather(2, order[:, None].expand_as(columns)), (h, w), patch, stride=patch)


def same_place(maps: np.ndarray) -> tuple[float, float]:
    """Mean cosine of tokens of two different maps of [n, h, w, C]: at the same place, and at different places."""
    unit = maps.reshape(len(maps), -1, maps.shape[-1]).astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    n, places, _ = unit.shape
    pairs = n * (n - 1)
    same = ((unit.sum(0) ** 2).sum() - (unit**2).sum()) / (pairs * places)
    sums = unit.sum(1)
    every = (sums.sum(0) ** 2).sum() - (sums**2).sum()  # over pairs of places too, the same ones among them
    return float(same), float((every / pairs - same * places) / (places * (places - 1)))


def share_by_place(maps: np.ndarray) -> np.ndarray:
    """What the mean map has at each place, over the variance of a token about the mean of its own map: [h, w].

    Its mean is `position_share` of maps whose own means are off.
    """
    centred = maps - maps.mean((1, 2), keepdims=True)
    return (centred.mean(0) ** 2).sum(-1) / (centred**2).sum(-1).mean()


def norms(maps: np.ndarray) -> dict:
    """Median norm; the largest of a map over its median, mean over maps; the share of tokens of twice the median."""
    size = np.linalg.norm(maps.reshape(len(maps), -1, maps.shape[-1]), axis=-1)
    middle = np.median(size, 1, keepdims=True)
    return {
        "median_norm": float(np.median(size)),
        "max_over_median": float((size / middle).max(1).mean()),
        "outliers": float((size > 2 * middle).mean()),
    }


def mic(maps: np.ndarray, seed: int | None = None) -> float:
    """Maximal information between the channels and y or x: the best channel, mean over both and over the maps.

    seed: shuffles the places first, which leaves what chance shows.
    """
    from dvt_fast.evaluation.mic import maximal_information

    h, w = maps.shape[1:3]
    places = np.indices((h, w)).reshape(2, -1).astype(np.float64)
    if seed is not None:
        places = places[:, np.random.default_rng(seed).permutation(h * w)]
    flat = maps.reshape(len(maps), h * w, -1)
    return float(np.mean([maximal_information(values, target).max() for values in flat for target in places]))


def artifacts(maps: np.ndarray, informed: int) -> dict:
    """All that is measured of position in maps [n, h, w, C]; MIC over the first `informed` of them."""
    same, different = same_place(maps)
    found = {"position_share": position_share(maps), "floor": 1 / len(maps), "same_place": same}
    by_place = share_by_place(maps)
    h, w = by_place.shape
    found["share_within"] = float(by_place.mean())
    found["share_corners"] = float(by_place[[0, 0, -1, -1], [0, -1, 0, -1]].mean())
    found["share_middle"] = float(by_place[h // 4 : h - h // 4, w // 4 : w - w // 4].mean())
    found |= {"same_place_excess": same - different} | norms(maps)
    return found | {"mic": mic(maps[:informed]), "mic_null": mic(maps[:informed], seed=0)} if informed else found


def retrieval(maps: np.ndarray) -> float:
    """maps [2 n, h, w, C], crops of n photos and other crops of the same: how often the nearest is the right one."""
    mean = maps.mean((1, 2))
    mean = mean - mean.mean(0)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    one, other = np.split(mean, 2)
    near = one @ other.T
    right = np.arange(len(one))
    return float(((near.argmax(0) == right).mean() + (near.argmax(1) == right).mean()) / 2)


def knn(bank: np.ndarray, bank_labels: np.ndarray, query: np.ndarray, query_labels: np.ndarray, k: int = 20) -> float:
    """Mean IoU of the patches of query [n, h, w, C] by the k nearest of bank, over classes of more than 20 patches."""
    x, y = bank[bank_labels < UNLABELLED], bank_labels[bank_labels < UNLABELLED]
    mean, sd = x.mean(0), x.std(0) + 1e-6
    truth = query_labels[query_labels < UNLABELLED]
    one, other = (F.normalize(torch.from_numpy((a - mean) / sd), dim=-1) for a in (query[query_labels < UNLABELLED], x))
    near = (one @ other.T).topk(min(k, len(y)), dim=1).indices
    votes = F.one_hot(torch.from_numpy(y)[near], CLASSES).sum(1)
    return mean_iou(votes.argmax(1).numpy(), truth, [c for c in range(CLASSES) if (truth == c).sum() > 20])
