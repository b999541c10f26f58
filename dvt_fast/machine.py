"""What a result was made on and with, to stand beside its numbers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of a checkout; of an installed package, where packages are


def processor() -> tuple[str, int]:
    """The processor's name, and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine(), cores


def package_version(package: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe() -> dict[str, str | int | None]:
    """The processor, its cores, and the versions of what numbers depend on: JSON types."""
    name, cores = processor()
    found: dict[str, str | int | None] = {"processor": name, "cores": cores}
    found |= {package: package_version(package) for package in ("torch", "numpy")}
    return found | {"python": platform.python_version(), "platform": platform.platform()}


def commit() -> str | None:
    """The commit of the checkout that this package runs from, ending in "-dirty" where files differ from it; what the
    environment says as DVT_FAST_COMMIT goes before. None where the package is not run from a checkout."""
    if "DVT_FAST_COMMIT" in os.environ:
        return os.environ["DVT_FAST_COMMIT"] or None
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
