"""Linear heads on features that are kept: what segmentation and depth train, one head a seed, all seeds side by side.

A head is a BatchNorm and a 1x1 convolution, so one affine map of a patch's features. Heads of several seeds differ in
their first weights and in their batches, and are one batched product with a leading dimension of seeds. The features
do not change, so that a BatchNorm's statistics of a batch are made of the moments of its images, which are known
beforehand; it is then folded into the convolution, and no normalised copy of a batch exists.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from ..errors import InputError, NonFiniteError
from ..progress import Progress, report
from .frames import Frame
from .variants import Variant

EPSILON, MOMENTUM = 1e-5, 0.1  # BatchNorm's, as torch has them
LAST = 100  # iterations over which the final training loss is a mean

# The losses [S] of logits [S, K, B, h, w] of the training frames `picks` [S, B].
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained. The defaults are the reference's for segmentation; `DepthSettings` has its own.

    seeds: heads, of seeds 0, 1, ... iterations, batch: frames of each. rate, decay: AdamW's, on all weights. warmup:
    iterations of linear warm-up of the rate, on top of its schedule, "poly" (linear to 0) or "cosine". clip: the
    largest norm of a head's gradient; None is any. norm: whether a BatchNorm comes first. flip: also train on mirrored
    frames. loss_scale: pixels of the loss along the side of a patch; None is the resolution of the ViT's input.
    device: torch's name of where the heads are trained.
    """

    seeds: int = 3
    iterations: int = 40_000
    batch: int = 16
    rate: float = 1e-3
    decay: float = 1e-4
    warmup: int = 1500
    schedule: str = "poly"
    clip: float | None = None
    norm: bool = True
    flip: bool = True
    loss_scale: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("seeds", "iterations", "batch", "loss_scale"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{field.name} must be a number of at least 0, got {value}")
        if self.schedule not in ("poly", "cosine"):
            raise InputError(f'schedule must be "poly" or "cosine", got {self.schedule!r}')

    def rate_at(self, iteration: int) -> float:
        """The learning rate, iterations counted from 0."""
        part = iteration / self.iterations
        left = 1 - part if self.schedule == "poly" else (1 + math.cos(math.pi * part)) / 2
        return self.rate * left * min(1.0, (iteration + 1) / max(self.warmup, 1))

    def mirrored(self, frame: Frame) -> list[Frame]:
        """A frame to train on, and its mirror image where `flip` is on."""
        return [frame, Frame(frame.image, frame.box, not frame.flip)] if self.flip else [frame]

    def loss_size(self, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the labels that the loss sees. grid, size: the patches and pixels of a frame."""
        return size if self.loss_scale is None else (grid[0] * self.loss_scale, grid[1] * self.loss_scale)


class Heads(nn.Module):
    """`seeds` linear heads with K outputs on C channels.

    std: of the first weights, normal; biases are 0. shift: [C], taken off features before a BatchNorm, which does not
    see it: it keeps digits, and is where the running means start. generators: one a seed.
    """

    def __init__(self, shift: torch.Tensor, outputs: int, std: float, norm: bool, generators: list[torch.Generator]):
        super().__init__()
        seeds, channels = len(generators), len(shift)
        first = [torch.randn(outputs, channels, generator=g) * std for g in generators]
        self.weight = nn.Parameter(torch.stack(first))
        self.bias = nn.Parameter(torch.zeros(seeds, outputs))
        self.norm = norm
        self.shift = nn.Buffer(shift if norm else torch.zeros_like(shift))
        if norm:
            self.scale, self.offset = (
                nn.Parameter(torch.ones(seeds, channels)),
                nn.Parameter(torch.zeros(seeds, channels)),
            )
            self.mean, self.var = nn.Buffer(torch.zeros(seeds, channels)), nn.Buffer(torch.ones(seeds, channels))

    def logits(
        self, x: torch.Tensor, mean: torch.Tensor | None = None, var: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[S, K, P] of shifted features [S, P, C] or, the same for all heads, [P, C]. mean, var: [S, C], those of the
        batch; None are the running ones."""
        weight, bias = self.weight, self.bias
        if self.norm:
            gain = self.scale * torch.rsqrt((self.var if var is None else var) + EPSILON)
            moved = self.offset - gain * (self.mean if mean is None else mean)
            weight, bias = weight * gain[:, None], bias + (weight @ moved[..., None])[..., 0]
        return weight @ x.mT + bias[..., None]

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> torch.Tensor:
        """Logits [S, K, n, h, w] of features [n, h, w, C]."""
        n, h, w, channels = features.shape
        x = torch.from_numpy(features).reshape(-1, channels).to(self.weight.device) - self.shift
        return self.logits(x).unflatten(-1, (n, h, w))


def train_heads(
    features: np.ndarray,
    outputs: int,
    loss: Loss,
    settings: HeadSettings,
    variant: Variant,
    progress: Progress | None = None,
    std: float = 0.01,
) -> tuple[Heads, list[float]]:
    """Train on features [n, h, w, C]; the heads, and the training loss of each over the last iterations.

    Progress is told of iterations. Raises `NonFiniteError` naming the variant and the iteration.
    """
    n, h, w, channels = features.shape
    generators = [torch.Generator().manual_seed(seed) for seed in range(settings.seeds)]
    device = torch.device(settings.device)
    shift = torch.from_numpy(features.mean((0, 1, 2), dtype=np.float64).astype(np.float32))
    heads = Heads(shift, outputs, std, settings.norm, generators).to(device)
    kept = (torch.from_numpy(features) - heads.shift.cpu()).flatten(1, 2).to(device)  # [n, h w, C]
    moments = _moments(kept) if settings.norm else None
    optimizer = torch.optim.AdamW(heads.parameters(), lr=settings.rate, weight_decay=settings.decay)
    last: list[torch.Tensor] = []
    for iteration, picks in enumerate(_batches(n, settings, generators)):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(iteration)
        picks = picks.to(device)
        mean, var = (None, None) if moments is None else _statistics(heads, moments[:, picks], h * w)
        logits = heads.logits(kept[picks].flatten(1, 2), mean, var)
        losses = loss(logits.unflatten(-1, (settings.batch, h, w)), picks)
        if not torch.isfinite(losses).all():
            raise NonFiniteError(
                f"variant {variant.name}: the loss of a head is not finite at iteration {iteration + 1}"
            )
        optimizer.zero_grad()
        losses.sum().backward()
        if settings.clip is not None:
            _clip(heads, settings.clip)
        optimizer.step()
        last = [*last[1 - LAST :], losses.detach()]
        report(progress, iteration + 1, settings.iterations, "iterations")
    return heads.eval(), torch.stack(last).mean(0).tolist()


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear (align_corners=False) [..., h, w] to [..., height, width], as two products: many times faster on a CPU
    than torch's interpolation, and with a backward pass that adds in one order on every device."""
    rows, columns = (_weights(n, to, str(maps.device)) for n, to in zip(maps.shape[-2:], size, strict=True))
    return rows @ (maps @ columns.mT)


@functools.lru_cache(maxsize=256)
def _weights(length: int, size: int, device: str) -> torch.Tensor:
    """[size, length]: bilinear weights along one side."""
    unit = torch.eye(length)[None]
    return nn.functional.interpolate(unit, size=size, mode="linear", align_corners=False)[0].mT.contiguous().to(device)


def _batches(n: int, settings: HeadSettings, generators: list[torch.Generator]) -> Iterator[torch.Tensor]:
    """Indices [S, batch] of frames: each seed goes through its own order of all of them, then through another."""
    waiting = [torch.empty(0, dtype=torch.long)] * len(generators)
    for _ in range(settings.iterations):
        for seed, generator in enumerate(generators):
            while len(waiting[seed]) < settings.batch:
                waiting[seed] = torch.cat([waiting[seed], torch.randperm(n, generator=generator)])
        yield torch.stack([order[: settings.batch] for order in waiting])
        waiting = [order[settings.batch :] for order in waiting]


def _moments(kept: torch.Tensor) -> torch.Tensor:
    """float64 [2, n, C]: the mean of each image over its patches, and that of squares."""
    doubles = (image.double() for image in kept)
    return torch.stack([torch.stack([x.mean(0), x.square().mean(0)]) for x in doubles], 1)


@torch.no_grad()
def _statistics(heads: Heads, moments: torch.Tensor, patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance [S, C] of batches from the moments [2, S, B, C] of their images; the heads' running ones,
    with the unbiased variance as torch's BatchNorm has it, move on."""
    mean, square = moments.mean(2)
    var = (square - mean.square()).clamp_min(0)
    count = moments.shape[2] * patches
    heads.mean.lerp_(mean.float(), MOMENTUM)
    heads.var.lerp_((var * (count / max(count - 1, 1))).float(), MOMENTUM)
    return mean.float(), var.float()


def _clip(heads: Heads, largest: float) -> None:
    """Shorten the gradient of each head to a norm of at most `largest`."""
    gradients = [p.grad for p in heads.parameters() if p.grad is not None]
    norms = torch.cat([g.flatten(1) for g in gradients], 1).norm(dim=1)
    shorter = (largest / norms.clamp_min(largest)).nan_to_num(0)
    for g in gradients:
        g.mul_(shorter.view(-1, *[1] * (g.dim() - 1)))
