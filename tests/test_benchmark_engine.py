"""benchmarks/engine.py with small models: every candidate is compared, and only right ones are timed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("timm")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PACKAGES = {"ONNX Runtime": ["onnx", "onnxruntime"], "OpenVINO": ["openvino"]}


def run(tmp_path: Path, *options: str, **env: str) -> dict:
    out = tmp_path / "result.json"
    command = [sys.executable, BENCHMARKS / "engine.py", "--tiny", "--threads", "1", "--repeats", "3", "--json", out]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "GEMM peak" in done.stdout
    return json.loads(out.read_text())


def test_every_candidate_is_compared_and_timed(tmp_path):
    result = run(tmp_path, "--rivals", "torch eager", *PACKAGES)
    (measured,) = result["runs"]
    assert measured["threads"] == 1 and max(measured["gemm_peak"].values()) > 0
    assert list(measured["cases"]) == ["block C=64 N=25", "mini at 64 + denoiser"]
    for case in measured["cases"].values():
        assert list(case["rows"]) == ["dvt_fast", "torch eager", *PACKAGES]
        for name, row in case["rows"].items():
            if all(importlib.util.find_spec(package) for package in PACKAGES.get(name, [])):
                assert 0 < row["best_ms"] <= row["median_ms"]
                assert 0 < row["error_to_torch"] < 10
            else:
                assert row["not_timed"].startswith("not installed")
        assert case["ratio"] > 0 and case["fastest_rival"] != "dvt_fast"
    assert 0 < measured["cold_start"]["best_s"] < 60


def test_without_avx512_and_without_a_rival(tmp_path):
    (tmp_path / "openvino.py").write_text("raise ImportError('no', name='openvino')")
    options = ["--isa", "avx2", "--cases", "block", "--rivals", "torch.compile", "OpenVINO"]
    (measured,) = run(tmp_path, *options, PYTHONPATH=str(tmp_path))["runs"]
    assert measured["isa"] in ("avx2", "generic") and measured["torch_isa"] != "AVX512"
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512f" in info and "cpuid_fault" in info and shutil.which("cc"):
        assert measured["restricted_by"] == "cpuid"
    (case,) = measured["cases"].values()
    assert case["rows"]["OpenVINO"] == {"not_timed": "not installed (openvino)"}
    timed = ["dvt_fast", "torch.compile"] if shutil.which("g++") else ["dvt_fast"]  # what torch compiles with
    assert [name for name, row in case["rows"].items() if "best_ms" in row] == timed


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import engine
    import rivals

    case = engine.block_case(32, 3)
    right = rivals.torch_eager(case, 1)()
    wrong = {"off": right + np.float32(1e-3), "cut": right[:, :2], "nan": right * np.nan}
    for name, value in wrong.items():
        monkeypatch.setitem(rivals.CANDIDATES, name, lambda case, threads, value=value: lambda: value)
    runs, rows = engine.prepared(case, 1, ["torch eager", *wrong])
    assert list(runs) == ["torch eager"]
    assert all(rows[name]["not_timed"].startswith("wrong: error") for name in wrong)
