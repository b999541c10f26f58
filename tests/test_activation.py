"""Exponentials and activations against double, on every instruction set.

Run as a program it prints nanoseconds per element.
"""

import numpy as np
import pytest

from dvt_fast import _native

ACTIVATIONS = ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]
GRID = np.linspace(-12, 12, 1_000_003).astype(np.float32)  # not a multiple of any vector's length
SPECIAL = np.float32([0, -0.0, 1e-40, -1e-40, 1e-20, -1e-20, 1e30, -1e30, np.inf, -np.inf, np.nan])


def random_bits(low: float, high: float, n: int = 1_000_000) -> np.ndarray:
    """n floats of both signs whose magnitudes are spread over the exponents of low to high."""
    rng = np.random.default_rng(0)
    bits = rng.integers(*np.float32([low, high]).view(np.int32), n, dtype=np.int32)
    return np.where(rng.random(n) < 0.5, -1, 1).astype(np.float32) * bits.view(np.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("x", [GRID, random_bits(1e-30, 50)], ids=["grid", "exponents"])
def test_activations_match_double(isa, name, x):
    expected = _native.activation(name, x, reference=True)
    error = np.abs(_native.activation(name, x) - expected)
    assert (error / np.maximum(1, np.abs(x))).max() < 1.4e-7
    near_zero = (np.abs(x) < 0.5) & (expected != 0)
    assert (error[near_zero] / np.abs(expected[near_zero])).max() < (7e-7 if name == "gelu" else 2e-7)


def test_gelu_keeps_its_negative_tail(isa):
    x = np.linspace(-9, -1, 500_001).astype(np.float32)
    expected = _native.activation("gelu", x, reference=True)
    error = _native.activation("gelu", x) - expected
    assert np.abs(error / expected)[x > -5.8].max() < 3e-3  # torch has lost every digit there
    assert np.abs(error)[x < -5].max() < 3e-9
    assert np.abs(error)[x < -7].max() < 1e-11


@pytest.mark.parametrize("name", ACTIVATIONS[:4])
def test_errors_are_at_most_twice_those_of_torch(isa, name):
    torch = pytest.importorskip("torch")
    theirs = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "silu": torch.nn.functional.silu,
    }[name](torch.from_numpy(GRID))
    expected = _native.activation(name, GRID, reference=True)
    for norm in (np.max, lambda e: np.sqrt(np.mean(e**2))):
        ours = norm(np.abs(_native.activation(name, GRID) - expected))
        assert ours <= 2 * norm(np.abs(theirs.numpy() - expected))


def test_exp_is_within_two_ulp(isa):
    x = np.linspace(-87.3, 88.7, 1_000_003).astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    ulp = np.spacing(expected.astype(np.float32)).astype(np.float64)
    assert (np.abs(_native.exponential("exp", x) - expected) / ulp).max() <= 2
    x = random_bits(1e-30, 87)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(_native.exponential("exp", x) / expected - 1).max() < 1.4e-7


def test_exp_of_nonpositive(isa):
    x = np.linspace(-87, 0, 1_000_003).astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    y = _native.exponential("exp_nonpositive", x)
    assert np.abs(y - expected).max() < 1.3e-7
    assert (np.abs(y / expected - 1) / (2e-7 - 6e-8 * x)).max() < 1


def test_exp2(isa):
    x = np.linspace(-126, 127.4, 1_000_003).astype(np.float32)
    assert np.abs(_native.exponential("exp2", x) / np.exp2(x.astype(np.float64)) - 1).max() < 2e-7
    whole = np.arange(-126, 128)
    np.testing.assert_array_equal(_native.exponential("exp2", np.float32(whole)), np.ldexp(np.float32(1), whole))


def test_special_values_of_exponentials(isa):
    x = np.float32([0, -0.0, 1e-40, -1e-40, -200, -1e30, -np.inf, np.nan])
    for name in ("exp", "exp2", "exp_nonpositive"):
        np.testing.assert_array_equal(_native.exponential(name, x), np.float32([1, 1, 1, 1, 0, 0, 0, np.nan]))
    np.testing.assert_array_equal(_native.exponential("exp", np.float32([88.73, 1e30, np.inf])), [np.inf] * 3)
    # The largest and the smallest normal results.
    ends = np.float32([88.72, -87.33])
    np.testing.assert_allclose(_native.exponential("exp", ends), np.exp(ends.astype(np.float64)), rtol=2e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_special_values_of_activations(isa, name):
    y = _native.activation(name, SPECIAL)
    slope = {"relu": 1}.get(name, 0.5)  # at 0, from the right
    np.testing.assert_array_equal(y[:2], [0, 0])
    np.testing.assert_allclose(y[[2, 4]], slope * SPECIAL[[2, 4]], rtol=1e-6, atol=1e-45)
    np.testing.assert_allclose(y[[3, 5]], (name != "relu") * 0.5 * SPECIAL[[3, 5]], rtol=1e-6, atol=1e-45)
    assert y[6] == SPECIAL[6] and y[8] == np.inf
    np.testing.assert_allclose(y[[7, 9]], 0, atol=1e-11)  # finite: the limit, not inf * 0
    assert np.isnan(y[10])


@pytest.mark.parametrize("n", [0, 1, 3, 4, 7, 8, 15, 16, 17, 33])
def test_every_length_and_only_its_own_lane(isa, n):
    """An element's result does not depend on its place or its neighbours, NaN included."""
    x = np.linspace(-3, 3, n).astype(np.float32)
    alone = [_native.activation("gelu", x[i : i + 1])[0] for i in range(n)]
    np.testing.assert_array_equal(_native.activation("gelu", x), np.float32(alone))
    if n:
        x[n // 2] = np.nan
        assert np.isnan(_native.activation("gelu", x)).nonzero()[0].tolist() == [n // 2]


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match=r"activation must be one of gelu, gelu_tanh, .*; got 'selu'"):
        _native.activation("selu", GRID)
    with pytest.raises(ValueError, match="exponential must be one of exp, exp2, exp_nonpositive; got 'exp10'"):
        _native.exponential("exp10", GRID)


if __name__ == "__main__":
    import time

    x = np.linspace(-8, 0, 16384).astype(np.float32)
    for isa in _native.built_isas():
        if _native.isa_problem(isa):
            continue
        _native.set_isa(isa)
        calls = {name: (_native.activation, name) for name in ACTIVATIONS}
        calls |= {name: (_native.exponential, name) for name in ("exp", "exp2", "exp_nonpositive")}
        for name, (call, argument) in calls.items():
            best = np.inf
            for _ in range(1000):
                start = time.perf_counter()
                call(argument, x)
                best = min(best, time.perf_counter() - start)
            print(f"{isa:8} {name:16} {best / x.size * 1e9:.3f} ns per element")
