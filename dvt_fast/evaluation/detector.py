"""A light detector on frozen features: a feature pyramid made of the one map of a ViT, and torchvision's FCOS head.

The pyramid is ViTDet's (Li et al., arXiv 2203.16527): the map at twice, once and half its resolution, by transposed
convolution, as it is, and by pooling. Of FCOS (Tian et al., arXiv 1904.01355) torchvision has the head, what is trained
towards which box, the losses, and the suppression of duplicates; its resizing of images is left out, as here the
features come ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..extras import require
from ..training.schedule import learning_rate

if TYPE_CHECKING:
    from .average_precision import Found
    from .detect import DetectSettings

GROUPS = 32  # of the norms, as in torchvision's head
SMALLEST_SCORE, OVERLAP = 0.05, 0.6  # of detections: the lowest score, and where one of two of a class goes
SCALES = (2.0, 1.0, 0.5)  # levels of the pyramid, relative to the map


def position_waves(grid: tuple[int, int], channels: int) -> np.ndarray:
    """The fixed sinusoidal position embedding of ViTs without a learned one: float32 [h, w, C].

    A quarter of the channels each for the sine and the cosine of y, then of x, in units of patches, at wavelengths from
    2 pi to nearly 20,000 pi; where C is no multiple of four the last ones are zero.
    """
    quarter = channels // 4
    rates = 10_000.0 ** (-np.arange(quarter) / max(quarter, 1))
    waves = np.zeros((*grid, channels), np.float32)
    for axis, length in enumerate(grid):
        angles = np.arange(length)[:, None] * rates
        both = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        waves[..., 2 * quarter * axis : 2 * quarter * (axis + 1)] = both[:, None] if axis == 0 else both[None]
    return waves


class Pyramid(nn.Module):
    """A map [B, C, h, w] at three resolutions of `width` channels each, finest first."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.out_channels = width  # FCOS asks for it
        scaled = [
            (nn.ConvTranspose2d(channels, width, 2, 2), width),
            (nn.Identity(), channels),
            (nn.MaxPool2d(2, ceil_mode=True), channels),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(come, width, 1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, width),
            )
            for scale, come in scaled
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [level(x) for level in self.levels]


