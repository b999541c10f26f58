"""The solvers "direct" and "average" on a CUDA device: nothing large leaves it until somebody asks.

The same streams and solutions as in direct.py and average.py, of arrays that lie on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from .. import _native
from ..devices import Device, current_stream
from ..errors import InputError
from .average import AverageOptions
from .bilinear_field import BilinearField
from .direct import DirectOptions, fit_grid
from .result import Solution


class CudaBilinearField:
    """A `BilinearField` whose nodes lie on a device: queried there, copied only to be saved."""

    def __init__(self, nodes: _native.DeviceArray):
        self._nodes = nodes

    @cached_property
    def nodes(self) -> np.ndarray:
        """float32 [Ry, Rx, C]; node (i, j) lies at y = i / (Ry - 1), x = j / (Rx - 1)."""
        return self._nodes.numpy()

    def query(self, coords: np.ndarray) -> np.ndarray:
        """Values at (x, y) in [0, 1]: [..., 2] -> float32 [..., C]."""
        coords = np.ascontiguousarray(coords, np.float32)
        values = _native.cuda_query_field(self._nodes, coords.reshape(-1, 2), current_stream(_device(self._nodes)))
        return values.reshape(*coords.shape[:-1], self._nodes.shape[-1])

    def state(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
        """That of the same field in main memory, which is how it is read back."""
        return BilinearField(self.nodes).state()

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> BilinearField:
        """Files hold fields in main memory."""
        return BilinearField.from_state(arrays, meta)


class _Stream:
    """Takes the views of one image as they come; features are arrays on the device, coords [V, H, W, 2] of all."""

    def __init__(
        self,
        coords: np.ndarray,
        channels: int,
        grid: tuple[int, int] | None,
        device: Device,
        *,
        keep: str,
        cosine: bool = False,
        solves_artifacts: bool = True,
    ):
        views, h, w, _ = coords.shape
        self.coords = coords
        self.channels = channels
        self.device = device
        self.stream = current_stream(device)
        ny, nx = fit_grid(coords, grid)
        self._solver = _native.CudaDirectSolver(
            ny,
            nx,
            h * w,
            channels,
            keep,
            cosine,
            solves_artifacts=solves_artifacts,
            expected_views=views,
            device=device.index,
            stream=self.stream,
        )
        self._added = 0

    def add(self, features: Any) -> None:
        """The next views, [n, H, W, C] on the device, contiguous: our arrays or torch tensors."""
        there = _native.DeviceArray.of(features, "features", self.device.index)
        n, h, w, c = there.shape
        places = self.coords[self._added : self._added + n].reshape(n, h * w, 2)
        self._solver.add(there.reshape([n, h * w, c]), places)
        self._added += n
        self._last = there[-1]

    def _solution(self, nodes: Any, artifacts: Any, info: Mapping[str, Any]) -> Solution:
        parts = _native.cuda_parts(nodes, artifacts, self.coords[self._added - 1], self._last, self.stream)
        raw, semantics, artifacts, residual = parts
        return Solution(semantics, artifacts, residual, CudaBilinearField(nodes), dict(info), raw)


class DirectStreamCuda(_Stream):
    """`DirectStream` on a device. borrow: features given to `add` stay unchanged until `finish`, else a copy is kept
    where the passes need one."""

    def __init__(self, coords: np.ndarray, channels: int, options: DirectOptions, device: Device, borrow: bool = False):
        h, w = coords.shape[1:3]
        if options.artifacts is not None and options.artifacts.shape != (h, w, channels):
            raise InputError(f"artifacts must have shape {[h, w, channels]}, got {list(options.artifacts.shape)}")
        self.options = options
        known = options.artifacts is not None and options.artifact_ridge is None
        self._fixed = known or not options.solve_artifacts
        one_pass = options.passes == 1 and options.residual == 0
        keep = "nothing" if one_pass else "borrow" if borrow else "half"
        solves = not self._fixed
        super().__init__(
            coords, channels, options.grid, device, keep=keep, cosine=options.cosine, solves_artifacts=solves
        )

    def finish(self) -> Solution:
        """Solves for what was added."""
        o = self.options
        prior = None
        if o.artifacts is not None:
            prior = _native.DeviceArray.from_numpy(o.artifacts, "float32", self.device.index, self.stream)
        elif self._fixed:
            zeros = np.zeros((*self.coords.shape[1:3], self.channels), np.float32)
            prior = _native.DeviceArray.from_numpy(zeros, "float32", self.device.index, self.stream)
        nodes, artifacts, info = self._solver.solve(
            smoothness=o.smoothness,
            artifact_ridge=o.artifact_ridge,
            passes=o.passes,
            residual=o.residual,
            outlier_threshold=o.outlier_threshold,
            prior=prior,
            fix_artifacts=self._fixed,
            method=o.method,
            tolerance=o.tolerance,
            max_iterations=o.max_iterations,
        )
        return self._solution(nodes, artifacts, info)


def solve_direct_cuda(features: Any, coords: np.ndarray, options: DirectOptions, device: Device) -> Solution:
    """features: float32, float16 or bfloat16 [V, H, W, C] on the device; coords: float32 [V, H, W, 2], NumPy."""
    stream = DirectStreamCuda(coords, features.shape[-1], options, device, borrow=True)
    stream.add(features)
    return stream.finish()


def solve_average_cuda(features: Any, coords: np.ndarray, options: AverageOptions, device: Device) -> Solution:
    """The same for the baseline."""
    stream = _Stream(coords, features.shape[-1], options.grid, device, keep="borrow")
    stream.add(features)
    nodes, artifacts = stream._solver.average()
    return stream._solution(nodes, artifacts, {"views": len(coords)})


def _device(array: _native.DeviceArray) -> Device:
    return Device("cuda", array.device)
