"""Weights of a network: read a file without running code from it, unwrap it, fit it to a timm model or say why not.

What a checkpoint may hold besides the backbone (heads, decoders, mask tokens) is left out by name; anything else that
is missing, left over or of another shape is an error that names the first keys, because a model with a few random
layers still gives features, only wrong ones.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import WeightsError
from .extras import require

if TYPE_CHECKING:
    import torch

FORMAT, VERSION = "dvt_fast.vit", 1
MINI_CONFIG = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "class_token"}

# What training checkpoints keep the network's tensors under, and what they put before their names.
WRAPPERS = ("state_dict", "model", "teacher", "module", "encoder", "model_state_dict", "denoiser")
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
# Parts of training checkpoints that features never pass through.
UNUSED = ("head", "fc_norm", "attn_pool", "mask_token", "decoder", "pre_logits", "dino_head", "ibot_head", "lm_head")


def read_header(path: Path) -> dict[str, Any]:
    """The description in a `dvt_fast.vit` file: {"format", "version", "config", "mean", "std"}."""
    safetensors = require("safetensors", "vit")
    _check_file(path)
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            text = (file.metadata() or {}).get("dvt_fast")
    except Exception as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {one_line(error)}") from None
    try:
        header = json.loads(text or "{}")
        if header["format"] != FORMAT or header["version"] != VERSION:
            raise WeightsError(
                f"{path}: expected {FORMAT} version {VERSION}, got {header['format']} version {header['version']}"
            )
        if set(header["config"]) != MINI_CONFIG:
            raise WeightsError(
                f"{path}: expected the config keys {sorted(MINI_CONFIG)}, got {sorted(header['config'])}"
            )
        return {"config": dict(header["config"]), "mean": list(header["mean"]), "std": list(header["std"])}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{path}: its metadata does not describe a {FORMAT} file") from None


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file, or of a torch checkpoint, unwrapped."""
    state = unwrap(read_checkpoint(path)[0], path)
    if any(key.startswith("denoiser.") for key in state):
        raise WeightsError(f"{path}: holds a denoiser, expected a ViT: load it with Denoiser.from_checkpoint")
    return state


def read_checkpoint(path: Path) -> tuple[Any, dict[str, str]]:
    """What a torch checkpoint holds (read with weights_only=True), or the tensors and metadata of a safetensors file.

    Which of them it is, its first bytes say where its name does not. Raises `WeightsError`, one line with the path.
    """
    torch = require("torch", "vit")
    _check_file(path)
    try:
        with open(path, "rb") as file:
            is_safetensors = path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
        if is_safetensors:
            with require("safetensors", "vit").safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: not a torch checkpoint, or one that holds more than tensors, which is not read because it could "
            "run code: save its state_dict alone, or convert it to safetensors"
        ) from None
    except Exception as error:  # a cut or foreign file fails in as many ways as there are readers
        raise WeightsError(f"{path}: cannot be read as weights: {one_line(error)}") from None


def unwrap(
    held: Any, path: Path, wrappers: Sequence[str] = WRAPPERS, prefixes: Sequence[str] = PREFIXES
) -> dict[str, torch.Tensor]:
    """Find the state dict inside a training checkpoint, and strip the names of what it was wrapped in."""
    torch = require("torch", "vit")
    while isinstance(held, dict):
        inner = next((held[key] for key in wrappers if isinstance(held.get(key), dict)), None)
        if inner is None:
            break
        held = inner
    tensors = {k: v for k, v in held.items() if isinstance(v, torch.Tensor)} if isinstance(held, dict) else {}
    if not tensors:
        raise WeightsError(f"{path}: holds no weights: expected a dict of tensors, perhaps under {list(wrappers)}")
    unwrapped = {}
    for key, value in tensors.items():
        while prefix := next((p for p in prefixes if key.startswith(p)), None):
            key = key.removeprefix(prefix)
        unwrapped[key] = value
    return unwrapped


def fit(model: Any, state: dict[str, torch.Tensor], path: Path, name: str) -> None:
    """Load `state` into a timm model, through timm's own conversion of the original releases' key names.

    Position embeddings of another grid are resampled, as timm does. Raises `WeightsError` naming the first keys that
    are missing, unexpected or of another shape.
    """
    patches = [key for key in ("patch_embed.proj.weight",) if key in state and state[key].ndim == 4]
    misfit = _misshaped(state, model.state_dict(), patches)  # timm would resample to another patch size in silence
    if not misfit:
        if "blocks.0.gamma_1" in state and hasattr(model.blocks[0], "ls1"):  # DeiT-III's own names
            state = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in state.items()}
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        try:
            state = convert(dict(state), model) if convert else state
        except Exception as error:
            raise WeightsError(f"{path}: does not fit {name}: {one_line(error)}") from None
        state = {key: value for key, value in state.items() if not key.startswith(UNUSED)}
        target = {key: value for key, value in model.state_dict().items() if not key.startswith(UNUSED)}
        misfit = misfits(state, target)
    if misfit:
        raise WeightsError(f"{path}: does not fit {name}: {'; '.join(misfit)}")
    model.load_state_dict(state, strict=False)


def misfits(state: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> list[str]:
    """How `state` differs from `target` in keys and shapes, in words; empty where it fits."""
    return (
        _listed("missing", sorted(target.keys() - state.keys()))
        + _listed("unexpected", sorted(state.keys() - target.keys()))
        + _misshaped(state, target, sorted(target.keys() & state.keys()))
    )


def fingerprint(state: dict[str, torch.Tensor]) -> str:
    """16 hex digits of a SHA-256 of names, types, shapes and bytes: equal for equal weights on any device."""
    torch = require("torch", "vit")

    def digest(key: str) -> bytes:
        value = state[key].detach().cpu().contiguous()
        found = hashlib.sha256(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())  # hashlib lets other threads run meanwhile
        return found.digest()

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(pool.map(digest, sorted(state)))).hexdigest()[:16]


def one_line(error: BaseException) -> str:
    """The first line of an error's message, for a message that is one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: {'a folder, expected a weights file' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty (0 bytes)")


def _listed(what: str, keys: list[str], shown: int = 3) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return [f"{what} {', '.join(keys[:shown])}{more}"]


def _misshaped(state: dict[str, Any], target: dict[str, Any], keys: Iterable[str]) -> list[str]:
    wrong = [
        f"{key} (expected {list(target[key].shape)}, got {list(state[key].shape)})"
        for key in keys
        if state[key].shape != target[key].shape
    ]
    return _listed("of another shape", wrong)
