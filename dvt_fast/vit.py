"""Patch features of any plain vision transformer in timm: any size, stride and layer, prefix tokens kept apart.

timm resamples the position embeddings of its models itself (`set_input_size`), for learned, relative and rotary ones.
Overlapping patches use the same road: the model is set to the input size whose non-overlapping patches make the wanted
grid, and then the convolution that cuts the patches gets the smaller stride.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import cuda_views, hub, vit_weights
from . import images as _images
from .errors import InputError, UnsupportedError, WeightsError
from .extras import require

if TYPE_CHECKING:
    import torch
    from PIL import Image as PILImage

MINI = "dvt_mini"
MINI_PATH = Path(__file__).parent / "assets" / "dvt_mini.safetensors"
LOCAL = "give weights='file.safetensors' (or .pth), or weights='random'"


class ViT:
    """A vision transformer as a function from images to patch features.

    name: a timm model name, with or without a tag ("vit_small_patch14_dinov2.lvd142m"), or "dvt_mini", the small ViT
        that comes with this package.
    weights: None for timm's pretrained ones (from the hub, or its cache), the path of a `.safetensors` or of a torch
        checkpoint (read with weights_only=True), "hf://OWNER/REPOSITORY/path" for such a file on the hub,
        "voc_distilled" or "imgnet_distilled" for what the authors of DVT published for this ViT, or "random".
    stride: pixels from patch to patch, an int or (y, x), at most the patch size; None is the patch size.
    layer: which block's output, counted from the end where negative.
    norm: apply the model's final norm to the tokens. A model that pools before its norm (EVA-02 and BEiT as released)
        has none for tokens, and gives them as they are; SAM's is its neck, which changes the number of channels.
        `describe()["norm"]` says which it was.
    size: pixels a side, or (height, width); None is the model's own. The size must fit whole patches.
    mean, std: three numbers each for pixels in [0, 1]; None is the model's own.
    seed: for weights="random".

    Attributes: name, size, patch_size, stride and grid, each (height, width); depth (blocks), layer (from 0), dim
    (channels of the features), n_prefix (class and register tokens), mean, std, device, model, the timm module, and
    loaded_grid, what its position embeddings were loaded for.

    Raises `InputError` (an unknown name, with the nearest ones; a size, stride, layer or device that cannot be),
    `UnsupportedError` (no GPU for torch), `WeightsError` (weights that cannot be found, read or fitted) and
    `MissingExtraError` (no torch or timm).
    """

    def __init__(
        self,
        name: str,
        weights: str | os.PathLike[str] | None = None,
        stride: int | tuple[int, int] | None = None,
        layer: int = -1,
        norm: bool = True,
        device: str | torch.device = "cpu",
        *,
        size: int | tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
    ):
        self.name = name
        self.device = _device(device)
        self.model, self._weights, own_mean, own_std = (
            _mini(weights, seed) if name == MINI else _timm(name, weights, seed)
        )
        loaded = self.model.state_dict()
        patch_embed = self.model.patch_embed
        self.patch_size: tuple[int, int] = tuple(patch_embed.patch_size)
        self.size = pair(patch_embed.img_size if size is None else size, "size")
        self.stride = self.patch_size if stride is None else pair(stride, "stride")
        self.grid = _grid(self.size, self.patch_size, self.stride)
        self.loaded_grid: tuple[int, int] = tuple(patch_embed.grid_size)
        _set_grid(self.model, self.grid, self.stride)
        now = self.model.state_dict()
        # Embeddings from before they were resampled: the fingerprint is of the weights, whatever the size.
        self._as_loaded = {key: value for key, value in loaded.items() if value.data_ptr() != now[key].data_ptr()}

        self.depth = len(self.model.blocks)
        if isinstance(layer, bool) or not isinstance(layer, int) or not -self.depth <= layer < self.depth:
            raise InputError(f"layer must be from {-self.depth} to {self.depth - 1} for {name}, got {layer!r}")
        self.layer = layer % self.depth
        self.norm = bool(norm)
        info = self.model.feature_info[self.layer]
        self.dim: int = info.get("num_chs_norm", info["num_chs"]) if self.norm else info["num_chs"]
        self.n_prefix: int = getattr(self.model, "num_prefix_tokens", 0)
        self.mean = _triple(own_mean if mean is None else mean, "mean")
        self.std = _triple(own_std if std is None else std, "std")
        if min(self.std) <= 0:
            raise InputError(f"std must be above 0, got {self.std}")
        self.model.eval().requires_grad_(False).to(self.device)

    def features(self, images: torch.Tensor | np.ndarray, return_prefix: bool = False) -> Any:
        """Patch features of normalised images.

        images: floating [B, 3, height, width] of this ViT's size, on its device; a torch tensor or a NumPy array.
        Returns float32 [B, grid_h, grid_w, C], contiguous, of the kind that came in; with return_prefix also the class
        and register tokens, [B, n_prefix, C]. Raises `InputError` for another shape, dtype or device.
        """
        torch = require("torch", "vit")
        as_array = isinstance(images, np.ndarray)
        x = torch.from_numpy(images).to(self.device) if as_array else images
        if not isinstance(x, torch.Tensor) or x.ndim != 4 or tuple(x.shape[1:]) != (3, *self.size):
            came = list(x.shape) if isinstance(x, torch.Tensor) else type(images).__name__
            raise InputError(f"images must have shape [B, 3, {self.size[0]}, {self.size[1]}], got {came}")
        if not x.is_floating_point():
            raise InputError(f"images must be normalised floats (see ViT.transform), got {x.dtype}")
        if x.device.type != self.device.type:
            raise InputError(f"images are on {x.device} and {self.name} is on {self.device}: move one of them")
        # no_grad, not inference_mode: its tensors could not be trained on afterwards
        with torch.no_grad():
            tokens, prefix = self._tokens(x.float())
            patches = tokens.reshape(len(x), *self.grid, self.dim).contiguous()
        if as_array:
            patches, prefix = patches.cpu().numpy(), prefix.cpu().numpy()
        return (patches, prefix) if return_prefix else patches

    def _tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"indices": [self.layer], "norm": self.norm, "stop_early": True, "intermediates_only": True}
        if not hasattr(self.model, "num_prefix_tokens"):  # SAM: maps only
            tokens = self.model.forward_intermediates(x, **options)[0].permute(0, 2, 3, 1)
        elif self.n_prefix == 0:
            tokens = self.model.forward_intermediates(x, output_fmt="NLC", **options)[0]
        else:
            return self.model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, **options)[0]
        return tokens, tokens.new_empty(len(x), 0, self.dim)

    def transform(self, image: PILImage.Image) -> torch.Tensor:
        """Prepare a whole image: resized to this ViT's size (bicubic, antialias, no crop), and normalised.

        image: anything that `load_image` takes. Returns float32 [3, height, width] on this ViT's device.
        """
        picture = _images.load_image(image)
        if on_device := cuda_views.upload(picture, self):
            return on_device.views(np.array([(0, 0, *picture.size)], np.float64), np.zeros(1), self.size)[0]
        return self.to_input(_images.resize(picture, self.size)[None])[0]

    def to_input(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels, uint8 [B, height, width, 3], as normalised float32 [B, 3, height, width] on this ViT's device."""
        torch = require("torch", "vit")
        # NumPy and one thread: torch's pool costs more than this work where other processes keep the cores busy
        x = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        for c in range(3):
            np.multiply(pixels[..., c], 1 / (255 * self.std[c]), out=x[:, c], dtype=np.float32)
            x[:, c] -= np.float32(self.mean[c] / self.std[c])
        return torch.from_numpy(x).to(self.device)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the weights which the features depend on: the blocks up to `layer`, what comes
        before them, and the norm where it is used. The same at any size, stride and device; found when first asked for,
        so not of weights that are trained afterwards."""
        return vit_weights.fingerprint(self.used_tensors())

    def used_tensors(self) -> dict[str, torch.Tensor]:
        """The weights that the features depend on, by their names in `model`; the position embedding as it was loaded,
        for `loaded_grid`."""
        state = self.model.state_dict() | self._as_loaded
        return {key: value for key, value in state.items() if self._uses(key)}

    def _uses(self, key: str) -> bool:
        part, _, rest = key.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) <= self.layer
        return not key.startswith(vit_weights.UNUSED) and (self.norm or part not in ("norm", "neck"))

    def describe(self) -> dict[str, Any]:
        """What features depend on, for the metadata of files: plain JSON types. Equal for equal features only."""
        return {
            "name": self.name,
            "weights": self._weights,
            "fingerprint": self.fingerprint,
            "size": list(self.size),
            "patch_size": list(self.patch_size),
            "stride": list(self.stride),
            "grid": list(self.grid),
            "layer": self.layer,
            "depth": self.depth,
            "norm": self._norm_name(),
            "dim": self.dim,
            "n_prefix": self.n_prefix,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _norm_name(self) -> str:
        torch = require("torch", "vit")
        if not self.norm:
            return "none"
        if hasattr(self.model, "neck"):
            return "neck"
        return "none for tokens" if isinstance(self.model.norm, torch.nn.Identity) else "final"

    def __repr__(self) -> str:
        return f"ViT({self.name!r}, size={self.size}, grid={self.grid}, dim={self.dim}, device={str(self.device)!r})"


def difference(made: dict[str, Any], used: dict[str, Any], settings: Iterable[str]) -> str | None:
    """The first of `settings` in which two ViTs differ, by what `describe` said of them: "layer 3, and this one has 5".

    "weights" are compared by fingerprint; by name where one of the two was described before there were fingerprints.
    """
    for key in settings:
        if key == "weights" and made.get("fingerprint") and used.get("fingerprint"):
            if made["fingerprint"] != used["fingerprint"]:
                theirs, ours = (f"{vit.get(key)!r} of fingerprint {vit['fingerprint']}" for vit in (made, used))
                return f"{key} {theirs}, and this one has {ours}"
        elif made.get(key) != used[key]:
            return f"{key} {made.get(key)!r}, and this one has {used[key]!r}"
    return None


def _timm(name: str, weights: str | os.PathLike[str] | None, seed: int) -> tuple[Any, str, Any, Any]:
    """Build a timm model: (module, where the weights are from, mean, std)."""
    timm = require("timm", "vit")
    architecture, _, wanted = str(name).partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [MINI, *timm.list_models()], n=3, cutoff=0.4)
        raise InputError(f"unknown ViT {name!r}; near it: {', '.join(near) or 'none'}")
    pretrained = (full.partition(".") for full in timm.list_pretrained(architecture + "*"))
    tags = [tag for start, _, tag in pretrained if start == architecture]
    if wanted and wanted not in tags:
        raise InputError(f"unknown tag {wanted!r} of {architecture}; it has: {', '.join(tags) or 'none'}")
    path, source = _locate(weights, name, seed)
    if weights is None:
        model = _from_hub(name, tags)
    else:
        model = _seeded(lambda: timm.create_model(name, num_classes=0), seed)
    _check_plain(model, name)
    if path:
        vit_weights.fit(model, vit_weights.read_state_dict(path), path, name)
    return model, source, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]


def _mini(weights: str | os.PathLike[str] | None, seed: int) -> tuple[Any, str, Any, Any]:
    """Build the embedded model, or another file of its format, from the configuration in the file."""
    vision_transformer = require("timm.models.vision_transformer", "vit")
    path, source = _locate(MINI_PATH if weights is None else weights, MINI, seed)
    header = vit_weights.read_header(path or MINI_PATH)
    try:
        model = _seeded(
            lambda: vision_transformer.VisionTransformer(**header["config"], num_classes=0, global_pool=""), seed
        )
    except Exception as error:
        raise WeightsError(f"{path}: its config makes no ViT: {vit_weights.one_line(error)}") from None
    if path:
        vit_weights.fit(model, vit_weights.read_state_dict(path), path, MINI)
    return model, source, header["mean"], header["std"]


def _locate(weights: str | os.PathLike[str] | None, name: str, seed: int) -> tuple[Path | None, str]:
    """The file that `weights` means, if any, from the hub where it says so; and what `describe` calls the weights."""
    if weights is None:
        return None, "pretrained"
    if weights == "random":
        return None, f"random, seed {seed}"
    if weights in hub.DISTILLED:
        weights = hub.published(str(weights), name)
    if isinstance(weights, str) and weights.startswith(hub.SCHEME):
        return hub.fetch(weights, LOCAL), weights
    path = Path(weights)
    return path, "pretrained" if path == MINI_PATH else path.name


def _seeded(build: Any, seed: int) -> Any:
    torch = require("torch", "vit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _from_hub(name: str, tags: list[str]) -> Any:
    """timm's pretrained weights from the hub's cache, or from the hub where it can be reached."""
    timm = require("timm", "vit")
    if not tags:
        raise WeightsError(f"timm has no pretrained weights for {name}: {LOCAL}")
    cfg = timm.get_pretrained_cfg(name)
    overlay: dict[str, Any] = {}
    # timm asks the hub first, and offline that takes most of a minute of retries, even where the file is cached
    cached = hub.cached(cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors") if cfg.hf_hub_id else None
    if cached and cfg.custom_load != "hf":
        overlay = {"file": cached, "custom_load": False}  # custom_load is for the original's .npz, not the hub's file
    else:
        hub.need_network(f"{name}'s weights", LOCAL)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay or None)
    except Exception as error:  # the hub, the disk and the weights fail in many ways
        raise WeightsError(f"could not get {name}'s weights ({vit_weights.one_line(error)}): {LOCAL}") from None


def _check_plain(model: Any, name: str) -> None:
    """Refuse models whose features are no grid of patches of one size: pyramids, hybrids, convolutional nets."""
    torch = require("torch", "vit")
    patch_embed: Any = getattr(model, "patch_embed", None)
    proj = getattr(patch_embed, "proj", None)
    plain = (
        isinstance(proj, torch.nn.Conv2d)
        and proj.kernel_size == proj.stride == tuple(getattr(patch_embed, "patch_size", ()))
        and hasattr(model, "blocks")
        and (hasattr(model, "neck") or (hasattr(model, "norm") and hasattr(model, "set_input_size")))
        and hasattr(model, "forward_intermediates")
        and {(i["reduction"], i["num_chs"]) for i in model.feature_info} == {(max(proj.stride), proj.out_channels)}
    )
    if not plain:
        raise InputError(f"{name} ({type(model).__name__}) is not a plain ViT: no single grid of patches of any size")


def _set_grid(model: Any, grid: tuple[int, int], stride: tuple[int, int]) -> None:
    patch_embed = model.patch_embed
    if hasattr(model, "set_input_size"):  # SAM, without it, resamples in its forward pass
        model.set_input_size(img_size=tuple(g * p for g, p in zip(grid, patch_embed.patch_size, strict=True)))
    patch_embed.proj.stride = stride
    patch_embed.img_size = None  # timm's check of the input knows no stride; `features` does it


def _grid(size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    for n, p, d in zip(size, patch, stride, strict=True):
        if d > p:
            raise InputError(f"stride must be at most the patch size {p}, or pixels go unseen, got {d}")
        if n < p or (n - p) % d:
            below = p + max(0, (n - p) // d) * d
            near = f"{below}" if n < p else f"{below} or {below + d}"
            raise InputError(f"size {n} does not fit patches of {p} every {d} pixels: use {near}")
    return (size[0] - patch[0]) // stride[0] + 1, (size[1] - patch[1]) // stride[1] + 1


def pair(value: Any, what: str) -> tuple[int, int]:
    """(height, width) from an int or such a pair; `InputError` for anything else."""
    both = (value, value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value
    if not isinstance(both, (tuple, list)) or len(both) != 2 or not all(isinstance(v, (int, np.integer)) for v in both):
        raise InputError(f"{what} must be an int or a pair of them (height, width), got {value!r}")
    if min(both) < 1:
        raise InputError(f"{what} must be at least 1, got {value!r}")
    return int(both[0]), int(both[1])


def _triple(values: Any, what: str) -> tuple[float, float, float]:
    try:
        r, g, b = (float(v) for v in values)
    except (TypeError, ValueError):
        raise InputError(f"{what} must be three numbers, got {values!r}") from None
    if not all(math.isfinite(v) for v in (r, g, b)):
        raise InputError(f"{what} must be finite, got {values!r}")
    return r, g, b


def _device(device: Any) -> torch.device:
    torch = require("torch", "vit")
    try:
        torch.zeros(1, device=device)
        return torch.device(device)
    except Exception as error:  # torch says "no such device" in many ways
        if str(device).partition(":")[0] == "cuda" and not torch.cuda.is_available():
            why = "this build of torch computes on the CPU only" if torch.version.cuda is None else "torch finds no GPU"
            raise UnsupportedError(f"device {str(device)!r} cannot be used: {why}") from None
        raise InputError(f"device {str(device)!r} cannot be used: {vit_weights.one_line(error)}") from None
