"""Arrays of any kind in, the same kind out: NumPy arrays, torch tensors, and whatever else speaks DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InputError


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to find out."""
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def to_numpy(value: Any, name: str = "array") -> np.ndarray:
    """`value` as a NumPy array of floats, without a copy where possible; bfloat16 becomes float32."""
    if is_tensor(value):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return value.numpy()
    try:
        array = np.from_dlpack(value) if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray) else value
        array = np.asarray(array)
    except (TypeError, ValueError, BufferError) as error:
        raise InputError(f"{name} must be a NumPy array, a torch tensor or a DLPack object: {error}") from None
    if array.dtype == object:
        raise InputError(f"{name} must be a NumPy array, a torch tensor or a DLPack object, got {type(value).__name__}")
    return array


def like(array: np.ndarray, reference: Any) -> Any:
    """`array` as what `reference` is: a tensor on its device, or the NumPy array itself."""
    if not is_tensor(reference):
        return array
    import torch

    return torch.from_numpy(array).to(reference.device)
