"""Stage 2 on a GPU: one denoiser block, and whole ViTs with one, beside torch, torch.compile and TensorRT.

Cases: a block of C channels on N patches, C = 768 and 384, N = 256, 1369 and 5329; ViT-B/14 and ViT-S/14 at 518, each
followed by a denoiser of one block; bfloat16, batch 1, random weights and input. Every result is compared with float64
before it is timed: ours may have at most twice the error of torch in bfloat16, a rival ten times; relative errors in
the 2-norm. What the times are is in gpu_clock.py, who the rivals are in gpu_rivals.py.

A block cannot take less than its products at the rate of a large one, or its weights and features through memory:
2 N (12 C^2) + 4 N^2 C operations and 24 C^2 + 4 N C bytes.

Of ours alone: a thousand runs allocate nothing on the device and give the same bits, a replayed graph gives those of a
call, and two threads on two streams those of one after the other.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from engine import block_case, vit_case
from gpu_clock import Device, Run, ceilings, graph_times, row_times, summary
from gpu_compile import BLOCKS, COMPILE_SECONDS, TINY_BLOCKS, TINY_VITS, VIT_SIZE, VITS
from gpu_report import Report
from gpu_rivals import CANDIDATES, COMPILED, EAGER, truth
from rivals import ENGINE, Case

OURS_AT_MOST, RIVALS_AT_MOST = 2.0, 10.0  # times the error of torch in bfloat16
SECONDS = {"block": 20.0, "vit": 60.0}  # of one case, compilation included
RUNS = 1000
TIMING_SECONDS = 8.0  # of the single runs of a case: with slower candidates there are fewer than RUNS, but at least 100


def cases(tiny: bool) -> list[tuple[str, str, Callable[[], Case]]]:
    """(kind, name, a function that makes the case), the ones that matter most first."""
    blocks, vits, size = (TINY_BLOCKS, TINY_VITS, 64) if tiny else (BLOCKS, VITS, VIT_SIZE)
    made: list[tuple[str, str, Callable[[], Case]]] = [
        ("block", f"block C={dim} N={side**2}", lambda dim=dim, side=side: block_case(dim, side))
        for dim, side in blocks
    ]
    for label, name in vits.items():
        case = f"{label} at {size} + denoiser"
        made.append(("vit", case, lambda label=label, name=name: vit_case(label, name, size)))
    return made


def gflop(case: Case) -> float:
    """Of the products of one run."""
    from torch.utils.flop_counter import FlopCounterMode

    module = copy.deepcopy(case.module).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.from_numpy(case.x).to("meta"))
    return counter.get_total_flops() / 1e9


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    """|found - right| / |right|; infinite for another shape or NaN."""
    if found.shape != right.shape or not torch.isfinite(found).all():
        return float("inf")
    return float((found.double() - right).norm() / right.norm())


def prepared(case: Case, device: Device, names: list[str]) -> tuple[dict[str, Run], dict[str, dict]]:
    """The candidates that may be timed, and for each of `names` its error, or why it is not timed."""
    right = truth(case, device)
    yardstick = error(CANDIDATES[EAGER](case, device)(), right)
    runs: dict[str, Run] = {}
    rows: dict[str, dict] = {}
    for name in names:
        try:
            run = CANDIDATES[name](case, device)
            found = error(run(), right)
        except ImportError as missing:
            rows[name] = {"not_timed": f"not installed ({missing.name})"}
            continue
        except Exception as failure:  # in whatever way; the others are still compared
            rows[name] = {"not_timed": f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"}
            continue
        rows[name] = {"error": found, "error_to_torch": found / yardstick}
        allowed = OURS_AT_MOST if name == ENGINE else RIVALS_AT_MOST
        if found <= allowed * yardstick:
            runs[name] = run
        else:
            rows[name]["not_timed"] = f"wrong: error {found:.1e}, that of torch in bfloat16 is {yardstick:.1e}"
    return runs, rows


def timed(device: Device, runs: dict[str, Run], rows: dict[str, dict], repeats: int) -> None:
    """Puts the times of every run into its row, in microseconds."""
    graphs: dict[str, Run] = {}
    for name, run in runs.items():
        try:
            graphs[name] = device.capture(run)
        except Exception as failure:  # a rival that synchronises cannot be captured
            rows[name]["no_graph"] = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
            device.synchronize()
    round_us = sum(min(times) for times in graph_times(device, graphs, min(repeats, 3)).values())
    repeats = min(repeats, max(100, int(TIMING_SECONDS * 1e6 / (2 * round_us + 300 * len(graphs)))))
    some = min(repeats, 3)
    for name, times in graph_times(device, graphs, repeats).items():
        rows[name]["graph_us"] = summary(times)
    for name, times in graph_times(device, graphs, max(some, repeats // 10), cold=True).items():
        rows[name]["cold_us"] = summary(times)
    for name, times in row_times(device, graphs, max(some, repeats // 20), hold=True).items():
        rows[name]["back_to_back_us"] = summary(times)
    for name, times in row_times(device, runs, max(some, repeats // 50), hold=False).items():
        rows[name]["calls_us"] = summary(times)


def ratios(rows: dict[str, dict]) -> dict[str, dict[str, float]]:
    """How many times the median of ours each rival takes: graphs beside graphs, calls beside calls, and torch's calls
    beside our graph, which is how each of the two is used."""
    ours = rows.get(ENGINE, {})
    out: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        if name == ENGINE:
            continue
        kinds = {kind: (kind, kind) for kind in ("graph_us", "cold_us", "back_to_back_us", "calls_us")}
        kinds["calls_to_graph"] = ("calls_us", "graph_us")
        found = {
            kind: row[theirs]["median"] / ours[mine]["median"]
            for kind, (theirs, mine) in kinds.items()
            if theirs in row and mine in ours and ours[mine]["median"] > 0
        }
        if found:
            out[name] = found
    return out


def steadiness(case: Case, device: Device, runs: int) -> dict[str, Any]:
    """What a session must keep to over many runs; see the top."""
    run = CANDIDATES[ENGINE](case, device)
    first = run().clone()
    replay = device.capture(run)
    device.synchronize()
    before = device.memory()
    for _ in range(runs):
        run()
    device.synchronize()
    after = device.memory()
    differing = torch.zeros((), dtype=torch.int64, device=device.torch)
    for _ in range(runs):
        differing += (run() != first).any()
    replayed = torch.zeros_like(differing)
    for _ in range(max(2, runs // 10)):
        run().zero_()
        replayed += (replay() != first).any()
    return {
        "runs": runs,
        "bytes_allocated": after[0] - before[0],
        "torch_allocations": after[1] - before[1],
        "runs_of_other_bits": int(differing),
        "replays_of_other_bits": int(replayed),
        "threads_equal_serial": two_threads(case, device, max(2, runs // 10)),
    }


def two_threads(case: Case, device: Device, runs: int) -> bool:
    """Whether two sessions on two threads and streams give the bits of one after the other."""
    other = copy.copy(case)
    other.x = case.x[:, ::-1].copy()
    sessions = [CANDIDATES[ENGINE](each, device) for each in (case, other)]
    serial = [session().clone() for session in sessions]
    device.synchronize()
    wrong: list[Any] = []

    def work(index: int) -> None:
        try:
            if device.emulated:
                for _ in range(runs):
                    if not torch.equal(sessions[index](), serial[index]):
                        wrong.append(index)
                return
            stream = torch.cuda.Stream(device.torch)
            with torch.cuda.stream(stream):
                for _ in range(runs):
                    if not torch.equal(sessions[index](), serial[index]):
                        wrong.append(index)
        except Exception as failure:
            wrong.append(f"{type(failure).__name__}: {failure}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for problem in wrong[:1]:
        print(f"  two threads: {problem}", flush=True)
    return not wrong


def show(name: str, result: dict[str, Any]) -> None:
    print(f"{name}, {result['gflop']:.1f} GFLOP")
    ours = result["rows"].get(ENGINE, {}).get("graph_us", {}).get("median")
    for rival, row in result["rows"].items():
        if "graph_us" not in row and "calls_us" not in row:
            print(f"    {rival:14} {row.get('not_timed')}")
            continue
        text = f"error {row['error_to_torch']:.2f} of torch's"
        if "graph_us" in row:
            graph = row["graph_us"]
            text = f"graph {graph['median']:7.1f} us (best {graph['best']:.1f}, p99 {graph['p99']:.1f}), " + text
            if ours:
                text += f", {graph['median'] / ours:.2f} x ours"
        print(f"    {rival:14} calls {row['calls_us']['median']:7.1f} us, {text}", flush=True)


def measure(device: Device, report: Report, names: list[str], *, tiny: bool, only: list[str] | None = None) -> None:
    """Every case that fits the time and is not there yet, into report.data["stage2"]. only: parts of their names.

    Raises `RuntimeError` at the end where ours was not timed.
    """
    repeats, runs = (1, 2) if tiny else (RUNS, RUNS)
    wrong = []
    peak = report.data.get("ceilings", {}).get("bf16_tflop_per_s") or ceilings(device, tiny)["bf16_tflop_per_s"]
    for kind, name, make in cases(tiny):
        if name in report.data.get("stage2", {}) or not any(part in name for part in only or [""]):
            continue
        if not tiny and not report.fits(SECONDS[kind], f"stage2: {name}"):
            continue
        case = make()
        # What is left must hold the compiler; unless gpu_compile.py was there before, it takes a minute and more.
        wanted = [n for n in names if n != COMPILED or tiny or report.left() > COMPILE_SECONDS[kind]]
        case.x = torch.from_numpy(case.x).bfloat16().float().numpy()
        work = gflop(case)
        candidates, rows = prepared(case, device, wanted)
        for rival in set(names) - set(wanted):
            rows[rival] = {"not_timed": f"no time left to compile: {report.left():.0f} s"}
        timed(device, candidates, rows, repeats)
        for row in rows.values():
            if "graph_us" in row:
                row["share_of_product_rate"] = 1e3 * work / row["graph_us"]["median"] / peak
        result = {"gflop": work, "rows": rows, "ratios": ratios(rows)}
        report.put("stage2", name, result)
        show(name, result)
        if ENGINE in candidates and kind == "block" and (tiny or "C=768" in name):
            result["steadiness"] = steadiness(case, device, runs)
            if "graph_us" in rows[ENGINE]:
                result["steadiness"]["p99_to_median"] = (
                    rows[ENGINE]["graph_us"]["p99"] / rows[ENGINE]["graph_us"]["median"]
                )
            report.put("stage2", name, result)
            print(f"    {result['steadiness']}", flush=True)
        elif ENGINE not in candidates:
            wrong.append(f"{name}: {rows[ENGINE]['not_timed']}")
        del candidates, case
    if wrong:
        raise RuntimeError("; ".join(wrong))
