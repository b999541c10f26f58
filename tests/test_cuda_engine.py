"""The engine on CUDA against float64 and the CPU: every family of ViTs, every kind of denoiser, any strides.

The bound is the project's: at most twice the error of torch in the same type, both against float64.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from cuda_samples import assert_as_good_as, error  # noqa: E402
from dvt_fast import InputError, NonFiniteError, UnsupportedError, WeightsError  # noqa: E402
from dvt_fast.denoiser import KINDS  # noqa: E402
from dvt_fast.engine import Engine  # noqa: E402
from dvt_fast.engine.export import to_bytes  # noqa: E402
from dvt_fast.reference import engine as reference  # noqa: E402
from dvt_fast.reference.engine import evaluate  # noqa: E402
from engine_samples import FAMILIES, lively_denoiser, lively_vit, noise  # noqa: E402

TRANSFORMERS = [kind for kind in KINDS if not kind.startswith("conv")]
DTYPES = ("float32", "bfloat16", "float16")
VARIED = ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "beit3_base_patch16_224"]

pytestmark = pytest.mark.usefixtures("cuda", "one_torch_thread")


def patch_of(name):
    return int(name.split("patch")[1][:2])


def heads_of(dim):
    return next(n for n in range(1, dim) if dim % n == 0 and dim // n <= 128)


def torchs_own(data, x, dtype, input="normalized"):
    """The same in torch, all in `dtype` but the resampling of position embeddings, which it has in float32 only."""
    wide = reference.resample
    with mock.patch.object(reference, "resample", lambda maps, *sizes: wide(maps.float(), *sizes).to(maps.dtype)):
        return [
            y if y is None else y.float().numpy() for y in evaluate(data, x, input=input, dtype=getattr(torch, dtype))
        ]


def check(data, images, session, dtype):
    """The ViT's own features and the result, both."""
    raw = np.empty((len(images), *session.grid, session.dim), np.float32)
    result = session.run(images.numpy(), raw=raw)
    truth = evaluate(data, images)
    for ours, rival, true in zip((raw, result), torchs_own(data, images, dtype), truth):
        assert_as_good_as(ours, rival, true.numpy())


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    patch = patch_of(name)
    vit = lively_vit(name, size=(2 * patch, 3 * patch))
    data = to_bytes(vit, lively_denoiser("block", vit.dim, num_heads=heads_of(vit.dim)))
    size = (patch, 2 * patch)
    engine = Engine.load(data, device="cuda", dtype="float32")
    check(data, noise(2, 3, *size), engine.session(input="normalized", size=size, batch=2), "float32")


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", VARIED)
def test_family_in_16_bits(name, dtype):
    patch = patch_of(name)
    vit = lively_vit(name, size=(2 * patch, 3 * patch))
    data = to_bytes(vit, lively_denoiser("block", vit.dim, num_heads=heads_of(vit.dim)))
    engine = Engine.load(data, device="cuda", dtype=dtype)
    check(data, noise(2, 3, *vit.size), engine.session(input="normalized", batch=2), dtype)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_denoiser(kind, dtype):
    for dim, heads, batch in ((48, 3, 2), (160, 2, 1)):  # heads of 16 and of 80 channels
        denoiser = lively_denoiser(kind, dim, num_heads=heads)
        data = to_bytes(None, denoiser)
        features = noise(batch, 3, 7, dim)
        found = Engine.load(data, device="cuda", dtype=dtype).session(grid=(3, 7), batch=batch).run(features.numpy())
        _, truth = evaluate(data, features, input="features")
        _, rival = torchs_own(data, features, dtype, "features")
        assert_as_good_as(found, rival, truth.numpy())


def test_tf32_is_as_good_as_its_numbers():
    denoiser = lively_denoiser()
    data, features = to_bytes(None, denoiser), noise(2, 3, 7, denoiser.dim)
    _, truth = evaluate(data, features, input="features")
    errors = {
        dtype: error(Engine.load(data, device="cuda", dtype=dtype).session(grid=(3, 7), batch=2).run(features), truth)
        for dtype in ("float32", "tf32")
    }
    assert errors["float32"] < 1e-6 < errors["tf32"] < 2**-9


