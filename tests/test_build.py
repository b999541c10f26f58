"""What the build promises: kernels that stay within their instruction set, and a core free of Python and torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dvt_fast import _native

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
FOREIGN = re.compile(r"^(Python\.h|pybind11/|torch/|ATen/|c10/|cuda_|cublas|nv)")


@pytest.fixture(scope="session")
def build(tmp_path_factory) -> Path:
    """The build folder of this interpreter (`make build`), brought up to date; without one the core is built here."""
    # The same CMake and Ninja as in the Makefile: with others everything would be compiled again.
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    if not (folder / "build.ninja").is_file():
        folder = tmp_path_factory.mktemp("build")
        configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        subprocess.run(configure, check=True, capture_output=True, env=env)
    subprocess.run(["cmake", "--build", folder, "--target", "dvt_core"], check=True, capture_output=True, env=env)
    return folder


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type letter, demangled name) of each symbol of an object or archive."""
    out = subprocess.run(["nm", "-C", *options, path], check=True, capture_output=True, text=True).stdout
    return [(m[1], m[2]) for m in re.finditer(r"^[0-9a-f ]* ([A-Za-z]) (.*)$", out, re.M)]


@pytest.mark.parametrize("isa", _native.built_isas())
def test_kernel_objects_export_only_their_own_namespace(build, isa):
    """A weak symbol (an inline function, a template) compiled for AVX-512 could become everyone's copy at link time."""
    sources = sorted(CSRC.rglob("*_kernels.cpp"))
    assert sources
    for source in sources:
        path = build / f"CMakeFiles/dvt_kernels_{isa}.dir" / f"{source.relative_to(ROOT)}.o"
        exported = [(kind, name) for kind, name in symbols(path, "--defined-only") if kind.isupper() or kind in "uvw"]
        exported = [(kind, name) for kind, name in exported if kind != "N"]
        assert exported, path
        for kind, name in exported:
            assert kind not in "WVuvw", f"{path.name}: {name} is weak"
            assert name.startswith(f"dvt::{isa}::") or f" dvt::{isa}::" in name, f"{path.name}: {name} is exported"


def test_weak_symbols_are_seen(tmp_path):
    """The check above would notice: an inline function of external linkage is weak."""
    (tmp_path / "a.cpp").write_text(
        "namespace dvt { inline int twice(int x) { return 2 * x; } int (*use)(int) = twice; }"
    )
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-c", "a.cpp", "-o", "a.o"], cwd=tmp_path, check=True)
    assert ("W", "dvt::twice(int)") in symbols(tmp_path / "a.o")


def test_core_needs_neither_python_nor_torch(build):
    undefined = {name for kind, name in symbols(build / "libdvt_core.a", "--undefined-only") if kind == "U"}
    assert "pthread_atfork" in undefined or "malloc" in undefined or "free" in undefined  # nm showed something
    foreign = [name for name in undefined if re.match(r"_?Py[A-Z_]|(torch|at|c10|pybind11)::|cu[A-Z]|cuda[A-Z]", name)]
    assert not foreign


def test_module_links_only_the_system():
    out = subprocess.run(["readelf", "-d", _native.__file__], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", out)
    assert needed
    allowed = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libpthread|ld-linux.*|libc\+\+|libasan|libubsan)\.so")
    assert [name for name in needed if not allowed.match(name)] == []


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.M)


@pytest.mark.parametrize("folder", [p.name for p in sorted(CSRC.iterdir()) if p.is_dir() and p.name != "bindings"])
def test_no_foreign_header_is_reached(folder):
    """Follows every include from the folder's sources; what is not in csrc must be a system header."""
    # Headers for .cu files only are not reached: nothing else may include CUDA's.
    pending = [p for p in (CSRC / folder).rglob("*") if p.suffix in (".hpp", ".cpp", ".c")]
    pending += (CSRC / "include").glob("*.h")
    seen: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in includes(path):
            assert not FOREIGN.match(name), f"{path.relative_to(ROOT)} includes {name}"
            for candidate in (CSRC / name, path.parent / name):
                if candidate.is_file():
                    assert "bindings" not in candidate.relative_to(CSRC).parts, f"{path} includes {name}"
                    pending.append(candidate.resolve())
                    break
    assert not [path for path in seen if FOREIGN.match(path.name)]


def with_isa(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"DVT_FAST_ISA": isa}
    run = [sys.executable, "-c", f"import numpy as np\nfrom dvt_fast import _native\n{code}"]
    return subprocess.run(run, capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "neon"])
def test_environment_forces_an_instruction_set(isa):
    done = with_isa(isa, "print(_native.active_isa(), _native.gemm_isa())")
    problem = _native.isa_problem(isa)
    if problem:
        assert f"UnsupportedError: instruction set '{isa}' cannot be used here: {problem}" in done.stderr
    else:
        # The second is what the kernels in use say of themselves: the name that they were compiled with.
        assert done.stdout == f"{isa} {isa}\n", done.stderr


def test_instruction_sets_are_different_code():
    """The fused multiply-adds of AVX2 round once where the generic code rounds twice."""
    if _native.isa_problem("avx2"):
        pytest.skip(f"avx2: {_native.isa_problem('avx2')}")
    if not re.search(r"x86_64|AMD64", os.uname().machine):
        pytest.skip("the generic code of this processor fuses too")
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((200, 200)).astype(np.float32) for _ in range(2))
    before = _native.active_isa()
    results = []
    try:
        for isa in ("generic", "avx2"):
            _native.set_isa(isa)
            assert _native.gemm_isa() == isa
            results.append(_native.gemm(a, b))
    finally:
        _native.set_isa(before)
    np.testing.assert_allclose(*results, atol=1e-3)
    assert (results[0] != results[1]).mean() > 0.1


def test_unknown_instruction_set_is_an_error_and_nothing_runs():
    done = with_isa("avx3", "_native.gemm(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("DVT_FAST_ISA must be generic, avx2, avx512 or neon, got 'avx3'")


def test_empty_value_is_the_default():
    assert with_isa("", "print(_native.active_isa())").stdout == f"{_native.active_isa()}\n"


@pytest.mark.parametrize(("args", "expected"), [("", "OFF"), ("-DDVT_FAST_WERROR=ON", "ON")])
def test_an_option_of_an_earlier_build_does_not_stay(tmp_path, args, expected):
    """CMake keeps options in its cache, so the ones not asked for are set back: a user's build has no -Werror."""
    fake = tmp_path / "bin" / "cmake"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "DVT_FAST_CMAKE_ARGS": args}
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "-b", tmp_path / "lib", "-t", tmp_path / "temp"]
    subprocess.run(build, check=True, capture_output=True, env=env, cwd=ROOT)
    configure = (tmp_path / "calls").read_text().splitlines()[0]
    assert re.findall(r"-DDVT_FAST_WERROR=(\w+)", configure)[-1] == expected  # the last one counts
    assert "-DDVT_FAST_SANITIZE=OFF" in configure
