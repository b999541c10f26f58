"""The perceptron, the artifact map and the feature bank against their scalar references, on every instruction set."""

import itertools

import numpy as np
import pytest
import torch

from dvt_fast import _native

WIDTHS = [(3, 5), (16, 24, 40), (33, 7, 7, 33), (128, 48, 96)]


def problem(widths, n):
    rng = np.random.default_rng(n)
    count = sum((a + 1) * b for a, b in itertools.pairwise(widths))
    params = (rng.standard_normal(count) * 0.3).astype(np.float32)
    x, d_out = (rng.standard_normal((n, w)).astype(np.float32) for w in (widths[0], widths[-1]))
    return params, x, d_out


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("n", [1, 61])
def test_mlp_matches_the_reference(isa, widths, n):
    params, x, d_out = problem(widths, n)
    got = _native.mlp(list(widths), params, x, d_out)
    expected = _native.mlp(list(widths), params, x, d_out, reference=True)
    for name, a, b in zip(("out", "d_params", "d_x"), got, expected):
        assert relative_error(a, b) < 1e-5, name


def test_mlp_matches_torch_in_double():
    widths = (33, 7, 7, 33)
    params, x, d_out = problem(widths, 50)
    model = torch.nn.Sequential(
        torch.nn.Linear(33, 7), torch.nn.ReLU(), torch.nn.Linear(7, 7), torch.nn.ReLU(), torch.nn.Linear(7, 33)
    ).double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(params).double(), model.parameters())
    x64 = torch.from_numpy(x).double().requires_grad_()
    y = model(x64)
    y.backward(torch.from_numpy(d_out).double())
    out, d_params, d_x = _native.mlp(list(widths), params, x, d_out)
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    for a, b in ((out, y.detach()), (d_params, grads), (d_x, x64.grad)):
        assert relative_error(a, b.numpy()) < 1e-5


def test_reference_gradients_are_those_of_finite_differences():
    widths = [4, 6, 3]
    params, x, d_out = problem(widths, 9)
    _, d_params, d_x = _native.mlp(widths, params, x, d_out, reference=True)
    h = np.float32(2**-10)
    for array, gradient in ((params, d_params), (x, d_x)):
        for i in range(0, array.size, 5):
            values = []
            for sign in (1, -1):
                moved = array.copy()
                moved.flat[i] += sign * h
                inputs = (moved, x) if array is params else (params, moved)
                out = _native.mlp(widths, *inputs, d_out, reference=True)[0]
                values.append((out.astype(np.float64) * d_out).sum())
            # Float32 outputs of size 1 divided by a step of 1/500.
            assert (values[0] - values[1]) / (2 * h) == pytest.approx(gradient.flat[i], rel=2e-3, abs=2e-3)


def test_artifacts_match_the_reference(isa):
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 40, 200).astype(np.int32)
    patch[patch == 7] = 8  # one patch without a sample
    base, artifacts = (rng.standard_normal((n, 37)).astype(np.float32) for n in (200, 41))
    added = _native.add_artifacts(base, artifacts, patch)
    np.testing.assert_array_equal(added, base + artifacts[patch])
    np.testing.assert_array_equal(added, _native.add_artifacts(base, artifacts, patch, reference=True))
    sums = _native.sum_by_patch(base, patch, 41)
    expected = np.zeros((41, 37))
    np.add.at(expected, patch, base.astype(np.float64))
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    np.testing.assert_allclose(_native.sum_by_patch(base, patch, 41, reference=True), expected, rtol=1e-12, atol=1e-12)
    assert not sums[[7, 40]].any()


def test_half_features_are_widened_exactly(isa):
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    bank = every.reshape(512, 128)
    index = np.random.default_rng(0).permutation(512)
    got = _native.gather_features(bank, index)
    np.testing.assert_array_equal(got, bank[index].astype(np.float32))
    np.testing.assert_array_equal(got, _native.gather_features(bank, index, reference=True))
    odd = every[: 1009 * 7].reshape(1009, 7)
    np.testing.assert_array_equal(_native.gather_features(odd, index), odd[index].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_feature_is_found(isa, dtype, value):
    array = np.random.default_rng(0).standard_normal((50, 1001)).astype(dtype)
    array[3, 5] = np.finfo(dtype).max
    assert _native.first_non_finite(array) == -1
    array[49, 1000] = value
    assert _native.first_non_finite(array) == 50 * 1001 - 1
    array[20, 17] = array[40, 3] = value
    assert _native.first_non_finite(array) == 20 * 1001 + 17
