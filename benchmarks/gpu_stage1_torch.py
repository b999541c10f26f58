"""The rivals of solver "hashgrid" on a GPU: the paper's recipe in torch, as it was published and as fast as it goes.

Both compute what `dvt_fast.reference.recipe` does, with the same modules but for the encoding.

`ReferenceLoop` takes a step as the paper's implementation does: float32 products, indices drawn by NumPy and uploaded,
a check of the coordinates that waits for the device twice, one torch Adam over everything. Its encoding is
tiny-cuda-nn's where that can be imported, else `DeviceHashGrid`. What it spares itself: no grid_sample for G, whose
coordinates are always those of a patch, and no bookkeeping between steps.

`TunedLoop` is the same arithmetic without anything that waits: tf32 products, indices and learning rate on the device,
fused Adam, the whole step one CUDA graph a phase.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gpu_clock import Device
from torch import Tensor, nn

from dvt_fast.reference import Recipe, Stage1Model, learning_rate
from dvt_fast.reference.hash_grid import PRIMES, make_levels

Encoding = nn.Module


class DeviceHashGrid(nn.Module):
    """Coordinates [N, 2] -> [N, L * F] on any device, all levels at once; parameters as `HashGridEncoding` has them."""

    def __init__(self, device: torch.device, n_levels: int, n_features_per_level: int, log2_hashmap_size: int,
                 base_resolution: int, per_level_scale: float):  # fmt: skip
        super().__init__()
        self.levels = make_levels(2, n_levels, log2_hashmap_size, base_resolution, per_level_scale)
        self.n_features = n_features_per_level

        def column(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[None, :, None]  # [1, L, 1]

        self.scale = column([level.scale for level in self.levels], torch.float64)
        self.resolution, self.entries, self.offset = (
            column([getattr(level, name) for level in self.levels], torch.int64)
            for name in ("resolution", "entries", "offset")
        )
        self.hashed = column([level.resolution**2 > level.entries for level in self.levels], torch.bool)
        self.upper = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=device)  # [4, 2]
        count = (self.levels[-1].offset + self.levels[-1].entries) * n_features_per_level
        self.params = nn.Parameter(torch.empty(count, device=device).uniform_(-1e-4, 1e-4))

    def forward(self, coords: Tensor) -> Tensor:
        """coords [N, 2] -> [N, L * F]."""
        position = (coords.double()[:, None] * self.scale + 0.5).float()  # [N, L, 2]
        lower = position.floor()
        fraction = (position - lower)[:, :, None]  # [N, L, 1, 2]
        weight = torch.where(self.upper.bool(), fraction, 1 - fraction).prod(-1)  # [N, L, 4]
        x, y = (lower.long()[:, :, None] + self.upper).unbind(-1)
        index = torch.where(self.hashed, x ^ (y * PRIMES[1] % 2**32), x + y * self.resolution) % self.entries
        index = index + self.offset
        rows = self.params.view(-1, self.n_features).index_select(0, index.flatten())
        return (rows.view(*index.shape, self.n_features) * weight[..., None]).sum(2).flatten(1)


class TinyCudaNN(nn.Module):
    """tiny-cuda-nn's encoding in the place of `DeviceHashGrid`."""

    def __init__(self, device: torch.device, n_levels: int, n_features_per_level: int, log2_hashmap_size: int,
                 base_resolution: int, per_level_scale: float):  # fmt: skip
        super().__init__()
        import tinycudann

        self.levels = make_levels(2, n_levels, log2_hashmap_size, base_resolution, per_level_scale)
        self.n_features = n_features_per_level
        config = {
            "otype": "HashGrid",
            "n_levels": n_levels,
            "n_features_per_level": n_features_per_level,
            "log2_hashmap_size": log2_hashmap_size,
            "base_resolution": base_resolution,
            "per_level_scale": per_level_scale,
            "interpolation": "linear",
        }
        self.inner = tinycudann.Encoding(2, config, dtype=torch.float32).to(device)

    @property
    def params(self) -> Tensor:
        return self.inner.params

    def forward(self, coords: Tensor) -> Tensor:
        """coords [N, 2] -> [N, L * F]."""
        return self.inner(coords)


