"""CUDA where something is wrong: no driver, too little memory, arrays elsewhere, a device that fails, NaN.

Every refusal is one line of an error of its own kind, nothing stays allocated, and the next call that can work does.
"""

import gc

import numpy as np
import pytest

import dvt_fast
from dvt_fast import _native
from dvt_fast.errors import DeviceError, OutOfMemoryError, UnsupportedError
from native_samples import DIM, GRID, IMAGE_SIZE, random_engine

DATA = random_engine()


def features(rng=0, views=6, side=4, channels=8):
    """A small problem of stage 1: features [V, side, side, C] and coords [V, side, side, 2]."""
    from dvt_fast.views import plan_boxes, view_coords

    coords = view_coords(plan_boxes(views - 1), (side, side)).astype(np.float32)
    values = np.random.default_rng(rng).standard_normal((views, side, side, channels), np.float32)
    return values, np.ascontiguousarray(coords)


FIT = {"steps": 4, "batch": 32, "n_levels": 2, "log2_hashmap_size": 8, "max_resolution": 32}


def run_engine(dtype="bfloat16"):
    session = dvt_fast.Engine.load(DATA, device="cuda", dtype=dtype).session(input="normalized")
    return session.run(np.random.default_rng(1).standard_normal((3, *IMAGE_SIZE), np.float32))


USES = {
    "engine": run_engine,
    "direct": lambda: dvt_fast.solve(*features(), "direct", device="cuda").semantics,
    "hashgrid": lambda: dvt_fast.solve(*features(), "hashgrid", device="cuda", **FIT).semantics,
}


@pytest.fixture(params=list(USES))
def use(request):
    """A function that computes something on the device."""
    return USES[request.param]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"DRIVER": 0}, "no NVIDIA driver was found: install one, or compute with device='cpu'"),
        ({"DRIVER": 12040}, "the NVIDIA driver is too old: it supports CUDA 12.4, and CUDA 13 or newer is needed"),
        ({"DEVICES": 0}, "the NVIDIA driver shows no device"),
        ({"ARCH": 75}, "has compute capability 7.5, and 8.0 or newer is needed"),
    ],
    ids=["no driver", "old driver", "no device", "old device"],
)
def test_a_machine_that_cannot(emulator, use, settings, reason):
    emulator.set(**settings)
    backend = dvt_fast.backends()[1]
    assert backend.name == "cuda" and not backend.available and reason in backend.reason
    with pytest.raises(UnsupportedError) as raised:
        use()
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    assert emulator.count("allocations") == 0
    assert np.isfinite(dvt_fast.solve(*features(), "direct").semantics).all(), "the CPU computes all the same"
    emulator.restore()
    assert np.isfinite(use()).all()


def test_a_device_that_is_not_there(cuda, use):
    with pytest.raises(dvt_fast.InputError, match=r"device 'cuda:7' does not exist: there (is|are) \d+ devices?"):
        dvt_fast.Engine.load(DATA, device="cuda:7", dtype="bfloat16")
    with pytest.raises(dvt_fast.InputError, match="device 'cuda:7' does not exist"):
        dvt_fast.solve(*features(), "direct", device="cuda:7")


def test_too_little_memory_says_how_much_is_needed(emulator, use):
    """At every size between none and enough: the error, nothing left behind, and then the same with enough."""
    use()
    gc.collect()
    emulator.reset()
    held = emulator.count("bytes")  # of what outlives a call, such as the library's own
    expected = use()
    refused = 0
    for size in (0, 1000, 10_000, 100_000, 1_000_000):
        emulator.set(MEMORY=held + size)
        try:
            use()
        except OutOfMemoryError as error:
            refused += 1
            assert "not enough device memory: " in str(error) and " MB are free" in str(error)
            assert " needs " in str(error) and "\n" not in str(error)
        gc.collect()
        assert emulator.count("bytes") == held, size
    assert refused >= 2
    emulator.set(MEMORY=None)
    np.testing.assert_array_equal(use(), expected)


def test_whichever_allocation_fails_nothing_is_left(emulator, use):
    expected = use()
    gc.collect()
    held = emulator.count("bytes")
    for n in range(1, 200):
        emulator.reset()
        emulator.set(FAIL_MALLOC=n)
        try:
            found = use()
        except OutOfMemoryError as error:
            assert "not enough device memory" in str(error)
        else:
            assert n > 1, "the first allocation of all was to fail"
            np.testing.assert_array_equal(found, expected)
            break
        gc.collect()
        assert emulator.count("bytes") == held, n
    else:
        pytest.fail("200 allocations")


def test_a_workspace_that_does_not_fit_and_the_next_smaller_one(emulator):
    engine = dvt_fast.Engine.load(DATA, device="cuda", dtype="bfloat16")
    held = emulator.count("bytes")
    emulator.set(MEMORY=held + 300_000)
    x = np.ones((20, 20, DIM), np.float32)
    with pytest.raises(OutOfMemoryError, match=r"needs [\d.]+ MB, and [\d.]+ MB of [\d.]+ MB are free"):
        engine.session(input="features", grid=(20, 20)).run(x)
    assert np.isfinite(engine.session(input="features", grid=GRID).run(x[: GRID[0], : GRID[1]])).all()
    gc.collect()
    assert emulator.count("bytes") == held
    emulator.set(MEMORY=None)
    assert np.isfinite(engine.session(input="features", grid=(20, 20)).run(x)).all()


