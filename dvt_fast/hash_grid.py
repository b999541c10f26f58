"""`HashGrid`: a multi-resolution hash grid as a torch module, a drop-in for `tinycudann.Encoding`'s, on CPU and CUDA.

Parameters, their order and the index mathematics are tiny-cuda-nn's (Mueller et al., "Instant Neural Graphics
Primitives", 2022), so that `params` can be copied either way; the output is float32. The operators are registered with
`torch.library`, so autograd, `torch.compile` and `torch.export` know them. On the CPU gradients are the same bits for
any number of threads. On CUDA those of the parameters are summed in an order that is not fixed, unless torch is asked
for deterministic algorithms (`torch.use_deterministic_algorithms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from . import _native
from .errors import InputError
from .extras import require
from .solvers.hash_grid_field import growth

require("torch", "vit")  # one line on what to install, where torch is absent
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

# What tiny-cuda-nn takes where a key is left out of `encoding_config`.
TCNN_DEFAULTS = {
    "n_levels": 16,
    "n_features_per_level": 2,
    "log2_hashmap_size": 19,
    "base_resolution": 16,
    "per_level_scale": 2.0,
}


@lru_cache(maxsize=64)
def _layout(
    n_input_dims: int,
    n_levels: int,
    n_features_per_level: int,
    log2_hashmap_size: int,
    base_resolution: int,
    per_level_scale: float,
) -> _native.HashGrid:
    return _native.HashGrid(
        n_input_dims=n_input_dims,
        n_levels=n_levels,
        n_features_per_level=n_features_per_level,
        log2_hashmap_size=log2_hashmap_size,
        base_resolution=base_resolution,
        per_level_scale=per_level_scale,
    )


# The operators' schemas: tensors, then the configuration, spelled out because a schema holds no objects.
_CONFIG = (
    "int n_input_dims, int n_levels, int n_features_per_level, int log2_hashmap_size, int base_resolution, "
    "float per_level_scale"
)
_library = torch.library.Library("dvt_fast", "DEF")
_library.define(f"hash_grid(Tensor coords, Tensor params, {_CONFIG}) -> Tensor")
_library.define(f"hash_grid_backward_params(Tensor coords, Tensor d_out, {_CONFIG}) -> Tensor")
_library.define(f"hash_grid_backward_coords(Tensor coords, Tensor params, Tensor d_out, {_CONFIG}) -> Tensor")


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@torch.library.impl("dvt_fast::hash_grid", "cpu", lib=_library)
def _forward(coords: Tensor, params: Tensor, *config: Any) -> Tensor:
    return torch.from_numpy(_layout(*config).forward(_numpy(coords), _numpy(params)))


@torch.library.impl("dvt_fast::hash_grid_backward_params", "cpu", lib=_library)
def _backward_params(coords: Tensor, d_out: Tensor, *config: Any) -> Tensor:
    return torch.from_numpy(_layout(*config).backward_params(_numpy(coords), _numpy(d_out)))


@torch.library.impl("dvt_fast::hash_grid_backward_coords", "cpu", lib=_library)
def _backward_coords(coords: Tensor, params: Tensor, d_out: Tensor, *config: Any) -> Tensor:
    return torch.from_numpy(_layout(*config).backward_coords(_numpy(coords), _numpy(params), _numpy(d_out)))


def _place(tensor: Tensor) -> tuple[int, int]:
    """The device of a CUDA tensor, and torch's stream there, as numbers."""
    index = tensor.device.index or 0
    return index, torch.cuda.current_stream(index).cuda_stream if tensor.is_cuda else 0


def _plain(tensor: Tensor) -> Tensor:
    """float32 in a row, at a multiple of 16 bytes, which kernels read at a time."""
    plain = tensor.detach().float().contiguous()
    return plain if plain.data_ptr() % 16 == 0 else plain.clone()


def _forward_cuda(coords: Tensor, params: Tensor, *config: Any) -> Tensor:
    layout = _layout(*config)
    out = coords.new_empty(len(coords), layout.n_output_dims, dtype=torch.float32)
    _native.cuda_hash_grid_forward(layout, _plain(coords), _plain(params), out, len(coords), *_place(coords))
    return out


def _backward_params_cuda(coords: Tensor, d_out: Tensor, *config: Any) -> Tensor:
    layout = _layout(*config)
    d_params = d_out.new_empty(layout.n_params, dtype=torch.float32)
    space = None
    if torch.are_deterministic_algorithms_enabled():
        space = d_out.new_empty(_native.cuda_hash_grid_workspace(layout), dtype=torch.uint8)
    _native.cuda_hash_grid_backward_params(
        layout, _plain(coords), _plain(d_out), d_params, len(coords), space, *_place(coords)
    )
    return d_params


def _backward_coords_cuda(coords: Tensor, params: Tensor, d_out: Tensor, *config: Any) -> Tensor:
    d_coords = torch.empty_like(coords, dtype=torch.float32, memory_format=torch.contiguous_format)
    _native.cuda_hash_grid_backward_coords(
        _layout(*config), _plain(coords), _plain(params), _plain(d_out), d_coords, len(coords), *_place(coords)
    )
    return d_coords


