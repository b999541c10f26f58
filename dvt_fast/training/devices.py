"""Where training runs: one process on one device, or those that torchrun started, through Lightning Fabric."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy

from ..errors import InputError

# How long processes wait for one another: the first one looks through a million images before training begins.
PATIENCE = timedelta(days=1)


class Autocast(MixedPrecision):
    """Mixed precision that leaves the inputs alone.

    Fabric's own rounds them to 16 bits first; here they run along the residual stream to the output, which would then
    have the features' own rounding in it. What a layer needs in 16 bits, autocast casts.
    """

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data


def default_precision(device: str) -> str:
    """fp32 on the CPU; on CUDA bf16 where the device has it, else fp16."""
    if not device.startswith("cuda"):
        return "fp32"
    has = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has else "fp16"


def launch(device: str, precision: str) -> Fabric:
    """A Fabric for this process: on `device` alone, or as one of torchrun's, each on the device of its own rank.

    device: "cpu", "cuda" or "cuda:1"; with torchrun the number is the process's own. Raises `InputError` for a device
    that is not there.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if kind == "cuda" and not int(number or 0) < torch.cuda.device_count():
        raise InputError(f"device {device!r} cannot be used: torch {torch.__version__} sees {_found()}")
    plugin: Precision = Precision()
    if precision != "fp32":
        plugin = Autocast("bf16-mixed" if precision == "bf16" else "16-mixed", kind)
    if not TorchElasticEnvironment.detect():
        place: Any = [int(number or 0)] if kind == "cuda" else 1
        return Fabric(accelerator=kind, devices=place, plugins=[plugin, LightningEnvironment()])
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else each process tells that it is there
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=kind,
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        strategy=DDPStrategy(process_group_backend="nccl" if kind == "cuda" else "gloo", timeout=PATIENCE),
        plugins=[plugin, TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two names mean one device: "cuda" is "cuda:0"."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def everywhere(fabric: Fabric, values: torch.Tensor) -> torch.Tensor:
    """The `values` of every process, [processes, ...], the same on each."""
    slots = values.new_zeros(fabric.world_size, *values.shape)
    slots[fabric.global_rank] = values
    return total(fabric, slots)  # torch deprecates the gathering that Fabric uses


def total(fabric: Fabric, values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over the processes, the same on each."""
    summed: Any = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    return summed


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Within, torch's CPU kernels give the same bits each time; the setting before comes back afterwards.

    On CUDA some kernels have no such version, and the others would need settings from before the process began.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it did not write
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _found() -> str:
    count = torch.cuda.device_count()
    return f"{count} CUDA device{'s' if count > 1 else ''}" if count else "no CUDA device"
