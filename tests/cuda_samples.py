"""For tests of the CUDA library: on a device where there is one, and in the emulator (tests/emulator) everywhere else.

The emulator is a library of the same kernels and launchers, compiled for the processor, with main memory standing for
the device's. What decides: DVT_FAST_CUDA_LIBRARY, a library to take as it is; DVT_FAST_CUDA_TEST, "device" or
"emulated"; and else whether a driver says that it has a device. The fixture `cuda` of conftest.py sets it up once.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from native_samples import ROOT, run

EMULATOR = ROOT / "tests" / "emulator"
BUILD = ROOT / "build" / "emulator"
LIBRARY = "libdvt_fast_cuda_emulated.so"
DTYPES = ("float32", "float16", "bfloat16", "uint8", "int32", "uint32", "int64", "float64")
STORAGE = {"bfloat16": "uint16"}


def driver_devices() -> int:
    """How many devices the CUDA driver says it has; without asking dvt_fast, which takes one library and keeps it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def build_emulator(build: Path = BUILD, *options: str) -> Path:
    """The emulated library, built where it is out of date; one process at a time."""
    build.parent.mkdir(parents=True, exist_ok=True)
    with open(build.with_name(f"{build.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        generator = () if (build / "CMakeCache.txt").is_file() else ("-G", "Ninja")  # another would be refused
        run("cmake", "-S", EMULATOR, "-B", build, *generator, *options)
        run("cmake", "--build", build, "--target", "dvt_fast_cuda_emulated", "--parallel", str(os.cpu_count()))
    return next(path for path in build.rglob(LIBRARY))


@dataclass(frozen=True)
class Cuda:
    """Where device="cuda" computes in this process. library: the file that was set, None for the package's own."""

    emulated: bool
    library: Path | None

    def to_device(self, x: Any) -> Any:
        """`x`, an array or a tensor, as a torch tensor in the memory of device 0, the emulated one too."""
        import torch

        tensor = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(x))
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)

    def empty(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """A new torch tensor in the memory of device 0; float32 unless `dtype`, torch's, says otherwise."""
        import torch

        dtype = dtype or torch.float32
        if not self.emulated:
            return torch.empty(tuple(shape), dtype=dtype, device="cuda")
        from dvt_fast import _native

        return torch.from_dlpack(_native.DeviceArray(list(shape), str(dtype).partition(".")[2], 0))

    def to_numpy(self, x: Any) -> np.ndarray:
        """Values in main memory, bfloat16 as float32, after all that was enqueued on whatever stream."""
        if isinstance(x, np.ndarray):
            return x
        self.synchronize()
        x = x.detach().cpu()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()

    def stream(self) -> Any:
        """A stream of its own as `run(..., stream=)` takes it; the default one in the emulator.

        There torch says of every tensor that it is on the CPU: it is the stream that says where a session looks for it.
        """
        if self.emulated:
            return 0
        import torch

        torch.cuda.synchronize()  # what was enqueued elsewhere is there, for a stream that does not wait for others
        return torch.cuda.Stream()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.emulated:
            ctypes.CDLL(str(self.library)).dvt_emulator_synchronize()
        else:
            import torch

            torch.cuda.synchronize()


def prepare() -> Cuda:
    """Makes device="cuda" usable in this process; before dvt_fast is asked for it first."""
    if given := os.environ.get("DVT_FAST_CUDA_LIBRARY"):
        return Cuda(LIBRARY in given or "emulated" in Path(given).name, Path(given))
    wish = os.environ.get("DVT_FAST_CUDA_TEST", "device" if driver_devices() else "emulated")
    if wish == "device":
        return Cuda(False, None)
    assert wish == "emulated", f"DVT_FAST_CUDA_TEST must be device or emulated, got {wish!r}"
    library = build_emulator()
    os.environ["DVT_FAST_CUDA_LIBRARY"] = str(library)
    return Cuda(True, library)


def to_bfloat16(x: Any) -> np.ndarray:
    """float32 values rounded to the nearest bfloat16, ties to even: their bits, uint16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """`x` as float32 values that `dtype` can hold: what an operand is once it is stored."""
    if dtype == "bfloat16":
        return from_bfloat16(to_bfloat16(x))
    if dtype == "tf32":  # of finite values, ties away from zero
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.asarray(x).astype(dtype).astype(np.float32)


def stored(x: Any, dtype: str) -> Any:
    """`x` as an operand of `run_op` of that dtype: an array, or bits with their name for bfloat16."""
    return (to_bfloat16(x), "bfloat16") if dtype == "bfloat16" else np.ascontiguousarray(x, np.dtype(dtype))


def run_op(
    name: str,
    tensors: Mapping[str, Any],
    outputs: Mapping[str, tuple[tuple[int, ...], str] | None],
    numbers: Mapping[str, float] | None = None,
    words: Mapping[str, str] | None = None,
    *,
    device: int = 0,
    repeat: int = 1,
) -> dict[str, np.ndarray]:
    """One op of the CUDA library by its registered name (csrc/cuda/op_registry.h): its outputs, in main memory.

    tensors: arrays, torch tensors, or what `stored` gives. outputs: (shape, dtype) each, full of NaN bytes before the
    op; None for one of `tensors` that the op changes. bfloat16 outputs come back as float32 of the same values.
    """
    from dvt_fast import _native

    given = {key: _tagged(value) for key, value in tensors.items()}
    types = {key: kind for key, (_, kind) in given.items()} | {key: v[1] for key, v in outputs.items() if v is not None}
    arrays = {key: array for key, (array, _) in given.items()}
    wanted = {
        key: arrays[key].copy() if value is None else np.zeros(value[0], STORAGE.get(value[1], value[1]))
        for key, value in outputs.items()
    }
    inputs = arrays | {key: value for key, value in wanted.items() if key in arrays}
    _native.cuda_op(
        name, inputs, wanted, dict(numbers or {}), dict(words or {}), types=types, device=device, repeat=repeat
    )
    return {key: from_bfloat16(value) if types[key] == "bfloat16" else value for key, value in wanted.items()}


def _tagged(value: Any) -> tuple[np.ndarray, str]:
    """An array and the name of its dtype."""
    if isinstance(value, tuple):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu().contiguous()
        if str(value.dtype) == "torch.bfloat16":
            import torch

            return value.view(torch.int16).numpy().view(np.uint16), "bfloat16"
        value = value.numpy()
    array = np.ascontiguousarray(value)
    assert array.dtype.name in DTYPES, f"an op takes {', '.join(DTYPES)}, got {array.dtype}"
    return array, array.dtype.name


def error(found: np.ndarray, truth: np.ndarray) -> float:
    """|found - truth| / |truth| in the 2-norm, in float64; infinite where anything is NaN or of another shape."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if found.shape != truth.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-300))


def truncation(k: int, dtype: str) -> float:
    """What sums of `k` products may be off by, of themselves, because the tensor cores cut off what they add.

    A sum of 8 products or more is added at a time; float32 adds them outside.
    """
    return 0.0 if dtype == "float32" else 2.0**-24 * k / 8


def assert_as_good_as(
    found: np.ndarray, rival: np.ndarray, truth: np.ndarray, times: float = 2.0, slack: float = 0.0
) -> None:
    """`found` is at most `times` as far from the float64 `truth` as `rival`, the same in torch in the same dtype."""
    ours, theirs = error(found, truth), error(rival, truth)
    assert ours <= times * theirs + slack + 1e-7, f"error {ours:.2e}, torch's is {theirs:.2e}"


class Emulator:
    """The emulator's settings and counts (tests/emulator/settings.h), for what no real device does when asked to."""

    def __init__(self, library: Path):
        self._library = ctypes.CDLL(str(library))
        self._library.dvt_emulator_count.restype = ctypes.c_longlong
        self._changed: set[str] = set()

    def set(self, **settings: float | None) -> None:
        """`set(MEMORY=1e6)` is DVT_EMULATOR_MEMORY; None is what it was."""
        for name, value in settings.items():
            text = None if value is None else repr(value).encode()
            self._library.dvt_emulator_set(f"DVT_EMULATOR_{name}".encode(), text)
            self._changed.add(name)

    def count(self, what: str) -> int:
        """ "launches", "allocations", "bytes" (allocated now) or "copies", since the last `reset`."""
        return self._library.dvt_emulator_count(what.encode())

    def reset(self) -> None:
        """Forget a device that failed; counts start again."""
        self._library.dvt_emulator_reset()

    def restore(self) -> None:
        """A device that works, with the environment's settings."""
        self.set(**dict.fromkeys(self._changed))
        self.reset()