torch.library.impl("dvt_fast::hash_grid", "cuda", _forward_cuda, lib=_library)
torch.library.impl("dvt_fast::hash_grid_backward_params", "cuda", _backward_params_cuda, lib=_library)
torch.library.impl("dvt_fast::hash_grid_backward_coords", "cuda", _backward_coords_cuda, lib=_library)


@torch.library.register_fake("dvt_fast::hash_grid", lib=_library)
def _forward_fake(coords: Tensor, params: Tensor, *config: Any) -> Tensor:
    return params.new_empty(coords.shape[0], _layout(*config).n_output_dims)


@torch.library.register_fake("dvt_fast::hash_grid_backward_params", lib=_library)
def _backward_params_fake(coords: Tensor, d_out: Tensor, *config: Any) -> Tensor:
    return d_out.new_empty(_layout(*config).n_params)


@torch.library.register_fake("dvt_fast::hash_grid_backward_coords", lib=_library)
def _backward_coords_fake(coords: Tensor, params: Tensor, d_out: Tensor, *config: Any) -> Tensor:
    return torch.empty_like(coords, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coords, params, *ctx.config = inputs
    ctx.save_for_backward(coords, params)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Any, ...]:
    coords, params = ctx.saved_tensors
    d_coords = d_params = None
    if ctx.needs_input_grad[0]:
        d_coords = torch.ops.dvt_fast.hash_grid_backward_coords(coords, params, d_out, *ctx.config)
    if ctx.needs_input_grad[1]:
        d_params = torch.ops.dvt_fast.hash_grid_backward_params(coords, d_out, *ctx.config)
    return d_coords, d_params, *[None] * len(ctx.config)


torch.library.register_autograd("dvt_fast::hash_grid", _backward, setup_context=_setup_context, lib=_library)


class HashGrid(torch.nn.Module):
    """Coordinates [N, n_input_dims] in [0, 1] -> float32 [N, n_levels * n_features_per_level].

    n_input_dims: 2 or 3. encoding_config: tiny-cuda-nn's dictionary ("otype": "HashGrid", "n_levels", ...,
    "interpolation": "Linear"), with its defaults for keys left out; or else the keywords below, whose defaults are
    those of stage 1. seed: of the initial values, uniform in +-1e-4. Raises `InputError` for what it does not know.
    """

    def __init__(
        self,
        n_input_dims: int = 2,
        encoding_config: Mapping[str, Any] | None = None,
        *,
        n_levels: int = 16,
        n_features_per_level: int = 8,
        log2_hashmap_size: int = 20,
        base_resolution: int = 16,
        per_level_scale: float | None = None,
        seed: int = 1337,
    ) -> None:
        super().__init__()
        config: dict[str, Any] = {
            "n_levels": n_levels,
            "n_features_per_level": n_features_per_level,
            "log2_hashmap_size": log2_hashmap_size,
            "base_resolution": base_resolution,
            "per_level_scale": growth(16, 1024, 16) if per_level_scale is None else per_level_scale,
        }
        if encoding_config is not None:
            config = _from_tcnn(encoding_config)
        integers = [int(value) for name, value in config.items() if name != "per_level_scale"]
        self.config = (int(n_input_dims), *integers, float(config["per_level_scale"]))
        layout = _layout(*self.config)
        self.n_input_dims = self.config[0]
        self.n_output_dims: int = layout.n_output_dims
        generator = torch.Generator().manual_seed(seed)
        self.params = torch.nn.Parameter(torch.empty(layout.n_params).uniform_(-1e-4, 1e-4, generator=generator))

    def forward(self, coords: Tensor) -> Tensor:
        """coords: [N, n_input_dims], any floating dtype, on the parameters' device: the CPU or a CUDA device."""
        if coords.ndim != 2 or coords.shape[1] != self.n_input_dims:
            raise InputError(f"coords must have shape (N, {self.n_input_dims}), got {tuple(coords.shape)}")
        if coords.device != self.params.device:
            raise InputError(f"coords are on {coords.device} and the parameters on {self.params.device}: move one")
        if coords.device.type not in ("cpu", "cuda", "meta"):
            raise InputError(f"HashGrid runs on the CPU and on CUDA, got coords on {coords.device}")
        return torch.ops.dvt_fast.hash_grid(coords.float(), self.params.float(), *self.config)

    def extra_repr(self) -> str:
        """What `print` shows."""
        names = ("n_input_dims", *TCNN_DEFAULTS)
        return ", ".join(f"{name}={value:g}" for name, value in zip(names, self.config))


def _from_tcnn(encoding_config: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a tiny-cuda-nn dictionary; InputError for what is not a linear hash grid."""
    given = dict(encoding_config)
    only = {"otype": ("HashGrid", "Grid"), "type": ("Hash",), "interpolation": ("Linear",)}
    for name, accepted in only.items():
        value = given.pop(name, accepted[0])
        if str(value).lower() not in [a.lower() for a in accepted]:
            raise InputError(f"encoding_config[{name!r}] must be {' or '.join(accepted)}, got {value!r}")
    for name in given:
        if name not in TCNN_DEFAULTS:
            raise InputError(f"unknown key {name!r} in encoding_config; expected one of {', '.join(TCNN_DEFAULTS)}")
    return {name: given.get(name, default) for name, default in TCNN_DEFAULTS.items()}
