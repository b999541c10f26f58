"""Solver "hashgrid" on a GPU at the official size, beside the paper's loop and a tuned one in torch.

768 channels, 37 x 37 patches, 769 views, 16 levels x 8 features with 2^20 entries at most (19.7M parameters), batches
of 2,048. First all of them start from the same parameters and take the same samples: losses and gradients are compared
with torch's in float32, ours within twice the error of torch in tf32. Then, a phase at a time, each takes some hundreds
of steps; and ours a whole fit of 25,000.

What a step cannot do without: 7.7 GFLOP in the second phase (4.2 in the first), and some 80,000 random entries of the
grid, their moments and gradients.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import torch
from gpu_clock import Device, seconds
from gpu_direct import problem
from gpu_report import Report
from gpu_stage1_torch import DeviceHashGrid, Problem, ReferenceLoop, TunedLoop, encoding, make_model, tf32

import dvt_fast
from dvt_fast import _native
from dvt_fast.reference import Recipe
from dvt_fast.solvers.hashgrid import HashgridOptions

SIDE, CHANNELS, VIEWS, STEPS = 37, 768, 769, 25000
# Entries are then as far behind as they will be for the rest of the fit.
WARM, OURS, TUNED, REFERENCE = 300, 2000, 300, 100
CHECK_VIEWS = 24
TIMES, LOSS_DIFFERENCE = 2.0, 1e-3
TINY = {"n_levels": 4, "log2_hashmap_size": 8, "max_resolution": 64, "batch": 64}


def fitter(features: Any, coords: np.ndarray, options: HashgridOptions) -> Any:
    """Ours, on the device where the features are."""
    return _native.CudaHashgridFitter(features, coords, options.native())


def losses_total(losses: dict[str, float], recipe: Recipe) -> float:
    return (losses["mse"] + losses["cosine"] + recipe.residual_mse * losses["residual_mse"]
            + recipe.residual_l1 * losses["residual_l1"])  # fmt: skip


def torch_gradients(
    model: Any, held: Problem, sample: torch.Tensor, second: bool, recipe: Recipe
) -> tuple[float, dict]:
    """Loss, and gradients (scaled) by the names of the native parameters."""
    model.zero_grad()
    loss = held.loss(model, sample, second, recipe)
    (recipe.loss_scale * loss).backward()
    parts = {"grid": model.field.encoding, "field": model.field.mlp}
    parts |= {"residual": model.residual} if second else {"artifacts": model.artifacts}
    found = {name: torch.cat([p.grad.flatten() for p in part.parameters()]) for name, part in parts.items()}
    return float(loss), {name: value.double().cpu().numpy() for name, value in found.items()}


def compared(device: Device, features: torch.Tensor, coords: np.ndarray, options: HashgridOptions) -> dict[str, Any]:
    """Of one batch in both phases: relative differences to torch in float32, of ours and of torch in tf32."""
    few, places = features[:CHECK_VIEWS].contiguous(), np.ascontiguousarray(coords[:CHECK_VIEWS])
    ours = fitter(few, places, options)
    parameters = ours.parameters()
    parameters["grid"] = parameters["grid"] * np.float32(1e3)  # as they are later on: at 1e-4 the grid hardly tells
    ours.set_parameters(parameters)
    config, recipe = options.grid_config(), Recipe(steps=options.steps)
    model = make_model(DeviceHashGrid(device.torch, **config), parameters, few[0, ..., 0].numel(), few.shape[-1])
    held = Problem(few, torch.from_numpy(places).to(device.torch))
    out: dict[str, Any] = {}
    for second in (False, True):
        sample = np.random.default_rng(int(second)).integers(0, few[..., 0].numel(), options.batch)
        index = torch.from_numpy(sample).to(device.torch)
        tf32(False)
        loss, right = torch_gradients(model, held, index, second, recipe)
        tf32(True)
        _, low = torch_gradients(model, held, index, second, recipe)
        losses, grads = ours.gradients(sample, second)
        row: dict[str, Any] = {"loss": abs(losses_total(losses, recipe) / loss - 1)}
        for name, expected in right.items():
            size = np.linalg.norm(expected)
            row[name] = {
                "ours": float(np.linalg.norm(grads[name] - expected) / size),
                "torch_tf32": float(np.linalg.norm(low[name] - expected) / size),
            }
        out[f"phase {int(second) + 1}"] = row
    return out


def is_right(differences: dict[str, Any], device: Device) -> bool:
    """Whether ours differs at most `TIMES` as much as torch in tf32, which a processor has not."""
    least = 5e-4 if device.emulated else 1e-4
    for row in differences.values():
        errors = [value for value in row.values() if isinstance(value, dict)]
        yardstick = max(max(e["torch_tf32"] for e in errors), least)
        if not row["loss"] <= LOSS_DIFFERENCE or any(not e["ours"] <= TIMES * yardstick for e in errors):
            return False
    return True


def time_ours(
    device: Device, report: Report, features: torch.Tensor, coords: np.ndarray, options: HashgridOptions, warm: int,
    count: int, right: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Microseconds a step of ours, in both phases, if it is right; returns the parameters that it started from."""
    ours = fitter(features, coords, options)
    parameters = ours.parameters()
    if not right:
        report.put("stage1", "not_timed", "wrong: see differences")
        return parameters
    for phase in (1, 2):
        ours.run(warm)
        record(report, "ours", phase, seconds(device, lambda: ours.run(count))[0] / count)
    return parameters


