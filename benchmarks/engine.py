"""The engine against torch eager, torch.compile, ONNX Runtime and OpenVINO: one denoiser block, and whole ViTs.

Cases: a block of C channels on N patches, C=384 and 768, N=256 and 1369; ViT-Ti/16 and ViT-S/14 at 224, each followed
by a denoiser of one block. float32, batch 1, the same threads for everyone, random weights and input. Each candidate's
result is compared with float64 before anything is timed, and a wrong one is not timed. Then come rounds: every
candidate once a round, in a new order each time, after one run that is not timed. Errors are the largest absolute
ones, relative to that of torch eager. GFLOP counts the products alone; the GEMM peak is the fastest large product
(torch.mm, ours, and ONNX Runtime's) seen in the same process.

`cold start`: seconds from before `import dvt_fast` to the first features of the first ViT, in a new process without
torch.

--isa avx2 repeats the run as on a processor without AVX-512: CPUID is made to say so (hide_avx512.c); where the system
cannot do that, by the switches that libraries have (ONNX Runtime and OpenVINO's products have none).

--clock cpu counts the process's own time on the processor: of use where other programs keep the cores busy.

    python benchmarks/engine.py [--threads 1 2] [--isa native avx2] [--rivals NAMES] [--json results.json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from common import save
from models import block_module, vit_modules
from rivals import CANDIDATES, ENGINE, Case, Run, onnx_session

from dvt_fast import _native
from dvt_fast.engine.export import to_bytes

BLOCKS = [(384, 16), (384, 37), (768, 16), (768, 37)]  # channels, patches a side
VITS = {"ViT-Ti/16": "vit_tiny_patch16_224", "ViT-S/14": "vit_small_patch14_dinov2"}
VIT_SIZE = 224
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RIVALS = [name for name in CANDIDATES if name != ENGINE]
WRONG = 10.0  # times the error of torch eager
PRODUCTS = [(1024, 768, 3072), (1536, 1536, 1536)]  # m, k, n
SWITCHES = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

COLD_START = """
import sys, time
start = time.perf_counter()
import numpy as np
import dvt_fast
session = dvt_fast.Engine.load(sys.argv[1]).session(input="normalized", threads=int(sys.argv[2]))
features = session.run(np.zeros((1, 3, *session.size), np.float32))
print(time.perf_counter() - start, "torch" in sys.modules)
"""


def block_case(dim: int, side: int) -> Case:
    denoiser = block_module(dim, side)
    x = np.random.default_rng(0).standard_normal((1, side, side, dim), np.float32)
    name = f"block C={dim} N={side * side}"
    return Case(name, denoiser, x, to_bytes(None, denoiser), "features", (side, side), dim)


def vit_case(label: str, name: str, size: int) -> Case:
    vit, pipeline = vit_modules(name, size)
    x = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    data = to_bytes(vit, pipeline.denoiser)
    return Case(f"{label} at {size} + denoiser", pipeline, x, data, "normalized", vit.grid, vit.dim)


def gflop(case: Case) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.module(torch.from_numpy(case.x))
    return counter.get_total_flops() / 1e9


def prepared(case: Case, threads: int, names: list[str]) -> tuple[dict[str, Run], dict[str, dict]]:
    """The candidates that may be timed, and a row for each of `names`: its error, or why it is not timed."""
    truth = case.truth()
    case.module.float()
    runs: dict[str, Run] = {}
    rows: dict[str, dict] = {}
    torch_error = _error(CANDIDATES["torch eager"](case, threads)(), truth)
    for name in names:
        try:
            run = CANDIDATES[name](case, threads)
            error = _error(run(), truth)
        except ImportError as missing:
            rows[name] = {"not_timed": f"not installed ({missing.name})"}
            continue
        except Exception as failure:  # a rival fails in its own ways; the others are still compared
            if name == ENGINE:
                raise
            rows[name] = {"not_timed": f"{type(failure).__name__}: {str(failure).splitlines()[0][:100]}"}
            continue
        rows[name] = {"error": error, "error_to_torch": error / torch_error}
        if error <= WRONG * torch_error:
            runs[name] = run
        else:
            rows[name]["not_timed"] = f"wrong: error {error:.1e}, torch eager's is {torch_error:.1e}"
    return runs, rows


def _error(features: np.ndarray, truth: np.ndarray) -> float:
    """The largest absolute error; infinite for another shape or NaN."""
    error = np.abs(features - truth).max() if features.shape == truth.shape else np.inf
    return float(error) if np.isfinite(error) else float("inf")


def timed(runs: dict[str, Run], repeats: int, clock: str) -> dict[str, list[float]]:
    """Seconds of each run: rounds in which everyone has a turn, in a new order each time.

    A turn is one run that is not timed, in which the pools of the one before fall asleep, and one that is.
    """
    now = CLOCKS[clock]
    order, times = random.Random(0), {name: [] for name in runs}
    for _ in range(repeats):
        for name in order.sample(list(runs), len(runs)):
            runs[name]()
            start = now()
            runs[name]()
            times[name].append(now() - start)
    return times


def products(threads: int) -> dict[str, Run]:
    """Large matrix products, each labelled "library m k n"."""
    runs: dict[str, Run] = {}
    for m, k, n in PRODUCTS:
        a, b = (np.random.default_rng(0).standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        left, right, out = torch.from_numpy(a), torch.from_numpy(b), torch.empty(m, n)
        runs[f"torch {m} {k} {n}"] = lambda x=left, y=right, z=out: torch.mm(x, y, out=z).numpy()
        runs[f"dvt_fast {m} {k} {n}"] = lambda x=a, y=b: _native.gemm(x, y)
        try:
            from onnx_graph import product

            runs[f"onnxruntime {m} {k} {n}"] = onnx_session(product(b, m), a, (m, n), threads)
        except ImportError:
            continue
    return runs


def gemm_rate(times: dict[str, list[float]]) -> dict[str, float]:
    """GFLOP/s of the fastest product of each library."""
    rates: dict[str, float] = {}
    for name, seconds in times.items():
        library, *sizes = name.split()
        rates[library] = max(rates.get(library, 0.0), 2e-9 * np.prod([float(s) for s in sizes]) / min(seconds))
    return rates


def measure(cases: Iterable[Case], threads: int, repeats: int, names: list[str], clock: str) -> dict:
    """All cases in this process, with this number of threads."""
    torch.set_num_threads(threads)
    _native.set_num_threads(threads)
    out: dict = {"isa": _native.active_isa(), "torch_isa": torch.backends.cpu.get_cpu_capability(), "threads": threads}
    out["cases"], peak = {}, {}
    large = products(threads)
    for case in cases:
        runs, rows = prepared(case, threads, names)
        work = gflop(case)
        # The products before and after: what a quiet moment gives is the peak for all.
        for rates in (gemm_rate(timed(large, max(3, repeats // 8), clock)) for _ in range(2)):
            peak = {name: max(rate, peak.get(name, 0.0)) for name, rate in rates.items()}
        for name, seconds in timed(runs, repeats, clock).items():
            rows[name] |= {"best_ms": 1e3 * min(seconds), "median_ms": 1e3 * float(np.median(seconds))}
            rows[name]["gflop_per_s"] = work / min(seconds)
        rivals = {name: rows[name]["best_ms"] for name in runs if name != ENGINE}
        result: dict = {"gflop": work, "rows": rows}
        if ENGINE in runs and rivals:
            result["fastest_rival"] = min(rivals, key=lambda name: rivals[name])
            result["ratio"] = min(rivals.values()) / rows[ENGINE]["best_ms"]
        out["cases"][case.name] = result
        print(f"  measured {case.name}", file=sys.stderr, flush=True)
    out["gemm_peak"] = peak
    return out


def show(result: dict) -> None:
    peak = max(result["gemm_peak"].values())
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in result["gemm_peak"].items())
    how = {
        "cpuid": ", CPUID restricted",
        "switches": ", restricted by switches: ONNX Runtime and OpenVINO may use more",
    }
    print(f"\n{result['isa']} (torch: {result['torch_isa']}{how.get(result['restricted_by'], '')}),"
          f" threads: {result['threads']}, clock: {result['clock']}")  # fmt: skip
    print(f"GEMM peak {peak:.0f} GFLOP/s ({rates})")
    for name, case in result["cases"].items():
        ratio = f": {case['ratio']:.2f} times as fast as {case['fastest_rival']}" if "ratio" in case else ""
        print(f"{name}, {case['gflop']:.2f} GFLOP{ratio}")
        ours = case["rows"][ENGINE].get("best_ms")
        for rival, row in case["rows"].items():
            if "best_ms" not in row:
                print(f"    {rival:14} {row['not_timed']}")
                continue
            times = f" {row['best_ms'] / ours:5.2f} x ours" if ours else ""
            share, error = row["gflop_per_s"] / peak, row["error_to_torch"]
            print(f"    {rival:14} {row['best_ms']:8.2f} ms (median {row['median_ms']:.2f}){times}"
                  f" {share:5.0%} of peak, error {error:.2f} of torch's")  # fmt: skip
    if "cold_start" in result:
        cold = result["cold_start"]
        print(f"cold start, {cold['case']}: {cold['best_s']:.3f} s (median {cold['median_s']:.3f})")


def cold_start(case: Case, threads: int, repeats: int = 5) -> dict:
    """Import to first features in new processes; an error where torch was imported."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "engine.safetensors"
        file.write_bytes(case.data)
        seconds = []
        for _ in range(repeats):
            command = [sys.executable, "-c", COLD_START, str(file), str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
            taken, with_torch = done.stdout.split()
            if with_torch != "False":
                sys.exit("cold start: the engine imported torch")
            seconds.append(float(taken))
    return {"best_s": min(seconds), "median_s": float(np.median(seconds))}


def _environment() -> dict[str, str]:
    path = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def avx2_environment(folder: Path) -> tuple[dict[str, str], str]:
    """What makes a process one of an AVX2 machine, and how: "native", "cpuid" or "switches"."""
    if _native.isa_problem("avx512"):
        return {}, "native"
    library = folder / "hide_avx512.so"
    source = Path(__file__).with_name("hide_avx512.c")
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return SWITCHES | {"DVT_FAST_ISA": "avx2"}, "switches"
    hidden = {"LD_PRELOAD": str(library)}
    probe = [sys.executable, "-c", "from dvt_fast import _native; print(_native.isa_problem('avx512'))"]
    done = subprocess.run(probe, capture_output=True, text=True, env=_environment() | hidden)
    if done.returncode == 0 and "AVX-512" in done.stdout:
        return hidden, "cpuid"
    return SWITCHES | {"DVT_FAST_ISA": "avx2"}, "switches"


def child(arguments: argparse.Namespace) -> None:
    """One instruction set and one number of threads, each in a process of its own: thread pools cannot be resized."""
    warnings.filterwarnings("ignore")
    threads = arguments.threads[0]
    blocks, vits, size = ([(64, 5)], {"mini": "dvt_mini"}, 64) if arguments.tiny else (BLOCKS, VITS, VIT_SIZE)
    cases = [block_case(dim, side) for dim, side in blocks if "block" in arguments.cases]
    cases += [vit_case(label, name, size) for label, name in vits.items() if "vit" in arguments.cases]
    result = measure(cases, threads, arguments.repeats, [ENGINE, *arguments.rivals], arguments.clock)
    if "vit" in arguments.cases:
        first = cases[len(cases) - len(vits)]
        result["cold_start"] = {"case": first.name, **cold_start(first, threads)}
    arguments.child.write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", nargs="+", choices=["native", "avx2"], default=["native"])
    parser.add_argument("--cases", nargs="+", choices=["block", "vit"], default=["block", "vit"])
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=RIVALS)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--tiny", action="store_true", help="small models, to test this program")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != [1]:
        parser.error("--clock cpu counts the time of all threads together, waiting ones too: add --threads 1")
    if arguments.child:
        return child(arguments)
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        for isa in arguments.isa:
            extra, how = avx2_environment(Path(temporary)) if isa == "avx2" else ({}, "native")
            for threads in arguments.threads:
                file = Path(temporary) / "result.json"
                options = ["--cases", *arguments.cases, "--rivals", *arguments.rivals]
                options += ["--repeats", str(arguments.repeats), "--clock", arguments.clock]
                options += ["--threads", str(threads), "--child", str(file)] + ["--tiny"] * arguments.tiny
                command = [sys.executable, __file__, *options]
                environment = _environment() | {"OMP_NUM_THREADS": str(threads)} | extra
                if code := subprocess.run(command, env=environment).returncode:
                    sys.exit(f"the measurement with {threads} threads ended early, exit code {code}")
                runs.append({"restricted_by": how, "clock": arguments.clock, **json.loads(file.read_text())})
                show(runs[-1])
    versions = {name: _version(name) for name in ("onnxruntime", "openvino")}
    save(arguments.json, {"rivals": versions, "repeats": arguments.repeats, "runs": runs})


if __name__ == "__main__":
    main()
