"""benchmarks/gpu.py and tools/make_gpu.py without a GPU: the kernels in the emulator, torch's part of CUDA replaced."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class FakeEvent:
    def __init__(self, enable_timing: bool = False):
        self.at = None

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1e3 * (end.at - self.at)


class FakeStream:
    cuda_stream = 0

    def __init__(self, device=None):
        pass

    def wait_stream(self, other) -> None:
        pass


class FakeGraph:
    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1


@pytest.fixture
def gpu(monkeypatch):
    """A `Gpu` whose device is the CPU, with the calls of torch.cuda that it makes counted or left out."""
    import gpu_clock

    held = []
    fakes = {
        "Event": FakeEvent,
        "Stream": FakeStream,
        "CUDAGraph": FakeGraph,
        "graph": lambda graph: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: FakeStream(),
        "synchronize": lambda device=None: None,
        "_sleep": held.append,
        "mem_get_info": lambda device=None: (10, 100),
        "memory_stats": lambda device=None: {"allocation.all.allocated": 7},
        "set_device": lambda device: None,
        "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=512),
    }
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name), name
        monkeypatch.setattr(torch.cuda, name, fake)
    device = object.__new__(gpu_clock.Gpu)
    device.torch, device._swept, device.held = torch.device("cpu"), torch.ones(8, dtype=torch.uint8), held
    return device


def test_a_run_is_captured_held_and_swept(gpu):
    import gpu_clock

    calls = []
    replay = gpu.capture(lambda: calls.append(1))
    assert len(calls) == 4, "three runs before the capture, and the one that is captured"
    times = gpu_clock.graph_times(gpu, {"a": replay, "b": lambda: time.sleep(1e-4)}, 5, cold=True)
    assert len(calls) == 4 and FakeGraph.replays >= 10
    assert len(gpu.held) == 10 and not gpu._swept.any()
    assert {len(t) for t in times.values()} == {5} and min(times["b"]) > 100
    row = gpu_clock.summary(times["b"])
    assert 100 < row["best"] <= row["median"] <= row["p99"] and row["samples"] == 5
    assert min(gpu_clock.row_times(gpu, {"b": lambda: time.sleep(1e-4)}, 2, hold=False)["b"]) > 100
    assert len(gpu.held) == 10
    assert all(value > 0 for value in gpu_clock.ceilings(gpu, tiny=True).values())
    assert gpu.memory() == (90, 7)


def test_torch_loops_take_the_recipes_steps(gpu):
    from gpu_clock import Processor
    from gpu_stage1_torch import DeviceHashGrid, Problem, ReferenceLoop, TunedLoop, encoding, make_model

    from dvt_fast import _native
    from dvt_fast.reference import HashGridEncoding, Recipe
    from dvt_fast.solvers.hashgrid import HashgridOptions

    options = HashgridOptions(steps=60, batch=128, n_levels=6, log2_hashmap_size=8, max_resolution=96)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4, 5, 6, 16), np.float32) + rng.standard_normal(16).astype(np.float32)
    coords = rng.random((4, 5, 6, 2), np.float32)
    native = _native.HashgridFitter(features, coords, options.native())
    parameters = native.parameters()
    parameters["grid"] *= 1000
    native.set_parameters(parameters)
    place, config, recipe = torch.device("cpu"), options.grid_config(), Recipe(steps=options.steps)
    models = [
        make_model(table, parameters, 30, 16) for table in (DeviceHashGrid(place, **config), HashGridEncoding(**config))
    ]
    points = torch.rand(200, 2)
    assert torch.equal(*(model.field.encoding(points) for model in models))
    held = Problem(torch.from_numpy(features), torch.from_numpy(coords))
    sample = rng.integers(0, 120, options.batch)
    for second in (False, True):
        losses = [held.loss(model, torch.from_numpy(sample), second, recipe).item() for model in models]
        parts, _ = native.gradients(sample, second)
        total = parts["mse"] + parts["cosine"] + 0.1 * parts["residual_mse"] + 0.02 * parts["residual_l1"]
        np.testing.assert_allclose(losses, total, rtol=1e-5)

    table, name = encoding(place, config)
    assert name == "tiny-cuda-nn" or name.startswith("torch, without tiny-cuda-nn (")
    loop = ReferenceLoop(make_model(table, parameters, 30, 16), held, recipe, options.batch)
    first = float(loop.take())
    loop.run(25)
    loop.second_phase = True
    assert float(loop.take()) < first
    for device in (Processor(), gpu):
        for second in (False, True):
            model = make_model(DeviceHashGrid(place, **config), parameters, 30, 16)
            tuned = TunedLoop(model, held, recipe, options.batch, second, device)
            before = float(tuned._step())
            for _ in range(25):
                tuned._step()
            assert float(tuned.loss) < before
            tuned.run(3)
            frozen = model.artifacts.map if second else model.residual.mlp[0].weight
            assert frozen.grad is None


def test_a_wrong_result_of_ours_is_not_timed_and_fails_the_section(gpu, monkeypatch):
    import gpu_rivals
    import gpu_stage2
    from engine import block_case
    from gpu_report import Report

    right = {}

    def off(case, device):
        right.setdefault(case.name, gpu_rivals.torch_eager(case, device)())
        return lambda: right[case.name] + 0.1

    monkeypatch.setitem(gpu_rivals.CANDIDATES, "dvt_fast", off)
    monkeypatch.setitem(gpu_rivals.CANDIDATES, "cut", lambda case, device: lambda: right[case.name][:, :2])
    monkeypatch.setattr(gpu_stage2, "TINY_VITS", {})
    report = Report(None, 100)
    with pytest.raises(RuntimeError, match="wrong: error"):
        gpu_stage2.measure(gpu, report, ["dvt_fast", "torch eager", "cut", "TensorRT"], tiny=True)
    (result,) = report.data["stage2"].values()
    assert "graph_us" in result["rows"]["torch eager"] and not result["ratios"]
    for name in ("dvt_fast", "cut", "TensorRT"):
        assert "graph_us" not in result["rows"][name] and result["rows"][name]["not_timed"], name
    assert gpu_stage2.gflop(block_case(64, 5)) == pytest.approx((2 * 25 * 12 * 64**2 + 4 * 25**2 * 64) / 1e9)


def test_what_does_not_fit_the_time_is_said(tmp_path):
    from gpu_report import Report, short_name

    report = Report(tmp_path / "a" / "b.json", 5)
    assert report.fits(1, "this") and not report.fits(60, "that")
    report.put("stage1", "step_us", "ours", 12.5)
    found = json.loads((tmp_path / "a" / "b.json").read_text())
    assert found["stage1"] == {"step_us": {"ours": 12.5}}
    assert found["skipped"]["that"].startswith("skipped: it takes about 60 s, and")
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 4090")
    assert [short_name(n) for n in names] == ["h200", "h100", "a100", "4090"]


def test_targets_are_compared_with_what_was_measured():
    import gpu
    from gpu_report import Report

    report = Report(None, 5)
    report.put("direct", "one pass", {"median_s": 0.03})
    report.put("stage2", "block C=768 N=1369", {"rows": {"dvt_fast": {"graph_us": {"median": 70.0}}}})
    met = {name: row["met"] for name, row in gpu.targets(report).items()}
    assert met == {"direct, one pass, ms": True, "stage2, C = 768, N = 1369, us": False}


@pytest.mark.timeout(600)
def test_every_section_runs(cuda, tmp_path):
    """The whole program on small models; TensorRT's absence and the like are said, nothing fails."""
    out = tmp_path / "result.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--rivals", "torch eager", "TensorRT", "--json", out]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=580, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert "failed" not in result and result["environment"]["commit"]
    assert set(result) >= {"ceilings", "stage2", "stage1", "direct", "end_to_end", "planted", "ops", "targets"}
    for name, case in result["stage2"].items():
        ours = case["rows"]["dvt_fast"]
        assert ours["error_to_torch"] <= 2 and ours["graph_us"]["median"] > 0, name
        assert case["ratios"]["torch eager"]["graph_us"] > 0
        if name.startswith("block"):
            assert case["steadiness"]["runs_of_other_bits"] == 0 and case["steadiness"]["threads_equal_serial"]
    assert set(result["stage1"]["step_us"]) == {"ours", "reference", "tuned"}
    assert "extrapolated" in result["end_to_end"]["reference"]["fit_is"]
    for op in result["ops"].values():
        assert isinstance(op["us"]["chosen"], float) and isinstance(op["us"]["portable"], float), op
    for solver, most in (("direct", 1e-3), ("hashgrid", 0.2)):  # of a few steps from other random numbers
        scores = result["planted"][solver]
        assert abs(scores["cuda"]["photo 0"]["cosine"] - scores["cpu"]["photo 0"]["cosine"]) < most


