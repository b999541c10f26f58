"""Solver "direct" on a GPU at the official size: 768 channels, 37 x 37 patches, 769 views, features on the device.

Timed, from the call to the result on the device: one pass; the default options, which reweight; and 32 views with a
calibrated artifact map. What one pass cannot do without is one read of the features, 3.2 GB in float32.

Before that, the same problem with few channels is solved on the CPU too, and the two results are compared: those of one
pass, whose channels do not know of each other, and those of the default options.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gpu_clock import Device, seconds
from gpu_report import Report

import dvt_fast
from dvt_fast.views import plan_boxes, view_coords

CHECKED_CHANNELS = 16
AGREE = 2e-3  # of two float32 solvers that sum in other orders, relative, in the 2-norm


def problem(device: torch.device, channels: int, side: int, views: int) -> tuple[torch.Tensor, np.ndarray]:
    """Features float32 [V, side, side, C] on the device: waves over the image, an artifact map, noise; and coords."""
    coords = np.ascontiguousarray(view_coords(plan_boxes(views - 1), (side, side)), np.float32)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    waves, phase, mix = 6 * normal(2, 16), 6 * normal(16), normal(16, channels)
    artifacts = normal(side, side, channels)
    features = torch.empty(*coords.shape[:3], channels, device=device)
    for start in range(0, len(coords), 32):
        xy = torch.from_numpy(coords[start : start + 32]).to(device)
        clean = torch.sin(xy @ waves + phase) @ mix
        features[start : start + 32] = clean + artifacts + 0.2 * normal(*clean.shape)
    return features, coords


def solve(features: Any, coords: np.ndarray, **options: Any) -> dvt_fast.Decomposition:
    """On the features' device, or where `device` says."""
    return dvt_fast.solve(features, coords, "direct", **options)


def difference(found: Any, expected: Any) -> float:
    a, b = (np.asarray(torch.as_tensor(x).cpu(), np.float64) for x in (found, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compared(features: torch.Tensor, coords: np.ndarray) -> dict[str, float]:
    """Relative differences between the GPU's and the CPU's results."""
    few = features[..., :CHECKED_CHANNELS].contiguous()
    on_cpu = few.cpu().numpy()
    out = {}
    for name, options in (("one pass", {"passes": 1}), ("default", {})):
        ours = solve(few, coords, device="cuda", **options)
        theirs = solve(on_cpu, coords, **options)
        for part in ("semantics", "artifacts"):
            out[f"{name}: {part}"] = difference(getattr(ours, part), getattr(theirs, part))
    return out


def measure(device: Device, report: Report, *, tiny: bool) -> None:
    """Puts report.data["direct"]."""
    channels, side, views = (16, 4, 6) if tiny else (768, 37, 769)
    repeats = 1 if tiny else 10
    features, coords = problem(device.torch, channels, side, views)
    row: dict[str, Any] = {
        "channels": channels,
        "side": side,
        "views": views,
        "differences": compared(features, coords),
    }
    report.put("direct", row)
    print(f"  direct, differences to the CPU: {row['differences']}", flush=True)
    if max(row["differences"].values()) > AGREE:
        row["not_timed"] = f"wrong: the results differ by up to {max(row['differences'].values()):.1e}"
        report.put("direct", row)
        raise RuntimeError(row["not_timed"])
    known = solve(features, coords, device="cuda", passes=1).artifacts
    few = min(views, 32)
    part, places = features[-few:].contiguous(), coords[-few:]
    runs = {
        "one pass": lambda: solve(features, coords, device="cuda", passes=1),
        "default": lambda: solve(features, coords, device="cuda"),
        f"{few} views, calibrated map, one pass": lambda: solve(part, places, device="cuda", artifacts=known, passes=1),
        f"{few} views, calibrated map, default": lambda: solve(part, places, device="cuda", artifacts=known),
    }
    for name, run in runs.items():
        info = run().meta["info"]
        times = seconds(device, run, repeats)
        row[name] = {"best_s": min(times), "median_s": float(np.median(times)), "info": info}
        report.put("direct", row)
        print(f"  direct, {name}: {1e3 * min(times):.2f} ms (median {1e3 * float(np.median(times)):.2f})", flush=True)
