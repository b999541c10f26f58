"""The matrix product against NumPy in double precision, on every instruction set that this machine runs."""

import numpy as np
import pytest

from dvt_fast import _native

SHAPES = [(1, 1, 1), (5, 7, 3), (12, 32, 16), (13, 33, 257), (97, 65, 300), (2, 4100, 5), (200, 3, 512), (4, 4, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_matches_double(isa, shape, trans_a, trans_b):
    m, n, k = shape
    rng = np.random.default_rng(m * n + k)
    a = rng.standard_normal((k, m) if trans_a else (m, k)).astype(np.float32)
    b = rng.standard_normal((n, k) if trans_b else (k, n)).astype(np.float32)
    c = rng.standard_normal((m, n)).astype(np.float32)
    mask = rng.standard_normal((m, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    product = (a.T if trans_a else a).astype(np.float64) @ (b.T if trans_b else b)
    tolerance = 2.0**-22 * (k + 4)  # of sums of k terms of size 1: far inside the worst case, k^2 2^-24
    kwargs = dict(trans_a=trans_a, trans_b=trans_b)
    np.testing.assert_allclose(_native.gemm(a, b, **kwargs), product, atol=tolerance)
    expected = np.maximum(0.5 * product - 2.0 * c + bias, 0) * (mask > 0)
    kwargs |= dict(alpha=0.5, beta=-2.0, c=c, bias=bias, relu=True, relu_mask=mask)
    np.testing.assert_allclose(_native.gemm(a, b, **kwargs), expected, atol=tolerance)
    np.testing.assert_allclose(_native.gemm(a, b, reference=True, **kwargs), expected, atol=tolerance)


def test_result_does_not_depend_on_the_number_of_threads(isa):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((300, 300)).astype(np.float32) for _ in range(2))
    results = []
    try:
        for threads in (1, 2, 3):
            _native.set_num_threads(threads)
            results.append(_native.gemm(a, b))
    finally:
        _native.set_num_threads(0)
    assert all(np.array_equal(r, results[0]) for r in results)


def test_wrong_shapes_are_named():
    a, b = np.zeros((3, 4), np.float32), np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match=r"b must have shape \(4, 2\), got \(5, 2\)"):
        _native.gemm(a, b)
