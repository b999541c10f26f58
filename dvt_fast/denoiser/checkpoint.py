"""Files of denoisers: ours, safetensors with a header, and the reference implementation's `.pth`.

Ours say what they are. The reference's hold tensors only, so that number of blocks, width and grid are told from those:
`pos_embed` [1, h * w, C] and `denoiser.norm1.weight` [C], or `denoiser.0.norm1.weight` ... where blocks are several.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import hub, vit_weights
from ..errors import InputError, NonFiniteError, WeightsError
from ..vit import MINI, difference, pair

if TYPE_CHECKING:
    from ..vit import ViT
    from .model import Denoiser

FORMAT, VERSION = "dvt_fast.denoiser", 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ASSETS = Path(__file__).parents[1] / "assets"

# What two ViTs must share for one denoiser to serve both, at any size; the weights last, being those of this layer.
SAME = ("name", "layer", "norm", "weights")
# What a file that says which ViT it is for must say of it: enough to check one, and to build it.
VIT = {"name": str, "weights": str, "size": list, "stride": list, "layer": int, "norm": str, "mean": list, "std": list}
FEW_BLOCKS = 16  # so many may be told of by a file of fewer tensors: of kind "map", they hold none
_OTHERWISE = "give the path of a file"
_WRAPPERS = ("denoiser", "state_dict", "model", "module", "model_state_dict")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def pack(denoiser: Denoiser, dtype: str) -> bytes:
    """The bytes of our file. Raises `NonFiniteError` rather than keep NaN or infinity."""
    from safetensors.torch import save

    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "kind": denoiser.kind, "dim": denoiser.dim}
    header |= {"grid": list(denoiser.grid), "num_blocks": denoiser.num_blocks, "num_heads": denoiser.num_heads}
    header |= {"vit": denoiser.meta.get("vit"), "training": denoiser.meta.get("training")}
    lacking = _lacking(header["vit"])
    if lacking:
        raise InputError(f"meta['vit'] lacks {lacking}: give what ViT.describe() says, or None")
    state = {}
    for name, value in denoiser.state_dict().items():
        if not value.isfinite().all():
            raise NonFiniteError(f"{name} holds NaN or infinity: not saved")
        state[name] = value.detach().to("cpu", DTYPES[dtype]).contiguous()
        if not state[name].isfinite().all():
            raise NonFiniteError(f"{name} holds numbers too large for {dtype}: save as float32 or bfloat16")
    return save(state, metadata={"dvt_fast": json.dumps(header)})


def read(
    path: str | os.PathLike[str], grid: tuple[int, int] | None = None, num_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """The keyword arguments of `Denoiser`, a state dict that fits it, and its `meta`, from a file of either kind.

    grid, num_heads: for the reference's files, which do not say them. Raises `WeightsError`, one line with the path.
    """
    path = Path(path)
    grid = None if grid is None else pair(grid, "grid")
    held, metadata = vit_weights.read_checkpoint(path)
    if "dvt_fast" in metadata:
        state = held
        config, meta = _described(metadata["dvt_fast"], path)
        for name, wanted in (("grid", grid), ("num_heads", num_heads)):
            if wanted not in (None, config[name]):
                raise WeightsError(f"{path}: is for {name} {config[name]}, as the file says, got {name} {wanted}")
    else:
        state = vit_weights.unwrap(held, path, _WRAPPERS, _PREFIXES)
        state = {key: value for key, value in state.items() if not key.startswith("vit.")}
        config, meta = _inferred(state, grid, path), {}
        config["num_heads"] = num_heads
    misfit = vit_weights.misfits(state, _expected(config, len(state), path))
    if misfit:
        raise WeightsError(f"{path}: does not fit a denoiser of kind {config['kind']!r}: {'; '.join(misfit)}")
    infinite = [key for key, value in state.items() if not value.isfinite().all()]
    if infinite:
        raise WeightsError(f"{path}: {infinite[0]} holds NaN or infinity")
    return config, state, meta


def check(denoiser: Denoiser, vit: ViT) -> None:
    """`InputError` unless `denoiser` is for features like those of `vit`; what it was trained for, it may not know."""
    if denoiser.dim != vit.dim:
        raise InputError(f"the denoiser is for features of {denoiser.dim} channels, those of {vit.name} have {vit.dim}")
    made = denoiser.meta.get("vit")
    differs = difference(made, vit.describe(), SAME) if made else None
    if differs:
        raise InputError(f"the denoiser was trained for a ViT with {differs}: train one for it, or use that ViT")


def load_denoiser(spec: str | os.PathLike[str] | None, vit: ViT) -> Denoiser:
    """The denoiser that `spec` names, on the device of `vit` and checked against it.

    spec: a path; "hf://OWNER/REPOSITORY/path"; "voc_denoised" or "imgnet_denoised", for what the authors of DVT
    published for this ViT; None for the one that comes with "dvt_mini". Raises `WeightsError` and `InputError`.
    """
    from .model import Denoiser

    if spec is None:
        if vit.name != MINI:
            raise InputError(f"no denoiser comes with {vit.name}: give a file, or one of {', '.join(hub.DENOISERS)}")
        spec = ASSETS / f"{MINI}_denoiser{'_norm' if vit.norm else ''}.safetensors"
    elif spec in hub.DENOISERS:
        if vit.layer != vit.depth - 1 or not vit.norm:
            raise InputError(f"{spec} is for the last block after the final norm: use layer=-1 and norm=True")
        spec = hub.published(str(spec), vit.name)
    elif spec in hub.DISTILLED:
        raise InputError(f"{spec} is a ViT that needs no denoiser: give it as the weights of the ViT")
    denoiser = Denoiser.from_checkpoint(local(spec))
    denoiser.check(vit)
    return denoiser.to(vit.device)


def local(spec: str | os.PathLike[str]) -> Path:
    """The path of a file that is given by its path, or by its name on the hub, "hf://..."."""
    if isinstance(spec, str) and spec.startswith(hub.SCHEME):
        return hub.fetch(spec, _OTHERWISE)
    return Path(spec)


def download(repo: str, file: str) -> Path:
    """The local path of a file of a repository on the hub."""
    return hub.download(repo, file, otherwise=_OTHERWISE)


def _described(text: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and `meta` that the header of our file says."""
    unclear = WeightsError(f"{path}: its metadata does not describe a {FORMAT} of version {VERSION}")
    try:
        header = json.loads(text)
        format, version = header["format"], header["version"]
    except (ValueError, KeyError, TypeError):
        raise unclear from None
    if format != FORMAT:
        raise WeightsError(f"{path}: holds a {format}, expected a {FORMAT}")
    if isinstance(version, int) and version > VERSION:
        raise WeightsError(
            f"{path}: {FORMAT} version {version}, and this dvt-fast reads up to {VERSION}: upgrade dvt-fast"
        )
    try:
        config = {key: header[key] for key in ("kind", "dim", "num_blocks", "num_heads")}
        config["grid"] = tuple(header["grid"])
        meta = {key: dict(header[key]) for key in ("vit", "training") if header[key] is not None}
    except (ValueError, KeyError, TypeError):
        raise unclear from None
    lacking = _lacking(meta.get("vit"))
    if lacking:
        raise WeightsError(f"{path}: what it says of the ViT it is for lacks {lacking}")
    return config, meta


