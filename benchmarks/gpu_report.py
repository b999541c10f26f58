"""What is measured on a GPU, as it comes: the file is whole after every number, so that a time-out loses nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from common import environment

QUERY = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.limit",
    "temperature.gpu",
    "pstate",
)
PACKAGES = ("triton", "onnxruntime", "tensorrt", "torch_tensorrt", "tinycudann")


class Report:
    """A JSON file that is written again with every `put`. deadline: seconds from now on that all may take."""

    def __init__(self, path: Path | None, deadline: float):
        self.path, self.data = path, {}
        self._end = time.monotonic() + deadline
        self._start = time.monotonic()

    def left(self) -> float:
        """Seconds until the deadline."""
        return self._end - time.monotonic()

    def fits(self, seconds: float, what: str) -> bool:
        """Whether `what`, which takes about so many seconds, fits before the deadline; where not, that is recorded."""
        if self.left() >= seconds:
            return True
        why = f"skipped: it takes about {seconds:.0f} s, and {max(0.0, self.left()):.0f} s were left"
        self.put("skipped", what, why)
        print(f"  {what}: {why}", flush=True)
        return False

    def put(self, *keys_and_value: Any) -> None:
        """`put("stage2", name, value)`: sets data["stage2"][name] and writes the file."""
        *keys, last, value = keys_and_value
        place = self.data
        for key in keys:
            place = place.setdefault(key, {})
        place[last] = value
        self.data["seconds"] = round(time.monotonic() - self._start, 1)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(self.data, indent=1) + "\n")
            part.replace(self.path)


def nvidia_smi() -> dict[str, str]:
    """Clocks, driver and the like at this moment; empty without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().splitlines()[:1]
    return dict(zip(QUERY, (part.strip() for part in values[0].split(",")))) if values else {}


def short_name(name: str) -> str:
    """ "h200" of "NVIDIA H200", "h100" of "NVIDIA H100 80GB HBM3"."""
    found = re.search(r"[A-Za-z]*\d+\w*", name.replace("NVIDIA", "").replace("GeForce", ""))
    return (found.group() if found else "gpu").lower()


def machine(is_gpu: bool) -> dict[str, Any]:
    """`common.environment`, with what a GPU adds. The commit is DVT_FAST_COMMIT where there is no repository."""
    from dvt_fast import DvtError, _native

    known = environment()
    if not known["commit"].strip("+"):
        known["commit"] = os.environ.get("DVT_FAST_COMMIT", "unknown")
    for package in PACKAGES:
        try:
            known["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            known["versions"][package] = None
    known["torch_cuda"] = torch.version.cuda
    try:
        known["dvt_fast_cuda"] = _native.cuda_info()
    except DvtError as error:  # the sections say so too, and the rivals are measured all the same
        known["dvt_fast_cuda"] = str(error)
    if not is_gpu:
        return known | {"dry_run": "torch on the CPU and the emulator: times mean nothing"}
    properties = torch.cuda.get_device_properties(0)
    return known | {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GiB": round(properties.total_memory / 2**30, 1),
        "L2_MiB": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
        "cudnn": torch.backends.cudnn.version(),
        "nvidia_smi": nvidia_smi(),
    }