def encoding(device: torch.device, config: dict[str, Any]) -> tuple[nn.Module, str]:
    """(the fastest encoding of the reference's kind that is there, its name)."""
    try:
        return TinyCudaNN(device, **config), "tiny-cuda-nn"
    except Exception as problem:  # not installed, or not for this device
        return DeviceHashGrid(device, **config), f"torch, without tiny-cuda-nn ({type(problem).__name__})"


def make_model(encoding: nn.Module, parameters: dict[str, np.ndarray], patches: int, dim: int) -> Stage1Model:
    """The recipe's model on the encoding's device, with native parameters (see `_native.HashgridFitter.parameters`)."""
    device = encoding.params.device
    model = Stage1Model(encoding, patches, dim).to(device)
    parts = {
        "grid": encoding,
        "field": model.field.mlp,
        "artifacts": model.artifacts,
        "residual": model.residual,
    }
    for name, part in parts.items():
        torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters[name]).to(device), part.parameters())
    return model


class Problem:
    """Features [V, H, W, C] and coords [V, H, W, 2] on a device, as rows."""

    def __init__(self, features: Tensor, coords: Tensor):
        self.patches = features.shape[1] * features.shape[2]
        self.rows, self.points = features.flatten(0, 2), coords.flatten(0, 2)

    def loss(self, model: Stage1Model, sample: Tensor, second_phase: bool, recipe: Recipe) -> Tensor:
        """Of `sample` [batch], flat indices into [V, H, W]."""
        raw = self.rows.index_select(0, sample).float()
        points = self.points.index_select(0, sample)
        return model.loss(raw, points, sample % self.patches, second_phase, recipe)


class ReferenceLoop:
    """Steps as the paper's implementation takes them. second_phase: with h, and G frozen."""

    def __init__(self, model: Stage1Model, problem: Problem, recipe: Recipe, batch: int):
        self.model, self.problem, self.recipe, self.batch = model, problem, recipe, batch
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay
        )
        self.device = model.artifacts.map.device
        self.step, self.second_phase = 0, False

    def take(self) -> Tensor:
        """One step: the loss before it, on the device."""
        sample = torch.from_numpy(np.random.randint(0, len(self.problem.rows), self.batch)).to(self.device)
        points = self.problem.points[sample]
        assert points.max() <= 1 and points.min() >= 0, "coordinates should be in [0, 1]"
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        loss = self.problem.loss(self.model, sample, self.second_phase, self.recipe)
        self.optimizer.zero_grad()
        (self.recipe.loss_scale * loss).backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def run(self, count: int) -> None:
        for _ in range(count):
            self.take()


class TunedLoop:
    """The same without anything that waits for the device: a step is one replay of a graph."""

    def __init__(self, model: Stage1Model, problem: Problem, recipe: Recipe, batch: int, second_phase: bool,
                 device: Device):  # fmt: skip
        self.model, self.problem, self.recipe, self.second_phase = model, problem, recipe, second_phase
        place, gpu = device.torch, not device.emulated
        parts = [model.field, model.residual if second_phase else model.artifacts]
        self.optimizer = torch.optim.Adam(
            [p for part in parts for p in part.parameters()],
            lr=torch.tensor(recipe.lr, device=place),
            betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True, capturable=gpu,
        )  # fmt: skip
        self.rates = torch.tensor([learning_rate(recipe, step) for step in range(recipe.steps)], device=place)
        self.step = torch.zeros(1, dtype=torch.int64, device=place)
        self.sample = torch.empty(batch, dtype=torch.int64, device=place)
        self.loss = torch.zeros((), device=place)
        self.replay = device.capture(self._step)

    def _step(self) -> Tensor:
        self.sample.random_(0, len(self.problem.rows))
        self.optimizer.param_groups[0]["lr"].copy_(self.rates.index_select(0, self.step)[0])
        loss = self.problem.loss(self.model, self.sample, self.second_phase, self.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        (self.recipe.loss_scale * loss).backward()
        self.optimizer.step()
        self.step.add_(1).clamp_(max=len(self.rates) - 1)
        self.loss.copy_(loss.detach())
        return self.loss

    def run(self, count: int) -> None:
        for _ in range(count):
            self.replay()


def tf32(on: bool) -> None:
    """Whether torch's float32 products on a GPU are tf32 ones."""
    torch.set_float32_matmul_precision("high" if on else "highest")