def _lacking(vit: dict[str, Any] | None) -> str:
    """Which of `VIT` a description lacks, or has of another type; "" for none, and where there is no description."""
    return "" if vit is None else ", ".join(key for key, kind in VIT.items() if not isinstance(vit.get(key), kind))


def _inferred(state: dict[str, torch.Tensor], grid: tuple[int, int] | None, path: Path) -> dict[str, Any]:
    """The configuration that the tensors of the reference's file tell."""
    norms = {key: value for key, value in state.items() if re.fullmatch(r"denoiser\.(\d+\.)?norm1\.weight", key)}
    if not norms:
        if "patch_embed.proj.weight" in state:
            raise WeightsError(f"{path}: holds a ViT, expected a denoiser: give it as the weights of the ViT")
        found = ", ".join(sorted(state)[:3]) or "nothing beside a ViT"
        raise WeightsError(f"{path}: holds no denoiser: expected denoiser.norm1.weight and others, got {found}")
    dim = next(iter(norms.values())).numel()
    config: dict[str, Any] = {"kind": "block", "dim": dim, "num_blocks": len(norms)}
    if "pos_embed" not in state:
        return config | {"kind": "block-nopos"} | ({"grid": grid} if grid else {})
    positions = [1, 1, *state["pos_embed"].shape][-2]  # of any shape: that it fits is checked later
    side = round(positions**0.5)
    if grid is None and side * side != positions:
        raise WeightsError(f"{path}: its {positions} positions are no square grid: say which it is with grid=(h, w)")
    if grid is not None and grid[0] * grid[1] != positions:
        raise WeightsError(f"{path}: has {positions} positions, which are no grid of {grid[0]} x {grid[1]}")
    return config | {"grid": grid or (side, side)}


def _expected(config: dict[str, Any], held: int, path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a denoiser, shapes only: sizes take no memory here, but each block takes time.

    held: how many tensors the file holds, which bounds the number of blocks.
    """
    from .model import Denoiser

    blocks = config["num_blocks"]
    if isinstance(blocks, int) and blocks > max(held, FEW_BLOCKS):
        raise WeightsError(f"{path}: says that it has {blocks} blocks, and holds {held} tensors")
    try:
        with torch.device("meta"):
            denoiser = Denoiser(**config)
            torch.empty(denoiser.grid)  # of this size, some kinds have no tensor
            return denoiser.state_dict()
    except InputError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (TypeError, RuntimeError) as error:  # a header of other types, or of sizes beyond any tensor
        raise WeightsError(f"{path}: what it describes is no denoiser: {vit_weights.one_line(error)}") from None
