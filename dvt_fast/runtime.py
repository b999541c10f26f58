"""What can compute here: backends, instruction sets and threads, by name, so that a choice can be seen and forced."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import DvtError, InputError


@dataclass(frozen=True)
class Backend:
    """One device kind.

    available: whether `device=name` works here; reason: why not, or "".
    instruction_sets: of the CPU, by name, "" where this machine runs it, else why it does not (the processor, the
    operating system or the build). active: the one in use, "" where none is.
    devices: of CUDA, a line each. versions: of CUDA, what the library was built with and for, and the driver's.
    """

    name: str
    available: bool
    reason: str = ""
    instruction_sets: dict[str, str] = field(default_factory=dict)
    active: str = ""
    devices: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def backends() -> list[Backend]:
    """Every backend that this version knows: "cpu" and "cuda".

    The instruction set is the best that runs, or what the environment variable DVT_FAST_ISA names (generic, avx2,
    avx512, neon); a value that cannot be honoured makes the CPU unavailable, with the reason, instead of another
    choice. CUDA is available where a driver shows a device that the library has code for.
    """
    try:
        from . import _native
    except ImportError as error:
        return [Backend(name, False, f"the native module cannot be loaded: {error}") for name in ("cpu", "cuda")]
    return [_cpu(_native), _cuda(_native)]


def _cpu(native: Any) -> Backend:
    sets = {name: native.isa_problem(name) or "" for name in native.built_isas()}
    try:
        return Backend("cpu", True, "", sets, native.active_isa())
    except DvtError as error:
        return Backend("cpu", False, str(error), sets)


def _cuda(native: Any) -> Backend:
    versions: dict[str, str] = {}
    try:
        info = native.cuda_info()
        versions = {"cuda": info["runtime"], "driver": info["driver"], "architectures": info["architectures"]}
        if info["emulated"]:
            versions["emulated"] = "the kernels run on the CPU, for tests"
        found = native.cuda_devices()
    except DvtError as error:
        return Backend("cuda", False, str(error), versions=versions)
    lines = [
        f"cuda:{d['index']}: {d['name']}, compute capability {d['capability'][0]}.{d['capability'][1]}, "
        f"{d['memory'] / 1e9:.0f} GB" + (f"; {d['problem']}" if d["problem"] else "")
        for d in found
    ]
    usable = any(not d["problem"] for d in found)
    return Backend("cuda", usable, "" if usable else found[0]["problem"], devices=lines, versions=versions)


def get_num_threads() -> int:
    """Threads that the native code uses."""
    from . import _native

    return _native.num_threads()


def set_num_threads(n: int) -> None:
    """Use n threads in the native code; 0 is the default: DVT_FAST_NUM_THREADS, or the cores this process may run on.

    Results are the same bits with any number. torch has its own number, `torch.set_num_threads`.
    """
    from . import _native

    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise InputError(f"the number of threads must be an int from 0 (the default) up, got {n!r}")
    _native.set_num_threads(n)