def test_heads_of_any_width():
    """They are padded where attention has no such width: 24 to 32, 40 to 48."""
    for dim in (24, 40):
        denoiser = lively_denoiser("rotary", dim, num_heads=1)
        data, features = to_bytes(None, denoiser), noise(1, 4, 5, dim)
        _, truth = evaluate(data, features, input="features")
        _, rival = evaluate(data, features, input="features", dtype=torch.float32)
        found = Engine.load(data, device="cuda").session(grid=(4, 5)).run(features)
        assert_as_good_as(found.numpy(), rival.numpy(), truth.numpy())


def test_overlapping_patches_an_inner_layer_and_no_final_norm():
    vit = lively_vit("vit_tiny_patch16_224", size=(32, 48), blocks=2, stride=(8, 16), layer=0, norm=False)
    data, images = to_bytes(vit, None), noise(2, 3, 32, 48)
    truth, _ = evaluate(data, images)
    rival, _ = evaluate(data, images, dtype=torch.float32)
    found = Engine.load(data, device="cuda").session(input="normalized", batch=2).run(images.numpy())
    assert_as_good_as(found, rival.numpy(), truth.numpy())


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_of_any_size(dtype):
    """Resized and normalised on the device: uint8 pixels to the bits of the CPU, so that only the ViT is between."""
    vit = lively_vit("vit_tiny_patch16_224", size=(32, 48), blocks=1)
    data = to_bytes(vit, None)
    session = Engine.load(data, device="cuda", dtype=dtype).session(max_source=(100, 100))
    cpu = Engine.load(data).session()
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    rng = np.random.default_rng(0)
    for shape in ((60, 50), (20, 100), (32, 48), (60, 50)):
        frame = rng.integers(0, 256, (*shape, 3), np.uint8)
        expected = cpu.run(frame)
        assert error(session.run(frame), expected) < tolerance
        bgr = np.ascontiguousarray(frame[..., ::-1])[..., ::-1]
        np.testing.assert_array_equal(session.run(bgr), session.run(frame))
        planes = np.ascontiguousarray(frame.transpose(2, 0, 1).astype(np.float32) / 255)
        assert error(session.run(planes), cpu.run(planes)) < tolerance
    with pytest.raises(InputError, match="at most 100 x 100"):
        session.run(np.zeros((101, 10, 3), np.uint8))


def device_session(cuda, data, dtype="bfloat16", **options):
    return Engine.load(data, device="cuda", dtype=dtype).session(**options)


