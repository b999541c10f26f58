"""`Engine` and `Session`: denoised features of frames through the native code; torch is not needed.

On a CUDA device a session runs in two ways: arrays in main memory are copied there and back, and the call returns when
the result is here; arrays on the device are read and written where they lie, and the call returns as soon as the work
is enqueued on the caller's stream.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import arrays
from ..devices import CPU, Device, current_stream, device_of, usable_device
from ..errors import InputError, NonFiniteError, WeightsError

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..vit import ViT

DTYPES = {"cpu": ("float32", "float16", "bfloat16"), "cuda": ("float32", "tf32", "float16", "bfloat16")}
INPUTS = ("image", "normalized", "features")


class Engine:
    """The weights of a ViT, of a denoiser, or of one after the other, packed for this processor or a CUDA device.

    Immutable, and shared by any number of sessions and threads. Made by `load` from a file and by `from_vit` from
    models in memory.

    device: "cpu", "cuda" or "cuda:N". dtype: on the CPU how weights are kept, the arithmetic is float32. On CUDA what
    the tensor cores multiply, with sums in float32: "float16", "bfloat16", "tf32" (float32 cut to 19 bits), or
    "float32" (three such products for each, with the error of float32 arithmetic).

    Attributes: device; has_vit, has_denoiser; dim (channels of the features); dtype; image_size, (height, width) that
    the ViT was exported for, or None; source, what the file says of where the weights are from.

    Raises `InputError` (an unknown device or dtype), `UnsupportedError` (a device that is not there; the message says
    why), `WeightsError` (data that is no engine file) and `OutOfMemoryError`.
    """

    def __init__(self, data: bytes, dtype: str = "float32", *, device: str | Device = CPU, name: str = "engine"):
        from .. import _native

        self.device = usable_device(device)
        known = DTYPES[self.device.kind]
        if dtype not in known:
            raise InputError(f"dtype must be one of {', '.join(known)} on {self.device}, got {dtype!r}")
        try:
            if self.device.is_cuda:
                self._model = _native.CudaEngineModel.from_bytes(data, dtype, self.device.index)
            else:
                self._model = _native.EngineModel.from_bytes(data, dtype)
        except (InputError, NonFiniteError) as error:
            raise WeightsError(f"{name}: {error}") from None
        self._file: bytes | Path = data
        self.dtype = dtype
        self.has_vit: bool = self._model.has_vit
        self.has_denoiser: bool = self._model.has_denoiser
        self.dim: int = self._model.dim
        self.image_size: tuple[int, int] | None = self._model.image_size
        try:
            self.source: Mapping[str, Any] = json.loads(self._model.metadata or "{}")
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{name}: source cannot be read: {' '.join(str(error).split())}") from None

    @classmethod
    def load(
        cls, source: str | os.PathLike[str] | bytes | Denoiser, *, device: str = "cpu", dtype: str = "float32"
    ) -> Engine:
        """An engine from an engine file (or its bytes), a denoiser's file, or a `Denoiser`.

        An engine file needs neither torch nor timm; the other two are exported first, which does. Raises
        `WeightsError`, one line: no such file, cut, foreign, of a newer version, not finite.
        """
        if isinstance(source, bytes):
            return cls(source, dtype, device=device, name="the given bytes")
        if not isinstance(source, (str, os.PathLike)):
            from .export import to_bytes

            return cls(to_bytes(None, source), dtype, device=device, name="the given denoiser")
        path = Path(source)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path}: {error.strerror or error}") from None
        if path.suffix in (".pth", ".pt") or _format(data) == "dvt_fast.denoiser":
            from ..denoiser import Denoiser
            from .export import to_bytes

            return cls(to_bytes(None, Denoiser.from_checkpoint(path)), dtype, device=device, name=str(path))
        engine = cls(data, dtype, device=device, name=str(path))
        engine._file = path.resolve()  # the packed weights are enough to hold
        return engine

    @classmethod
    def from_vit(
        cls, vit: ViT, denoiser: Denoiser | None = None, *, device: str = "cpu", dtype: str = "float32"
    ) -> Engine:
        """A `ViT` and perhaps a denoiser for its features, as an engine.

        Raises `InputError` that names the layer where the engine does not know one of the ViT's.
        """
        from .export import to_bytes

        return cls(to_bytes(vit, denoiser), dtype, device=device, name=vit.name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the engine file, whole or not at all; for `load`, and for C and C++ (`dvt_model_load`).

        What was loaded from a file is copied from there, so that one must still be there.
        """
        from ..files import write_whole

        if isinstance(self._file, bytes):
            return write_whole(path, self._file)
        try:
            data = self._file.read_bytes()
        except OSError as error:
            raise WeightsError(f"{self._file}: what this engine was loaded from: {error.strerror or error}") from None
        return write_whole(path, data)

    def session(
        self,
        *,
        input: str | None = None,
        size: int | tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
        batch: int = 1,
        threads: int | None = None,
        max_source: tuple[int, int] = (8192, 8192),
    ) -> Session:
        """Everything that depends on the size of the frames, made once.

        input: "image" (the default with a ViT), pixels of any size up to max_source (height, width), which are resized
        and normalised; "normalized", images as `ViT.transform` makes them; "features", for the denoiser alone.
        size: of the image that the ViT sees, an int or (height, width); None is `image_size`. grid: (h, w) of the
        features, needed with input="features". threads: of this session on the CPU; None is
        `dvt_fast.get_num_threads()`.
        """
        return Session(self, input, size, grid, batch, threads, max_source)

    def __repr__(self) -> str:
        parts = " + ".join(name for name, has in (("ViT", self.has_vit), ("denoiser", self.has_denoiser)) if has)
        return f"Engine({parts}, dim={self.dim}, dtype={self.dtype!r}, device='{self.device}')"


