"""What every kernel of the CUDA library takes on every architecture: registers, shared memory, and spills.

    python tools/cuda_resources.py [LIBRARY or OBJECTS ...] [--kernels TEXT] [--spills]

Reads what `cuobjdump` (of the CUDA toolkit, or of the package nvidia-cuda-cuobjdump) says of machine code that is there
already, by default of the package's dvt_fast/lib/libdvt_fast_cuda.so; nothing is compiled. A cell is the registers of a
thread, "+N" where N bytes of local memory hold what did not fit, and "sN" where N bytes of shared memory are fixed when
the kernel is compiled: this package's kernels ask for theirs at the launch.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "dvt_fast" / "lib" / "libdvt_fast_cuda.so"
RESERVED = 1024  # bytes of shared memory of every block that the system keeps, and cuobjdump counts from sm_90 on


@dataclass(frozen=True, order=True)
class Kernel:
    """One kernel on one architecture. name: demangled, without arguments and what namespaces say. registers: a thread.
    shared, local: bytes, a block and a thread; local counts spills and arrays that are indexed at run time."""

    name: str
    architecture: str
    registers: int
    shared: int
    local: int


def find_cuobjdump() -> str | None:
    """The program, of PATH, of the toolkit that nvcc is from, or of the Python package; None where there is none."""
    nvcc = shutil.which("nvcc")
    folders = [Path(os.path.realpath(nvcc)).parent] if nvcc else []
    folders += [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    folders += [Path(entry) / "nvidia" / part / "bin" for entry in sys.path for part in ("cu13", "cuda_cuobjdump")]
    return shutil.which("cuobjdump") or next(
        (str(f / "cuobjdump") for f in folders if (f / "cuobjdump").is_file()), None
    )


def short_name(name: str) -> str:
    """`dvt::cuda::(anonymous namespace)::x_kernel<float, 4>(...)` -> `x_kernel<float, 4>`."""
    name = re.sub(r"\(anonymous namespace\)::|dvt::cuda::|dvt::", "", name.removeprefix("void ")).replace("> >", ">>")
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i]
    return name


def parse(text: str, demangle: Callable[[list[str]], list[str]] | None = None) -> list[Kernel]:
    """The kernels in what `cuobjdump -res-usage` printed. demangle: a list of names to a list of them."""
    found: list[tuple[str, str, int, int, int]] = []
    architecture, mangled = "", ""
    for line in text.splitlines():
        if match := re.match(r"\s*arch = (\S+)", line):
            architecture = match[1].removeprefix("sm_")
        elif match := re.match(r"\s*Function (\S+):", line):
            mangled = match[1]
        elif mangled and "REG:" in line:
            use = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
            shared = max(0, use["SHARED"] - RESERVED)
            found.append((mangled, architecture, use["REG"], shared, use["STACK"] + use["LOCAL"]))
            mangled = ""
    names = [entry[0] for entry in found]
    plain = dict(zip(names, demangle(names) if demangle and names else names, strict=True))
    return sorted(Kernel(short_name(plain[entry[0]]), *entry[1:]) for entry in found)


def demangled(names: list[str]) -> list[str]:
    """Names as C++ has them, where c++filt is there."""
    program = shutil.which("cu++filt") or shutil.which("c++filt")
    if not program:
        return names
    done = subprocess.run([program], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def read(paths: list[Path], cuobjdump: str) -> list[Kernel]:
    """The kernels of libraries and objects, of all architectures in them."""
    kernels = []
    for path in paths:
        done = subprocess.run([cuobjdump, "-res-usage", path], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{path}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        kernels += parse(done.stdout, demangled)
    return kernels


def table(kernels: list[Kernel]) -> str:
    """A row a kernel, a column an architecture."""
    architectures = sorted({k.architecture for k in kernels}, key=lambda a: (int(re.sub(r"\D", "", a)), a))
    cells: dict[str, dict[str, str]] = {}
    for k in kernels:
        text = f"{k.registers}" + (f"+{k.local}" if k.local else "") + (f" s{k.shared}" if k.shared else "")
        cells.setdefault(k.name, {})[k.architecture] = text
    width = max(map(len, cells), default=0)
    lines = [" ".join(["kernel".ljust(width), *(f"{a:>8}" for a in architectures)])]
    for name, row in cells.items():
        lines.append(" ".join([name.ljust(width), *(f"{row.get(a, '-'):>8}" for a in architectures)]))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[LIBRARY], help="libraries and objects")
    parser.add_argument("--kernels", default="", help="only those whose names have this text in them")
    parser.add_argument("--spills", action="store_true", help="only those with local memory")
    options = parser.parse_args()
    cuobjdump = find_cuobjdump()
    if not cuobjdump:
        print("cuobjdump was not found: it comes with the CUDA toolkit, and with pip install nvidia-cuda-cuobjdump")
        return 1
    kernels = [k for k in read(options.paths, cuobjdump) if options.kernels in k.name]
    if options.spills:
        spilling = {k.name for k in kernels if k.local}
        kernels = [k for k in kernels if k.name in spilling]
    print(table(kernels))
    spills = sum(k.local > 0 for k in kernels)
    print(f"{len({k.name for k in kernels})} kernels, {len(kernels)} with their architectures, {spills} of these spill")
    return 0


if __name__ == "__main__":
    sys.exit(main())
