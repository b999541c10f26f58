"""Kernels keep what they work with in registers: none spills beyond a short list."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from native_samples import ROOT

# Bytes of local memory a thread, at most, on any architecture, of kernels whose names start so; the longest one counts.
SPILLS = {
    "attention_kernel<AttentionTile<bf16, false, 64, 1,": 8,
    "attention_kernel<AttentionTile<f16, false, 64, 1,": 8,
    # all 255 registers are taken, on sm_120
    "attention_kernel<AttentionTile<bf16, false, 64, 2,": 16,
    "attention_kernel<AttentionTile<f16, false, 64, 2,": 16,
}

PRINTED = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN3dvt4cuda15adam_kernel_oneEv:
  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90a

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN3dvt4cuda12_GLOBAL__N_113linear_kernelI5TilesIfLi4EEEEvT_:
  REG:255 STACK:24 SHARED:1024 LOCAL:8 CONSTANT[0]:736 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN3dvt4cuda15adam_kernel_oneEv:
  REG:38 STACK:0 SHARED:1536 LOCAL:0 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("cuda_resources", ROOT / "tools" / "cuda_resources.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not shutil.which("c++filt"), reason="c++filt is not here to make names readable")
def test_what_cuobjdump_prints_is_read(tool):
    kernels = tool.parse(PRINTED, tool.demangled)
    assert [(k.name, k.architecture, k.registers, k.shared, k.local) for k in kernels] == [
        ("adam_kernel_one", "80", 40, 0, 0),
        ("adam_kernel_one", "90a", 38, 512, 0),
        ("linear_kernel<Tiles<float, 4>>", "90a", 255, 0, 32),
    ]
    rows = [line.split() for line in tool.table(kernels).splitlines()]
    assert rows[0] == ["kernel", "80", "90a"]
    assert rows[1] == ["adam_kernel_one", "40", "38", "s512"]
    assert rows[2][-2:] == ["-", "255+32"]


def test_names_lose_namespaces_and_arguments(tool):
    name = "void dvt::cuda::(anonymous namespace)::x_kernel<dvt::cuda::bf16, (int)4, f(int)>(dvt::cuda::Params)"
    assert tool.short_name(name) == "x_kernel<bf16, (int)4, f(int)>"
    assert tool.short_name("plain_kernel") == "plain_kernel"


@pytest.fixture(scope="module")
def kernels(tool):
    cuobjdump = tool.find_cuobjdump()
    if not cuobjdump:
        pytest.skip("no cuobjdump: it comes with the CUDA toolkit, and as the package nvidia-cuda-cuobjdump")
    library = Path(os.environ.get("DVT_FAST_RESOURCES", tool.LIBRARY))  # which `make resources` sets
    if not library.is_file():
        pytest.skip("this build has no CUDA library: there was no nvcc")
    return tool.read([library], cuobjdump)


def allowed(kernel) -> int:
    starts = [start for start in SPILLS if kernel.name.startswith(start)]
    return SPILLS[max(starts, key=len)] if starts else 0


def test_no_kernel_spills_beyond_the_list(tool, kernels):
    beyond = [k for k in kernels if k.local > allowed(k)]
    assert not beyond, f"\n{tool.table(beyond)}"


def test_the_list_names_what_is_there(kernels):
    if {k.architecture for k in kernels} < {"sm_90a", "sm_120"}:
        pytest.skip("some spill on one architecture only, and this library has few: make resources")
    assert not [start for start in SPILLS if not any(k.name.startswith(start) for k in kernels)]


def test_shared_memory_is_asked_for_at_launches(tool, kernels):
    fixed = [k for k in kernels if k.shared]
    assert not fixed, f"\n{tool.table(fixed)}"
