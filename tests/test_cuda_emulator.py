"""The emulator that CUDA sources are tested with where there is no GPU: its own tests (tests/emulator/test_*.cpp).

Kernels with mistakes are among them: what they are told is read here.
"""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from native_samples import ROOT, run

EMULATOR = ROOT / "tests" / "emulator"
FAULTS = {
    "fault_lane_missing": [
        "kernel lane_missing_kernel, block (0, 0, 0), ",
        "warp 0: lanes 0xffffdfff at __syncwarp of lanes 0xffffffff",
        "warp 0: lanes 0x00002000 at __shfl_sync of lanes 0xffffffff",
    ],
    "fault_barrier_missing": [
        "warp 0: lanes 0xffffffff at named_barrier",
        "warp 1: lanes 0xffffffff at __syncthreads",
    ],
    "fault_wrong_mask": ["thread (0, 0, 0): __ballot_sync: the mask 0xfffffffe lacks the lane that calls, 0"],
    "fault_endless": ["threads spin and nothing else happens"],
    "fault_misaligned": ["cp.async: an address is not a multiple of 16"],
    "fault_copy_too_far": ["thread (31, 0, 0): cp.async: 16 bytes at offset 496 of 496 bytes of shared memory"],
    "fault_late_operation": ["asynchronous operation: after all threads have ended"],
    "fault_trap": ["kernel trap_kernel, block (3, 0, 0), thread (", ", 2, 0): __trap()"],
}
OVERRUNS = {
    "overrun_shared": ["kernel shared_overrun_kernel wrote byte 0 behind its shared memory of 101 bytes"],
    "overrun_global": ["a kernel wrote byte 0 behind an allocation of 31 bytes"],
}
TESTS = [
    *("shuffles", "votes", "divergence", "barriers", "forgotten_barrier_is_seen", "copies_arrive_when_waited_for"),
    *("atomics", "indices", "cooperative", "clusters", "asynchronous_operations"),
    *("mma_bf16", "mma_f16", "mma_tf32", "ldmatrix", "gemm"),
    *("tile_swizzle_and_edges", "tile_store", "multicast", "barrier_phases", "barrier_too_many"),
    *("barrier_not_initialised", "barrier_never_complete"),
    *("wgmma_k_major", "wgmma_mn_major", "wgmma_tf32", "wgmma_no_fence"),
    *("devices", "memory", "launch_errors", "sticky_errors", "streams_that_are_late", "graphs"),
]


def build(name: str, *options: str) -> Path:
    """The program with the tests, built where it is out of date; one process at a time."""
    folder = ROOT / "build" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        generator = () if (folder / "CMakeCache.txt").is_file() else ("-G", "Ninja")
        run("cmake", "-S", EMULATOR, "-B", folder, *generator, *options)
        run("cmake", "--build", folder, "--target", "emulator_test", "--parallel", str(os.cpu_count()))
    return folder / "emulator_test"


@pytest.fixture(scope="module")
def program() -> Path:
    """The tests, optimised."""
    return build("emulator")


def outcome(program: Path, test: str, **settings: str) -> subprocess.CompletedProcess:
    """One test in a process of its own, since errors of kernels are sticky."""
    env = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"} | settings
    return subprocess.run([program, test], capture_output=True, text=True, env=env, timeout=300)


def test_all_are_here(program):
    listed = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert set(listed) == {*TESTS, *FAULTS, *OVERRUNS, "gemm_speed"}


@pytest.mark.parametrize("seed", ["0", "1", "2"])
@pytest.mark.parametrize("test", TESTS)
def test_emulator(program, test, seed):
    """Whatever the order in which threads run."""
    done = outcome(program, test, DVT_EMULATOR_SEED=seed)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("test", ["atomics", "barriers", "gemm", "indices", "clusters"])
def test_blocks_on_several_threads(program, test):
    done = outcome(program, test, DVT_EMULATOR_THREADS="3")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("test", [*FAULTS, *OVERRUNS])
def test_faults(program, test):
    """A kernel with a mistake fails as on a card, and one is told what is wrong where."""
    done = outcome(program, test)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (FAULTS | OVERRUNS)[test]:
        assert text in done.stderr


def test_sanitized():
    """With AddressSanitizer, which knows of the fibers: it finds what writes too far, and nothing else."""
    try:
        program = build("emulator_sanitized", "-DDVT_EMULATOR_SANITIZE=ON")
    except (subprocess.CalledProcessError, AssertionError) as error:
        pytest.skip(f"no sanitizers: {error}")
    for test in ["shuffles", "divergence", "barriers", "copies_arrive_when_waited_for", "gemm", "graphs", *FAULTS]:
        done = outcome(program, test)
        assert done.returncode == 0, done.stdout + done.stderr
    for test in OVERRUNS:
        done = outcome(program, test)
        assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
        assert f"{test.split('_')[1]}_overrun_kernel" in done.stderr
