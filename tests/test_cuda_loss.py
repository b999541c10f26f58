"""The losses and the gradient of the artifact map on the device, against the CPU's and the references in double."""

import numpy as np
import pytest

from cases import cases
from cuda_samples import run_op
from dvt_fast import _native

pytestmark = pytest.mark.usefixtures("cuda")


def padded(x):
    """Rows of a multiple of 8 columns; what is beyond the last must not matter, except in G, where it is zero."""
    columns = -(-x.shape[1] // 8) * 8
    out = np.full((len(x), columns), np.nan, np.float32)
    out[:, : x.shape[1]] = x
    return out


def problem(n, channels, seed=0):
    rng = np.random.default_rng(seed + channels)
    field, residual = (rng.standard_normal((n, channels)).astype(np.float32) for _ in range(2))
    artifacts = rng.standard_normal((7, channels)).astype(np.float32) * np.float32(0.3)
    features = rng.standard_normal((50, channels)).astype(np.float32)
    residual[0] = 0  # |h| has no slope there
    return field, artifacts, residual * np.float32(0.1), features, rng.integers(0, 50, n), rng.integers(0, 7, n)


def losses(field, artifacts, residual, features, rows, patch, second_phase, operand="float32", scale=1024.0):
    n, channels = field.shape
    ld = -(-channels // 8) * 8
    given = {
        "field": padded(field),
        "artifacts": np.nan_to_num(padded(artifacts)),
        "features": features,
        "rows": rows.astype(np.int64),
        "patch": patch.astype(np.int32),
        "status": np.zeros(6),
    }
    stored = "bfloat16" if operand == "bfloat16" else "float32"
    wanted = {
        "row_losses": ((n, 4), "float32"),
        "history": ((1,), "float32"),
        "status": None,
        "d_base": ((n, ld), stored),
        "d_base_float": ((n, ld), "float32"),
    }
    if second_phase:
        given["residual"] = padded(residual)
        wanted["d_residual"] = ((n, ld), stored)
    return run_op("hashgrid_loss", given, wanted, {"scale": scale}, {"operand": operand})


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.sanitizer
@pytest.mark.parametrize("case", cases("hashgrid_loss", small=True), ids=str)
def test_matches_the_reference(case):
    channels, second_phase = case.shape["channels"], case.shape["phase"] == 2
    field, artifacts, residual, features, rows, patch = problem(case.shape["n"], channels)
    got = losses(field, artifacts, residual, features, rows, patch, second_phase)
    base = field + artifacts[patch]
    expected = _native.losses(base, residual if second_phase else None, features[rows], scale=1024.0, reference=True)
    np.testing.assert_allclose(got["status"][:4], expected[0], rtol=1e-6, atol=1e-7)
    total = np.dot(expected[0], [1, 1, 0.1, 0.02])
    np.testing.assert_allclose(got["history"][0], total, rtol=1e-6)
    # One channel: the cosine is +-1 and its gradient cancels to rounding.
    assert relative_error(got["d_base"][:, :channels], expected[1]) < 1e-5
    assert not got["d_base"][:, channels:].any()
    np.testing.assert_array_equal(got["d_base"], got["d_base_float"])
    if second_phase:
        assert relative_error(got["d_residual"][:, :channels], expected[2]) < 1e-5
    for operand, bits in (("tf32", 11), ("bfloat16", 8)):
        rounded = losses(field, artifacts, residual, features, rows, patch, second_phase, operand)
        np.testing.assert_array_equal(rounded["d_base_float"], got["d_base"])
        np.testing.assert_allclose(rounded["d_base"], got["d_base"], rtol=2.0**-bits, atol=1e-30)


def test_zero_rows_have_finite_gradients():
    field, artifacts, residual, features, rows, patch = problem(4, 32)
    artifacts[:] = 0
    rows[:] = [0, 1, 2, 3]
    field[0] = field[2] = 0
    features[1] = features[2] = 0
    got = losses(field, artifacts, residual, features, rows, patch, False, scale=1.0)
    expected = _native.losses(field, None, features[rows], reference=True)
    np.testing.assert_allclose(got["status"][:4], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got["d_base"], expected[1], rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_is_noted():
    field, artifacts, residual, features, rows, patch = problem(4, 32)
    field[2, 5] = 1e25  # its square is not a float32
    got = losses(field, artifacts, residual, features, rows, patch, False)
    assert not np.isfinite(got["history"][0])
    assert got["status"].view(np.int32)[10] == 1 and not np.isfinite(got["status"][4])


@pytest.mark.sanitizer
@pytest.mark.parametrize("case", cases("artifacts"), ids=str)
def test_gradient_of_artifacts_is_summed_in_the_order_of_samples(cuda, case):
    if cuda.emulated and not case.small:
        pytest.skip("a device's work: seconds in the emulator")
    n, patches, ld = (case.shape[name] for name in ("n", "patches", "ld"))
    rng = np.random.default_rng(n)
    d_base = rng.standard_normal((n, ld)).astype(np.float32)
    patch = rng.integers(0, patches, n).astype(np.int32)
    got = run_op("artifacts_backward", {"d_base": d_base, "patch": patch}, {"d_artifacts": ((patches, ld), "float32")})
    expected = np.zeros((patches, ld), np.float32)
    for i in range(n):
        expected[patch[i]] += d_base[i]
    np.testing.assert_array_equal(got["d_artifacts"], expected)
