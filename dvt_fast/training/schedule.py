"""The learning rate of each step, and how far the averaged weights follow the trained ones."""

from __future__ import annotations

import math

REFERENCE_BATCH = 256  # the batch at which the learning rate is the base one
EMA_HORIZON = 10  # the average of a young run follows it: at step t it keeps at most (1 + t) / (10 + t)


def scaled_rate(blr: float, batch: int) -> float:
    """The peak of the learning rate, for a batch over all processes: blr * sqrt(batch / 256)."""
    return blr * math.sqrt(batch / REFERENCE_BATCH)


def learning_rate(step: int, steps: int, peak: float, final: float, warmup: float) -> float:
    """Of step 0, 1, ... of `steps`: n values from 0 to the peak, n being the share `warmup` of the steps, then
    final + (peak - final) * (1 + cos(pi * i / m)) / 2 for i of the m steps left: the reference's arithmetic."""
    n = round(warmup * steps)
    if step < n:
        return peak * step / max(n - 1, 1)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * (step - n) / (steps - n)))


def ema_decay(step: int, decay: float) -> float:
    """How much of the averaged weights stays after step `step`."""
    return min(decay, (1 + step) / (EMA_HORIZON + step))
