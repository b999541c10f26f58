"""Checkpoints of a training: all that its next step depends on, in one safetensors file that appears whole.

`model.*`, `ema.*`, `exp_avg.*` and `exp_avg_sq.*` hold the weights, their running average and Adam's two moments, each
under the parameters' own names; the header holds the step, the settings, the scaler of fp16 and the best score so far.
For people it also holds the position: how many samples had been taken, which the step and the batch tell as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError, OutputError
from ..files import pack_safetensors, read_safetensors, write_whole

FORMAT, VERSION = "dvt_fast.training", 1
KEPT = 2  # newest checkpoints; the second is there for a disk that spoils the first
SHOWN = 6  # of the settings that differ, in a message

_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Store:
    """The checkpoints of one training in `folder`.

    settings: what makes two trainings the same, as JSON types; a checkpoint of others is refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings, default=str))  # as they come back from a file

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step:08d}.safetensors"

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, in order."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def newest(self, failed: Sequence[str] = ()) -> int | None:
        """The step of the newest checkpoint. `InputError` naming each difference where it has other settings.

        failed: a line for each image that cannot be used, which is why images may differ.
        """
        steps = self.steps()
        if not steps:
            return None
        there, here = dict(self.read(steps[-1])[0].get("settings", {})), dict(self.settings)
        data = [settings.pop("data", {}) for settings in (there, here)]
        other = differences(there, here)
        if data[0].get("contents") != data[1].get("contents"):
            counts = " there and ".join(str(part.get("images", 0) + part.get("held_out", 0)) for part in data)
            reason = f" ({len(failed)} cannot be used; the first: {failed[0]})" if failed else ""
            other.insert(0, f"the images are not the same, {counts} here{reason}")
        if other:
            more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
            raise InputError(
                f"{self.path(steps[-1])} is of a training with other settings: {'; '.join(other[:SHOWN])}{more}: "
                "give the same ones, write to another folder, or start over with --no-resume (resume=False)"
            )
        return steps[-1]

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Header and arrays; `InputError` for a file that cannot be used."""
        try:
            header, arrays = read_safetensors(self.path(step), FORMAT, VERSION)
        except InputError as error:
            if "not a readable" in str(error):
                raise InputError(f"{error}; without this file training goes on from the checkpoint before") from None
            raise
        return header, arrays

    def write(self, step: int, arrays: Mapping[str, np.ndarray], keep: Collection[int], **header: Any) -> Path:
        """Write a checkpoint; then delete the older ones but the newest and those of the steps in `keep`."""
        data = pack_safetensors(arrays, FORMAT, VERSION, step=step, settings=self.settings, **header)
        write_whole(self.path(step), data)
        self._delete(set(self.steps()[:-KEPT]) - set(keep))
        return self.path(step)

    def tidy(self) -> None:
        """Delete what a process that was killed while it wrote has left behind."""
        for path in self.folder.glob(".dvt-*.tmp"):
            with suppress(OSError):
                path.unlink()

    def clear(self) -> None:
        """Delete every checkpoint, to start over."""
        self._delete(self.steps())

    def _delete(self, steps: Collection[int]) -> None:
        for step in steps:
            try:
                self.path(step).unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{self.path(step)}: cannot be deleted: {error.strerror or error}") from None


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs between two nested dicts of settings, a text each: "batch is 8 there and 16 here"."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*here, *(key for key in there if key not in here)]
        missing = object()
        return [
            line
            for key in keys
            for line in differences(there.get(key, missing), here.get(key, missing), f"{name}.{key}" if name else key)
        ]
    if there == here:
        return []
    shown = ["absent" if type(value) is object else repr(value) for value in (there, here)]
    return [f"{name} is {shown[0]} there and {shown[1]} here"]


def gather(module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a checkpoint, and how many steps Adam has taken (fp16 skips those whose gradients overflow)."""
    arrays, taken = {}, 0
    for name, parameter in trained(module).items():
        arrays[f"model.{name}"] = parameter
        state = optimizer.state.get(parameter, {})
        for moment in _MOMENTS:
            arrays[f"{moment}.{name}"] = state[moment] if state else torch.zeros_like(parameter)
        taken = int(state["step"]) if state else 0
    arrays |= {f"ema.{name}": parameter for name, parameter in trained(ema, like=module).items()}
    return {name: value.detach().float().cpu().numpy() for name, value in arrays.items()}, taken


@torch.no_grad()
def scatter(
    arrays: Mapping[str, np.ndarray], taken: int, module: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put the arrays of a checkpoint back; the reverse of `gather`."""
    averages = trained(ema, like=module)
    for name, parameter in trained(module).items():
        parameter.copy_(torch.from_numpy(arrays[f"model.{name}"]))
        averages[name].copy_(torch.from_numpy(arrays[f"ema.{name}"]))
        if taken:
            state: dict[str, Any] = {"step": torch.tensor(float(taken))}
            for moment in _MOMENTS:
                state[moment] = torch.from_numpy(arrays[f"{moment}.{name}"]).to(parameter.device, parameter.dtype)
            optimizer.state[parameter] = state


def trained(module: nn.Module, like: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """The parameters of `module` that are trained; like: the module that tells which, for a copy without gradients."""
    names = {name for name, parameter in (like or module).named_parameters() if parameter.requires_grad}
    return {name: parameter for name, parameter in module.named_parameters() if name in names}
