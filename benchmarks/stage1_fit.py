"""One step of solver "hashgrid" against the same arithmetic in plain torch, in one run, at the official size.

The official size: 37 x 37 patches, 16 levels x 8 features, log2_T 20 (19.7M parameters), 2,048 patches a step. What a
step of ours cannot do without, at C = 768 in the second phase:

- 7.7 GFLOP of matrix products: forward, d_W and d_x of F's MLP (128 -> 384 -> 768, 4.2 GFLOP) and of h's
  (768 -> 192 -> 192 -> 768, 3.5 GFLOP, no d_x of its first layer). At 150 GFLOP/s a core (AVX-512): 26 ms on two.
- 20M parameter-steps of Adam: on average every entry of the grid that the views reach is replayed by one step. A square
  root and a division (two until the bias correction is 1) for each, 16 at a time: 25 to 35 cycles, 6 to 8 ms on two.
- Random reads of the grid, about 80,000 entries of p, m and v (8 MB): 2 ms. The rest (losses, gathers, 0.7M dense Adam
  parameters) streams some 60 MB through the caches: 3 ms.

Plain torch runs Adam over all 19.7M parameters and every temporary of it through memory. Both start from the same
parameters; losses and gradients are compared before anything is timed. Times are the best of the rounds, one round
being ten steps of ours and one of torch's.

    python benchmarks/stage1_fit.py [--channels 384 768] [--views 200] [--rounds 5] [--json results/stage1_fit.json]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import interleaved, save

from dvt_fast import _native
from dvt_fast.reference import HashGridEncoding, Recipe, Stage1Model, Trainer
from dvt_fast.solvers.hashgrid import HashgridOptions
from dvt_fast.views import plan_boxes, view_coords

SIDE, STEPS_A_ROUND = 37, 10
# Steps before a phase is timed: entries are then as far behind as they will be for the rest of the fit.
WARM = 300


def as_model(parameters: dict[str, np.ndarray], options: HashgridOptions, channels: int) -> Stage1Model:
    """Plain torch in the state of the native parameters."""
    model = Stage1Model(HashGridEncoding(**options.grid_config()), SIDE * SIDE, channels)
    for name, part in parts_of(model).items():
        torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters[name]), part.parameters())
    return model


def parts_of(model: Stage1Model) -> dict[str, torch.nn.Module]:
    """The modules by the names of the native parameters."""
    return {
        "grid": model.field.encoding,
        "field": model.field.mlp,
        "artifacts": model.artifacts,
        "residual": model.residual,
    }


def check(fitter: _native.HashgridFitter, trainer: Trainer, sample: np.ndarray, second_phase: bool) -> float:
    """The largest relative difference (in the 2-norm) of one step's gradients, over the parts of the model."""
    _, grads = fitter.gradients(sample, second_phase)
    index = torch.from_numpy(sample)
    trainer.model.zero_grad()
    raw, points = trainer.rows[index], trainer.points[index]
    loss = trainer.model.loss(raw, points, index % trainer.patches, second_phase, trainer.recipe)
    (trainer.recipe.loss_scale * loss).backward()
    worst = 0.0
    for name, part in parts_of(trainer.model).items():
        if name == ("artifacts" if second_phase else "residual"):
            continue
        expected = torch.cat([p.grad.flatten() for p in part.parameters()]).numpy()
        worst = max(worst, float(np.linalg.norm(grads[name] - expected) / np.linalg.norm(expected)))
    if worst > 1e-4:
        raise SystemExit(f"gradients differ by {worst:.1e}: nothing is timed")
    return worst


def measure(channels: int, views: int, rounds: int) -> list[dict]:
    """Milliseconds a step of both, in both phases."""
    rng = np.random.default_rng(0)
    coords = view_coords(plan_boxes(views - 1, seed=0), (SIDE, SIDE)).astype(np.float32)
    features = rng.standard_normal((len(coords), SIDE, SIDE, channels), np.float32)
    options = HashgridOptions(steps=2 * (WARM + STEPS_A_ROUND * rounds))
    fitter = _native.HashgridFitter(features, np.ascontiguousarray(coords), options.native())
    model = as_model(fitter.parameters(), options, channels)
    recipe = Recipe(steps=options.steps)
    trainer = Trainer(model, torch.from_numpy(features), torch.from_numpy(coords), recipe)

    def draw() -> np.ndarray:
        return rng.integers(0, features[..., 0].size, options.batch)

    results = []
    for phase in (1, 2):
        if phase == 2:
            trainer.step = options.steps // 2
            model.load_state_dict(as_model(fitter.parameters(), options, channels).state_dict())
        error = check(fitter, trainer, draw(), phase == 2)
        fitter.run(WARM)
        times = interleaved(
            {"ours": lambda: fitter.run(STEPS_A_ROUND), "torch": lambda: trainer.take(torch.from_numpy(draw()))}, rounds
        )
        ours, plain = min(times["ours"]) / STEPS_A_ROUND * 1e3, min(times["torch"]) * 1e3
        row = {"channels": channels, "phase": phase, "ours_ms": ours, "torch_ms": plain, "ratio": plain / ours}
        results.append(row | {"gradient_difference": error})
        print(
            f"C = {channels}, phase {phase}: ours {ours:6.1f} ms a step, plain torch {plain:7.1f} ms, "
            f"{plain / ours:5.1f} times faster (gradients differ by {error:.1e})",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--views", type=int, default=200, help="the official 769 need 3.2 GB at C = 768")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(_native.num_threads())
    results = [row for c in arguments.channels for row in measure(c, arguments.views, arguments.rounds)]
    save(arguments.json, {"results": results})


if __name__ == "__main__":
    main()
