"""The model of an engine file as an ONNX graph, as ONNX Runtime runs it best.

Its own fused nodes are used: attention in one pass (`MultiHeadAttention`, which also adds the bias of queries, keys and
values) and GELU together with the bias before it; LayerScale is multiplied into the weights, the position embedding is
resampled beforehand, and patches are cut by a reshape. An export from torch, optimised or not, was slower. Transformers
with layer norms, biases and exact GELU: what the cases of benchmarks/engine.py are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import load

from dvt_fast.reference.engine import resample

FUSED = "com.microsoft"


class Graph:
    """Nodes and weights of a graph under construction; values are named by numbers. half: in float16."""

    def __init__(self, half: bool = False) -> None:
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: Any, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """The name of the output, or a list of them. Inputs: names, or constants (tensors, lists of integers)."""
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        made = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def finish(self, result: str, x_shape: Sequence[int], y_shape: Sequence[int]) -> bytes:
        """The serialised model from "x" to "y", which is `result`; both float32, or float16."""
        self.nodes.append(helper.make_node("Identity", [result], ["y"]))
        kind = onnx.TensorProto.FLOAT16 if self.half else onnx.TensorProto.FLOAT
        values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in (("x", x_shape), ("y", y_shape))]
        made = helper.make_graph(self.nodes, "engine", values[:1], values[1:], self.weights)
        versions = [helper.make_opsetid("", 17), helper.make_opsetid(FUSED, 1)]
        return helper.make_model(made, opset_imports=versions, ir_version=8).SerializeToString()

    def _constant(self, value: torch.Tensor | list[int]) -> str:
        array = np.array(value, np.int64) if isinstance(value, list) else np.ascontiguousarray(value.numpy())
        if self.half and array.dtype == np.float32:
            array = array.astype(np.float16)
        self.weights.append(numpy_helper.from_array(array, f"weight_{len(self.weights)}"))
        return self.weights[-1].name


def onnx_model(data: bytes, shape: tuple[int, ...], half: bool = False) -> bytes:
    """A serialised ONNX model, "x" of `shape` to "y" [1, h, w, C], of the bytes of an engine file.

    shape: [1, 3, H, W], normalised images, where the file holds a ViT; else [1, h, w, C], features. half: float16.
    """
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["dvt_fast"]
    config = json.loads(header)
    weights = {name: value.float() for name, value in load(data).items()}
    graph = Graph(half)
    if config["vit"] is None:
        grid, tokens = shape[1:3], graph.node("Reshape", "x", [1, -1, shape[3]])
    else:
        patch = config["patch_embed"]["patch"]
        grid = (shape[2] // patch[0], shape[3] // patch[1])
        x = graph.node("Reshape", "x", [3, grid[0], patch[0], grid[1], patch[1]])
        x = graph.node("Transpose", x, perm=[1, 3, 0, 2, 4])
        x = graph.node("Reshape", x, [1, grid[0] * grid[1], -1])
        tokens = _linear(graph, x, weights["patch_embed.weight"], weights["patch_embed.bias"])
    dim = 0
    for name in ("vit", "denoiser"):
        if config[name] is not None:
            dim = config[name]["dim"]
            tokens = _transformer(graph, config[name], weights, name, tokens, grid)
    return graph.finish(graph.node("Reshape", tokens, [1, *grid, dim]), shape, (1, *grid, dim))


def product(b: np.ndarray, m: int) -> bytes:
    """A serialised ONNX model that multiplies "x" [m, k] with the constant b [k, n]."""
    graph = Graph()
    return graph.finish(graph.node("MatMul", "x", torch.from_numpy(b)), (m, b.shape[0]), (m, b.shape[1]))


def _transformer(
    graph: Graph, config: dict[str, Any], weights: dict[str, torch.Tensor], name: str, x: str, grid: tuple[int, int]
) -> str:
    """Patches [1, h * w, C] -> [1, h * w, C]."""
    x = graph.node("Add", x, resample(weights[f"{name}.pos_embed"], config["pos_grid"], grid)[None])
    extra = config["extra_tokens"]
    if extra:
        x = graph.node("Concat", weights[f"{name}.extra_tokens"][None], x, axis=1)
    for i in range(config["depth"]):
        x = _block(graph, config, weights, f"{name}.blocks.{i}", x)
    if config["norm"] is not None:
        x = _norm(graph, config["norm"], weights, f"{name}.norm", x)
    return graph.node("Slice", x, [extra], [extra + grid[0] * grid[1]], [1]) if extra else x


def _block(graph: Graph, config: dict[str, Any], weights: dict[str, torch.Tensor], name: str, x: str) -> str:
    def folded(layer: str, scale: str) -> tuple[torch.Tensor, torch.Tensor]:
        factor = weights.get(f"{name}.{scale}", torch.ones(()))
        return weights[f"{name}.{layer}.weight"] * factor[..., None], weights[f"{name}.{layer}.bias"] * factor

    y = _norm(graph, config["block"]["norm1"], weights, f"{name}.norm1", x)
    y = graph.node("MatMul", y, weights[f"{name}.qkv.weight"].T)
    parts = graph.node("Split", y, [config["heads"] * config["head_dim"]] * 3, outputs=3, axis=-1)
    bias = weights[f"{name}.qkv.bias"]
    y = graph.node("MultiHeadAttention", *parts, bias, domain=FUSED, num_heads=config["heads"])
    x = graph.node("Add", x, _linear(graph, y, *folded("proj", "scale1")))

    y = _norm(graph, config["block"]["norm2"], weights, f"{name}.norm2", x)
    y = graph.node("MatMul", y, weights[f"{name}.fc1.weight"].T)
    y = graph.node("BiasGelu", y, weights[f"{name}.fc1.bias"], domain=FUSED)
    return graph.node("Add", x, _linear(graph, y, *folded("fc2", "scale2")))


def _linear(graph: Graph, x: str, weight: torch.Tensor, bias: torch.Tensor) -> str:
    return graph.node("Add", graph.node("MatMul", x, weight.T), bias)


def _norm(graph: Graph, config: dict[str, Any], weights: dict[str, torch.Tensor], name: str, x: str) -> str:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=config["eps"])
