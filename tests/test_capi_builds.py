"""The C library and its clients built in other ways: under sanitizers, by Clang, for another machine."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from native_samples import ROOT, cmake_build, random_engine, run, where

BUILDS = ROOT / "build"  # kept, so that only what changed is compiled again
CLIENTS = ROOT / "tests" / "native"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "engine.safetensors"
    path.write_bytes(random_engine())
    return path


def build(name: str, engine: Path, *, library: list[str], clients: list[str], both: list[str]) -> Path:
    """Build and install the library without Python, and the clients against that; the folder of the clients."""
    folder = cmake_build(ROOT, BUILDS / name / "library", "-DDVT_FAST_PYTHON=OFF", *library, *both, target="dvt_fast")
    run("cmake", "--install", folder, "--prefix", BUILDS / name / "installed")
    package = BUILDS / name / "installed" / "lib" / "cmake" / "dvt_fast"
    options = [f"-Ddvt_fast_DIR={package}", f"-DDVT_ENGINE={engine}", *clients, *both]
    return cmake_build(CLIENTS, BUILDS / name / "clients", *options)


def ctest(folder: Path, *launcher: str, **environment: str) -> None:
    said = run(*launcher, "ctest", "--output-on-failure", folder=folder, **environment)
    assert "100% tests passed" in said and "No tests were found" not in said, said


def can_run(program: str, compiler: list[str], folder: Path, launcher: list[str]) -> bool:
    (folder / "try.cpp").write_text(program)
    if subprocess.run([*compiler, "try.cpp", "-o", "try"], cwd=folder, capture_output=True).returncode:
        return False
    return subprocess.run([*launcher, "./try"], cwd=folder, capture_output=True).returncode == 0


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers(sanitizer, engine, tmp_path):
    """Client and library; what they find ends the client with an error."""
    program = "#include <thread>\nint main() { std::thread t([] {}); t.join(); }"
    # ThreadSanitizer needs addresses less random than some kernels make them.
    launchers: list[list[str]] = [[], ["setarch", "-R"]]
    compiler = ["c++", f"-fsanitize={sanitizer}"]
    launcher = next((found for found in launchers if can_run(program, compiler, tmp_path, found)), None)
    if launcher is None:
        pytest.skip(f"the compiler's -fsanitize={sanitizer} does not work here")
    folder = build(
        f"sanitize-{sanitizer.split(',')[0]}",
        engine,
        library=["-DCMAKE_BUILD_TYPE=Debug", f"-DDVT_FAST_SANITIZE={sanitizer}"],
        clients=[f"-DDVT_SANITIZE={sanitizer}"],
        both=[],
    )
    ctest(folder, *launcher, ASAN_OPTIONS="detect_leaks=1")


def test_a_sanitizer_would_say_so(tmp_path):
    """The options of the test above end a program that reads beyond its memory."""
    (tmp_path / "x.cpp").write_text("int main(int n, char**) { int* p = new int[n]; return p[n]; }")
    command = ["c++", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "x.cpp", "-o", "x"]
    if subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("the compiler has no AddressSanitizer")
    done = subprocess.run(["./x"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


def test_clang(engine):
    """The other compiler: library and clients without a warning."""
    if not shutil.which("clang++"):
        pytest.skip("needs clang")
    both = ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    library = ["-DCMAKE_BUILD_TYPE=Debug", "-DDVT_FAST_WERROR=ON"]
    ctest(build("clang", engine, library=library, clients=["-DDVT_RUNS=50"], both=both))


@pytest.fixture(scope="module")
def aarch64(engine) -> Path:
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not qemu or not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'aarch64-linux-gnu.cmake'}"
    return build("aarch64", engine, library=["-DDVT_FAST_WERROR=ON"], clients=["-DDVT_RUNS=50"], both=[toolchain])


@pytest.mark.parametrize("isa", ["neon", "generic"])
def test_aarch64(aarch64, engine, isa, tmp_path):
    """The clients under qemu, and the same features as on this machine."""
    ctest(aarch64, DVT_FAST_ISA=isa)
    qemu = shutil.which("qemu-aarch64") or "qemu-aarch64-static"
    emulate = [qemu, "-L", "/usr/aarch64-linux-gnu"]
    assert run(*emulate, aarch64 / "handles", engine, DVT_FAST_ISA=isa) == f"isa {isa}\n"
    run(*emulate, aarch64 / "dump", engine, tmp_path / "there", DVT_FAST_ISA=isa)
    native = cmake_build(CLIENTS, tmp_path / "native", f"-Ddvt_fast_DIR={where('--cmake-dir')}", target="dump")
    run(native / "dump", engine, tmp_path / "here")
    here, there = (np.fromfile(tmp_path / name, np.float32) for name in ("here", "there"))
    assert here.std() > 0.1
    np.testing.assert_allclose(there, here, atol=2e-5 * np.abs(here).max())
