"""The direct solver's time and memory at the official size, and against a plain SciPy solver of the same equations.

`official`: C = 768, 37 x 37 patches, 769 views (the paper's), streamed in batches of 32 as a ViT would give them. Time
is the solver's own (accumulating and solving), memory is the peak above that before the first view, both for one pass,
which keeps no features, and for the default options, which keep them in float16 (1.6 GB) and reweight.

Floors on two cores: the features are read once, 3.2 GB; scattering them is 5 read-modify-writes a value, 16 GB of
cache traffic; the Schur complement with 99 x 100 nodes is 67 GFLOP of matrix products.

`scipy`: 96 channels, 24 x 24 patches, 161 views in memory; the same normal equations assembled with scipy.sparse and
solved by Jacobi-preconditioned block CG to the same residual. The two solutions are compared before times are shown.

    python benchmarks/direct.py [official] [scipy] [--json results.json]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import interleaved, save

from dvt_fast.solvers.direct import DirectOptions, DirectStream, fit_grid
from dvt_fast.views import plan_boxes, view_coords

BATCH = 32


def batches(coords: np.ndarray, channels: int):
    """Cheap features with structure: waves in image coordinates, an artifact map, and recycled noise."""
    rng = np.random.default_rng(0)
    waves, phase = rng.normal(0, 6, (2, 16)).astype(np.float32), rng.uniform(0, 6, 16).astype(np.float32)
    mix = rng.standard_normal((16, channels)).astype(np.float32)
    artifacts = rng.standard_normal((*coords.shape[1:3], channels)).astype(np.float32)
    noise = 0.2 * rng.standard_normal((BATCH, *coords.shape[1:3], channels)).astype(np.float32)
    for start in range(0, len(coords), BATCH):
        xy = coords[start : start + BATCH]
        yield np.sin(xy @ waves + phase) @ mix + artifacts + noise[: len(xy)]


class PeakMemory:
    """The most memory in use by this process while it lives, above that at its start, in MiB."""

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._thread.join()
        self.mebibytes = (self._peak - self._start) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._peak = max(self._peak, self._now())

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def official_case(passes: int, channels: int, patches: int, views: int, queue) -> None:
    coords = np.ascontiguousarray(view_coords(plan_boxes(views), (patches, patches)))
    source = batches(coords, channels)
    first = next(source)
    batch = first.nbytes / 2**20
    seconds = {"add": 0.0, "solve": 0.0}
    with PeakMemory() as memory:
        stream = DirectStream(coords, channels, DirectOptions.parse({"passes": passes}))
        for features in itertools.chain([first], source):
            start = time.perf_counter()
            stream.add(features)
            seconds["add"] += time.perf_counter() - start
        start = time.perf_counter()
        found = stream.finish()
        seconds["solve"] = time.perf_counter() - start
    # The source makes the next batch while the last one is still there: three of its arrays are not the solver's.
    row = {**seconds, "total": sum(seconds.values()), "memory_MiB": memory.mebibytes, "source_MiB": 3 * batch}
    queue.put({**row, "info": found.info})


def official(channels: int = 768, patches: int = 37, views: int = 768) -> dict:
    out = {}
    for name, passes in (("one pass", 1), ("default", DirectOptions.passes)):
        # A process each: the peak of memory is the process's.
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        worker = context.Process(target=official_case, args=(passes, channels, patches, views, queue))
        worker.start()
        out[name] = row = queue.get()
        worker.join()
        print(
            f"C = {channels}, {patches} x {patches}, {views + 1} views, {name:8}: {row['total']:.2f} s"
            f" (adding {row['add']:.2f}, solving {row['solve']:.2f}), {row['memory_MiB']:.0f} MiB,"
            f" {row['source_MiB']:.0f} of them the source's; {row['info']}",
            flush=True,
        )
    return out


def scipy_solver(features: np.ndarray, coords: np.ndarray, grid: tuple[int, int], smoothness: float, ridge: float):
    """Nodes [Ry, Rx, C] and artifacts [P, C] of the same equations: sparse matrix, block CG, tolerance 1e-5."""
    import scipy.sparse as sp

    (ny, nx), rows = grid, features.reshape(-1, features.shape[-1]).astype(np.float64)
    n, patches = len(rows), features.shape[1] * features.shape[2]
    at = coords.reshape(-1, 2).astype(np.float64) * (nx - 1, ny - 1)
    base = np.clip(at.astype(int), 0, (nx - 2, ny - 2))
    (u, v), (j, i) = (at - base).T, base.T
    columns = np.stack([(i + di) * nx + j + dj for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1))], 1)
    values = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], 1)
    a = sp.csr_matrix((values.ravel(), (np.repeat(np.arange(n), 4), columns.ravel())), shape=(n, ny * nx))
    b = sp.csr_matrix((np.ones(n), (np.arange(n), np.arange(n) % patches)), shape=(n, patches))
    k = sp.hstack([a, b]).tocsr()
    dy, dx = (sp.diags([1.0, -1.0], [0, 1], shape=(m - 1, m)) for m in (ny, nx))
    laplacian = sp.kron(sp.eye(ny), dx.T @ dx) + sp.kron(dy.T @ dy, sp.eye(nx))
    matrix = (k.T @ k + sp.block_diag([smoothness * laplacian, ridge * sp.eye(patches)])).tocsr()
    rhs = k.T @ rows
    diagonal = matrix.diagonal()[:, None]
    x, r = np.zeros_like(rhs), rhs.copy()
    z = r / diagonal
    p, rz = z.copy(), (r * z).sum(0)
    target = 1e-5 * np.linalg.norm(rhs)
    for _ in range(200):
        q = matrix @ p
        alpha = rz / ((p * q).sum(0) + 1e-30)
        x += alpha * p
        r -= alpha * q
        if np.linalg.norm(r) < target:
            break
        z = r / diagonal
        rz, old = (r * z).sum(0), rz
        p = z + rz / old * p
    return x[: ny * nx].reshape(ny, nx, -1), x[ny * nx :]


def against_scipy() -> dict:
    from planted import make

    problem = make()
    grid = fit_grid(problem.coords, None)
    options = {"passes": 1, "artifact_ridge": 1.0, "smoothness": 0.1}

    def ours():
        stream = DirectStream(problem.coords, problem.features.shape[-1], DirectOptions.parse(options), borrow=True)
        stream.add(problem.features)
        return stream.finish()

    found = ours()
    nodes, artifacts = scipy_solver(problem.features, problem.coords, grid, 0.1, 1.0)
    artifacts *= (len(problem.coords) + 1.0) / len(problem.coords)
    difference = found.artifacts.reshape(artifacts.shape) - (artifacts - artifacts.mean(0))
    error = float(np.abs(difference).max() / np.abs(artifacts).max())
    if error > 1e-3:
        sys.exit(f"the two solvers disagree by {error:.1e} of the largest artifact: not timed")
    times = interleaved(
        {"direct": ours, "scipy": lambda: scipy_solver(problem.features, problem.coords, grid, 0.1, 1.0)}, repeats=3
    )
    best = {name: min(values) for name, values in times.items()}
    ratio = best["scipy"] / best["direct"]
    print(
        f"planted, one pass: direct {best['direct']:.3f} s, scipy {best['scipy']:.2f} s, {ratio:.0f} times;"
        f" the solutions agree to {error:.0e}"
    )
    return {**best, "ratio": ratio, "difference": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["official", "scipy"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    out: dict = {}
    if "official" in arguments.what:
        out["official"] = official()
    if "scipy" in arguments.what:
        out["scipy"] = against_scipy()
    save(arguments.json, out)


if __name__ == "__main__":
    main()
