"""The models that stage 2 is measured with: torch alone, so that they can be made before anything is compiled."""

from __future__ import annotations

import torch
from torch import nn

import dvt_fast
from dvt_fast.denoiser import Denoiser


class Pipeline(nn.Module):
    """A ViT and a denoiser of its features: [B, 3, H, W] -> [B, h, w, C]."""

    def __init__(self, vit: dvt_fast.ViT, denoiser: Denoiser):
        super().__init__()
        self.vit, self.denoiser = vit.model, denoiser
        self.n_prefix, self.grid = vit.n_prefix, vit.grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.vit.forward_features(x)[:, self.n_prefix :]
        return self.denoiser(tokens.reshape(len(x), *self.grid, -1))


def randomise(module: nn.Module) -> nn.Module:
    """Weights that keep activations at their size, so that no part of the model is nothing, as in a fresh one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            random = torch.randn(value.shape, generator=generator)
            if "pos_embed" in name or "token" in name:
                continue  # of another grid in the file
            if value.ndim > 1:
                value.copy_(random / value[0].numel() ** 0.5)
            elif name.endswith((".weight", ".gamma")):  # of norms and LayerScale
                value.copy_(1 + 0.1 * random)
            else:
                value.copy_(0.02 * random)
    return module.eval().requires_grad_(False)


def block_module(dim: int, side: int) -> Denoiser:
    """A denoiser of one block for features [B, side, side, dim]."""
    return randomise(Denoiser(dim, (side, side)))


def vit_modules(name: str, size: int) -> tuple[dvt_fast.ViT, Pipeline]:
    """A ViT of timm's with random weights, and it with a denoiser of one block after it."""
    vit = dvt_fast.ViT(name, weights="random", size=size)
    return vit, randomise(Pipeline(vit, Denoiser(vit.dim, vit.grid)))
