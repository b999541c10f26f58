"""What every benchmark shares: where a result was measured, and fair timing."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict:
    """The machine, versions and commit that a result belongs to."""
    from dvt_fast import _native
    from dvt_fast.machine import package_version, processor

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {
        "cpu": processor()[0],
        "cores": os.cpu_count(),
        "threads": _native.num_threads(),
        "isa": _native.active_isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {p: package_version(p) for p in ("numpy", "torch", "timm", "scipy", "scikit-learn")},
        # "+": with changes that are not committed, other than of results themselves.
        "commit": git("rev-parse", "--short", "HEAD")
        + ("+" if git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!*.md", ":!docs") else ""),
        "date": datetime.date.today().isoformat(),
    }


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int = 7) -> dict[str, list[float]]:
    """Seconds of each call: every candidate once a round, so that a noisy moment meets them all."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def save(path: Path | None, result: dict) -> None:
    """Write a result, with `environment()`, as JSON; nothing where no path was asked for."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **result}, indent=1) + "\n")