class Detector(nn.Module):
    """Boxes of classes 0 to `classes` - 1, in pixels of a frame of `size` (height, width), from its features.

    grid: patches (h, w) of a frame. channels: of the features. width: of the pyramid and the head. convs: in each of
    the head's two towers. Initial values come from torch's global generator.
    """

    def __init__(
        self, grid: tuple[int, int], size: tuple[int, int], channels: int, classes: int, width: int, convs: int
    ):
        super().__init__()
        fcos = require("torchvision.models.detection.fcos", "eval")
        anchors = require("torchvision.models.detection.anchor_utils", "eval")
        self.size = size
        pyramid = Pyramid(channels, width)
        # The boxes of this generator are not used: it counts cells from the corners of patches, `cells` from centres.
        generator = anchors.AnchorGenerator(((1,),) * len(SCALES), ((1.0,),) * len(SCALES))
        self.fcos = fcos.FCOS(
            pyramid,
            classes,
            anchor_generator=generator,
            head=fcos.FCOSHead(width, 1, classes, convs),
            score_thresh=SMALLEST_SCORE,
            nms_thresh=OVERLAP,
        )
        self._cells: list[torch.Tensor] = [cells(grid, size, scale) for scale in SCALES]

    def loss(self, x: torch.Tensor, boxes: Sequence[torch.Tensor], classes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of features [B, C, h, w] and the boxes [n, 4] and classes [n] of each: classification + boxes + centres."""
        targets = [{"boxes": b, "labels": k} for b, k in zip(boxes, classes, strict=True)]
        cells = torch.cat(self._cells).to(x.device)
        outputs = self.fcos.head(self.fcos.backbone(x))
        losses = self.fcos.compute_loss(targets, outputs, [cells] * len(x), [len(level) for level in self._cells])
        return sum(losses.values(), x.new_zeros(()))

    @torch.no_grad()
    def detect(self, x: torch.Tensor) -> list[dict[str, Any]]:
        """At most 100 boxes of each of features [B, C, h, w], best first: tensors boxes [n, 4], labels, scores."""
        outputs = self.fcos.head(self.fcos.backbone(x))
        lengths = [len(level) for level in self._cells]
        by_level = {name: list(value.split(lengths, dim=1)) for name, value in outputs.items()}
        levels = [level.to(x.device) for level in self._cells]
        found: list[dict[str, Any]] = self.fcos.postprocess_detections(
            by_level, [levels] * len(x), [self.size] * len(x)
        )
        return found


def cells(grid: tuple[int, int], size: tuple[int, int], scale: float) -> torch.Tensor:
    """What each place of a level sees, as boxes in pixels: float32 [n, 4], row by row.

    FCOS trains a place towards a box around its centre whose farthest edge is 4 to 8 of the place's sides away (on the
    finest level also nearer, on the coarsest also farther).
    """
    edges = []
    for patches, pixels in zip(grid, size, strict=True):
        side = pixels / patches / scale
        start = torch.arange(int(np.ceil(patches * scale)), dtype=torch.float32) * side
        edges.append((start, start + side))
    (top, bottom), (left, right) = edges
    rows, columns = len(top), len(left)
    sides = [left.repeat(rows), top.repeat_interleave(columns), right.repeat(rows), bottom.repeat_interleave(columns)]
    return torch.stack(sides, 1)


class Inputs:
    """What the detector is given: features standardised, with positions where wanted, as tensors [n, C, h, w].

    train: [n, h, w, C], which mean and deviation of each channel come from. positions: add `position_waves`.
    """

    def __init__(self, train: np.ndarray, grid: tuple[int, int], positions: bool, device: str):
        self.train = train
        self.grid = grid
        self.channels: int = train.shape[-1]
        self._mean = train.mean((0, 1, 2), dtype=np.float64)
        deviation = train.std((0, 1, 2), dtype=np.float64)
        self._scale = 1 / np.where(deviation > 0, deviation, 1)
        self._waves = position_waves(grid, self.channels) if positions else np.float32(0)
        self.device = device

    def __call__(self, features: np.ndarray) -> torch.Tensor:
        x = ((features - self._mean) * self._scale + self._waves).astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(self.device)


def train_detector(
    inputs: Inputs,
    goals: Sequence[Found],
    size: tuple[int, int],
    classes: int,
    settings: DetectSettings,
    seed: int,
    told: Callable[[int], None],
) -> tuple[Detector, float]:
    """A detector trained on the frames of `inputs`, and its mean loss over the last tenth of the iterations.

    goals: the objects of each frame, in pixels of a frame of `size` (height, width). told: the number of iterations
    done, after each. Where the loss is no longer finite, training ends and it is what is returned.
    """
    with torch.random.fork_rng(devices=[]):  # torchvision's initial values come from the global generator
        torch.manual_seed(seed)
        detector = Detector(inputs.grid, size, inputs.channels, classes, settings.width, settings.convs)
    detector.to(inputs.device)
    boxes = [torch.as_tensor(goal.boxes, dtype=torch.float32, device=inputs.device) for goal in goals]
    labels = [torch.as_tensor(goal.classes, dtype=torch.int64, device=inputs.device) for goal in goals]
    optimizer = torch.optim.AdamW(detector.parameters(), settings.rate, weight_decay=settings.weight_decay)
    batches = _batches(len(goals), settings.batch, seed)
    losses = []
    for step in range(settings.iterations):
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.iterations, settings.rate, 0.0, settings.warmup)
        loss = detector.loss(inputs(inputs.train[batch]), [boxes[i] for i in batch], [labels[i] for i in batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            return detector, losses[-1]
        told(step + 1)
    return detector.eval(), float(np.mean(losses[-max(1, settings.iterations // 10) :]))


def _batches(frames: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of one batch after another, each frame once a pass; the passes run on into one another."""
    random = np.random.default_rng(seed)
    left = np.empty(0, np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, random.permutation(frames)])
        yield left[:size]
        left = left[size:]