def test_a_device_that_failed_stays_failed_and_says_to_restart(emulator, use):
    """A kernel that ended in an illegal access, or whatever else no process recovers from."""
    expected = use()
    for code in (700, 719):
        emulator.reset()
        emulator.set(FAIL_LAUNCH=1, FAIL_CODE=code)
        for _ in range(2):
            with pytest.raises(DeviceError) as raised:
                use()
            assert "this process must be restarted before it can use CUDA again" in str(raised.value)
            assert "\n" not in str(raised.value)
        emulator.restore()  # as a new process is
    np.testing.assert_array_equal(use(), expected)


def test_a_device_that_fails_late_is_noticed(emulator, use):
    use()
    emulator.reset()
    use()
    launches = emulator.count("launches")
    assert launches > 1
    emulator.reset()
    emulator.set(FAIL_LAUNCH=launches)
    with pytest.raises(DeviceError, match="must be restarted"):
        use()


def test_arrays_on_another_device(emulator):
    emulator.set(DEVICES=2)
    session = dvt_fast.Engine.load(DATA, device="cuda:1", dtype="float16").session(input="features", grid=GRID)
    x = np.random.default_rng(0).standard_normal((*GRID, DIM), np.float32)
    here, there = (_native.DeviceArray.from_numpy(x, device=d) for d in (0, 1))
    out = [_native.DeviceArray(list(x.shape), "float32", d) for d in (0, 1)]
    expected = r"is on device 'cuda:0', expected 'cuda:1'"
    with pytest.raises(dvt_fast.InputError, match=f"x {expected}"):
        session.run(here, out=out[1], stream=0)
    with pytest.raises(dvt_fast.InputError, match=f"out {expected}"):
        session.run(there, out=out[0], stream=0)
    session.run(there, out=out[1], stream=0)
    np.testing.assert_array_equal(out[1].numpy(), session.run(x))


def test_arrays_on_the_device_and_a_session_on_the_cpu(cuda):
    torch = pytest.importorskip("torch")
    if cuda.emulated:
        pytest.skip("in the emulator a tensor on the device is one in main memory")
    session = dvt_fast.Engine.load(DATA).session(input="features", grid=GRID)
    with pytest.raises(dvt_fast.InputError, match="x is on cuda:0 and this session computes on the CPU"):
        session.run(torch.ones(*GRID, DIM, device="cuda"))


@pytest.mark.parametrize("stream", ["main", -1, 1.5, object()], ids=["text", "negative", "fraction", "object"])
def test_what_is_no_stream(cuda, stream):
    session = dvt_fast.Engine.load(DATA, device="cuda", dtype="float16").session(input="features", grid=GRID)
    with pytest.raises(dvt_fast.InputError, match="stream must be a CUDA stream or its number, got "):
        session.run(np.zeros((*GRID, DIM), np.float32), stream=stream)


def test_pointers_that_are_not_aligned_are_read_all_the_same(cuda):
    """A tensor may begin anywhere in its memory, and its rows may lie anywhere."""
    torch = pytest.importorskip("torch")
    session = dvt_fast.Engine.load(DATA, device="cuda", dtype="bfloat16").session(input="features", grid=GRID)
    x = torch.randn(*GRID, DIM, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        aligned = cuda.to_device(x.to(dtype))
        shifted = cuda.empty([x.numel() + 1], dtype)[1:].view(x.shape).copy_(aligned)
        wide = cuda.empty([*GRID, DIM + 3], dtype)[..., 1:-2].copy_(aligned)
        expected = cuda.to_numpy(session.run(aligned, out=cuda.empty(x.shape), stream=cuda.stream()))
        for other in (shifted, wide):
            out = cuda.empty([x.numel() + 1]).zero_()
            session.run(other, out=out[1:].view(x.shape), stream=cuda.stream())
            cuda.synchronize()
            np.testing.assert_array_equal(cuda.to_numpy(out[1:]).reshape(x.shape), expected)
            assert out[0] == 0


def test_nan_in_features(cuda):
    values, coords = features()
    values[3, 1, 2, 5] = np.nan
    for solver, options in (("direct", {}), ("direct", {"passes": 1}), ("hashgrid", FIT)):
        with pytest.raises(dvt_fast.NonFiniteError, match="view 3"):
            dvt_fast.solve(values, coords, solver, device="cuda", **options)
    values[3, 1, 2, 5] = 0
    assert np.isfinite(dvt_fast.solve(values, coords, "direct", device="cuda").semantics).all()


def test_nan_in_a_frame(cuda):
    pytest.importorskip("torch")
    session = dvt_fast.Engine.load(DATA, device="cuda", dtype="bfloat16").session(input="features", grid=GRID)
    x, out = np.ones((*GRID, DIM), np.float32), cuda.empty((*GRID, DIM))
    x[1, 2, 3] = np.nan
    with pytest.raises(dvt_fast.NonFiniteError, match="NaN or infinity"):
        session.run(x)
    session.run(cuda.to_device(x), out=out, stream=cuda.stream())
    cuda.synchronize()
    assert not session.finite()
    x[1, 2, 3] = 1
    assert np.isfinite(session.run(x)).all()
    session.run(cuda.to_device(x), out=out, stream=cuda.stream())
    cuda.synchronize()
    assert session.finite()
