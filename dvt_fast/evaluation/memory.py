"""How much memory a piece of work needs at its peak, beyond what was in use before it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..extras import require

if TYPE_CHECKING:
    import torch


def peak_growth(work: Callable[[], Any], device: torch.device) -> tuple[float | None, float | None]:
    """Do `work`, and return by how many megabytes (10^6 bytes) memory grew while it was done.

    First what is resident of this process, of all libraries in it, None where the system does not tell it; then what
    torch allocated on `device`, None where that is not CUDA. What the work keeps from one time to the next (a
    workspace, say) counts the first time only.
    """
    cuda = require("torch", "eval").cuda if device.type == "cuda" else None
    held = 0
    if cuda:
        cuda.reset_peak_memory_stats(device)
        held = cuda.memory_allocated(device)
    resident = _forget_peak()
    work()
    grown = None if resident is None else max(0, _status("VmHWM") - resident) / 1e6
    return grown, (cuda.max_memory_allocated(device) - held) / 1e6 if cuda else None


def _forget_peak() -> int | None:
    """Give memory that is free back to the system, let the peak be what is resident now, and return that in bytes.

    None where that cannot be: the peak of a process otherwise only grows.
    """
    if sys.platform != "linux":
        return None
    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
