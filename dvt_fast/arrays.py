"""Arrays of any kind in: NumPy arrays, torch tensors, and whatever else speaks DLPack, in main memory or on a device.

What goes out is a torch tensor where one came in, our own array, which speaks DLPack, where another one on a device
came in, and a NumPy array for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .devices import Device, device_of
from .errors import InputError


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to find out."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def to_numpy(value: Any, name: str = "array") -> np.ndarray:
    """`value` as a NumPy array of real numbers, without a copy where possible; torch's bfloat16 becomes float32."""
    expected = f"{name} must be a NumPy array, a torch tensor or a DLPack object"
    if type(value).__name__ == "DeviceArray":
        array = value.numpy()
        if value.dtype == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
    elif is_tensor(value):
        value = value.detach().cpu()
        array = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    else:
        try:
            foreign = hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)
            array = np.asarray(np.from_dlpack(value) if foreign else value)
        except (TypeError, ValueError, BufferError) as error:
            raise InputError(f"{expected}: {' '.join(str(error).split())}") from None
    if array.dtype.kind not in "fiub":
        what = type(value).__name__ if array.dtype == object or array.ndim == 0 else f"an array of {array.dtype}"
        raise InputError(f"{expected} of real numbers, got {what}")
    return array


def like(array: np.ndarray, reference: Any) -> Any:
    """`array` as a torch tensor on the device of `reference` where that is one, else the NumPy array itself."""
    if not is_tensor(reference):
        return array
    import torch

    return torch.from_numpy(array).to(reference.device)


def empty_like_kind(shape: Sequence[int], reference: Any, device: Device) -> Any:
    """A new float32 array on a CUDA device: a torch tensor where `reference` is one, else one that speaks DLPack."""
    if is_tensor(reference):
        import torch

        return torch.empty(tuple(shape), dtype=torch.float32, device=reference.device)
    from . import _native

    return _native.DeviceArray(list(shape), "float32", device.index)


def last_view(features: Any) -> np.ndarray:
    """The last of views [V, ...], wherever they lie, as float32 in main memory."""
    return to_numpy(features[-1]).astype(np.float32, copy=False)


def give_back(array: Any, reference: Any) -> Any:
    """`array`, NumPy's or one of ours on a device, as what `reference` is and where it is.

    A torch tensor on the same device where that is a tensor, one of ours where it is another array on a CUDA device,
    and a NumPy array otherwise.
    """
    where = device_of(reference)
    if isinstance(array, np.ndarray) or not where.is_cuda:
        array = array if isinstance(array, np.ndarray) else array.numpy()
        if is_tensor(reference) or not where.is_cuda:
            return like(array, reference)
        from . import _native

        return _native.DeviceArray.from_numpy(np.ascontiguousarray(array), "float32", where.index)
    if not is_tensor(reference):
        return array
    import torch

    return torch.from_dlpack(array).to(reference.device)


def writable(value: Any, name: str) -> np.ndarray:
    """The memory of `value`, an array or a tensor on the CPU, as a NumPy array to write to."""
    array = value.detach().numpy() if is_tensor(value) and value.device.type == "cpu" else value
    if not isinstance(array, np.ndarray) or not array.flags.writeable:
        raise InputError(f"{name} must be a writable NumPy array or CPU tensor, got {type(value).__name__}")
    return array
