"""The C library as it is installed: clients in C99 and C++ through CMake and pkg-config, and tensors of NumPy."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import dvt_fast
from dvt_fast import _native
from native_samples import DIM, GRID, ROOT, cmake_build, random_engine, run, where

NATIVE = ROOT / "tests" / "native"
HEADER = ROOT / "csrc" / "include" / "dvt_fast.h"
CLIENTS = ["handles", "tensors", "raii", "threads", "allocations", "out_of_memory"]
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "engine.safetensors"
    path.write_bytes(random_engine())
    return path


@pytest.fixture(scope="module")
def library() -> Path:
    return where("--cmake-dir").parents[1] / "libdvt_fast.so.0"


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Path:
    """Built through find_package."""
    return cmake_build(NATIVE, tmp_path_factory.mktemp("clients"), f"-Ddvt_fast_DIR={where('--cmake-dir')}")


def pkg_config(*options: str) -> list[str]:
    if not shutil.which("pkg-config"):
        pytest.skip("pkg-config is not installed")
    return run("pkg-config", *options, "dvt_fast", PKG_CONFIG_PATH=str(where("--pkg-config-dir"))).split()


@pytest.mark.parametrize("isa", _native.built_isas())
@pytest.mark.parametrize("client", CLIENTS)
def test_client_through_cmake(clients, engine, client, isa):
    if problem := _native.isa_problem(isa):
        pytest.skip(problem)
    said = run(clients / client, engine, DVT_FAST_ISA=isa)
    if client == "handles":
        assert said == f"isa {isa}\n"
    if client == "allocations":
        assert re.findall(r"(\d+) allocations in 1000 runs", said) == ["0", "0"]
    if client == "out_of_memory":
        assert re.fullmatch(r"\d+ and \d{3,} allocations failed\n", said)


@pytest.mark.parametrize("source, compiler", [("handles.c", ["cc", "-std=c99"]), ("raii.cpp", ["c++", "-std=c++17"])])
def test_client_through_pkg_config(engine, tmp_path, source, compiler):
    flags = [*pkg_config("--cflags", "--libs"), f"-Wl,-rpath,{pkg_config('--variable=libdir')[0]}"]
    run(*compiler, *STRICT, NATIVE / source, "-o", tmp_path / "client", *flags)
    run(tmp_path / "client", engine)
    assert pkg_config("--modversion") == [dvt_fast.__version__]


def test_the_program_in_the_header(engine, tmp_path):
    """Its very text, compiled with the very command beside it."""
    comment = re.match(r"/\*\n(.*?)\n\*/", HEADER.read_text(), re.S)[1]
    command, program = re.search(r"\n( +cc .*?)\n\n(#include.*)", comment, re.S).groups()
    (tmp_path / "features.c").write_text(program + "\n")
    pkg_config("--exists")
    env = os.environ | {"PKG_CONFIG_PATH": str(where("--pkg-config-dir"))}
    command = command.replace("cc ", f"cc {' '.join(STRICT)} ", 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=env)
    said = run(tmp_path / "features", engine).splitlines()
    assert said[0] == f"{GRID[0]} x {GRID[1]} patches, {DIM} channels"
    assert re.fullmatch(r"the first value is -?\d\S*", said[1])
    failed = subprocess.run([tmp_path / "features", tmp_path / "none"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert re.fullmatch(r"DVT_INVALID_ARGUMENT: .*/none: .+\n", failed.stderr)


@pytest.mark.parametrize("standard", ["c99", "c11", "c++98", "c++17", "c++20"])
def test_headers_are_clean(tmp_path, standard):
    language, suffix = ("c++", "hpp") if standard in ("c++17", "c++20") else (standard[:-2].rstrip("1"), "h")
    (tmp_path / "x").write_text(f"#include <dvt_fast.{suffix}>\n#include <dvt_fast.{suffix}>\n")
    flags = [*STRICT, "-Wconversion", "-Wshadow", f"-std={standard}", "-I", where("--include-dir")]
    if standard == "c++98":
        flags += ["-Wno-long-long"]
    run("c++" if language.startswith("c++") else "cc", *flags, "-x", language, "-c", tmp_path / "x", "-o", "/dev/null")


def test_only_our_names_are_exported(library):
    """All that the header declares, and nothing more."""
    exported = re.findall(r"^\S+ (\w) (\S+)$", run("nm", "-D", "--defined-only", library), re.M)
    declared = set(re.findall(r"^DVT_API [^;]*?\b(dvt_\w+)\(", HEADER.read_text(), re.M))
    assert {name for _, name in exported} == declared
    assert {kind for kind, _ in exported} == {"T"}


def test_library_needs_only_the_system(library):
    dynamic = run("readelf", "-d", library)
    assert re.findall(r"SONAME\).*\[(.*)\]", dynamic) == [library.name]
    allowed = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libpthread|ld-linux.*|libc\+\+|libasan|libubsan)\.so")
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert needed and not [name for name in needed if not allowed.match(name)]
    assert not re.findall(r"R(UN)?PATH", dynamic)


def test_installed_headers_are_those_of_the_sources():
    for path in (HEADER, HEADER.with_suffix(".hpp")):
        assert (where("--include-dir") / path.name).read_bytes() == path.read_bytes()


class RunArgs(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("raw", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
    )


def dl_tensor(array: np.ndarray) -> int:
    """The address of NumPy's own DLTensor of an array; its capsule is kept alive."""
    capsule = array.__dlpack__()
    KEPT.append(capsule)
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    return ctypes.pythonapi.PyCapsule_GetPointer(ctypes.py_object(capsule), b"dltensor")


KEPT: list[object] = []


@pytest.fixture(scope="module")
def session(library, engine):
    lib = ctypes.CDLL(str(library))
    lib.dvt_last_error.restype = lib.dvt_version.restype = ctypes.c_char_p
    model, session = ctypes.c_void_p(), ctypes.c_void_p()
    assert lib.dvt_model_load(str(engine).encode(), None, ctypes.byref(model)) == 0, lib.dvt_last_error()
    assert lib.dvt_session_create(model, None, ctypes.byref(session)) == 0, lib.dvt_last_error()
    assert lib.dvt_model_destroy(model) == 0

    def run(image: np.ndarray, out: np.ndarray) -> str:
        args = RunArgs(ctypes.sizeof(RunArgs), dl_tensor(image), dl_tensor(out))
        status = lib.dvt_session_run(session, ctypes.byref(args))
        return "" if status == 0 else lib.dvt_last_error().decode()

    yield run
    assert lib.dvt_session_destroy(session) == 0


def test_tensors_of_numpy(session):
    """A DLTensor as another library makes it, strides and all, is a dvt_tensor."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 100, 3), np.uint8)
    expected = np.zeros((*GRID, DIM), np.float32)
    assert session(image, expected) == ""
    assert np.isfinite(expected).all() and expected.std() > 0.1

    wide = np.zeros((70, 110, 4), np.uint8)
    view = wide[5:65, 3:103, 2::-1]  # bgr in wider rows
    view[:] = image
    planes = np.zeros((DIM, *GRID), np.float32)
    assert session(view, planes.transpose(1, 2, 0)) == ""
    assert np.array_equal(planes.transpose(1, 2, 0), expected)
    assert session(image.astype(np.int16), expected).startswith("input must be float32, float16, bfloat16 or uint8")
    assert session(image, np.zeros((*GRID, DIM + 1), np.float32)).startswith("output ")


def test_version(library):
    lib = ctypes.CDLL(str(library))
    lib.dvt_version.restype = ctypes.c_char_p
    assert lib.dvt_version().decode() == dvt_fast.__version__
