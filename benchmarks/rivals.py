"""The engine and what it is measured against: each a function from nothing to the features of one fixed input.

All of them compute in float32 with the same number of threads, on input that lies ready and, where they can, into
memory that is allocated beforehand. Every rival is set up as it is fastest: torch.compile with frozen weights and
without Python between its kernels, ONNX Runtime on a graph of its own fused nodes (onnx_graph.py), OpenVINO for
latency. A worker of ONNX Runtime that spins after its work would disturb whoever comes next, so that is off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

Run = Callable[[], np.ndarray]


@dataclass
class Case:
    """A model and its input. module: what torch runs; data: the same model as the bytes of an engine file."""

    name: str
    module: nn.Module
    x: np.ndarray  # [1, h, w, C] features, or [1, 3, H, W] a normalised image
    data: bytes
    input: str  # of `Engine.session`
    grid: tuple[int, int]
    dim: int

    def truth(self) -> np.ndarray:
        """The features in float64."""
        with torch.inference_mode():
            return self.module.double()(torch.from_numpy(self.x).double()).numpy()


def dvt_fast_engine(case: Case, threads: int) -> Run:
    from dvt_fast import Engine

    grid = case.grid if case.input == "features" else None
    session = Engine.load(case.data).session(input=case.input, grid=grid, threads=threads)
    out = np.empty((1, *case.grid, case.dim), np.float32)
    return lambda: session.run(case.x, out=out)


def torch_eager(case: Case, threads: int) -> Run:
    x = torch.from_numpy(case.x)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return case.module(x).numpy()

    return run


def torch_compile(case: Case, threads: int) -> Run:
    import torch._inductor.config

    torch._inductor.config.freezing = torch._inductor.config.cpp_wrapper = True
    if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
        torch._inductor.config.cpp.simdlen = 256
    torch._dynamo.reset()
    compiled, x = torch.compile(case.module), torch.from_numpy(case.x)

    def run() -> np.ndarray:
        with torch.no_grad():
            return compiled(x).numpy()

    return run


def onnx_runtime(case: Case, threads: int) -> Run:
    from onnx_graph import onnx_model

    return onnx_session(onnx_model(case.data, case.x.shape), case.x, (1, *case.grid, case.dim), threads)


def onnx_session(model: bytes, x: np.ndarray, shape: tuple[int, ...], threads: int) -> Run:
    """A run of an ONNX model from "x" to "y" of the given shape."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding, y = session.io_binding(), np.empty(shape, np.float32)
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, shape, y.ctypes.data)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y

    return run


def openvino(case: Case, threads: int) -> Run:
    import openvino as ov

    model = ov.convert_model(case.module, example_input=torch.from_numpy(case.x), input=[list(case.x.shape)])
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer([case.x], share_inputs=True, share_outputs=True)[0]


ENGINE = "dvt_fast"
CANDIDATES: dict[str, Callable[[Case, int], Run]] = {
    ENGINE: dvt_fast_engine,
    "torch eager": torch_eager,
    "torch.compile": torch_compile,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
}
