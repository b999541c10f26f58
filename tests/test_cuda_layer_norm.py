"""Norms on CUDA against float64: every width of row, type and kind, edges, strides, and rows whose mean is far away."""

from __future__ import annotations

import numpy as np
import pytest

from cases import Case, cases
from cuda_samples import assert_as_good_as, error, rounded, run_op, stored


def norm(x: np.ndarray, kind: str, weight=None, bias=None, eps: float = 1e-6) -> np.ndarray:
    """In float64."""
    x = x.astype(np.float64)
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    if kind != "none":
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def rival(x: np.ndarray, kind: str, dtype: str, weight=None, bias=None) -> np.ndarray:
    """Of torch, rounded to the dtype of y."""
    import torch

    w, b = (None if v is None else torch.from_numpy(v) for v in (weight, bias))
    t = torch.from_numpy(x)
    if kind == "layer":
        y = torch.nn.functional.layer_norm(t, x.shape[-1:], w, b, 1e-6)
    else:
        y = t * torch.rsqrt((t * t).mean(-1, keepdim=True) + 1e-6)
        y = y if w is None else y * w
        y = y if b is None else y + b
    return rounded(y.numpy(), dtype)


def run(x: np.ndarray, x_type: str, y_type: str, kind: str = "layer", extra: int = 0, **more) -> np.ndarray:
    rows, dim = x.shape
    wide = np.full((rows, dim + extra), np.nan, np.float32)
    wide[:, :dim] = x
    tensors = {"x": stored(wide, x_type)} | {k: more.pop(k) for k in ("weight", "bias") if more.get(k) is not None}
    numbers = {"dim": dim} | {k: v for k, v in more.items() if v is not None}
    return run_op("layer_norm", tensors, {"y": ((rows, dim + extra), y_type)}, numbers=numbers, words={"kind": kind})[
        "y"
    ]


@pytest.mark.parametrize("case", cases("layer_norm", small=True), ids=str)
def test_norm(cuda, case: Case) -> None:
    rng = np.random.default_rng(0)
    rows, dim, kind, x_type = case.shape["rows"], case.shape["dim"], case.words["kind"], case.words["x"]
    x = rounded(rng.standard_normal((rows, dim)) * 3 + 1, x_type)
    found = run(x, x_type, case.dtype, kind)
    if dim > 1:
        assert_as_good_as(found, rival(x, kind, case.dtype), norm(x, kind), case.times)
    weight, bias = (rng.standard_normal(dim).astype(np.float32) for _ in range(2))
    found = run(x, x_type, case.dtype, kind, weight=weight, bias=bias)
    assert_as_good_as(found, rival(x, kind, case.dtype, weight, bias), norm(x, kind, weight, bias), case.times)
    np.testing.assert_array_equal(found, run(x, x_type, case.dtype, kind, weight=weight, bias=bias))


@pytest.mark.sanitizer
@pytest.mark.parametrize("dim", [5, 64, 1030])
@pytest.mark.parametrize("extra", [1, 8])
@pytest.mark.parametrize("y_type", ["float32", "bfloat16"])
def test_strides(cuda, dim: int, extra: int, y_type: str) -> None:
    """NaN between rows is neither read nor written over, and rows that are not aligned give the same."""
    x = np.random.default_rng(1).standard_normal((7, dim)).astype(np.float32)
    found = run(x, "float32", y_type, extra=extra)
    assert np.isnan(found[:, dim:]).all()
    np.testing.assert_array_equal(found[:, :dim], run(x, "float32", y_type))


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_in_place(cuda, dtype: str) -> None:
    x = rounded(np.random.default_rng(1).standard_normal((9, 200)), dtype)
    found = run_op("layer_norm", {"x": stored(x, dtype)}, {"x": None})["x"]
    np.testing.assert_array_equal(found, run(x, dtype, dtype))


def test_mean_far_away(cuda) -> None:
    """Squares are taken after the mean: a mean of 1000 deviations costs the digits of x, not of its square."""
    x = (np.random.default_rng(2).standard_normal((20, 768)) + 1000).astype(np.float32)
    assert error(run(x, "float32", "float32"), norm(x, "layer")) < 1e-4


def test_rounding_to_tf32(cuda) -> None:
    x = np.random.default_rng(2).standard_normal((20, 100)).astype(np.float32)
    np.testing.assert_array_equal(
        run(x, "float32", "float32", round_y=1), rounded(run(x, "float32", "float32"), "tf32")
    )


def test_nan_and_zero_rows(cuda) -> None:
    x = np.zeros((6, 96), np.float32)
    x[2, 5] = np.nan
    found = run(x, "float32", "float32")
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, 0), 0)


def test_bad_arguments(cuda) -> None:
    x = np.zeros((2, 8200), np.float32)
    with pytest.raises(ValueError, match="dim must be from 1 to 8192, got 8200"):
        run(x, "float32", "float32")
    with pytest.raises(ValueError, match="rows of float16 cannot be normalised to bfloat16"):
        run(x[:, :8], "float16", "bfloat16")
