"""The CUDA library itself: it loads where there is no driver, says why it cannot compute, and brings nothing along."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dvt_fast
from dvt_fast import _native
from dvt_fast.devices import Device, parse_device

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "dvt_fast" / "lib" / "libdvt_fast_cuda.so"
needs_library = pytest.mark.skipif(not LIBRARY.is_file(), reason="this build has no CUDA library: nvcc was not found")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, which loads the package's own CUDA library unless `env` names another."""
    clean = {key: value for key, value in os.environ.items() if key != "DVT_FAST_CUDA_LIBRARY"}
    run = [sys.executable, "-c", code]
    return subprocess.run(run, capture_output=True, text=True, env=clean | env, cwd=ROOT)


def last_line(code: str, **env: str) -> str:
    """The message of the error that ends `code`."""
    done = python(code, **env)
    assert done.returncode == 1, done.stdout
    return done.stderr.splitlines()[-1]


@needs_library
def test_library_needs_no_driver_no_runtime_and_no_torch():
    out = subprocess.run(["readelf", "-d", LIBRARY], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", out)
    allowed = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libpthread|libdl|librt|ld-linux.*)\.so")
    assert needed
    assert [name for name in needed if not allowed.match(name)] == []


@needs_library
def test_library_exports_one_name():
    out = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], check=True, capture_output=True, text=True).stdout
    assert {line.split()[-1] for line in out.splitlines()} == {"dvt_cuda_backend"}


def test_importing_loads_no_cuda():
    code = "import dvt_fast._native\nprint([l for l in open('/proc/self/maps') if 'cuda' in l.lower()])"
    assert python(code).stdout == "[]\n"


@needs_library
def test_without_a_driver_one_line_says_so():
    """As on most machines: nothing that NVIDIA installs is found."""
    code = "from dvt_fast import backends\nb = backends()[1]\nprint(b.name, b.available)\nprint(b.reason)"
    name, reason = python(code, CUDA_VISIBLE_DEVICES="").stdout.splitlines()
    assert name == "cuda False"
    assert re.search(r"no NVIDIA driver was found|shows no device|too old", reason), reason
    message = last_line("import dvt_fast._native as n\nn.cuda_check_device(0)", CUDA_VISIBLE_DEVICES="")
    assert message == f"dvt_fast.errors.UnsupportedError: {reason}"


def test_a_library_that_is_not_there():
    message = last_line("import dvt_fast._native as n\nn.cuda_devices()", DVT_FAST_CUDA_LIBRARY="/nowhere/lib.so")
    assert message.startswith("dvt_fast.errors.UnsupportedError: the CUDA library cannot be loaded: /nowhere/lib.so")


def test_a_library_of_something_else():
    other = next((ROOT / "dvt_fast" / "lib").glob("libdvt_fast.so*"))
    message = last_line("import dvt_fast._native as n\nn.cuda_devices()", DVT_FAST_CUDA_LIBRARY=str(other))
    assert message == f"dvt_fast.errors.UnsupportedError: {other} is no CUDA library of dvt_fast"


def test_backends_are_named_in_order():
    assert [backend.name for backend in dvt_fast.backends()] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", Device()), ("cuda", Device("cuda", 0)), ("cuda:3", Device("cuda", 3)), ("cpu:0", Device())],
)
def test_device_names(name, expected):
    assert parse_device(name) == expected
    assert parse_device(expected) is expected


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:a", "", "cpu:1", None])
def test_other_names_are_refused(name):
    with pytest.raises(dvt_fast.InputError, match=r"device must be 'cpu', 'cuda' or 'cuda:N', got "):
        parse_device(name)


def test_emulated_devices(cuda):
    """What tests run on says what it is, and devices that are not there are refused by number."""
    backend = dvt_fast.backends()[1]
    assert backend.available and backend.devices[0].startswith("cuda:0: ")
    assert ("emulated" in backend.versions) == cuda.emulated
    with pytest.raises(dvt_fast.InputError, match=r"device 'cuda:99' does not exist"):
        _native.cuda_check_device(99)


def test_arrays_go_to_the_device_and_back(cuda):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    there = _native.DeviceArray.from_numpy(array)
    assert (there.shape, there.dtype, there.device) == ((2, 3, 4), "float32", 0)
    np.testing.assert_array_equal(there.numpy(), array)


def test_arrays_speak_dlpack_both_ways(cuda):
    torch = pytest.importorskip("torch")
    there = _native.DeviceArray([2, 5], "bfloat16")
    tensor = torch.from_dlpack(there)
    tensor.copy_(torch.arange(10).reshape(2, 5))
    assert tensor.dtype == torch.bfloat16 and tensor.shape == (2, 5)
    seen = _native.DeviceArray.of(tensor.T, "x", 0)
    assert seen.shape == (5, 2) and seen.pointer == there.pointer
    del there
    assert tensor.float().sum() == 45


def test_arrays_in_main_memory_are_refused_where_a_device_has_its_own(cuda):
    if cuda.emulated:
        pytest.skip("in the emulator main memory is the device's")
    with pytest.raises(dvt_fast.InputError, match="x is in main memory, expected an array on device 'cuda:0'"):
        _native.DeviceArray.of(np.zeros(3, np.float32), "x", 0)
