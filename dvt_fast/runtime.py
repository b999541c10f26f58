"""What can compute here: backends, instruction sets and threads, by name, so that a choice can be seen and forced."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import InputError


@dataclass(frozen=True)
class Backend:
    """One device kind.

    available: whether `device=name` works here; reason: why not, or "".
    instruction_sets: by name, "" where this machine runs it, else why it does not (the processor, the operating
    system or the build). active: the one in use, "" where none is.
    """

    name: str
    available: bool
    reason: str = ""
    instruction_sets: dict[str, str] = field(default_factory=dict)
    active: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def backends() -> list[Backend]:
    """Every backend that this version knows, the usable ones first.

    The instruction set is the best that runs, or what the environment variable DVT_FAST_ISA names (generic, avx2,
    avx512, neon); a value that cannot be honoured makes the CPU unavailable, with the reason, instead of another
    choice.
    """
    try:
        from . import _native
    except ImportError as error:
        return [Backend("cpu", False, f"the native module cannot be loaded: {error}")]
    sets = {name: _native.isa_problem(name) or "" for name in _native.built_isas()}
    try:
        return [Backend("cpu", True, "", sets, _native.active_isa())]
    except Exception as error:
        return [Backend("cpu", False, str(error), sets)]


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