class Session:
    """One stream of frames through an engine; made by `Engine.session`, which has the arguments.

    `run` allocates nothing but the array that it returns, and gives the same bits for the same frame with any number
    of threads. A session serves one caller at a time; a second thread is refused with `DvtError`. On CUDA all runs of a
    session share its workspace: streams that overlap need a session each.

    Attributes: engine, input, size (of the ViT's image, or None), grid (h, w), dim, batch, threads, workspace_bytes.
    """

    def __init__(
        self,
        engine: Engine,
        input: str | None,
        size: int | tuple[int, int] | None,
        grid: tuple[int, int] | None,
        batch: int,
        threads: int | None,
        max_source: tuple[int, int],
    ):
        from .. import _native
        from ..runtime import get_num_threads

        self.engine = engine
        self.input = input or ("image" if engine.has_vit else "features")
        if self.input not in INPUTS:
            raise InputError(f"input must be one of {', '.join(INPUTS)}, got {input!r}")
        if self.input == "features" and grid is None:
            raise InputError("a session on features needs grid=(h, w), the shape of the features without channels")
        if size is not None and 0 in _pair(size, "size"):
            raise InputError(f"size must fit whole patches, got {size!r}")
        cuda = engine.device.is_cuda
        self._native = (_native.CudaEngineSession if cuda else _native.EngineSession)(
            engine._model,
            input=self.input,
            size=_pair(size, "size"),
            grid=_pair(grid, "grid"),
            batch=_int(batch, "batch"),
            threads=_int(get_num_threads() if threads is None else threads, "threads"),
            max_source=_pair(max_source, "max_source"),
        )
        self.size: tuple[int, int] | None = None if self.input == "features" else self._native.size
        self.grid: tuple[int, int] = self._native.grid
        self.dim = engine.dim
        self.batch = batch
        self.threads: int = get_num_threads() if threads is None else threads
        self.workspace_bytes: int = self._native.workspace_bytes

    def run(self, x: Any, out: Any = None, stream: Any = None, *, raw: Any = None) -> Any:
        """Features of one frame or batch: float32 [B, h, w, C], or [h, w, C] where x has no batch.

        x: for "image" uint8 [H, W, 3] or [B, H, W, 3], or float32 [3, H, W] or [B, 3, H, W] in [0, 1], RGB; for
        "normalized" floats [B, 3, height, width]; for "features" floats [B, h, w, C]; each also without B where batch
        is 1. NumPy, torch or anything with DLPack, any strides. out, raw: arrays of the result's shape (float32,
        float16 or, on a device, bfloat16, any strides) to fill with the result and with the ViT's own features; out is
        returned where given. The three must not share memory.

        On CUDA the three lie in main memory or all on the engine's device. On the device the call only enqueues kernels
        on `stream` (a torch or CuPy stream or its number; None is torch's current one, or the default stream), can be
        captured into a graph, and the result is there when the stream has come so far; `finite` says then whether it
        holds NaN or infinity. What comes back is a torch tensor where x is one, and otherwise an array that speaks
        DLPack.

        Raises `InputError` for another shape, type, device or stream and, where the result is waited for,
        `NonFiniteError` where it holds NaN or infinity.
        """
        where = self.engine.device
        if where.is_cuda and (stream is not None or device_of(x).is_cuda):
            return self._run_on_device(x, out, stream, raw)
        if stream is not None:
            raise InputError("stream: a session on the CPU has none, expected None")
        if device_of(x).is_cuda:
            raise InputError(f"x is on {device_of(x)} and this session computes on the CPU: move one of them")
        array = arrays.to_numpy(x, "x")
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        result = np.empty(self._result_shape(array.ndim), np.float32) if out is None else arrays.writable(out, "out")
        run = self._native.run_host if where.is_cuda else self._native.run
        run(array, result, None if raw is None else arrays.writable(raw, "raw"))
        return arrays.like(result, x) if out is None else out

    def _run_on_device(self, x: Any, out: Any, stream: Any, raw: Any) -> Any:
        where = self.engine.device
        number = current_stream(where) if stream is None else stream_number(stream)
        result = arrays.empty_like_kind(self._result_shape(x.ndim), x, where) if out is None else out
        parts = [part.detach() if arrays.is_tensor(part) else part for part in (x, result, raw)]
        self._native.run(*parts, number)
        return result

    def finite(self) -> bool:
        """On CUDA, whether the result of the last run, whose stream has come so far, has neither NaN nor infinity."""
        if not self.engine.device.is_cuda:
            raise InputError("finite is for a session on CUDA: on the CPU `run` itself raises NonFiniteError")
        return self._native.finite()

    def _result_shape(self, rank: int) -> tuple[int, ...]:
        shape = (*self.grid, self.dim)
        return (self.batch, *shape) if rank == 4 else shape

    def __repr__(self) -> str:
        return f"Session({self.engine!r}, input={self.input!r}, grid={self.grid}, batch={self.batch})"


def stream_number(stream: Any) -> int:
    """A CUDA stream as a number: an int, a stream of torch's or CuPy's, or what has `__cuda_stream__`."""
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int(protocol()[1])
    number = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
        raise InputError(f"stream must be a CUDA stream or its number, got {type(stream).__name__}")
    return int(number)


def _format(data: bytes) -> str | None:
    """What our header in a safetensors file says that the file is."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header["__metadata__"]["dvt_fast"])["format"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def _int(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**31:
        raise InputError(f"{name} must be a whole number from 0 up, got {value!r}")
    return int(value)


def _pair(value: Any, name: str) -> tuple[int, int]:
    """(height, width), (0, 0) for None."""
    if value is None:
        return 0, 0
    values = (value, value) if isinstance(value, (int, np.integer)) else tuple(value) if np.iterable(value) else ()
    if len(values) != 2:
        raise InputError(f"{name} must be (height, width), got {value!r}")
    return _int(values[0], name), _int(values[1], name)
