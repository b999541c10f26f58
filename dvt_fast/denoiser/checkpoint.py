"""Files of denoisers: ours, safetensors with a header, and the reference implementation's `.pth`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import InputError

if TYPE_CHECKING:
    from .model import Denoiser

FORMAT, VERSION = "dvt_fast.denoiser", 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pack(denoiser: Denoiser, dtype: str) -> bytes:
    """The bytes of our file."""
    import json

    from safetensors.torch import save

    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    header = {"format": FORMAT, "version": VERSION, "kind": denoiser.kind, "dim": denoiser.dim}
    header |= {"grid": list(denoiser.grid), "num_blocks": denoiser.num_blocks, "num_heads": denoiser.num_heads}
    header |= {"vit": denoiser.meta.get("vit"), "training": denoiser.meta.get("training")}
    state = {
        name: value.detach().to("cpu", DTYPES[dtype]).contiguous() for name, value in denoiser.state_dict().items()
    }
    return save(state, metadata={"dvt_fast": json.dumps(header)})
