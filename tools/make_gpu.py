"""Everything that needs a GPU, in one command of limited time: build, tests, compute-sanitizer, benchmarks.

    python tools/make_gpu.py [--stages build tests sanitizer benchmarks] [--seconds 530]

It needs nvcc, and of Python what is there already: torch, timm, pytest, pybind11, cmake and ninja; nothing is installed
or fetched. Everything is built in place. The tests and compute-sanitizer's three tools run side by side, each in a
process of its own; torch.compile, a rival that takes minutes to tune, is tuned beside the build and the tests; the
benchmarks have the machine for themselves. No stage stops another; the exit code is 1 where one failed.

What each stage says goes to $OUT/STAGE.log, or build/gpu/STAGE.log, and the results, as benchmarks/results/GPU.json,
beside it. DVT_FAST_CUDA_LIBRARY, where set, is the CUDA library to measure, and then none is built. --dry-run takes
the emulator and small models, on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("build", "tests", "sanitizer", "benchmarks")
TOOLS = ("memcheck", "racecheck", "synccheck")
APART = ("test_cuda_emulator.py", "test_cuda_resources.py")  # which compile for what is not here
LIMITS = {"build": 240.0, "tests": 130.0, "sanitizer": 130.0}  # seconds; the benchmarks have what is left


@dataclass
class Job:
    """A command whose output goes to a file. outcome: "ok", "skipped: ..." or what went wrong, in one line."""

    name: str
    command: list[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    outcome: str = ""
    seconds: float = 0.0

    def start(self) -> Job:
        self._began = time.monotonic()
        self._file = self.log.open("w")
        self._file.write(f"$ {' '.join(self.command)}\n")
        self._file.flush()
        self._process = subprocess.Popen(
            self.command, cwd=ROOT, env=os.environ | self.env, stdout=self._file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        return self

    def wait(self, limit: float) -> Job:
        """Until it ends, or is ended, after `limit` seconds from its start."""
        try:
            code = self._process.wait(max(0.0, limit - (time.monotonic() - self._began)))
            self.outcome = "ok" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self.outcome = f"not done after {limit:.0f} s"
        self.seconds = time.monotonic() - self._began
        self._file.close()
        return self

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    @property
    def failed(self) -> bool:
        return self.outcome != "ok" and not self.outcome.startswith("skipped")


class Session:
    """The stages of one run, and the time they have."""

    def __init__(self, out: Path, seconds: float, dry_run: bool):
        self.out, self.dry_run = out, dry_run
        self._end = time.monotonic() + seconds
        self.done: list[Job] = []
        self.tuning: Job | None = None
        self.env = {
            "DVT_FAST_CUDA_TEST": "emulated" if dry_run else "device",
        }
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

    def left(self) -> float:
        return self._end - time.monotonic()

    def job(self, name: str, *command: str, **env: str) -> Job:
        return Job(name, list(command), self.out / f"{name}.log", self.env | env)

    def build(self) -> None:
        # What setup.py does, without it: it needs a newer setuptools than a machine may have.
        cuda = "off" if os.environ.get("DVT_FAST_CUDA_LIBRARY") or self.dry_run else "on"
        folder = ROOT / "build" / f"gpu-{sys.implementation.cache_tag}"
        configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'dvt_fast'}"]
        architectures = os.environ.get("DVT_FAST_CUDA_ARCHITECTURES", "")
        configure += [f"-DDVT_FAST_CUDA={cuda}", f"-DDVT_FAST_CUDA_ARCHITECTURES={architectures}"]
        self.done.append(self.job("configure", *configure).start().wait(self.left()))
        build = self.job("build", "cmake", "--build", str(folder), "--target", "dvt_package").start()
        self.done.append(build.wait(min(LIMITS["build"], self.left())))
        if self.dry_run and not os.environ.get("DVT_FAST_CUDA_LIBRARY"):
            code = "import sys; sys.path.append('tests'); import cuda_samples; print(cuda_samples.build_emulator())"
            self.done.append(self.job("emulator", sys.executable, "-c", code).start().wait(self.left()))

    def tune(self) -> None:
        """Starts the tuning of torch.compile, which `benchmarks` waits for."""
        seconds = max(30.0, min(LIMITS["build"] + LIMITS["tests"], self.left() - 200))
        tiny = ["--tiny"] if self.dry_run else []
        command = [sys.executable, "benchmarks/gpu_compile.py", "--seconds", f"{seconds:.0f}", *tiny]
        self.tuning = self.job("torch_compile", *command).start()

    def check(self, stages: list[str]) -> None:
        """The tests and compute-sanitizer, side by side."""
        files = sorted(path for path in (ROOT / "tests").glob("test_cuda_*.py") if path.name not in APART)
        tests = [str(path.relative_to(ROOT)) for path in files]
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=8", *tests]
        workers = ["-n", "4"] if importlib.util.find_spec("xdist") and not self.dry_run else []
        jobs = []
        if "tests" in stages:
            jobs.append(self.job("tests", *pytest, *workers).start())
        if "sanitizer" in stages:
            program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
            for tool in TOOLS:
                command = [program, "--tool", tool, "--error-exitcode", "9", *pytest, "-m", "sanitizer"]
                job = self.job(tool, *command)
                if self.dry_run or not Path(program).is_file():
                    job.outcome = "skipped: compute-sanitizer is not there"
                    self.done.append(job)
                else:
                    jobs.append(job.start())
        for job in jobs:
            self.done.append(job.wait(min(LIMITS["tests"], self.left())))
            if job.failed and "Device not supported" in job.text():
                job.outcome = "skipped: compute-sanitizer does not support this device's driver"

    def benchmarks(self) -> None:
        if self.tuning is not None:
            limit = self.left() - 150  # of the tuning, for the benchmarks: what is not tuned by then is not timed
            tuning, self.tuning = self.tuning, None
            self.done.append(tuning.wait(time.monotonic() - tuning._began + max(1.0, limit)))
            if tuning.outcome.startswith("not done"):
                tuning.outcome = f"skipped: {tuning.outcome}"
        seconds = f"{max(10.0, self.left() - 8):.0f}"
        command = [sys.executable, "benchmarks/gpu.py", "--seconds", seconds]
        if self.dry_run:
            command += ["--tiny", "--json", str(self.out / "dry_run.json")]
        library = ROOT / "build" / "emulator" / "libdvt_fast_cuda_emulated.so"
        emulated = self.dry_run and not os.environ.get("DVT_FAST_CUDA_LIBRARY")
        job = self.job("benchmarks", *command, **({"DVT_FAST_CUDA_LIBRARY": str(library)} if emulated else {})).start()
        self.done.append(job.wait(max(10.0, self.left())))
        for found in re.findall(r"; (\S+\.json)$", job.text(), re.M):
            path = Path(found)
            if path.is_file() and path.parent != self.out:
                shutil.copy(path, self.out / path.name)

    def summary(self) -> int:
        """Prints a line a job; 1 where one failed."""
        for job in self.done:
            detail = ""
            if job.log.name in ("tests.log", *(f"{tool}.log" for tool in TOOLS)):
                lines = [
                    line
                    for line in job.text().splitlines()
                    if re.search(r"\d+ (passed|failed|skipped)|ERROR SUM", line)
                ]
                detail = "; ".join(line.strip("= ") for line in lines[-2:])
            elif job.name == "benchmarks":
                detail = (job.text().splitlines() or [""])[-1]
            print(f"{job.name:14}{job.outcome} ({job.seconds:.0f} s){': ' if detail else ''}{detail}", flush=True)
        return int(any(job.failed for job in self.done))


def has_gpu() -> bool:
    """Whether the driver shows one."""
    code = "import sys; sys.path.append('tests'); import cuda_samples; print(cuda_samples.driver_devices())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() not in ("", "0")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seconds", type=float, default=530, help="that all may take")
    parser.add_argument("--dry-run", action="store_true", help="the emulator and small models: no GPU is needed")
    arguments = parser.parse_args()
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu")
    out.mkdir(parents=True, exist_ok=True)
    session = Session(out, arguments.seconds, arguments.dry_run)
    if not arguments.dry_run and set(arguments.stages) != {"build"} and not has_gpu():
        print("the NVIDIA driver shows no device here; --dry-run needs none")
        return 2
    if "benchmarks" in arguments.stages:
        session.tune()
    if "build" in arguments.stages:
        session.build()
    if {"tests", "sanitizer"} & set(arguments.stages):
        session.check(arguments.stages)
    if "benchmarks" in arguments.stages:
        session.benchmarks()
    return session.summary()


if __name__ == "__main__":
    sys.exit(main())
