"""The C library on a CUDA device: models, tensors there and in main memory, streams, what it refuses."""

import ctypes

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cuda_samples import error  # noqa: E402
from dvt_fast.engine import Engine  # noqa: E402
from native_samples import DIM, GRID, IMAGE_SIZE, random_engine, where  # noqa: E402

CPU, CUDA = 1, 2
FLOAT32, BFLOAT16 = 0, 2
DATA = random_engine()


class Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class ModelOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("weights", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("device", Device),
    )


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class RunArgs(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("input", ctypes.POINTER(Tensor)),
        ("output", ctypes.POINTER(Tensor)),
        ("raw", ctypes.POINTER(Tensor)),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
        ("stream", ctypes.c_void_p),
    )


class SessionInfo(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("input", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "image_height", "image_width", "max_height", "max_width")),
        *((name, ctypes.c_int64) for name in ("grid_height", "grid_width", "dim")),
        ("workspace_bytes", ctypes.c_size_t),
        ("workspace_alignment", ctypes.c_size_t),
    )


def tensor(address, shape, kind, device=0, code=2, bits=32):
    extents = (ctypes.c_int64 * len(shape))(*shape)
    return Tensor(address, Device(kind, device), len(shape), code, bits, 1, extents, None, 0)


class Library:
    def __init__(self):
        self.lib = ctypes.CDLL(str(where("--cmake-dir").parents[1] / "libdvt_fast.so.0"))
        self.lib.dvt_last_error.restype = ctypes.c_char_p

    def __call__(self, name, *arguments):
        """ "" or the sentence of what went wrong."""
        status = getattr(self.lib, name)(*arguments)
        return "" if status == 0 else f"{status}: {self.lib.dvt_last_error().decode()}"

    def load(self, weights=BFLOAT16, kind=CUDA, device=0):
        options = ModelOptions(ctypes.sizeof(ModelOptions), weights, 0, Device(kind, device))
        model = ctypes.c_void_p()
        return self("dvt_model_load_memory", DATA, len(DATA), ctypes.byref(options), ctypes.byref(model)), model

    def run(self, session, x, out, **more):
        args = RunArgs(ctypes.sizeof(RunArgs), ctypes.pointer(x), ctypes.pointer(out), **more)
        return self("dvt_session_run", session, ctypes.byref(args))


@pytest.fixture(scope="module")
def library(cuda):
    return Library()


@pytest.fixture
def session(library):
    problem, model = library.load()
    assert problem == ""
    session = ctypes.c_void_p()
    assert library("dvt_session_create", model, None, ctypes.byref(session)) == ""
    assert library("dvt_model_destroy", model) == ""
    yield session
    assert library("dvt_session_destroy", session) == ""


@pytest.fixture(scope="module")
def frame():
    return np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(cuda, frame):
    return Engine.load(DATA, device="cuda", dtype="bfloat16").session().run(frame)


def host(array):
    kind = (1, 8) if array.dtype == np.uint8 else (2, 32)
    return tensor(array.ctypes.data, array.shape, CPU, 0, *kind)


def on_device(array):
    kind = (1, 8) if array.dtype == torch.uint8 else (2, 32)
    return tensor(array.data_ptr(), array.shape, CUDA, 0, *kind)


def test_from_main_memory(library, session, frame, expected):
    out = np.zeros((*GRID, DIM), np.float32)
    assert library.run(session, host(frame), host(out)) == ""
    np.testing.assert_array_equal(out, expected)
    assert error(out, Engine.load(DATA).session().run(frame)) < 3e-2


def test_on_the_device_with_a_workspace_and_a_stream(library, session, cuda, frame, expected):
    info = SessionInfo(ctypes.sizeof(SessionInfo))
    assert library("dvt_session_get_info", session, ctypes.byref(info)) == ""
    assert (info.image_height, info.image_width) == IMAGE_SIZE and (info.grid_height, info.grid_width) == GRID
    assert info.workspace_alignment == 256
    x, out = cuda.to_device(frame), cuda.empty((*GRID, DIM))
    workspace = cuda.empty((info.workspace_bytes + 256,), torch.uint8)
    aligned = -(-workspace.data_ptr() // 256) * 256
    stream = cuda.stream()
    number = ctypes.c_void_p(getattr(stream, "cuda_stream", stream))
    cuda.synchronize()
    more = {"workspace": aligned, "workspace_bytes": info.workspace_bytes, "stream": number}
    assert library.run(session, on_device(x), on_device(out), **more) == ""
    cuda.synchronize()
    np.testing.assert_array_equal(cuda.to_numpy(out), expected)
    finite = ctypes.c_int32(-1)
    assert library("dvt_session_finite", session, ctypes.byref(finite)) == "" and finite.value == 1
    more["workspace_bytes"] -= 1
    assert library.run(session, on_device(x), on_device(out), **more).startswith("1: the workspace has")


def test_what_it_refuses(library, session, cuda, frame):
    out = np.zeros((*GRID, DIM), np.float32)
    x = cuda.to_device(frame)
    assert "must all be on the device or all in main memory" in library.run(session, on_device(x), host(out))
    elsewhere = tensor(x.data_ptr(), x.shape, CUDA, 3, 1, 8)
    assert "session's device (type 2, id 0)" in library.run(session, elsewhere, host(out))
    opencl = tensor(x.data_ptr(), x.shape, 4, 0, 1, 8)
    assert "got type 4, OpenCL" in library.run(session, opencl, host(out))
    assert "stream and workspace must be null" in library.run(session, host(frame), host(out), stream=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"device": 77}, "device 'cuda:77' does not exist"),
        ({"kind": 7}, "options->device.type must be DVT_CPU (1) or DVT_CUDA (2), got 7"),
        ({"device": -1}, "options->device.id must be the index of a device"),
        ({"weights": 3, "kind": CPU}, "DVT_WEIGHTS_TF32 on a CUDA device only"),
        ({"weights": 4}, "options->weights must be"),
    ],
)
def test_models_that_cannot_be(library, arguments, sentence):
    problem, model = library.load(**arguments)
    assert sentence in problem and not model


def test_a_session_on_the_cpu_takes_main_memory_only(library, cuda, frame):
    problem, model = library.load(FLOAT32, CPU)
    assert problem == ""
    session = ctypes.c_void_p()
    assert library("dvt_session_create", model, None, ctypes.byref(session)) == ""
    out = np.zeros((*GRID, DIM), np.float32)
    x = cuda.to_device(frame)
    assert "must be in memory of the CPU (device type 1), got type 2, CUDA" in library.run(
        session, on_device(x), host(out)
    )
    assert "stream must be null" in library.run(session, host(frame), host(out), stream=1)
    finite = ctypes.c_int32()
    assert library("dvt_session_finite", session, ctypes.byref(finite)).startswith("3: a session on the CPU")
    assert library.run(session, host(frame), host(out)) == "" and np.isfinite(out).all()
    assert library("dvt_session_destroy", session) == "" and library("dvt_model_destroy", model) == ""