def test_tensors_on_the_device_of_any_type_and_strides(cuda):
    denoiser = lively_denoiser(dim=64, num_heads=2)
    session = device_session(cuda, to_bytes(None, denoiser), grid=(3, 5), batch=2)
    x = noise(2, 3, 5, 64)
    expected = session.run(x).numpy()
    stream = cuda.stream()

    def run(x, out):
        session.run(x, out=out, stream=stream)
        cuda.synchronize()
        assert session.finite()
        return cuda.to_numpy(out)

    np.testing.assert_array_equal(run(cuda.to_device(x), cuda.empty(x.shape)), expected)
    first = cuda.to_device(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
    planes = cuda.empty((2, 64, 3, 5)).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(run(first, planes), expected)
    for narrow in (torch.bfloat16, torch.float16):
        rounded = run(cuda.to_device(x), cuda.empty(x.shape, narrow))
        np.testing.assert_array_equal(rounded, torch.from_numpy(expected).to(narrow).float().numpy())
        np.testing.assert_array_equal(
            run(cuda.to_device(x.to(narrow)), cuda.empty(x.shape)), session.run(x.to(narrow).float()).numpy()
        )


@pytest.mark.parametrize("kind, launches", [("block", 7), ("registers", 8)])
def test_number_of_kernels(cuda, kind, launches):
    """The last product of a block writes the result itself, where tokens that are no patches are not between."""
    if kind not in TRANSFORMERS:
        pytest.skip(f"no denoiser of kind {kind}")
    denoiser = lively_denoiser(kind, 64, num_heads=2)
    session = device_session(cuda, to_bytes(None, denoiser), grid=(3, 5), batch=2)
    x = cuda.to_device(noise(2, 3, 5, 64))
    session.run(x, out=cuda.empty(x.shape), stream=cuda.stream())
    cuda.synchronize()
    assert session._native.launches == launches


@pytest.mark.sanitizer
def test_same_bits_every_time_and_in_every_session(cuda):
    denoiser = lively_denoiser(dim=64, num_heads=2)
    engine = Engine.load(to_bytes(None, denoiser), device="cuda", dtype="bfloat16")
    sessions = [engine.session(grid=(4, 9)) for _ in range(2)]
    alone = [sessions[0].run(noise(4, 9, 64, seed=i)).numpy() for i in range(2)]
    frames = [cuda.to_device(noise(4, 9, 64, seed=i)) for i in range(2)]
    outs = [cuda.empty(frames[0].shape) for _ in range(2)]
    streams = [cuda.stream() for _ in range(2)]
    for _ in range(2 if cuda.emulated else 100):
        for session, frame, out, stream in zip(sessions, frames, outs, streams):
            session.run(frame, out=out, stream=stream)
        cuda.synchronize()
        for out, expected in zip(outs, alone):
            np.testing.assert_array_equal(cuda.to_numpy(out), expected)


def test_two_threads_give_what_one_gives(cuda):
    """Sessions of one model, each with a stream of its own."""
    denoiser = lively_denoiser(dim=64, num_heads=2)
    engine = Engine.load(to_bytes(None, denoiser), device="cuda", dtype="bfloat16")
    frames = [noise(3, 4, 64, seed=i).numpy() for i in range(4)]
    expected = [engine.session(grid=(3, 4)).run(frame) for frame in frames]

    def work(start):
        session = engine.session(grid=(3, 4))
        x, out, stream = cuda.to_device(frames[0]), cuda.empty((3, 4, 64)), cuda.stream()
        same = True
        for i in range(4 if cuda.emulated else 200):
            k = (start + i) % 4
            x.copy_(torch.from_numpy(frames[k]))
            cuda.synchronize()
            session.run(x, out=out, stream=stream)
            cuda.synchronize()
            same &= session.finite() and np.array_equal(cuda.to_numpy(out), expected[k])
        return same

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, [0, 1]))


def test_a_run_allocates_and_copies_nothing(emulator, cuda):
    denoiser = lively_denoiser(dim=64, num_heads=2)
    session = device_session(cuda, to_bytes(None, denoiser), grid=(3, 5))
    x = cuda.to_device(noise(3, 5, 64))
    out = cuda.empty(x.shape)
    session.run(x, out=out, stream=0)
    before = {what: emulator.count(what) for what in ("allocations", "copies", "bytes")}
    session.run(x, out=out, stream=0)
    assert {what: emulator.count(what) for what in before} == before


class EmulatedGraph:
    """The emulator's stream capture, by the names that C++ gives its functions."""

    NAMES: ClassVar = {
        "stream": "_Z16cudaStreamCreatePP11CUstream_st",
        "begin": "_Z22cudaStreamBeginCaptureP11CUstream_st21cudaStreamCaptureMode",
        "end": "_Z20cudaStreamEndCaptureP11CUstream_stPP10CUgraph_st",
        "instantiate": "_Z20cudaGraphInstantiatePP14CUgraphExec_stP10CUgraph_sty",
        "launch": "_Z15cudaGraphLaunchP14CUgraphExec_stP11CUstream_st",
        "wait": "_Z21cudaStreamSynchronizeP11CUstream_st",
    }

    def __init__(self, library):
        self._library = ctypes.CDLL(str(library))
        self.stream, self._exec = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("stream", ctypes.byref(self.stream))

    def _call(self, name, *arguments):
        assert getattr(self._library, self.NAMES[name])(*arguments) == 0, name

    def capture(self, run):
        graph = ctypes.c_void_p()
        self._call("begin", self.stream, 0)
        try:
            run(self.stream.value)
        finally:
            self._call("end", self.stream, ctypes.byref(graph))
        self._call("instantiate", ctypes.byref(self._exec), graph, ctypes.c_ulonglong(0))

    def replay(self):
        self._call("launch", self._exec, self.stream)
        self._call("wait", self.stream)


