"""Modules of torch as layers of the engine file: attention, MLPs, norms, blocks.

A module is taken by its exact class, because a subclass may compute something else with the same weights, and every
tensor of it must be taken: one that is left over belongs to a computation that the engine does not have. So a model is
either exported whole or refused, by the name of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import InputError

# Classes by name, as timm has moved some of them: both places are meant.
ATTENTIONS = {
    "dvt_fast.denoiser.block.Attention",
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.eva.EvaAttention",
    "timm.models.vision_transformer.Attention",
}
MLPS = {
    "dvt_fast.denoiser.block.Mlp",
    "timm.layers.mlp.Mlp",
    "timm.layers.mlp.GluMlp",
    "timm.layers.mlp.SwiGLU",
}
BLOCKS = {"dvt_fast.denoiser.block.Block", "timm.models.eva.EvaBlock", "timm.models.vision_transformer.Block"}
SCALES = {"timm.layers.layer_scale.LayerScale", "timm.models.vision_transformer.LayerScale"}
NORMS = {
    "timm.layers.norm.LayerNorm": "layer",
    "timm.layers.norm.LayerNormFp32": "layer",
    "timm.layers.norm.RmsNorm": "rms",
    "timm.layers.norm.RmsNormFp32": "rms",
    "torch.nn.modules.normalization.LayerNorm": "layer",
}
ACTIVATIONS = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.QuickGELU": "quick_gelu",
    "timm.layers.activations.Swish": "silu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
}
BLOCK_NORMS = ("norm1", "norm2", "q_norm", "k_norm", "attention_norm", "mlp_norm")  # those the header says once

Linear = tuple[torch.Tensor, torch.Tensor | None]  # weight [out, in], bias [out]


class Layers:
    """The layers of one model on their way into an engine file.

    name: of the model, for messages. needed: its tensors by name, those that the result depends on. rotary: what the
    header says of rotary positions. order: of a head's channels of queries and keys, int64 [head_dim], where the rotary
    positions of the model have them in another order than the file.

    `block`, `norm` and `put` fill `tensors`, float32 by their names in the file, and `settings`, what all blocks share;
    at last, `finish` refuses a model of which something is left over.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        name: str,
        needed: Mapping[str, torch.Tensor],
        rotary: dict[str, Any] | None = None,
        order: torch.Tensor | None = None,
    ):
        self.model, self.name, self.rotary, self.order = model, name, rotary, order
        self.tensors: dict[str, torch.Tensor] = {}
        self.settings: dict[str, Any] = {}
        self._left = dict(needed)

    def refuse(self, path: str, why: str) -> InputError:
        """The error that names a layer."""
        return InputError(f"{self.name}: {path}: {why} is not supported by the engine")

    def take(self, path: str) -> torch.Tensor:
        """The tensor at `path` of the model, each only once."""
        return self._left.pop(path).detach().to("cpu", torch.float32)

    def put(self, name: str, value: torch.Tensor | None) -> None:
        """Keep a tensor under its name in the file; None for one that the model does without."""
        if value is not None:
            self.tensors[name] = value.contiguous()

    def child(self, path: str) -> Any:
        """The module or parameter at `path`; None where there is none, or one that does nothing."""
        found: Any = self.model
        for part in path.split("."):
            found = getattr(found, part, None)
        return None if isinstance(found, torch.nn.Identity) else found

    def check_class(self, path: str, known: Any) -> str:
        """The name of the class at `path`, which must be one of `known`."""
        found = class_name(self.child(path))
        if found not in known:
            package, _, kind = found.rpartition(".")
            raise self.refuse(path, f"{kind} of {package}")
        return found

    def finish(self) -> None:
        """Refuse a model of which a tensor was not taken."""
        if self._left:
            more = f" (and {len(self._left) - 1} more)" if len(self._left) > 1 else ""
            raise self.refuse(min(self._left) + more, "a parameter of this name")

    def block(self, path: str, name: str) -> None:
        """Keep x + scale1 * proj(attention(norm1(x))), then x + scale2 * mlp(norm2(x))."""
        self.check_block(path)
        self._block_norm(f"{path}.norm1", name, "norm1")
        self._attention(f"{path}.attn", name)
        self._scale(path, name, 1)
        self._block_norm(f"{path}.norm2", name, "norm2")
        self._mlp(f"{path}.mlp", name)
        self._scale(path, name, 2)

    def check_block(self, path: str) -> None:
        """Refuse a block that is no pre-norm transformer block."""
        if self.child(f"{path}.attn") is not None:  # first, as its class says most about what is not supported
            self.check_class(f"{path}.attn", ATTENTIONS)
        self.check_class(path, BLOCKS)

    def norm(self, path: str, name: str) -> dict[str, Any] | None:
        """Keep the weights of a norm; returns what the header says of it."""
        module = self.child(path)
        if module is None:
            return None
        kind = NORMS[self.check_class(path, NORMS)]
        self.put(f"{name}.weight", None if module.weight is None else self.take(f"{path}.weight"))
        self.put(f"{name}.bias", None if getattr(module, "bias", None) is None else self.take(f"{path}.bias"))
        return {"kind": kind, "eps": float(module.eps)}

    def linear(self, path: str) -> Linear:
        """Weight and bias of a linear layer."""
        self.check_class(path, ("torch.nn.modules.linear.Linear",))
        return self.take(f"{path}.weight"), None if self.child(path).bias is None else self.take(f"{path}.bias")

    def _put_linear(self, name: str, linear: Linear) -> None:
        self.put(f"{name}.weight", linear[0])
        self.put(f"{name}.bias", linear[1])

    def _share(self, path: str, **settings: Any) -> None:
        """Settings that the file holds once, for all blocks."""
        for key, value in settings.items():
            if self.settings.setdefault(key, value) != value:
                raise self.refuse(path, f"{key} {value}, where the blocks before have {self.settings[key]},")

    def _block_norm(self, path: str, name: str, key: str) -> None:
        self._share(path, **{key: self.norm(path, f"{name}.{key}")})

    def _scale(self, path: str, name: str, number: int) -> None:
        if self.child(f"{path}.ls{number}") is not None:
            self.check_class(f"{path}.ls{number}", SCALES)
            self.put(f"{name}.scale{number}", self.take(f"{path}.ls{number}.gamma"))
        elif self.child(f"{path}.gamma_{number}") is not None:
            self.put(f"{name}.scale{number}", self.take(f"{path}.gamma_{number}"))

    def _attention(self, path: str, name: str) -> None:
        attention = self.child(path)
        parts = self._fused(path) if self.child(f"{path}.qkv") is not None else self._separate(path)
        head_dim = len(parts[0][0]) // attention.num_heads
        self._share(path, heads=attention.num_heads, head_dim=head_dim)
        if self.rotary is not None and head_dim % 4:
            raise self.refuse(path, f"rotary positions in heads of {head_dim} channels")
        if self.order is not None:
            parts[:2] = [_reorder(part, attention.num_heads, self.order) for part in parts[:2]]
        self._put_linear(f"{name}.qkv", _join(parts))
        for key in ("q_norm", "k_norm"):
            self._block_norm(f"{path}.{key}", name, key)
            for part in (f"{name}.{key}.weight", f"{name}.{key}.bias"):
                if self.order is not None and part in self.tensors:
                    self.put(part, self.tensors[part][self.order])
        self._block_norm(f"{path}.norm", name, "attention_norm")
        self._put_linear(f"{name}.proj", self.linear(f"{path}.proj"))

    def _fused(self, path: str) -> list[Linear]:
        """Queries, keys and values of one projection, whose bias EVA keeps in parts, none for the keys."""
        weight, bias = self.linear(f"{path}.qkv")
        if self.child(f"{path}.q_bias") is not None:
            q, v = self.take(f"{path}.q_bias"), self.take(f"{path}.v_bias")
            bias = torch.cat([q, self.child(f"{path}.k_bias").detach().to("cpu", torch.float32), v])
        return _split((weight, bias), 3)

    def _separate(self, path: str) -> list[Linear]:
        """Queries, keys and values of three projections; keys and values that several heads share, once a head."""
        query, *others = (self.linear(f"{path}.{part}_proj") for part in "qkv")
        attention = self.child(path)
        shared = getattr(attention, "num_kv_heads", attention.num_heads)

        def repeat(heads: torch.Tensor) -> torch.Tensor:
            return heads.repeat_interleave(attention.num_heads // shared, dim=0)

        return [query, *(_by_head(other, shared, repeat) for other in others)]

    def _mlp(self, path: str, name: str) -> None:
        kind = self.check_class(path, MLPS).rpartition(".")[2]
        mlp = self.child(path)
        if kind == "SwiGLU":
            first = _join([self.linear(f"{path}.fc1_g"), self.linear(f"{path}.fc1_x")])
        else:
            first = self.linear(f"{path}.fc1")
        if kind == "GluMlp" and mlp.gate_last:
            first = _join(_split(first, 2)[::-1])
        second = self.linear(f"{path}.fc2")
        activation = self._activation(f"{path}.act") if hasattr(mlp, "act") else "gelu"
        self._share(path, hidden=second[0].shape[1], gated=kind != "Mlp", activation=activation)
        self._put_linear(f"{name}.fc1", first)
        self._block_norm(f"{path}.norm", name, "mlp_norm")
        self._put_linear(f"{name}.fc2", second)

    def _activation(self, path: str) -> str:
        module = self.child(path)
        if class_name(module) == "torch.nn.modules.activation.GELU":
            return "gelu_tanh" if module.approximate == "tanh" else "gelu"
        return ACTIVATIONS[self.check_class(path, ACTIVATIONS)]


def class_name(module: object) -> str:
    """The full name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def y_first(head_dim: int, pairs: str) -> torch.Tensor:
    """The order of a head's channels, int64 [head_dim], that moves its second half of pairs before the first."""
    channels = torch.arange(head_dim)
    if pairs == "neighbours":
        return channels.roll(head_dim // 2)
    return channels.reshape(2, head_dim // 2).roll(head_dim // 4, 1).flatten()


def _split(linear: Linear, parts: int) -> list[Linear]:
    """Linear layers of equally many outputs each."""
    weight, bias = linear
    return list(zip(weight.chunk(parts), [None] * parts if bias is None else bias.chunk(parts)))


def _join(parts: list[Linear]) -> Linear:
    """One linear layer of all outputs; a bias that one part lacks is zero there."""
    whole = torch.cat([weight for weight, _ in parts])
    if all(bias is None for _, bias in parts):
        return whole, None
    return whole, torch.cat([torch.zeros(len(weight)) if bias is None else bias for weight, bias in parts])


def _by_head(linear: Linear, heads: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Linear:
    """A linear layer whose outputs [heads, head_dim, ...] were changed."""
    weight, bias = (None if x is None else change(x.unflatten(0, (heads, -1))).flatten(0, 1) for x in linear)
    assert weight is not None
    return weight, bias


def _reorder(linear: Linear, heads: int, order: torch.Tensor) -> Linear:
    """Queries or keys with the channels of each head in another order, which changes no product of the two."""
    return _by_head(linear, heads, lambda x: x[:, order])
