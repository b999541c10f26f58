"""Stage 2: the denoiser, a small network that cleans features in one forward pass."""

from __future__ import annotations

from ..extras import require

require("torch", "vit")  # one line on what to install, where torch is absent
from .checkpoint import load_denoiser  # noqa: E402
from .model import KINDS, Denoiser  # noqa: E402

__all__ = ["KINDS", "Denoiser", "load_denoiser"]
