"""Stage 2: the denoiser, a small network that cleans features in one forward pass."""

from __future__ import annotations

from .model import KINDS, Denoiser

__all__ = ["KINDS", "Denoiser"]