def time_rivals(
    device: Device, report: Report, features: torch.Tensor, coords: np.ndarray, options: HashgridOptions,
    parameters: dict[str, np.ndarray], tiny: bool,
) -> None:  # fmt: skip
    """Microseconds a step of both loops, in both phases."""
    config, recipe = options.grid_config(), Recipe(steps=STEPS)
    held = Problem(features, torch.from_numpy(coords).to(device.torch))
    patches, channels = features[0, ..., 0].numel(), features.shape[-1]

    tf32(False)
    table, name = encoding(device.torch, config)
    report.put("stage1", "reference_encoding", name)
    loop = ReferenceLoop(make_model(table, parameters, patches, channels), held, recipe, options.batch)
    count = 2 if tiny else REFERENCE
    for phase in (1, 2):
        loop.second_phase = phase == 2
        loop.run(2 if tiny else 20)
        taken = min(seconds(device, lambda loop=loop: loop.run(count), 2)) / count
        record(report, "reference", phase, taken)
    del loop, table
    gc.collect()

    tf32(True)
    count = 2 if tiny else TUNED
    for phase in (1, 2):
        model = make_model(DeviceHashGrid(device.torch, **config), parameters, patches, channels)
        try:
            tuned = TunedLoop(model, held, recipe, options.batch, phase == 2, device)
            tuned.run(2 if tiny else 20)
            taken = min(seconds(device, lambda tuned=tuned: tuned.run(count), 2)) / count
            record(report, "tuned", phase, taken)
            del tuned
        except Exception as failure:
            report.put("stage1", "tuned_failed", f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}")
            print(f"  stage 1, tuned torch: {type(failure).__name__}: {failure}", flush=True)
        del model
        gc.collect()
    tf32(False)


def record(report: Report, who: str, phase: int, taken: float) -> None:
    report.put("stage1", "step_us", who, f"phase {phase}", 1e6 * taken)
    ours = report.data["stage1"]["step_us"].get("ours", {}).get(f"phase {phase}")
    text = ""
    if ours and who != "ours":
        report.put("stage1", "ratios", who, f"phase {phase}", 1e6 * taken / ours)
        text = f", {1e6 * taken / ours:.1f} times ours"
    print(f"  stage 1, {who}, phase {phase}: {1e6 * taken:.1f} us a step{text}", flush=True)


def measure(device: Device, report: Report, *, tiny: bool) -> None:
    """Puts report.data["stage1"]."""
    channels, side, views = (16, 4, 6) if tiny else (CHANNELS, SIDE, VIEWS)
    warm, count = (1, 2) if tiny else (WARM, OURS)
    features, coords = problem(device.torch, channels, side, views)
    options = HashgridOptions(steps=2 * (warm + count), **(TINY if tiny else {}))
    report.put("stage1", "size", {"channels": channels, "side": side, "views": views, "batch": options.batch})

    differences = compared(device, features, coords, options)
    right = is_right(differences, device)
    report.put("stage1", "differences", differences)
    print(f"  stage 1, differences to torch in float32: {differences}", flush=True)
    parameters = time_ours(device, report, features, coords, options, warm, count, right)
    if right and (tiny or report.fits(15, "stage 1: the whole fit")):
        steps = 4 if tiny else STEPS
        rest = TINY if tiny else {}

        def fit() -> dvt_fast.Decomposition:
            return dvt_fast.solve(features, coords, "hashgrid", device="cuda", steps=steps, **rest)

        taken = seconds(device, fit, 1 if tiny else 2)
        row = {"steps": steps, "best_s": min(taken), "first_s": taken[0], "us_a_step": 1e6 * min(taken) / steps}
        report.put("stage1", "fit", row)
        print(f"  stage 1, a fit of {steps} steps: {min(taken):.3f} s", flush=True)
    if tiny or report.fits(20, "stage 1: the rivals"):
        time_rivals(device, report, features, coords, options, parameters, tiny)
    if not right:
        raise RuntimeError("hashgrid is wrong: see the differences")


def measure_planted(device: Device, report: Report, *, tiny: bool) -> None:
    """Puts report.data["planted"]: what both backends recover of planted artifacts (planted.py)."""
    from planted import make, score, solve_with

    sizes = (8, 6, 5) if tiny else (96, 24, 160)
    for seed in range(1 if tiny else 3):
        if not tiny and not report.fits(25, f"planted: photo {seed}"):
            return
        case = make(*sizes, seed)
        for solver in ("direct", "hashgrid"):
            for where in ("cuda", "cpu"):
                found, of_artifacts, taken = solve_with(solver, case, 4 if tiny else 2000, where)
                cosine, of_semantics = score(found, case.clean)
                row = {"cosine": cosine, "error_F": of_semantics, "error_G": of_artifacts, "seconds": taken}
                report.put("planted", solver, where, f"photo {seed}", row)
                scores = f"cosine {cosine:.4f}, error of G {of_artifacts:.4f}, {taken:.3f} s"
                print(f"  planted, photo {seed}, {solver} on {where}: {scores}", flush=True)
