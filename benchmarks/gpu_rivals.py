"""Stage 2 on a GPU and what it is measured against: each a function from nothing to the features of one fixed input.

All of them compute in bfloat16 (ONNX Runtime in float16) at batch 1, on input that lies on the device, on torch's
current stream. Every rival is set up as it is fastest: torch's own choice of fused attention, torch.compile with
mode="max-autotune" and its graph captured here, so that it spares the copy of the input, TensorRT from the ONNX graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_clock import Device
from gpu_compile import compiled
from rivals import ENGINE, Case

Run = Callable[[], torch.Tensor]


def module_on(case: Case, device: Device, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor]:
    """The case's module and input on the device, as `dtype`."""
    module = copy.deepcopy(case.module).to(device.torch, dtype)
    return module, torch.from_numpy(case.x).to(device.torch, dtype)


def truth(case: Case, device: Device) -> torch.Tensor:
    """The features in float64."""
    module, x = module_on(case, device, torch.float64)
    with torch.inference_mode():
        return module(x)


def dvt_fast_engine(case: Case, device: Device) -> Run:
    from dvt_fast import Engine

    grid = case.grid if case.input == "features" else None
    session = Engine.load(case.data, device="cuda", dtype="bfloat16").session(input=case.input, grid=grid)
    x = device.put(torch.from_numpy(case.x).bfloat16())
    out = device.put(torch.empty(1, *case.grid, case.dim, dtype=torch.bfloat16))

    def run() -> torch.Tensor:
        session.run(x, out=out, stream=0 if device.emulated else torch.cuda.current_stream())
        return out

    return run


def torch_eager(case: Case, device: Device) -> Run:
    module, x = module_on(case, device, torch.bfloat16)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return module(x)

    return run


def torch_compile(case: Case, device: Device) -> Run:
    module, x = module_on(case, device, torch.bfloat16)
    return compiled(module, x)


def tensorrt(case: Case, device: Device) -> Run:
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(exported(case)):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.BF16)
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    context = engine.create_execution_context()
    x = torch.from_numpy(case.x).to(device.torch)
    y = torch.empty(1, *case.grid, case.dim, device=device.torch)
    context.set_tensor_address("x", x.data_ptr())
    context.set_tensor_address("y", y.data_ptr())
    kept = (engine, context, x)  # the context knows only their addresses

    def run() -> torch.Tensor:
        if not kept[1].execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not enqueue the run")
        return y

    return run


def exported(case: Case) -> bytes:
    """The case's module as an ONNX model of standard nodes, from "x" to "y", float32."""
    module = copy.deepcopy(case.module).float()
    program = torch.onnx.export(module, (torch.from_numpy(case.x),), input_names=["x"], output_names=["y"], dynamo=True,
                                verbose=False)  # fmt: skip
    return program.model_proto.SerializeToString()


def onnx_runtime(case: Case, device: Device) -> Run:
    import onnxruntime
    from onnx_graph import onnx_model

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() and not device.emulated:
        raise ImportError("built without CUDA", name="onnxruntime's CUDAExecutionProvider")
    x = torch.from_numpy(case.x).to(device.torch, torch.float16)
    y = torch.empty(1, *case.grid, case.dim, dtype=torch.float16, device=device.torch)
    where: dict[str, Any] = {"device_type": "cpu" if device.emulated else "cuda", "device_id": 0}
    provider: Any = "CPUExecutionProvider"
    if not device.emulated:
        stream = str(torch.cuda.current_stream().cuda_stream)
        provider = ("CUDAExecutionProvider", {"device_id": 0, "user_compute_stream": stream})
    session = onnxruntime.InferenceSession(onnx_model(case.data, case.x.shape, half=True), providers=[provider])
    binding = session.io_binding()
    for bind, name, tensor in ((binding.bind_input, "x", x), (binding.bind_output, "y", y)):
        bind(name=name, **where, element_type=np.float16, shape=tuple(tensor.shape),
             buffer_ptr=tensor.data_ptr())  # fmt: skip

    kept = (binding, x)  # the binding knows only their addresses

    def run() -> torch.Tensor:
        session.run_with_iobinding(kept[0])
        return y

    return run


EAGER, COMPILED = "torch eager", "torch.compile"
CANDIDATES: dict[str, Callable[[Case, Device], Run]] = {
    ENGINE: dvt_fast_engine,
    EAGER: torch_eager,
    COMPILED: torch_compile,
    "TensorRT": tensorrt,
    "ONNX Runtime": onnx_runtime,
}
