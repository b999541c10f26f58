"""What every stage-1 solver returns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..decomposition import Field


@dataclasses.dataclass(frozen=True)
class Solution:
    """semantics, artifacts, residual: float32 [H, W, C]; field: the semantics anywhere; info: how it went (JSON).

    raw: the features of the last view, where the solver had them in hand as float32. NumPy arrays, or arrays on a
    device.
    """

    semantics: Any
    artifacts: Any
    residual: Any
    field: Field
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    raw: Any = None
