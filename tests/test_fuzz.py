"""The fuzz targets on their seeds, on mutations of them and on what fuzzing found, under sanitizers and without Clang.

`make fuzz` is the search itself. Here the targets are compiled with what they test, for the generic instruction set.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUZZ = ROOT / "tests" / "fuzz"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CORE = ["core/isa.cpp", "core/status.cpp"]
SOURCES = {
    "engine_file": ["core/json.cpp", "core/safetensors.cpp", "engine/weights.cpp"],
    "pixels": ["engine/pixels.cpp", "engine/pixels_kernels.cpp", "engine/resize_axis.cpp"],
}
MUTANTS = 40  # of each seed


@pytest.fixture(scope="module", params=list(SOURCES))
def target(request, tmp_path_factory) -> Path:
    """A fuzz target that replays files."""
    folder = tmp_path_factory.mktemp(request.param)
    compiler = os.environ.get("CXX", "c++")
    # A byte too far, which must be seen.
    (folder / "probe.cpp").write_text("int main(int n, char**) { char* p = new char[1]; return p[n]; }")
    probe = subprocess.run(
        [compiler, *SANITIZE, "probe.cpp", "-o", "probe"], cwd=folder, capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"{compiler} has no sanitizers: {probe.stderr.splitlines()[-1]}")
    assert "heap-buffer-overflow" in subprocess.run([folder / "probe"], capture_output=True, text=True).stderr
    sources = [ROOT / "csrc" / name for name in CORE + SOURCES[request.param]]
    sources += [FUZZ / f"{request.param}.cpp", FUZZ / "replay.cpp"]
    # -O0: sanitizers see the most, and the compiler takes a tenth of the time.
    options = ["-std=gnu++17", "-O0", "-fno-math-errno", "-DDVT_HAVE_GENERIC", "-DDVT_ISA=generic"]
    binary = folder / request.param
    subprocess.run([compiler, *options, *SANITIZE, f"-I{ROOT / 'csrc'}", *sources, "-o", binary], check=True)
    return binary


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, FUZZ / "make_corpus.py", folder], check=True)
    return folder


def replay(target: Path, files: list[Path]) -> None:
    assert files
    done = subprocess.run([target, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{len(files)}\n"


def test_seeds_and_findings(target, corpus):
    """Where everything is as it should be, and what fuzzing found, kept after it was mended."""
    findings = sorted((FUZZ / "findings" / target.name).glob("*"))
    replay(target, sorted((corpus / target.name).iterdir()) + findings)


def mutant(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed or repeated; or cut."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        end = min(len(out), at + rng.randrange(1, 9))
        out[at:end] = rng.choice([rng.randbytes(end - at), b"", bytes(out[at:end]) * 2, b"9" * 19, bytes(end - at)])
    return bytes(out[: rng.randrange(len(out) + 1)] if rng.random() < 0.1 else out)


def test_mutants(target, corpus, tmp_path):
    rng = random.Random(0)
    files = []
    for seed in sorted((corpus / target.name).iterdir()):
        for i in range(MUTANTS):
            files.append(tmp_path / f"{seed.name}-{i}")
            files[-1].write_bytes(mutant(seed.read_bytes(), rng))
    replay(target, files)