def test_make_gpu_goes_on_after_a_failure_and_says_so(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from make_gpu import Session

    session = Session(tmp_path, 60, dry_run=True)
    python = sys.executable
    failing = session.job("tests", python, "-c", "print('== 1 failed, 2 passed in 3s =='); raise SystemExit(1)").start()
    slow = session.job("memcheck", python, "-c", "import time; time.sleep(60)").start()
    fine = session.job("benchmarks", python, "-c", "print('failed: none')").start()
    session.done = [failing.wait(30), slow.wait(1), fine.wait(30)]
    assert [job.outcome for job in session.done] == ["failed with exit code 1", "not done after 1 s", "ok"]
    assert "1 failed, 2 passed" in failing.text() and slow.seconds < 20
    assert session.summary() == 1
    session.done = [fine]
    assert session.summary() == 0


def test_make_gpu_is_a_target():
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", "-n", "gpu", "PYTHON=python3"], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "tools/make_gpu.py" in done.stdout


def test_make_gpu_without_a_gpu_says_so(tmp_path):
    from cuda_samples import driver_devices

    if driver_devices():
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_gpu.py"), "--stages", "tests"],
        capture_output=True, text=True, env=os.environ | {"OUT": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "the NVIDIA driver shows no device here; --dry-run needs none\n"
