"""Small engine files with everything that the format knows, for the tests of its reader and for fuzzing it."""

import copy
import json
import struct
from typing import Any

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
Arrays = dict[str, np.ndarray]


def header() -> dict[str, Any]:
    """A ViT with every option on, and a denoiser with few."""
    layer = {"kind": "layer", "eps": 1e-6}
    rms = {"kind": "rms", "eps": 1e-5}
    return {
        "format": "dvt_fast.engine",
        "version": 1,
        "patch_embed": {
            "patch": [2, 3],
            "stride": [1, 3],
            "image_size": [6, 9],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "norm": layer,
        },
        "vit": {
            "dim": 8,
            "heads": 2,
            "head_dim": 4,
            "hidden": 12,
            "depth": 2,
            "activation": "silu",
            "gated": True,
            "pos_grid": [5, 3],
            "extra_tokens": 2,
            "extra_first": True,
            "norm_pre": layer,
            "norm": layer,
            "block": {
                "norm1": layer,
                "norm2": layer,
                "q_norm": layer,
                "k_norm": rms,
                "attention_norm": layer,
                "mlp_norm": rms,
            },
            "rotary": {"offset": 0.25, "shift": -1.5, "reference": [5, 0], "pairs": "neighbours"},
        },
        "denoiser": {
            "dim": 8,
            "heads": 3,
            "head_dim": 5,
            "hidden": 6,
            "depth": 1,
            "activation": "gelu",
            "gated": False,
            "pos_grid": [4, 4],
            "extra_tokens": 0,
            "extra_first": False,
            "norm_pre": None,
            "norm": None,
            "block": {
                "norm1": layer,
                "norm2": layer,
                "q_norm": None,
                "k_norm": None,
                "attention_norm": None,
                "mlp_norm": None,
            },
            "rotary": None,
        },
        "source": {"vit": {"name": "Vögel 🦉", "size": [6, 9]}, "denoiser": None},
    }


def arrays(header: dict[str, Any]) -> Arrays:
    """Random tensors for a header, all the optional ones included, under their names in the file."""
    rng = np.random.default_rng(0)
    out: Arrays = {}

    def add(name: str, *shape: int) -> None:
        out[name] = rng.standard_normal(shape).astype(np.float32)

    def linear(name: str, width_in: int, width_out: int) -> None:
        add(f"{name}.weight", width_out, width_in)
        add(f"{name}.bias", width_out)

    def norm(name: str, config: dict[str, Any] | None, width: int) -> None:
        if config:
            add(f"{name}.weight", width)
        if config and config["kind"] == "layer":
            add(f"{name}.bias", width)

    if embed := header["patch_embed"]:
        linear("patch_embed", 3 * embed["patch"][0] * embed["patch"][1], header["vit"]["dim"])
        norm("patch_embed.norm", embed["norm"], header["vit"]["dim"])
    for name in ("vit", "denoiser"):
        t = header[name]
        if not t:
            continue
        dim, inner, hidden, block = t["dim"], t["heads"] * t["head_dim"], t["hidden"], t["block"]
        if t["pos_grid"]:
            add(f"{name}.pos_embed", t["pos_grid"][0] * t["pos_grid"][1], dim)
        if t["extra_tokens"]:
            add(f"{name}.extra_tokens", t["extra_tokens"], dim)
        if t["rotary"]:
            add(f"{name}.rotary.bands", t["head_dim"] // 4)
        norm(f"{name}.norm_pre", t["norm_pre"], dim)
        norm(f"{name}.norm", t["norm"], dim)
        for i in range(t["depth"]):
            at = f"{name}.blocks.{i}"
            norm(f"{at}.norm1", block["norm1"], dim)
            linear(f"{at}.qkv", dim, 3 * inner)
            norm(f"{at}.q_norm", block["q_norm"], t["head_dim"])
            norm(f"{at}.k_norm", block["k_norm"], t["head_dim"])
            norm(f"{at}.attention_norm", block["attention_norm"], inner)
            linear(f"{at}.proj", inner, dim)
            add(f"{at}.scale1", dim)
            norm(f"{at}.norm2", block["norm2"], dim)
            linear(f"{at}.fc1", dim, 2 * hidden if t["gated"] else hidden)
            norm(f"{at}.mlp_norm", block["mlp_norm"], hidden)
            linear(f"{at}.fc2", hidden, dim)
            add(f"{at}.scale2", dim)
    return out


def with_field(header: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a header in which the field at "vit.block.norm1" is another, or gone where the value is ...."""
    out = copy.deepcopy(header)
    *folders, key = path.split(".")
    place = out
    for folder in folders:
        place = place[folder]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return out


def pack(header: Any, arrays: Arrays, dtype: str = "F32") -> bytes:
    """The bytes of a safetensors file, written by hand so that it can lie. header: of ours, or any text."""
    entries: dict[str, Any] = {"__metadata__": {"dvt_fast": header if isinstance(header, str) else json.dumps(header)}}
    data = b""
    for name, array in arrays.items():
        raw = as_dtype(array, dtype).tobytes()
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return assemble(entries, data)


def assemble(entries: Any, data: bytes) -> bytes:
    """A file of any header and any data. entries: JSON types, or text."""
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return struct.pack("<Q", len(text)) + text + data


def take_apart(file: bytes) -> tuple[dict[str, Any], bytes]:
    """What `assemble` makes a file of."""
    end = 8 + struct.unpack("<Q", file[:8])[0]
    return json.loads(file[8:end]), file[end:]


def as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """Values as a file stores them; those of bfloat16 (cut, not rounded) as uint16."""
    if dtype == "BF16":
        return (array.view(np.uint32) >> 16).astype(np.uint16)
    return array.astype(DTYPES[dtype])


def from_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """What `as_dtype` stored, as float32."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
