"""Everything that is measured on a GPU, in one run of limited time, into one file.

Sections, in the order in which they are run: `ceilings` (what the device does at best), `stage2` (blocks, then whole
ViTs), `stage1` (solver "hashgrid"), `direct`, `end_to_end`, `planted` (what both backends recover of planted
artifacts), `ops` (each op of a block, by plan). The stage2 cases that matter most come before the other sections, and
the rest of them after them. A number is in the file
as soon as it is measured; what no longer fits the time is skipped, and the file says so.

    python benchmarks/gpu.py [--sections stage2 direct] [--seconds 510] [--json results/h200.json]

--tiny is a dry run of small models: on a machine without a GPU torch runs on the CPU and dvt_fast's kernels
in the emulator (DVT_FAST_CUDA_LIBRARY names it), and times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_direct
import gpu_end_to_end
import gpu_ops
import gpu_stage1
import gpu_stage2
import torch
from gpu_clock import Device, Gpu, Processor, ceilings
from gpu_report import Report, machine, nvidia_smi, short_name
from gpu_rivals import CANDIDATES

RESULTS = Path(__file__).parent / "results"
FIRST = ["C=768 N=1369", "C=768 N=256", "C=768 N=5329"]  # of stage2, before the other sections


def measure_ceilings(device: Device, report: Report, tiny: bool) -> None:
    report.put("ceilings", ceilings(device, tiny))
    print(f"  ceilings: {report.data['ceilings']}", flush=True)


def sections(device: Device, report: Report, rivals: list[str], tiny: bool) -> list[tuple[str, float, Callable]]:
    """(name, seconds that it takes at least, call), in order."""
    first = None if tiny else FIRST
    rest = [] if tiny else [("stage2", 30.0, lambda: gpu_stage2.measure(device, report, rivals, tiny=tiny))]
    return [
        ("ceilings", 5.0, lambda: measure_ceilings(device, report, tiny)),
        ("stage2", 20.0, lambda: gpu_stage2.measure(device, report, rivals, tiny=tiny, only=first)),
        ("stage1", 40.0, lambda: gpu_stage1.measure(device, report, tiny=tiny)),
        ("direct", 15.0, lambda: gpu_direct.measure(device, report, tiny=tiny)),
        ("end_to_end", 40.0, lambda: gpu_end_to_end.measure(device, report, tiny=tiny)),
        ("planted", 30.0, lambda: gpu_stage1.measure_planted(device, report, tiny=tiny)),
        *rest,
        ("ops", 20.0, lambda: gpu_ops.measure(device, report, tiny=tiny)),
    ]


SECTIONS = ("ceilings", "stage2", "stage1", "direct", "end_to_end", "planted", "ops")


def run(device: Device, report: Report, wanted: list[str], rivals: list[str], tiny: bool) -> list[str]:
    """Runs the sections; one that fails is reported and the next one runs. Returns the names of those that failed."""
    failed = []
    for name, least, call in sections(device, report, rivals, tiny):
        if name not in wanted or (not tiny and not report.fits(least, name)):
            continue
        print(f"{name}, {report.left():.0f} s left", flush=True)
        try:
            call()
        except Exception as failure:
            failed.append(name)
            text = traceback.format_exc()
            report.put("failed", name, text.splitlines()[-12:])
            print(text, flush=True)
            if "must be restarted" in str(failure) or "illegal" in str(failure):
                break  # the device answers nothing any more
        report.put("clocks", name, nvidia_smi())
        gc.collect()
        with contextlib.suppress(Exception):  # of a device that a section broke
            torch.cuda.empty_cache()
    return failed


def targets(report: Report) -> dict[str, dict[str, float | bool]]:
    """What was aimed at, and what came: of the medians, smaller is better for all."""
    data = report.data
    wanted = {
        "stage1 fit of 25,000 steps, s": (2.0, ("stage1", "fit", "best_s")),
        "direct, one pass, ms": (50.0, ("direct", "one pass", "median_s")),
        "direct, 32 views with a calibrated map, ms": (
            5.0,
            ("direct", "32 views, calibrated map, one pass", "median_s"),
        ),
    }
    for patches, limit in ((1369, 60.0), (256, 20.0), (5329, 330.0)):
        path = ("stage2", f"block C=768 N={patches}", "rows", "dvt_fast", "graph_us", "median")
        wanted[f"stage2, C = 768, N = {patches}, us"] = (limit, path)
    out: dict[str, dict[str, float | bool]] = {}
    for name, (limit, path) in wanted.items():
        value = data
        for key in path:
            value = value.get(key, {}) if isinstance(value, dict) else {}
        if isinstance(value, (int, float)):
            found = value * (1e3 if name.endswith("ms") else 1.0)
            out[name] = {"at_most": limit, "measured": found, "met": bool(found <= limit)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rivals", nargs="*", choices=list(CANDIDATES)[1:], default=list(CANDIDATES)[1:])
    parser.add_argument("--seconds", type=float, default=510, help="that all may take; what does not fit is skipped")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test this program")
    parser.add_argument("--json", type=Path, help="default: results/NAME-OF-THE-GPU.json; none of a dry run")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("torch sees no CUDA device; --tiny is a dry run without one")
    device = Gpu() if torch.cuda.is_available() else Processor()
    path = arguments.json
    if path is None and not arguments.tiny:
        path = RESULTS / f"{short_name(torch.cuda.get_device_name(0))}.json"
    report = Report(path, arguments.seconds)
    report.put("environment", machine(not device.emulated))
    failed = run(device, report, arguments.sections, [next(iter(CANDIDATES)), *arguments.rivals], arguments.tiny)
    report.put("targets", {} if arguments.tiny else targets(report))
    for name, row in report.data["targets"].items():
        print(f"{name}: {row['measured']:.2f}, at most {row['at_most']:g}: {'met' if row['met'] else 'MISSED'}")
    print(f"failed: {', '.join(failed) or 'none'}; skipped: {len(report.data.get('skipped', {}))};"
          f" {report.data['seconds']:.0f} s; {path or 'not saved'}")  # fmt: skip
    sys.stdout.flush()
    os._exit(bool(failed))  # compilers' workers and a broken device would hold up an ordinary end


if __name__ == "__main__":
    main()
