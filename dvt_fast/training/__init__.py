"""Training: `train` makes a denoiser of pairs (stage 2), `distill` a plain ViT of a ViT and its denoiser (stage 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..extras import require

if TYPE_CHECKING:
    from .distill_vit import distill as distill
    from .run import Summary as Summary
    from .train_denoiser import train as train

_NAMES = {"train": "train_denoiser", "distill": "distill_vit", "Summary": "run"}
__all__ = ["Summary", "distill", "train"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'dvt_fast.training' has no attribute {name!r}")
    for package in ("torch", "lightning_fabric", "tensorboard"):
        require(package, "train")
    import importlib

    value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value
