"""What every stage-1 solver returns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..decomposition import Field


@dataclasses.dataclass(frozen=True)
class Solution:
    """semantics, artifacts, residual: float32 [H, W, C]; field: the semantics anywhere; info: how it went (JSON)."""

    semantics: np.ndarray
    artifacts: np.ndarray
    residual: np.ndarray
    field: Field
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
