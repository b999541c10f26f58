"""What the native module refuses instead of reading or writing out of bounds, and that it computes without the GIL."""

import os
import threading
import time

import numpy as np
import pytest

from dvt_fast import _native
from dvt_fast.errors import DvtError, InputError

ONES = np.ones((1, 1), np.float32)
POINT = np.full((1, 2), 0.5, np.float32)


def nodes(*shape):
    return np.zeros(shape, np.float32)


def scatter(ny, nx, channels=1):
    return _native.scatter(ny, nx, POINT, ONES[0], nodes(1, channels))


def solver(ny=4, nx=4, patches=4, channels=2, keep="borrow"):
    return _native.DirectSolver(ny, nx, patches, channels, keep, False)


GRID = r"^grid must have at least 2 x 2 nodes, got "
LARGE = r"^grid must have at most 16777216 nodes, got "
CHANNELS = r"^channels must be 1 to 1048576, got "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _native.interpolate(nodes(1, 5, 3), POINT), GRID + "1 x 5$"),
        (lambda: _native.interpolate(nodes(0, 0, 3), POINT), GRID + "0 x 0$"),
        (lambda: _native.interpolate(nodes(2, 2, 0), POINT), CHANNELS + "0$"),
        (lambda: scatter(5, 1), GRID + "5 x 1$"),
        (lambda: scatter(-3, -3), GRID + "-3 x -3$"),
        (lambda: scatter(2, 2, 0), CHANNELS + "0$"),
        (lambda: scatter(2**31, 2**31), LARGE + "2147483648 x 2147483648$"),
        (lambda: solver(1, 4), GRID + "1 x 4$"),
        (lambda: solver(2**32, 2**32), LARGE + "4294967296 x 4294967296$"),
        (lambda: solver(4097, 4096), LARGE + "4097 x 4096$"),
        (lambda: solver(channels=0), CHANNELS + "0$"),
        (lambda: solver(channels=2**60), CHANNELS + "1152921504606846976$"),
        (lambda: solver(patches=0), "^patches must be 1 to 16777216, got 0$"),
        (lambda: solver(patches=2**62), "^patches must be 1 to 16777216, got 4611686018427387904$"),
        (lambda: solver(keep="all"), "^keep must be 'borrow', 'half' or 'nothing', got 'all'$"),
        (lambda: _native.sum_by_patch(ONES, np.zeros(1, np.int32), 2**61), "^patches must be 0 to 16777216, got "),
        (lambda: _native.mlp([1, 2**40, 1], ONES[0], ONES), "^widths must be 1 to 1048576, got 1099511627776$"),
        (lambda: _native.banded_solve(np.zeros((1, 0)), ONES), "^band_rows must have at least one column, got 0$"),
    ],
)
def test_sizes_are_bounded(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_too_little_memory_is_one_line():
    """2^24 nodes of 2^20 channels: within the limits, and 64 TB."""
    with pytest.raises(DvtError, match=r"^not enough memory: 7.04e\+07 MB more were needed$"):
        solver(4096, 4096, channels=2**20)


@pytest.fixture
def lazy():
    table = _native.LazyAdam(nodes(5, 2), [1e-3] * 3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    table.step(np.array([0, 4], np.uint32), nodes(2, 2), 2)
    return table


@pytest.mark.parametrize(
    ("entries", "step", "message"),
    [
        ([5], 3, r"^entries must be in \[0, 5\), got 5$"),
        ([2**32 - 1], 3, r"^entries must be in \[0, 5\), got 4294967295$"),
        ([1, 1], 3, "^entries must differ, got 1 twice$"),
        ([0], 4, r"^step must be in \[3, 3\], got 4$"),
        ([0], 2, r"^step must be in \[3, 3\], got 2$"),
        ([0], 0, r"^step must be in \[3, 3\], got 0$"),
    ],
)
def test_lazy_adam_checks_entries_and_steps(lazy, entries, step, message):
    with pytest.raises(InputError, match=message):
        lazy.step(np.array(entries, np.uint32), nodes(len(entries), 2), step)
    lazy.step(np.array([0, 3], np.uint32), nodes(2, 2), 3)
    with pytest.raises(InputError, match=r"^step must be in \[3, 3\], got 4$"):
        lazy.flushed(4)
    lazy.flushed(3)


OPTIONS = dict(
    steps=4, batch=3, seed=0, n_levels=4, n_features_per_level=8, log2_hashmap_size=16, base_resolution=64,
    per_level_scale=1.5, hidden_dim=0, residual_dim=0, lr=1e-2, lr_final=1e-3, warmup=0.1, betas=(0.9, 0.99),
    eps=1e-15, weight_decay=0.0, residual_mse=0.1, residual_l1=0.02, loss_scale=1.0,
)  # fmt: skip


def fitter(**options):
    features = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    coords = np.random.default_rng(1).random((2, 3, 4, 2)).astype(np.float32)
    return _native.HashgridFitter(features, coords, _native.HashgridOptions(**(OPTIONS | options)))


@pytest.mark.parametrize("sample", [-1, 24, 2**62])
def test_gradients_checks_its_samples(sample):
    with pytest.raises(InputError, match=rf"^samples must be in \[0, 24\), got {sample}$"):
        fitter().gradients(np.array([0, sample, 1]), False)


@pytest.mark.parametrize("name", ["hidden_dim", "residual_dim"])
@pytest.mark.parametrize("value", [-1, 2**40])
def test_widths_of_a_fit_are_bounded(name, value):
    with pytest.raises(InputError, match=rf"^{name} must be 0 \(the default\) to 1048576, got {value}$"):
        fitter(**{name: value})


def test_parameters_that_need_a_conversion_are_held_until_copied():
    """float16 and strided arrays are converted into temporaries, large enough here to leave the process when freed."""
    given = fitter()
    before = given.parameters()
    assert before["grid"].nbytes > 2**20
    rng = np.random.default_rng(2)
    halves = {name: rng.standard_normal(a.shape).astype(np.float16) for name, a in before.items()}
    strided = {name: np.repeat(a.astype(np.float32), 2)[::2] for name, a in halves.items()}
    for arrays in (halves, strided):
        given.set_parameters({name: np.zeros_like(a) for name, a in before.items()})
        given.set_parameters(arrays)
        for name, a in given.parameters().items():
            np.testing.assert_array_equal(a, halves[name].astype(np.float32), err_msg=name)
    for a in strided.values():
        a.flags.writeable = False
    given.set_parameters(strided)  # read, never written


RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((20000, 256)).astype(np.float32)
PATCH = np.arange(20000, dtype=np.int32) % 50
BETAS = dict(betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
HEAVY = {
    "gather": lambda: _native.gather_features(ROWS, np.arange(80000) % 20000, reference=True),
    "mlp": lambda: _native.mlp([256, 256], ROWS[0].repeat(257)[: 257 * 256], ROWS[:2000], ROWS[:2000]),
    "mlp reference": lambda: _native.mlp([256, 64], nodes(257 * 64), ROWS[:800], ROWS[:800, :64].copy(), True),
    "add_artifacts": lambda: _native.add_artifacts(ROWS, ROWS[:50], PATCH, reference=True),
    "sum_by_patch": lambda: _native.sum_by_patch(ROWS, PATCH, 50),
    "sum_by_patch reference": lambda: _native.sum_by_patch(ROWS, PATCH, 50, reference=True),
    "losses": lambda: _native.losses(ROWS, ROWS, ROWS),
    "losses reference": lambda: _native.losses(ROWS, ROWS, ROWS, reference=True),
    "adam": lambda: _native.adam(*[ROWS.ravel()] * 4, lr=1e-3, t=1, reference=True, **BETAS),
    "scatter": lambda: _native.scatter(9, 9, ROWS[:, :2].copy(), ROWS[:, 0].copy(), ROWS, reference=True),
    "cholesky": lambda: _native.cholesky_solve(np.eye(1200, dtype=np.float32), ROWS[:1200]),
    "banded": lambda: _native.banded_solve(np.tile(np.eye(80)[-1], (4000, 1)), ROWS[:4000]),
}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", list(HEAVY))
def test_other_threads_run_while_the_native_code_computes(name):
    """A second thread counts; were the lock held, it would stand still all through the call."""
    call = HEAVY[name]
    _native.set_num_threads(1)
    counts = []
    stop = threading.Event()

    def count():
        while not stop.is_set():
            counts.append(time.perf_counter())
            time.sleep(1e-4)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        ran = False
        for _ in range(20):  # the machine may be busy otherwise
            begin = time.perf_counter()
            call()
            tenth = (time.perf_counter() - begin) / 10
            # Not at the edges, where Python code runs before and after the native one.
            ran = ran or any(begin + tenth < t < begin + 9 * tenth for t in counts)
            if ran:
                break
    finally:
        stop.set()
        counter.join()
        _native.set_num_threads(0)
    assert ran, "no other thread ran in the middle of the call"
