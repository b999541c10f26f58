"""The losses of stage 1 (Yang et al., "Denoising Vision Transformers", section 4.1)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

RESIDUAL_MSE, RESIDUAL_L1 = 0.1, 0.02


def reconstruction_loss(prediction: Tensor, raw: Tensor) -> Tensor:
    """MSE + (1 - cos), each a mean over the samples; both [N, C]."""
    cosine = functional.cosine_similarity(prediction, raw, dim=-1, eps=1e-8)
    return functional.mse_loss(prediction, raw) + (1 - cosine).mean()


def residual_loss(
    residual: Tensor, target: Tensor, mse_weight: float = RESIDUAL_MSE, l1_weight: float = RESIDUAL_L1
) -> Tensor:
    """h is drawn to what F and G leave, and to zero; both [N, C], `target` detached."""
    return mse_weight * functional.mse_loss(residual, target) + l1_weight * residual.abs().mean()
