"""The paper's two-phase recipe for one image, with torch's dense Adam."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .field import ResidualPredictor, SemanticsField, SharedArtifacts
from .hash_grid import HashGridEncoding
from .losses import RESIDUAL_L1, RESIDUAL_MSE, reconstruction_loss, residual_loss


@dataclass(frozen=True)
class Recipe:
    """The optimiser's part of the recipe. The reference implementation scales the loss by 1024 and never unscales it:
    loss_scale=1024 repeats that, and is in effect 1/1024 of the weight decay."""

    steps: int = 25000
    lr: float = 0.01
    lr_final: float = 0.001
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-15
    weight_decay: float = 1e-5
    residual_mse: float = RESIDUAL_MSE
    residual_l1: float = RESIDUAL_L1
    loss_scale: float = 1.0


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


def train(
    model: Stage1Model, features: Tensor, coords: Tensor, samples: Iterable[Tensor], recipe: Recipe
) -> list[float]:
    """One Adam step for each [batch] of `samples`, flat indices into [V, H, W]; returns the losses.

    features: [V, H, W, C]; coords: [V, H, W, 2]. G is frozen in the second half of recipe.steps, where h, and its
    Adam, start.
    """

    def adam(*modules: nn.Module) -> torch.optim.Adam:
        parameters = [p for module in modules for p in module.parameters()]
        return torch.optim.Adam(parameters, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay)

    patches = features.shape[1] * features.shape[2]
    rows, points = features.flatten(0, 2), coords.flatten(0, 2)
    field, artifacts, residual = adam(model.field), adam(model.artifacts), adam(model.residual)
    losses = []
    for step, sample in enumerate(samples):
        second_phase = step >= recipe.steps // 2
        loss = model.loss(rows[sample], points[sample], sample % patches, second_phase, recipe)
        model.zero_grad(set_to_none=True)
        (recipe.loss_scale * loss).backward()
        for optimizer in (field, residual if second_phase else artifacts):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step)
            optimizer.step()
        losses.append(loss.item())
    return losses
