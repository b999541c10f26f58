"""Dense and band Cholesky solves against NumPy in double precision."""

import numpy as np
import pytest

from dvt_fast import _native
from dvt_fast.errors import InputError


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (7, 3), (96, 5), (97, 40), (500, 130)])
def test_dense_solve(isa, n, columns):
    rng = np.random.default_rng(n)
    root = rng.standard_normal((n, n + 10)) / np.sqrt(n)
    a, b = root @ root.T + 0.5 * np.eye(n), rng.standard_normal((n, columns))
    lower = np.tril(a).astype(np.float32) + np.triu(
        np.full((n, n), np.nan, np.float32), 1
    )  # the upper half is not read
    x = _native.cholesky_solve(lower, b.astype(np.float32))
    expected = np.linalg.solve(a, b)
    # Conditioned to about 10: a few units of float32 rounding on numbers of the size of the solution.
    assert np.abs(x - expected).max() < 2e-5 * np.abs(expected).max()


def band_of(a, band):
    n = len(a)
    rows = np.full((n, band + 1), np.nan)  # entries left of the matrix must not matter
    for i in range(n):
        for k in range(band + 1):
            if i - band + k >= 0:
                rows[i, k] = a[i, i - band + k]
    return rows


@pytest.mark.parametrize(("n", "band", "columns"), [(1, 1, 1), (30, 4, 7), (200, 15, 64), (143, 12, 130), (5, 9, 3)])
def test_band_solve(isa, n, band, columns):
    rng = np.random.default_rng(n)
    a = np.zeros((n, n))
    for i in range(n):
        for j in range(max(0, i - band), i):
            a[i, j] = a[j, i] = rng.standard_normal()
        a[i, i] = 2 * band
    b = rng.standard_normal((n, columns))
    x = _native.banded_solve(band_of(a, band), b.astype(np.float32))
    expected = np.linalg.solve(a, b)
    assert np.abs(x - expected).max() < 2e-5 * np.abs(expected).max()


def test_indefinite_matrices_are_refused():
    a = np.diag(np.array([1, 1, -1, 1], np.float32))
    with pytest.raises(InputError, match="not positive definite at row 2"):
        _native.cholesky_solve(a, np.zeros((4, 1), np.float32))
    with pytest.raises(InputError, match="not positive definite at row 2 of 4"):
        _native.banded_solve(band_of(a.astype(float), 1), np.zeros((4, 1), np.float32))
