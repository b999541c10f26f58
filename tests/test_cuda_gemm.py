"""Products of matrices on CUDA: all layouts and types against float64, edges, epilogues, the same bits every time."""

from __future__ import annotations

import numpy as np
import pytest

from cases import Case, cases
from cuda_samples import assert_as_good_as, error, rounded, run_op, stored, truncation

NARROW = ("float16", "bfloat16")
EVERY = ("float16", "bfloat16", "tf32", "float32")


def padded(x: np.ndarray, dtype: str, extra: int = 0) -> np.ndarray:
    """`x` in rows of whole 16 bytes and `extra` more numbers, with NaN in what no product may look at."""
    piece = 8 if dtype in NARROW else 4
    width = -(-x.shape[-1] // piece) * piece + extra
    out = np.full((*x.shape[:-1], width), np.nan, np.float32)
    out[..., : x.shape[-1]] = x
    return out


def storage(dtype: str) -> str:
    return dtype if dtype in NARROW else "float32"


class Product:
    """Operands of op(A) op(B), random, and the product in float64 and as torch has it."""

    def __init__(self, m: int, n: int, k: int, dtype: str, layout: str = "nn", batch: int = 0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        lead = (batch,) if batch else ()
        self.m, self.n, self.k, self.dtype, self.layout = m, n, k, dtype, layout
        a, b = rng.standard_normal((*lead, m, k)), rng.standard_normal((*lead, k, n))
        self.a, self.b = rounded(a, storage(dtype)), rounded(b, storage(dtype))
        self.truth = self.a.astype(np.float64) @ self.b.astype(np.float64)

    def tensors(self, extra: int = 0) -> dict:
        a = self.a.swapaxes(-1, -2) if self.layout[0] == "t" else self.a
        b = self.b.swapaxes(-1, -2) if self.layout[1] == "t" else self.b
        kind = storage(self.dtype)
        return {name: stored(padded(x, self.dtype, extra), kind) for name, x in (("a", a), ("b", b))}

    def run(
        self, extra: int = 0, c: np.ndarray | None = None, more: dict | None = None, tiles: str = "", **numbers: float
    ) -> np.ndarray:
        tensors = self.tensors(extra) | (more or {})
        kind = storage(self.dtype) if numbers.get("narrow") else "float32"
        shape = (*self.truth.shape[:-1], self.n + numbers.pop("c_extra", 0))
        if c is not None:
            tensors["c"] = stored(c, kind)
        wanted = {"c": None if c is not None else (shape, kind)}
        numbers = {"m": self.m, "n": self.n, "k": self.k} | numbers
        words = {"type": self.dtype, "transpose": self.layout, "tiles": tiles}
        return run_op("gemm", tensors, wanted, numbers=numbers, words=words)["c"]

    def rival(self) -> np.ndarray:
        """The same in torch with sums and result in float32: float32 for our float32, tf32's rounding done by hand."""
        import torch

        a, b = (rounded(x, self.dtype) for x in (self.a, self.b))
        return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


@pytest.mark.parametrize("tiles", ["large", "small"])
@pytest.mark.parametrize("case", cases("gemm", small=True), ids=str)
def test_product(cuda, case: Case, tiles: str) -> None:
    product = Product(**case.shape, dtype=case.dtype, layout=case.words["transpose"])
    c = product.run(tiles=tiles)
    # Operands of 16 bits are exact, so that all that differs is the order of sums.
    assert_as_good_as(c, product.rival(), product.truth, case.times, truncation(case.shape["k"], case.dtype))


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_strides(cuda, dtype: str, layout: str) -> None:
    """Rows further apart than they are long, NaN between them."""
    product = Product(50, 44, 70, dtype, layout)
    assert error(product.run(extra=8)[:, :44], product.run()) == 0
    wide = product.run(extra=16, c_extra=9)
    assert np.isnan(wide[:, 44:]).all()
    assert error(wide[:, :44], product.run()) == 0


@pytest.mark.parametrize("dtype", EVERY)
def test_batch(cuda, dtype: str) -> None:
    product = Product(33, 40, 48, dtype, "nt", batch=3)
    found = product.run()
    for i in range(3):
        one = Product(33, 40, 48, dtype, "nt", batch=3)
        one.a, one.b, one.truth = product.a[i], product.b[i], product.truth[i]
        assert error(found[i], one.run()) == 0
    assert_as_good_as(found, product.rival(), product.truth, slack=truncation(48, dtype))


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_split(cuda, dtype: str, layout: str) -> None:
    """K cut into parts, which are added in one order: the same bits on every run."""
    product = Product(40, 24, 1030, dtype, layout)
    more = {"workspace": np.full(40 * 24 * 32, np.nan, np.float32)}
    found = product.run(more=more)
    assert_as_good_as(found, product.rival(), product.truth, slack=truncation(1030, dtype))
    np.testing.assert_array_equal(found, product.run(more=more))
    assert (found != product.run()).any()  # it was cut


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("n", [40, 37])
def test_epilogue(cuda, narrow: int, split: bool, n: int) -> None:
    m, k = 45, 1100 if split else 96
    product = Product(m, n, k, "float16", "nt")
    product.a, product.truth = rounded(product.a / 8, "float16"), None
    product.truth = product.a.astype(np.float64) @ product.b
    rng = np.random.default_rng(5)
    old, mask = rounded(rng.standard_normal((m, n)), "float16"), rng.standard_normal((m, n)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    more = {"bias": bias, "mask": mask}
    if split:
        more["workspace"] = np.full(m * 40 * 32, np.nan, np.float32)
    found = product.run(c=old, more=more, alpha=0.5, beta=2, relu=1, narrow=narrow)
    truth = np.where(mask > 0, np.maximum(0.5 * product.truth + 2.0 * old + bias, 0), 0)
    assert error(found, truth) < (5e-4 if narrow else 1e-6 + truncation(k, "float16"))


def test_nan_and_infinity_stay(cuda) -> None:
    """Rounding to tf32 keeps every NaN, the processor's own (0x7fffffff) included, and infinities."""
    for dtype in ("tf32", "float32"):
        for bits in (0x7FFFFFFF, 0x7FC00000, 0xFFC00000, 0x7F800000, 0xFF800000):
            product = Product(32, 24, 16, dtype, "nt")
            product.a[5, 3] = np.array([bits], np.uint32).view(np.float32)[0]
            found = product.run()
            assert not np.isfinite(found[5]).any()
            assert np.isfinite(np.delete(found, 5, 0)).all()


def test_float32_is_float32(cuda) -> None:
    """Three products of tf32 have the error of float32 where one has a thousand times that."""
    product = Product(64, 64, 512, "float32", "nt")
    once = Product(64, 64, 512, "tf32", "nt")
    assert error(product.run(), product.truth) < 5e-7
    assert 1e-4 < error(once.run(), once.truth) < 1e-3


def test_bad_arguments(cuda) -> None:
    product = Product(8, 8, 8, "float16", "nt")
    tensors = product.tensors()
    wanted = {"c": ((8, 8), "float32")}
    words = {"type": "float16", "transpose": "nt"}
    with pytest.raises(ValueError, match="lda and ldb, expected at least a row"):
        run_op("gemm", tensors, wanted, numbers={"m": 8, "n": 8, "k": 9}, words=words)
    with pytest.raises(ValueError, match="at most one of A and B transposed"):
        run_op("gemm", tensors, wanted, numbers={"m": 8, "n": 8, "k": 8}, words={**words, "transpose": "tt"})
    tensors["a"] = stored(np.zeros((8, 12), np.float32), "float16")
    with pytest.raises(ValueError, match="A, expected strides of whole 16 bytes, got 24"):
        run_op("gemm", tensors, wanted, numbers={"m": 8, "n": 8, "k": 8}, words=words)
