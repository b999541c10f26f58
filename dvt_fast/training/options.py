"""How long and how a training runs: what `train` and `distill` share, checked in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import InputError
from ..options import Options, choice, not_negative, number, option, positive, seed, whole

PRECISIONS = ("fp32", "bf16", "fp16")

_share = number(lambda x: 0 <= x < 1, "be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Options):
    """steps: of the optimiser. batch: images a step, over all processes. blr: learning rate for a batch of 256, scaled
    by the root of the batch, None for what suits the task; final_lr: at the end; warmup: share of the steps.
    weight_decay: AdamW's. clip: largest norm of the gradient, 0 for any. ema: decay of the averaged weights, 0 for
    none. precision: "fp32", "bf16" or "fp16". seed: of the order and the initial weights. variants: views of each image
    to train on, the whole and crops of it (see `crops`). held_out: share of the images kept for scoring. every: steps
    from one scoring and checkpoint to the next. patience: stop after so many scorings without a better one, 0 for
    never; the result is then the best. log_every: steps from one line of the log to the next.
    """

    solver: ClassVar[str] = "training"

    steps: int = option(10_000, whole(1, 10**9))
    batch: int = option(32, whole(1, 10**6))
    blr: float | None = option(None, positive)
    final_lr: float = option(1e-6, not_negative)
    warmup: float = option(0.15, _share)
    weight_decay: float = option(1e-5, not_negative)
    clip: float = option(1.0, not_negative)
    ema: float = option(0.999, _share)
    precision: str = option("fp32", choice(*PRECISIONS))
    seed: int = option(0, seed)
    held_out: float = option(0.05, _share)
    every: int = option(500, whole(1, 10**9))
    patience: int = option(0, whole(0, 10**6))
    variants: int = option(8, whole(1, 10**6))
    log_every: int = option(10, whole(1, 10**6))

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> TrainingOptions:
        """Options from keywords, where None is the default; `InputError` for an unknown one or a value out of range."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise InputError(f"unknown option {name!r} of training; expected one of {', '.join(known)}")
        return cls.parse({name: value for name, value in options.items() if value is not None})

    def settings(self) -> dict[str, Any]:
        """Those that the result depends on."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "log_every"}
