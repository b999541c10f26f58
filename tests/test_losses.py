"""The losses and their gradients against the scalar reference and plain torch in double, on every instruction set."""

import numpy as np
import pytest
import torch

from dvt_fast import _native
from dvt_fast.reference import reconstruction_loss, residual_loss


def problem(n, channels):
    rng = np.random.default_rng(channels)
    base, residual, raw = (rng.standard_normal((n, channels)).astype(np.float32) for _ in range(3))
    residual[0] = 0  # |h| has no slope there
    return base, residual * np.float32(0.1), raw


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("channels", [1, 7, 96, 770])
@pytest.mark.parametrize("second_phase", [False, True])
def test_matches_the_reference(isa, channels, second_phase):
    base, residual, raw = problem(53, channels)
    h = residual if second_phase else None
    got = _native.losses(base, h, raw, scale=1024.0)
    expected = _native.losses(base, h, raw, scale=1024.0, reference=True)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6, atol=1e-7)
    # One channel: the cosine is +-1 and its gradient cancels to rounding.
    assert relative_error(got[1], expected[1]) < 1e-5
    assert (got[2] is None) == (not second_phase)
    if second_phase:
        assert relative_error(got[2], expected[2]) < 1e-5


@pytest.mark.parametrize("second_phase", [False, True])
def test_matches_plain_torch_in_double(second_phase):
    base, residual, raw = problem(53, 96)
    x, h, y = (torch.from_numpy(a).double() for a in (base, residual, raw))
    x.requires_grad_(), h.requires_grad_()
    loss = reconstruction_loss(x + h.detach() if second_phase else x, y)
    if second_phase:
        loss = loss + residual_loss(h, (y - x).detach())
    loss.backward()
    (mse, cosine, residual_mse, residual_l1), d_base, d_residual = _native.losses(
        base, residual if second_phase else None, raw
    )
    assert mse + cosine + 0.1 * residual_mse + 0.02 * residual_l1 == pytest.approx(loss.item(), rel=1e-6)
    assert relative_error(d_base, x.grad.numpy()) < 1e-5
    if second_phase:
        assert relative_error(d_residual, h.grad.numpy()) < 1e-5


def test_zero_rows_have_finite_gradients(isa):
    """A prediction or a target of zero has no direction; the floor of the norms keeps the quotient finite."""
    base, residual, raw = problem(4, 32)
    base[0] = 0
    raw[1] = 0
    base[2] = raw[2] = 0
    losses, d_base, _ = _native.losses(base, None, raw)
    expected, d_expected, _ = _native.losses(base, None, raw, reference=True)
    assert np.isfinite(losses).all() and np.isfinite(d_base).all()
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(d_base, d_expected, rtol=1e-4, atol=1e-7)


def test_gradients_are_those_of_finite_differences():
    base, residual, raw = problem(6, 10)
    residual += np.copysign(np.float32(0.01), residual)  # a step of 1/256 must not cross 0, where |h| bends
    total = lambda b, h: np.dot(_native.losses(b, h, raw, reference=True)[0], [1, 1, 0, 0])  # noqa: E731
    own = lambda b, h: np.dot(_native.losses(b, h, raw, reference=True)[0], [0, 0, 0.1, 0.02])  # noqa: E731
    _, d_base, d_residual = _native.losses(base, residual, raw, reference=True)
    step = np.float32(2**-8)
    for i in range(0, 60, 7):
        b, h = np.zeros_like(base), np.zeros_like(base)
        b.flat[i] = h.flat[i] = step
        assert (total(base + b, residual) - total(base - b, residual)) / (2 * step) == pytest.approx(
            d_base.flat[i], rel=1e-3, abs=1e-5
        )
        assert (own(base, residual + h) - own(base, residual - h)) / (2 * step) == pytest.approx(
            d_residual.flat[i], rel=1e-3, abs=1e-5
        )
