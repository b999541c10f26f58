"""The ops of a transformer block on a GPU, one by one, with every plan that Hopper's products have.

The sizes are those of tests/cases.py: C = 768, 256 to 5329 rows, bfloat16. Times are the difference of many launches in
a row and of one, over their number, so that copies of operands do not count; operands stay in the L2 cache where they
fit. Beside them torch's op for the same, its graph replayed. This is what plans are chosen by (csrc/transformer), and
where a block's time goes.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_clock import Device, row_times
from gpu_report import Report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SECONDS = 0.02  # of launches in a row
TILES, SPLITS = ("narrow", "square", "wide", "widest"), (1, 2, 3, 4)
PATCHES, HEADS, HEAD_DIM = (256, 1369, 5329), 12, 64


class Op:
    """One op with its operands. found: what it gives."""

    def __init__(self, name: str, tensors: dict, outputs: dict, numbers: dict, words: dict):
        self.arguments = (name, tensors, outputs, numbers, words)

    def run(self, repeat: int = 1) -> tuple[float, dict[str, np.ndarray]]:
        """(seconds, outputs), copies of operands included."""
        from cuda_samples import run_op

        start = time.perf_counter()
        found = run_op(*self.arguments, repeat=repeat)
        return time.perf_counter() - start, found

    def microseconds(self, tiny: bool) -> float:
        """Of one launch."""
        if tiny:
            return 1e6 * self.run()[0]
        once = min(self.run()[0] for _ in range(3))
        guess = max(1e-6, (self.run(51)[0] - once) / 50)
        count = int(np.clip(SECONDS / guess, 50, 5000))
        return 1e6 * min(self.run(count + 1)[0] - once for _ in range(3)) / count


def linear_cases(tiny: bool) -> Iterator[tuple[str, int, int, int, str]]:
    """(name, rows, in, out, activation)."""
    from cases import cases

    if tiny:
        yield "linear 9x72x40-gelu", 9, 72, 40, "gelu"
        return
    for case in cases("linear", small=False):
        if case.dtype == "bfloat16":
            s = case.shape
            yield f"linear {case.name}", s["rows"], s["in"], s["out"], case.words["activation"]


def linear_plans(rows: int, cin: int, out: int, activation: str, tiny: bool) -> Iterator[tuple[str, Op, Any]]:
    """(plan, op, torch's op on tensors of the same values)."""
    from cuda_samples import stored

    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((rows, cin)), rng.standard_normal((out, cin)) / cin**0.5
    bias = rng.standard_normal(out).astype(np.float32)
    tensors = {"x": stored(x, "bfloat16"), "weight": stored(weight, "bfloat16"), "bias": bias}
    outputs = {"y": ((rows, out), "bfloat16")}
    words = {"type": "bfloat16", "activation": activation}
    for name, portable in (("chosen", 0), ("portable", 1)):
        yield name, Op("linear", tensors, outputs, {"portable": portable, "overlap": 1}, words), (x, weight, bias)
    for tile, split, shared in itertools.product(TILES, SPLITS, (0, 1)):
        if (shared and split > 1) or (tiny and (tile, split) != ("square", 1)) or split > cin // 64:
            continue
        numbers = {"split": split, "shared": shared, "overlap": 1}
        name = f"{tile}, split {split}{', shared' if shared else ''}"
        yield name, Op("linear_sm90", tensors, outputs, numbers, words | {"tile": tile}), (x, weight, bias)


def torch_linear(device: Device, x: Any, weight: Any, bias: Any, activation: str) -> tuple[Any, np.ndarray]:
    """(torch's run in bfloat16, the float64 result)."""
    a, w, b = (torch.from_numpy(np.asarray(v)).to(device.torch, torch.bfloat16) for v in (x, weight, bias))

    def apply(a: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(a, w, b)
        return torch.nn.functional.gelu(y) if activation == "gelu" else y

    exact = torch.from_numpy(np.asarray(bias)).to(device.torch, torch.float64)
    return lambda: apply(a, w, b), apply(a.double(), w.double(), exact).cpu().numpy()


def attention_plans(tokens: int, heads: int) -> tuple[list[tuple[str, Op]], torch.Tensor]:
    """(plan, op), and queries, keys and values [3, 1, heads, tokens, 64] for torch, in bfloat16."""
    from cuda_samples import stored

    qkv = torch.from_numpy(np.random.default_rng(0).standard_normal((1, tokens, 3, heads, HEAD_DIM), np.float32))
    qkv = qkv.bfloat16()
    scaled = qkv.float()
    scaled[:, :, 0] *= 1.4426950408889634 / HEAD_DIM**0.5
    tensors = {"qkv": stored(scaled.reshape(1, tokens, -1).numpy(), "bfloat16")}
    outputs = {"out": ((1, tokens, heads * HEAD_DIM), "bfloat16")}
    plans = [
        (name, Op("attention", tensors, outputs, {"heads": heads, "portable": portable, "overlap": 1}, {}))
        for name, portable in (("chosen", 0), ("portable", 1))
    ]
    for queries in (64, 128):
        numbers = {"heads": heads, "queries": queries, "overlap": 1}
        plans.append((f"{queries} queries a block", Op("attention_sm90", tensors, outputs, numbers, {})))
    return plans, qkv.permute(2, 0, 3, 1, 4)


def timed(
    device: Device, report: Report, name: str, plans: Any, rival: Any, right: float, truth: np.ndarray, flop: float,
    tiny: bool,
) -> None:  # fmt: skip
    """Puts the times of all plans of one op, each after its result was compared. right: the error of torch's."""
    from cuda_samples import error

    times = row_times(device, {"torch": device.capture(rival)}, 2 if tiny else 20, hold=True)["torch"]
    row: dict[str, Any] = {"gflop": 1e-9 * flop, "torch_us": float(np.median(times)), "us": {}}
    for plan, op in plans:
        try:
            wrong = error(next(iter(op.run()[1].values())), truth)
            if wrong > 2 * right + 1e-6:
                row["us"][plan] = f"wrong: error {wrong:.1e}, that of torch is {right:.1e}"
            else:
                row["us"][plan] = op.microseconds(tiny)
        except Exception as problem:
            row["us"][plan] = f"{type(problem).__name__}: {problem}"
            if "must be restarted" in str(problem):
                raise
    found = {plan: value for plan, value in row["us"].items() if isinstance(value, float)}
    row["fastest"] = min(found, key=lambda plan: found[plan]) if found else None
    report.put("ops", name, row)
    if row["fastest"]:
        best, chosen = found[row["fastest"]], found.get("chosen", float("nan"))
        print(f"  {name}: {best:.2f} us ({row['fastest']}), chosen {chosen:.2f}, torch {row['torch_us']:.2f},"
              f" {1e-6 * flop / best:.0f} TFLOP/s", flush=True)  # fmt: skip
    for plan, value in row["us"].items():
        if isinstance(value, str):
            print(f"  {name}, {plan}: {value}", flush=True)


def measure(device: Device, report: Report, *, tiny: bool) -> None:
    """Puts report.data["ops"]."""
    from cuda_samples import error

    for tokens in (70,) if tiny else PATCHES:
        if not tiny and not report.fits(5, f"ops: attention of {tokens}"):
            return
        heads = 2 if tiny else HEADS
        plans, qkv = attention_plans(tokens, heads)
        there = qkv.to(device.torch)

        def rival(there: torch.Tensor = there) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(*there)

        exact = torch.nn.functional.scaled_dot_product_attention(*there.double()).cpu()
        right = error(rival().float().cpu().numpy(), exact.numpy())
        truth = exact.transpose(1, 2).reshape(1, tokens, -1).numpy()
        flop = 4.0 * heads * tokens**2 * HEAD_DIM
        timed(device, report, f"attention {heads}x{tokens}x{HEAD_DIM}", plans, rival, right, truth, flop, tiny)
    for name, rows, cin, out, activation in linear_cases(tiny):
        if not tiny and not report.fits(6, f"ops: {name}"):
            return
        plans = list(linear_plans(rows, cin, out, activation, tiny))
        run, truth = torch_linear(device, *plans[0][2], activation)
        right = error(run().float().cpu().numpy(), truth)
        timed(device, report, name, [plan[:2] for plan in plans], run, right, truth, 2.0 * rows * cin * out, tiny)
