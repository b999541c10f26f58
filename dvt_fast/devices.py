"""Where things are computed, by name: "cpu", "cuda" (the first GPU) or "cuda:1"; and where an array lies."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from .errors import DvtError, InputError

_DLPACK_CUDA = (2, 13)  # DLPack's codes of CUDA memory and CUDA managed memory


@dataclass(frozen=True)
class Device:
    """A device of this machine. kind: "cpu" or "cuda"; index: which of the GPUs, 0 for the CPU."""

    kind: str = "cpu"
    index: int = 0

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.is_cuda else "cpu"


CPU = Device()


def parse_device(device: Any) -> Device:
    """A device by name, or a `torch.device`. Raises `InputError` for another name; whether it is there is not asked."""
    if isinstance(device, Device):
        return device
    kind, colon, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (colon and not number.isdecimal()) or (kind == "cpu" and number not in ("", "0")):
        raise InputError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {str(device)!r}")
    return Device(kind, int(number or 0))


def usable_device(device: Any) -> Device:
    """`parse_device`, and a check that this build and this machine have it: `UnsupportedError` says why not."""
    parsed = parse_device(device)
    if parsed.is_cuda:
        from . import _native

        _native.cuda_check_device(parsed.index)
    return parsed


def compute_device(wish: Any, otherwise: Device) -> Device:
    """The device that `wish` names, which must be usable; for None `otherwise`, or the CPU where that is not."""
    if wish is not None:
        return usable_device(wish)
    try:
        return usable_device(otherwise)
    except DvtError:
        return CPU


def device_of(array: Any) -> Device:
    """Where `array` lies: a torch tensor, one of our own on a device, or anything that speaks DLPack."""
    where = getattr(array, "__dlpack_device__", None)
    if where is None or type(array).__module__ == "numpy":
        return CPU
    try:
        kind, index = where()
    except (TypeError, ValueError, BufferError, RuntimeError):
        return CPU
    return Device("cuda", int(index)) if int(kind) in _DLPACK_CUDA else CPU


def device_of_tensors(device: Any) -> Device:
    """What we call a `torch.device`: the CPU for those that we do not compute on, such as "mps"."""
    if device.type != "cuda":
        return CPU
    return Device("cuda", sys.modules["torch"].cuda.current_device() if device.index is None else device.index)


def current_stream(device: Device) -> int:
    """The stream that torch works on there, as a number, so that our work follows torch's; 0 where torch is unused."""
    torch = sys.modules.get("torch")
    if not device.is_cuda or torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.current_stream(device.index).cuda_stream)