class TorchGraph:
    def capture(self, run):
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            run(torch.cuda.current_stream())

    def replay(self):
        self._graph.replay()
        torch.cuda.synchronize()


@pytest.mark.parametrize("input", ["features", "image"])
def test_a_graph_of_a_run_gives_the_same_bits(cuda, input):
    vit = lively_vit("vit_tiny_patch16_224", size=(32, 32), blocks=1)
    denoiser = lively_denoiser(dim=vit.dim, num_heads=3)
    session = device_session(cuda, to_bytes(vit, denoiser), input=input, grid=(2, 2) if input == "features" else None)
    rng = np.random.default_rng(0)
    frames = (
        [noise(2, 2, vit.dim, seed=i) for i in range(2)]
        if input == "features"
        else [torch.from_numpy(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(2)]
    )
    expected = [cuda.to_numpy(session.run(frame)) for frame in frames]
    x, out = cuda.to_device(frames[0]), cuda.empty((2, 2, vit.dim))
    graph = EmulatedGraph(cuda.library) if cuda.emulated else TorchGraph()
    graph.capture(lambda stream: session.run(x, out=out, stream=stream))
    for frame, result in zip(frames, expected):
        x.copy_(frame)
        cuda.synchronize()
        graph.replay()
        np.testing.assert_array_equal(cuda.to_numpy(out), result)


def test_a_capture_before_the_first_run_is_refused(emulator, cuda):
    session = device_session(cuda, to_bytes(None, lively_denoiser(dim=64, num_heads=2)), grid=(2, 2))
    x, out = cuda.to_device(noise(2, 2, 64)), cuda.empty((2, 2, 64))
    with pytest.raises(InputError, match="cannot be allocated in a capture: run once before it"):
        EmulatedGraph(cuda.library).capture(lambda stream: session.run(x, out=out, stream=stream))


def test_a_stream_of_another_device_is_refused(emulator, cuda):
    """The stream is made while the other device is the current one."""
    session = device_session(cuda, to_bytes(None, lively_denoiser(dim=64, num_heads=2)), grid=(2, 2))
    x, out = cuda.to_device(noise(2, 2, 64)), cuda.empty((2, 2, 64))
    emulator.set(DEVICES=2)
    library = ctypes.CDLL(str(cuda.library))
    assert library._Z13cudaSetDevicei(1) == 0
    stream = EmulatedGraph(cuda.library).stream.value
    assert library._Z13cudaSetDevicei(0) == 0
    with pytest.raises(InputError, match="stream must be of device 0, where the model is, got one of device 1"):
        session.run(x, out=out, stream=stream)


def test_what_it_cannot_run():
    denoiser = lively_denoiser(dim=192, num_heads=1)
    with pytest.raises((UnsupportedError, WeightsError), match="heads must have at most 128 channels, got 192"):
        Engine.load(denoiser, device="cuda")
    session = Engine.load(lively_denoiser(dim=64, num_heads=2), device="cuda").session(grid=(2, 2))
    x = np.zeros((2, 2, 64), np.float32)
    with pytest.raises(InputError, match=r"features must have shape \[1, 2, 2, 64\]"):
        session.run(x[:1])
    x[1, 1, 3] = np.inf
    with pytest.raises(NonFiniteError, match="the features hold NaN or infinity"):
        session.run(x)
