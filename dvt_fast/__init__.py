"""Denoising Vision Transformers (DVT, arXiv 2401.02957) as a fast, embeddable engine.

`decompose(image, vit)` takes the features of one image apart; `solve(features, coords)` does the same on features at
hand. Names are imported when first used: `import dvt_fast` loads neither torch nor timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live.
_NAMES = {
    "ViT": "vit",
    "Views": "views",
    "sample_views": "views",
    "solve": "stage1",
    "solve_many": "stage1",
    "decompose": "stage1",
    "denoise": "stage2",
    "Stream": "stream",
    "Decomposition": "decomposition",
    "Denoised": "stage2",
    "ArtifactMap": "artifact_map",
    "Denoiser": "denoiser",
    "Engine": "engine",
    "Session": "engine",
    "HashGrid": "hash_grid",
    "PairDataset": "dataset",
    "build_dataset": "dataset",
    "check_dataset": "dataset",
    "train": "training",
    "distill": "training",
    "backends": "runtime",
    "set_num_threads": "runtime",
    "get_num_threads": "runtime",
    "DvtError": "errors",
    "InputError": "errors",
    "WeightsError": "errors",
    "NonFiniteError": "errors",
    "MissingExtraError": "errors",
    "OutputError": "errors",
    "Cancelled": "errors",
    "UnsupportedError": "errors",
    "OutOfMemoryError": "errors",
    "DeviceError": "errors",
}
__all__ = ["__version__", *_NAMES]

if TYPE_CHECKING:
    from .artifact_map import ArtifactMap as ArtifactMap
    from .dataset import PairDataset as PairDataset
    from .dataset import build_dataset as build_dataset
    from .dataset import check_dataset as check_dataset
    from .decomposition import Decomposition as Decomposition
    from .denoiser import Denoiser as Denoiser
    from .engine import Engine as Engine
    from .engine import Session as Session
    from .errors import Cancelled as Cancelled
    from .errors import DeviceError as DeviceError
    from .errors import DvtError as DvtError
    from .errors import InputError as InputError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import NonFiniteError as NonFiniteError
    from .errors import OutOfMemoryError as OutOfMemoryError
    from .errors import OutputError as OutputError
    from .errors import UnsupportedError as UnsupportedError
    from .errors import WeightsError as WeightsError
    from .hash_grid import HashGrid as HashGrid
    from .runtime import backends as backends
    from .runtime import get_num_threads as get_num_threads
    from .runtime import set_num_threads as set_num_threads
    from .stage1 import decompose as decompose
    from .stage1 import solve as solve
    from .stage1 import solve_many as solve_many
    from .stage2 import Denoised as Denoised
    from .stage2 import denoise as denoise
    from .stream import Stream as Stream
    from .training import distill as distill
    from .training import train as train
    from .views import Views as Views
    from .views import sample_views as sample_views
    from .vit import ViT as ViT


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'dvt_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
