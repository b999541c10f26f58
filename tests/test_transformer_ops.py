"""Packed products, attention and norms against double, on every instruction set."""

import numpy as np
import pytest

from dvt_fast import _native

NONE = np.empty(0, np.float32)


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


# (rows, in, out): every height of a tile, channels that fill no panel, one of each, none
LINEARS = [(rows, 40, 70) for rows in range(1, 14)] + [(128, 192, 576), (37, 1, 1), (25, 333, 31), (300, 64, 129)]


@pytest.mark.parametrize("rows, n_in, n_out", LINEARS)
def test_linear_matches_double(isa, rows, n_in, n_out):
    weight, bias, x = normal(n_out, n_in), normal(n_out, seed=1), normal(rows, n_in, seed=2)
    expected = _native.linear(weight, bias, x, reference=True)
    np.testing.assert_allclose(expected, x.astype(np.float64) @ weight.T + bias, atol=1e-10)
    tolerance = 2.0**-22 * (n_in + 4)
    np.testing.assert_allclose(_native.linear(weight, bias, x), expected, atol=tolerance)
    np.testing.assert_allclose(_native.linear(weight, None, x), expected - bias, atol=tolerance)
    in_parts = _native.linear(weight, bias, x, k_chunk=max(1, n_in // 3))
    np.testing.assert_allclose(in_parts, expected, atol=tolerance)


@pytest.mark.parametrize("dtype, bits", [("float16", 11), ("bfloat16", 8)])
def test_linear_with_narrow_weights(isa, dtype, bits):
    """The sums are those of the rounded weights; only the weights are rounded."""
    torch = pytest.importorskip("torch")
    weight, x = normal(70, 96), normal(30, 96, seed=2)
    weight[0, :4] = [1e5, -1e5, 1e-7, 0] if dtype == "float16" else [1e38, -1e38, 1e-40, 0]
    rounded = torch.from_numpy(weight).clamp(-65504, 65504).to(getattr(torch, dtype)).double().numpy()
    if dtype == "bfloat16":
        rounded = torch.from_numpy(weight).to(torch.bfloat16).double().numpy()
    expected = x.astype(np.float64) @ rounded.T
    got = _native.linear(weight, None, x, dtype=dtype)
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], atol=1e-4)
    np.testing.assert_allclose(got[:, 0], expected[:, 0], rtol=1e-4, atol=1e-3 * np.abs(expected[:, 0]).max())
    exact = x.astype(np.float64) @ weight[1:].T
    assert np.abs(got[:, 1:] - exact).max() < 2.0**-bits * 60  # what rounding 96 weights of size 1 can do


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"])
def test_linear_activates_last(isa, activation):
    weight, bias, x = normal(70, 40), normal(70, seed=1), normal(17, 40, seed=2)
    plain = _native.linear(weight, bias, x)
    expected = _native.activation(activation, plain, reference=True)
    np.testing.assert_allclose(_native.linear(weight, bias, x, activation=activation), expected, atol=1e-5)


def test_linear_gives_a_row_the_same_bits_in_any_company(isa):
    weight, bias, x = normal(70, 333), normal(70, seed=1), normal(64, 333, seed=2)
    together = _native.linear(weight, bias, x)
    for rows in (1, 2, 5, 7, 12, 13, 31):
        np.testing.assert_array_equal(_native.linear(weight, bias, x[:rows]), together[:rows])


# (rows, tokens, head_dim): fewer keys than a panel, exactly one block of 512, one more, several; odd widths of heads
HEADS = [(1, 1, 64), (5, 7, 64), (13, 197, 64), (30, 512, 64), (30, 513, 32), (14, 1369, 64), (9, 100, 80), (7, 50, 24)]


@pytest.mark.parametrize("rows, tokens, head_dim", HEADS)
def test_attention_matches_double(isa, rows, tokens, head_dim):
    q, k, v = normal(rows, head_dim, scale=3), normal(tokens, head_dim, seed=1), normal(tokens, head_dim, seed=2)
    expected = _native.attention(q, k, v, reference=True)
    scores = q.astype(np.float64) @ k.T / head_dim**0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(expected, weights / weights.sum(1, keepdims=True) @ v, atol=1e-6)
    np.testing.assert_allclose(_native.attention(q, k, v), expected, atol=4e-6)
    np.testing.assert_array_equal(_native.attention(q, k, v, chunk=11), _native.attention(q, k, v))


def test_attention_with_large_scores(isa):
    """Scores of thousands, the largest in a later block of keys: nothing overflows, and the largest gets the weight."""
    q, k, v = normal(12, 64, scale=40), normal(1200, 64, seed=1, scale=10), normal(1200, 64, seed=2)
    k[1100] = 30 * q[3] / 40
    expected = _native.attention(q, k, v, reference=True)
    got = _native.attention(q, k, v)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, atol=2e-3)  # a score of 1e4 has an error of 1e-3
    np.testing.assert_allclose(got[3], v[1100], atol=1e-6)


def test_attention_to_equal_keys_is_the_mean(isa):
    q, k, v = normal(3, 64), np.zeros((700, 64), np.float32), normal(700, 64, seed=2)
    np.testing.assert_allclose(_native.attention(q, k, v), np.tile(v.mean(0, dtype=np.float64), (3, 1)), atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
@pytest.mark.parametrize("dim", [1, 3, 64, 100, 192, 769])
def test_norm_matches_double(isa, kind, dim):
    x = normal(9, dim, scale=5) + 30  # a mean that is large beside what varies
    for weight, bias in ((NONE, NONE), (normal(dim, seed=1), normal(dim, seed=2))):
        expected = _native.layer_norm(x, kind, 1e-6, weight, bias, reference=True)
        np.testing.assert_allclose(_native.layer_norm(x, kind, 1e-6, weight, bias), expected, atol=2e-5)
