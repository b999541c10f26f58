"""Adam on the device: equal bits with the CPU's, dense and lazy, where the CPU has fused multiply-adds."""

import numpy as np
import pytest

from cuda_samples import run_op
from dvt_fast import _native
from test_adam import OPTIONS, rates, spread, touches

NUMBERS = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-15, "weight_decay": 1e-5}
pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture(autouse=True)
def fused_isa():
    """An instruction set of the CPU with fused multiply-adds."""
    isa = next((name for name in ("avx512", "avx2", "neon") if not _native.isa_problem(name)), None)
    if isa is None:
        pytest.skip("this machine has no fused multiply-adds")
    before = _native.active_isa()
    _native.set_isa(isa)
    yield
    _native.set_isa(before)


def factors(lr):
    """What adam_step_factors makes of the rates of steps 1, 2, ..."""
    t = np.arange(1, len(lr) + 1, dtype=np.float64)
    return np.stack([np.array(lr) / (1 - 0.9**t), np.sqrt(1 - 0.99**t)], 1).astype(np.float32)


@pytest.mark.sanitizer
@pytest.mark.parametrize("n", [1, 700])
def test_dense_steps_are_the_cpus(n):
    rng = np.random.default_rng(n)
    params = rng.standard_normal(n).astype(np.float32)
    lr = rates(8)
    ours = theirs = params, np.zeros_like(params), np.zeros_like(params)
    for t in range(1, 9):
        gradient = (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 2)).astype(np.float32)
        theirs = _native.adam(theirs[0], gradient, theirs[1], theirs[2], lr[t - 1], t, **OPTIONS)
        names = ("params", "exp_avg", "exp_avg_sq")
        given = dict(zip(names, ours)) | {"grads": gradient}
        found = run_op("adam_update", given, dict.fromkeys(names), NUMBERS | {"lr": lr[t - 1], "t": t})
        ours = tuple(found[name] for name in names)
        for a, b in zip(ours, theirs):
            np.testing.assert_array_equal(a, b)


class DeviceLazyAdam:
    """`_native.LazyAdam` on the device."""

    def __init__(self, params, lr, weight_decay):
        self.numbers = NUMBERS | {"weight_decay": weight_decay}
        self.state = {
            "params": params,
            "exp_avg": np.zeros_like(params),
            "exp_avg_sq": np.zeros_like(params),
            "last_step": np.zeros(len(params), np.int32),
        }
        self.steps = factors(lr)

    def call(self, entries, step, **grads):
        given = self.state | {"entries": np.asarray(entries, np.uint32), "steps": self.steps} | grads
        if len(entries):
            self.state = run_op("lazy_adam_update", given, dict.fromkeys(self.state), self.numbers | {"step": step})

    def step(self, entries, grads, step):
        self.call(entries, step - 1)
        self.call(entries, step, grads=grads)

    def flushed(self, step):
        self.call(np.arange(len(self.state["last_step"])), step)
        return self.state["params"], self.state["exp_avg"], self.state["exp_avg_sq"]


@pytest.mark.sanitizer
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("weight_decay", [1e-5, 0.0])
def test_lazy_replay_is_the_cpus_and_dense(width, weight_decay):
    steps, shape = 40, (61, width)
    options = OPTIONS | {"weight_decay": weight_decay}
    params = (np.random.default_rng(1).standard_normal(shape) * 1e-2).astype(np.float32)
    lr = rates(steps)
    ours, theirs = DeviceLazyAdam(params, lr, weight_decay), _native.LazyAdam(params, lr, **options)
    dense = params, np.zeros_like(params), np.zeros_like(params)
    for t, (chosen, gradient) in enumerate(touches(*shape, steps), 1):
        ours.step(chosen, gradient, t)
        theirs.step(chosen, gradient, t)
        flat = [a.ravel() for a in (dense[0], spread(chosen, gradient, shape), dense[1], dense[2])]
        dense = tuple(a.reshape(shape) for a in _native.adam(*flat, lr[t - 1], t, **options))
    for name, a, b, c in zip(("params", "exp_avg", "exp_avg_sq"), ours.flushed(steps), theirs.flushed(steps), dense):
        np.testing.assert_array_equal(a, b, err_msg=name)
        np.testing.assert_array_equal(a, c, err_msg=name)


def test_long_replay_past_the_end_of_the_bias_correction():
    """sqrt(1 - 0.99^t) is 1 in float32 from about t = 1,700 on, where the division is left out."""
    steps, shape = 2000, (6, 8)
    params = (np.random.default_rng(1).standard_normal(shape) * 1e-2).astype(np.float32)
    lr = [1e-3] * steps
    ours, theirs = DeviceLazyAdam(params, lr, 1e-5), _native.LazyAdam(params, lr, **OPTIONS)
    for t, chosen in ((1, [3, 4]), (1650, [5, 3]), (1990, [3, 5])):
        gradient = np.random.default_rng(t).standard_normal((len(chosen), 8)).astype(np.float32)
        ours.step(np.array(chosen, np.uint32), gradient, t)
        theirs.step(np.array(chosen, np.uint32), gradient, t)
    for a, b in zip(ours.flushed(steps), theirs.flushed(steps)):
        np.testing.assert_array_equal(a, b)


def test_roots_and_quotients_of_the_short_way_are_correctly_rounded(cuda):
    """Replay takes it for all operands of ordinary size; on the device it is not the compiler's own division."""
    rng = np.random.default_rng(0)
    n = 2000 if cuda.emulated else 4_000_000
    a, y = (
        np.ldexp(1 + rng.random(n), rng.integers(*exponents, n)).astype(np.float32)
        for exponents in ((-75, 60), (-50, 31))
    )
    a *= rng.choice([-1, 1], n).astype(np.float32)
    got = run_op("ordinary_arithmetic", {"a": a, "y": y}, dict.fromkeys(("roots", "quotients"), ((n,), "float32")))
    np.testing.assert_array_equal(got["quotients"], a / y)
    np.testing.assert_array_equal(got["roots"], np.sqrt(y))


def test_replay_of_extreme_values_is_the_cpus():
    """Entries whose moments are zero, subnormal or huge leave the short way."""
    steps = 6
    params = np.array([[0, 1e-30, 1e-22, 1e-4], [1, -1e10, 1e20, -1e-12], [3e-39, -0.0, 1e30, 7]], np.float32)
    lr = [1e-2] * steps
    for weight_decay in (1e-5, 0.0):
        ours, theirs = (
            DeviceLazyAdam(params, lr, weight_decay),
            _native.LazyAdam(params, lr, **(OPTIONS | {"weight_decay": weight_decay})),
        )
        gradient = np.array([[0, 1e-25, 1e10, 1e-3]], np.float32)
        for lazy in (ours, theirs):
            lazy.step(np.array([1], np.uint32), gradient, 2)
        for a, b in zip(ours.flushed(steps), theirs.flushed(steps)):
            np.testing.assert_array_equal(a, b)
