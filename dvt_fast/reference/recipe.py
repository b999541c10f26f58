"""The paper's two-phase recipe for one image, with torch's dense Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .field import ResidualPredictor, SemanticsField, SharedArtifacts
from .hash_grid import HashGridEncoding
from .losses import RESIDUAL_L1, RESIDUAL_MSE, reconstruction_loss, residual_loss


@dataclass(frozen=True)
class Recipe:
    """The optimiser's part of the recipe.

    The paper's implementation scales the loss by 1024 and never unscales it. Adam does not mind, but the weight decay,
    which is added to the gradient, is in effect 1/1024 of its value.
    """

    steps: int = 25000
    lr: float = 0.01
    lr_final: float = 0.001
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-15
    weight_decay: float = 1e-5
    residual_mse: float = RESIDUAL_MSE
    residual_l1: float = RESIDUAL_L1
    loss_scale: float = 1024.0


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of step 0, 1, ...: linear over the first `warmup` of the steps, then a cosine down to lr_final."""
    warm = round(recipe.warmup * recipe.steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    done = (step - warm) / (recipe.steps - warm)
    return recipe.lr_final + (recipe.lr - recipe.lr_final) * 0.5 * (1 + math.cos(math.pi * done))


class Stage1Model(nn.Module):
    """F, G and h of one image, and the losses of both phases."""

    def __init__(
        self,
        encoding: HashGridEncoding,
        patches: int,
        dim: int,
        hidden_dim: int | None = None,
        residual_dim: int | None = None,
    ) -> None:
        super().__init__()
        dtype = encoding.params.dtype
        self.field = SemanticsField(encoding, dim, hidden_dim or dim // 2)
        self.artifacts = SharedArtifacts(patches, dim, dtype)
        self.residual = ResidualPredictor(dim, residual_dim or dim // 4, dtype)

    def loss(self, raw: Tensor, coords: Tensor, patch: Tensor, second_phase: bool, recipe: Recipe) -> Tensor:
        """raw [N, C], coords [N, 2], patch [N]."""
        if not second_phase:
            return reconstruction_loss(self.field(coords) + self.artifacts(patch), raw)
        base = self.field(coords) + self.artifacts(patch).detach()
        h = self.residual(raw)
        loss = reconstruction_loss(base + h.detach(), raw)
        return loss + residual_loss(h, (raw - base).detach(), recipe.residual_mse, recipe.residual_l1)


class Trainer:
    """One Adam step at a time on features [V, H, W, C] at coords [V, H, W, 2].

    G is frozen in the second half of recipe.steps, where h, and its Adam, start. `step` counts the steps taken.
    """

    def __init__(self, model: Stage1Model, features: Tensor, coords: Tensor, recipe: Recipe) -> None:
        self.model, self.recipe, self.step = model, recipe, 0
        self.patches = features.shape[1] * features.shape[2]
        self.rows, self.points = features.flatten(0, 2), coords.flatten(0, 2)
        self.field, self.artifacts, self.residual = map(self._adam, (model.field, model.artifacts, model.residual))

    def _adam(self, module: nn.Module) -> torch.optim.Adam:
        recipe = self.recipe
        return torch.optim.Adam(
            module.parameters(), betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay
        )

    def take(self, sample: Tensor) -> float:
        """The loss before a step on `sample` [batch], flat indices into [V, H, W]."""
        second_phase = self.step >= self.recipe.steps // 2
        raw, points = self.rows[sample].float(), self.points[sample]
        loss = self.model.loss(raw, points, sample % self.patches, second_phase, self.recipe)
        self.model.zero_grad(set_to_none=True)
        (self.recipe.loss_scale * loss).backward()
        for optimizer in (self.field, self.residual if second_phase else self.artifacts):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.recipe, self.step)
            optimizer.step()
        self.step += 1
        return loss.item()


@dataclass(frozen=True)
class Found:
    """semantics, artifacts, residual: float32 [H, W, C], F, G and h at the last view."""

    semantics: np.ndarray
    artifacts: np.ndarray
    residual: np.ndarray


def fit(
    features: np.ndarray, coords: np.ndarray, steps: int = 25000, batch: int = 2048, seed: int = 0, **encoding: Any
) -> Found:
    """The whole recipe on features float32 [V, H, W, C] at coords float32 [V, H, W, 2].

    encoding: of `HashGridEncoding`; by default the official size.
    """
    _, height, width, channels = features.shape
    torch.manual_seed(seed)
    model = Stage1Model(HashGridEncoding(**encoding), height * width, channels)
    bank, points = torch.from_numpy(features), torch.from_numpy(coords)
    samples = (torch.randint(bank[..., 0].numel(), (batch,)) for _ in range(steps))
    trainer = Trainer(model, bank, points, Recipe(steps=steps))
    for sample in samples:
        trainer.take(sample)
    with torch.no_grad():
        parts = model.field(points[-1].flatten(0, 1)), model.artifacts.map, model.residual(bank[-1].flatten(0, 1))
    return Found(*(part.reshape(height, width, channels).detach().numpy() for part in parts))
