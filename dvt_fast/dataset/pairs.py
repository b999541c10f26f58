"""One pair, raw features and semantics of one image, as the bytes of one file.

A file is named by the hash of the image's content, and depends on nothing but that content, the settings and, in the
last bits, the kind of machine: not on the image's name, on its duplicates, or on who made it. Values are float16, or
int8 with a float32 scale for each token: some tokens of a ViT have 25 times the usual norm, and one scale for all would
leave the others a few levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, NonFiniteError
from ..files import pack_safetensors, unpack_safetensors

FORMAT, VERSION = "dvt_fast.pair", 1
FOLDER = "pairs"
KEPT = ("both", "semantics")
DTYPES = ("float16", "int8")


def file_of(hash: str) -> str:
    """The name of a pair's file: pairs/ab/abcdef... .safetensors."""
    return f"{FOLDER}/{hash[:2]}/{hash}.safetensors"


@dataclass(frozen=True)
class Pair:
    """What a pair's file holds. raw: float32 [h, w, C], None where only the semantics were kept. header: its record."""

    raw: np.ndarray | None
    semantics: np.ndarray
    header: dict[str, Any]


def pack_pair(raw: np.ndarray | None, semantics: np.ndarray, dtype: str, header: Mapping[str, Any]) -> bytes:
    """The bytes of one file. raw, semantics: float32 [h, w, C]. header: JSON types, of what made the pair.

    Raises `NonFiniteError` for NaN, infinity, or a value beyond float16.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, values in (("raw", raw), ("semantics", semantics)):
        if values is None:
            continue
        check_range(name, values)
        if dtype == "int8":
            scale = np.abs(values).max(axis=-1) / np.float32(127)
            steps = values / np.where(scale > 0, scale, 1)[..., None]
            steps = np.clip(np.rint(steps), -127, 127)  # a subnormal scale is rounded by more than a little
            arrays |= {name: steps.astype(np.int8), f"{name}.scale": scale.astype(np.float32)}
        else:
            arrays[name] = values.astype(np.float16)
    return pack_safetensors(arrays, FORMAT, VERSION, dtype=dtype, shape=list(semantics.shape), **header)


def check_range(name: str, values: np.ndarray) -> None:
    """Raise `NonFiniteError` for what training, which keeps its samples as float16, could not use."""
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{name} holds NaN or infinity")
    largest = np.abs(values).max()
    with np.errstate(over="ignore"):
        if not np.isfinite(largest.astype(np.float16)):
            raise NonFiniteError(f"{name} holds values to {largest:g}, and float16 ends at 65504")


def unpack_pair(data: bytes, name: str) -> Pair:
    """The pair in the bytes of the file `name`; `InputError` where they are not all of one."""
    header, arrays = unpack_safetensors(data, name, FORMAT, VERSION)
    found: dict[str, np.ndarray] = {}
    for part in ("raw", "semantics"):
        values, scale = arrays.pop(part, None), arrays.pop(f"{part}.scale", None)
        if values is None:
            continue
        if list(values.shape) != header.get("shape") or (scale is not None and scale.shape != values.shape[:2]):
            raise InputError(f"{name}: damaged: {part} has shape {list(values.shape)}, not {header.get('shape')}")
        found[part] = values.astype(np.float32)
        if scale is not None:
            found[part] *= scale[..., None]
        if not np.isfinite(found[part]).all():
            raise InputError(f"{name}: damaged: {part} holds NaN or infinity")
    if "semantics" not in found:
        raise InputError(f"{name}: damaged: holds no semantics")
    return Pair(found.get("raw"), found["semantics"], header)
