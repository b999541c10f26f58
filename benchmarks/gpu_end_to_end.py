"""One image from the file to its decomposition on a GPU: ViT-B/14 at 518 (random weights), 769 views, both solvers.

The reference's way is put together from its parts: crops resized on the device (its own come from eight processes on
the CPU, and are slower) and extracted in float32, 32 at a time, all measured; and 25,000 steps of which each costs what
`gpu_stage1.py` measured for its loop, half of them in each phase. So the second part is extrapolated, and
the result says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gpu_clock import Device, seconds
from gpu_report import Report
from gpu_stage1 import TINY
from gpu_stage1_torch import tf32
from PIL import Image

import dvt_fast
from dvt_fast.views import plan_boxes

STEPS = 25000


def picture() -> Image.Image:
    """A photo that comes with scikit-image; noise where that is absent."""
    try:
        from skimage import data

        return Image.fromarray(data.astronaut())
    except ImportError:
        return Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8))


def reference_extraction(image: Image.Image, vit: dvt_fast.ViT, boxes: np.ndarray, batch: int) -> torch.Tensor:
    """Features [V, h, w, C] of the views in `boxes`, by torch alone, on the ViT's device."""
    full = vit.transform(image)[None]
    height, width = full.shape[-2:]
    features = torch.empty(len(boxes), *vit.grid, vit.dim, device=vit.device)
    for start in range(0, len(boxes), batch):
        crops = []
        for x, y, w, h, flip in boxes[start : start + batch]:
            top, left = round(y * height), round(x * width)
            bottom, right = max(top + 1, round((y + h) * height)), max(left + 1, round((x + w) * width))
            crop = torch.nn.functional.interpolate(
                full[..., top:bottom, left:right], (height, width), mode="bicubic", antialias=True
            )
            crops.append(crop.flip(-1) if flip else crop)
        features[start : start + batch] = vit.features(torch.cat(crops))
    return features


def measure(device: Device, report: Report, *, tiny: bool) -> None:
    """Puts report.data["end_to_end"]."""
    name, size, plan = ("dvt_mini", 64, 4) if tiny else ("vit_base_patch14_dinov2", 518, "paper")
    vit = dvt_fast.ViT(name, weights="random", size=size, device=device.torch)
    image, boxes = picture(), plan_boxes(plan)
    row: dict[str, Any] = {"vit": name, "size": size, "views": len(boxes)}
    report.put("end_to_end", row)
    reference: dict[str, Any] = {}
    tf32(False)
    reference_extraction(image, vit, boxes[-2:], 2)
    reference["extraction_s"] = min(seconds(device, lambda: reference_extraction(image, vit, boxes, 32)))
    steps = report.data.get("stage1", {}).get("step_us", {}).get("reference")
    if steps:
        mean = sum(steps.values()) / len(steps)
        reference["fit_s"] = 1e-6 * mean * STEPS
        reference["fit_is"] = f"extrapolated: {STEPS} steps of {mean:.0f} us"
        reference["total_s"] = reference["extraction_s"] + reference["fit_s"]
    row["reference"] = reference
    report.put("end_to_end", row)
    print(f"  end to end, the reference's way: {reference}", flush=True)
    runs = {"direct": {}, "hashgrid": {"steps": 4, **TINY} if tiny else {"steps": STEPS}}
    for solver, options in runs.items():
        if not tiny and not report.fits(30, f"end to end, {solver}"):
            continue

        metas: list[dict[str, Any]] = []

        def run(solver: str = solver, options: dict[str, Any] = options, metas: list = metas) -> None:
            metas.append(dvt_fast.decompose(image, vit, plan, solver, device="cuda", **options).meta)

        times = seconds(device, run, 1 if tiny else 3)
        row[solver] = {"best_s": min(times), "first_s": times[0], "seconds": metas[-1]["seconds"], **options}
        if "total_s" in reference:
            row[solver]["ratio"] = reference["total_s"] / min(times)
        report.put("end_to_end", row)
        print(f"  end to end, {solver}: {min(times):.3f} s, {row[solver].get('ratio', float('nan')):.1f} times faster",
              flush=True)  # fmt: skip
