"""The products of a transformer on CUDA, with all that they do before they store; and their activations."""

from __future__ import annotations

import numpy as np
import pytest

from cases import Case, cases
from cuda_samples import assert_as_good_as, error, from_bfloat16, rounded, run_op, stored, to_bfloat16, truncation

NARROW = ("float16", "bfloat16")
EVERY = ("float16", "bfloat16", "tf32", "float32")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")


def storage(dtype: str) -> str:
    return dtype if dtype in NARROW else "float32"


def padded(x: np.ndarray, dtype: str) -> np.ndarray:
    piece = 8 if dtype in NARROW else 4
    out = np.full((len(x), -(-x.shape[1] // piece) * piece), np.nan, np.float32)
    out[:, : x.shape[1]] = x
    return out


def activated(x: np.ndarray, activation: str) -> np.ndarray:
    """In the precision of `x`: of torch for float32, for float64 the truth."""
    import torch

    t = torch.from_numpy(np.ascontiguousarray(x))
    f = torch.nn.functional
    return {
        "gelu": f.gelu,
        "gelu_tanh": lambda t: f.gelu(t, approximate="tanh"),
        "quick_gelu": lambda t: t * torch.sigmoid(1.702 * t),
        "silu": f.silu,
        "relu": f.relu,
        "none": lambda t: t,
    }[activation](t).numpy()


class Linear:
    """Operands, and the result in float64 and as torch computes it in the same dtype (tf32: after rounding)."""

    def __init__(
        self, rows: int, cin: int, out: int, dtype: str, activation: str = "none", gated: bool = False, seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.dtype, self.activation, self.gated, self.out = dtype, activation, gated, out
        n = 2 * out if gated else out
        self.x = rounded(rng.standard_normal((rows, cin)), dtype)
        self.weight = rounded(rng.standard_normal((n, cin)) / np.sqrt(cin), dtype)
        self.bias = rng.standard_normal(n).astype(np.float32)

    def product(self, bias: bool = True, double: bool = True) -> np.ndarray:
        kind = np.float64 if double else np.float32
        y = self.x.astype(kind) @ self.weight.astype(kind).T
        if bias:
            y = y + self.bias.astype(kind)
        if self.gated:
            gate, value = np.split(y, 2, axis=1)
            return activated(gate, self.activation) * value
        return activated(y, self.activation)

    def rival(self, bias: bool = True) -> np.ndarray:
        """Of torch: sums of float32, each of its ops rounded to the dtype, as its modules would."""
        import torch

        if self.dtype not in NARROW:
            return self.product(bias, double=False)
        kind = getattr(torch, self.dtype)
        x, w, b = (torch.from_numpy(v).to(kind) for v in (self.x, self.weight, self.bias))
        y = torch.nn.functional.linear(x, w, b if bias else None).float().numpy()
        if self.gated:
            gate, value = np.split(y, 2, axis=1)
            return rounded(rounded(activated(gate, self.activation), self.dtype) * value, self.dtype)
        return rounded(activated(y, self.activation), self.dtype)

    def run(
        self,
        bias: bool = True,
        y_type: str = "",
        extra: int = 0,
        more: dict | None = None,
        tiles: str = "",
        **numbers: float,
    ) -> np.ndarray:
        weight, b = self.weight, self.bias
        if self.gated:
            weight = weight.reshape(2, self.out, -1).swapaxes(0, 1).reshape(2 * self.out, -1)
            b = b.reshape(2, self.out).T.reshape(-1)
        kind = storage(self.dtype)
        tensors = {"x": stored(padded(self.x, self.dtype), kind), "weight": stored(padded(weight, self.dtype), kind)}
        tensors |= {"bias": b} if bias else {}
        tensors |= more or {}
        shape = (len(self.x), self.out + extra)
        numbers = {"in": self.x.shape[1], "out": self.out, "gated": self.gated, "portable": 1} | numbers
        outputs = {"y": None if "y" in tensors else (shape, y_type or kind)}
        outputs |= {"not_finite": None} if "not_finite" in tensors else {}
        words = {"type": self.dtype, "activation": self.activation, "tiles": tiles}
        found = run_op("linear", tensors, outputs, numbers=numbers, words=words)
        self.not_finite = int(found["not_finite"][0]) if "not_finite" in found else None
        return found["y"]


@pytest.mark.parametrize("case", cases("linear", small=True), ids=str)
def test_linear(cuda, case: Case) -> None:
    s = case.shape
    gated = bool(s.get("gated", 0))
    linear = Linear(s["rows"], s["in"], s["out"], case.dtype, case.words["activation"], gated)
    found = linear.run()
    assert_as_good_as(found, linear.rival(), linear.product(), case.times, truncation(s["in"], case.dtype))
    for tiles in ("small", "middle", "large"):  # each sums in the order of K: the same bits, on every run
        np.testing.assert_array_equal(found, linear.run(tiles=tiles), strict=True)


@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("out", [40, 37])
@pytest.mark.parametrize("y_type", ["float32", "float16", "bfloat16"])
def test_residual(cuda, dtype: str, out: int, y_type: str) -> None:
    """Another array of float32 is added last, whatever y is."""
    linear = Linear(50, 72, out, dtype)
    residual = np.random.default_rng(1).standard_normal((50, out + 3)).astype(np.float32)
    found = linear.run(y_type=y_type, more={"residual": residual})
    for tiles in ("small", "middle", "large"):
        np.testing.assert_array_equal(found, linear.run(y_type=y_type, more={"residual": residual}, tiles=tiles))
    truth = linear.product() + residual[:, :out]
    bound = {"float32": 1e-6, "float16": 4e-4, "bfloat16": 3e-3}[y_type]
    assert error(found, truth) < bound + truncation(72, dtype)
    assert error(found, rounded(truth, y_type)) < bound / 3 + truncation(72, dtype)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", EVERY)
def test_accumulate_in_place(cuda, dtype: str) -> None:
    linear = Linear(70, 96, 64, dtype)
    stream = np.random.default_rng(1).standard_normal((70, 64)).astype(np.float32)
    found = linear.run(more={"y": stream}, accumulate=1)
    assert error(found, linear.product() + stream) < 1e-6 + truncation(96, dtype)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", EVERY)
def test_without_bias_and_strided(cuda, dtype: str) -> None:
    linear = Linear(33, 40, 24, dtype, "gelu")
    found = linear.run(bias=False, extra=16)
    assert np.isnan(found[:, 24:]).all()
    assert_as_good_as(found[:, :24], linear.rival(bias=False), linear.product(bias=False), slack=truncation(40, dtype))
    odd = linear.run(bias=False, extra=3)  # rows of y that no vector can be stored to
    np.testing.assert_array_equal(odd[:, :24], found[:, :24])


@pytest.mark.sanitizer
def test_round_y(cuda) -> None:
    """What a product in tf32 reads next is rounded for it."""
    for activation, gated in (("none", False), ("gelu", False), ("silu", True)):
        linear = Linear(40, 48, 24, "tf32", activation, gated)
        np.testing.assert_array_equal(linear.run(round_y=1), rounded(linear.run(), "tf32"))


@pytest.mark.parametrize("y_type", ["float32", "float16", "bfloat16"])
def test_not_finite(cuda, y_type: str) -> None:
    """NaN, infinity, and what only becomes infinite as it is rounded to float16 raise the flag; nothing else does."""
    for value, raised in ((0.0, 0), (np.nan, 1), (np.inf, 1), (-np.inf, 1), (1e5, y_type == "float16"), (3e38, 1)):
        if value == 3e38 and y_type == "float32":
            raised = 0
        linear = Linear(20, 16, 10, "float16")
        residual = np.zeros((20, 10), np.float32)
        residual[7, 9] = value
        if value == 3e38:
            residual[7, 9] = 3.4e38  # rounds to infinity in both 16-bit types
        linear.run(y_type=y_type, more={"residual": residual, "not_finite": np.zeros(1, np.uint32)})
        assert linear.not_finite == int(raised), value


def test_nan_goes_through(cuda) -> None:
    for dtype in EVERY:
        for activation in ("none", *ACTIVATIONS):
            linear = Linear(16, 16, 8, dtype, activation)
            linear.x[3, 2] = np.nan
            found = linear.run()
            assert np.isnan(found[3]).all()
            assert np.isfinite(np.delete(found, 3, 0)).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(cuda, activation: str) -> None:
    """On their own: float32 as good as torch's, and for 16 bits far better than those hold."""
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 5):
        x = (rng.standard_normal(5000) * scale).astype(np.float32)
        truth = activated(x.astype(np.float64), activation)
        for narrow in (0, 1):
            y = run_op(
                "activation", {"x": x}, {"y": (x.shape, "float32")}, {"narrow": narrow}, {"activation": activation}
            )
            assert np.abs(y["y"] - truth).max() < 4e-7 * max(1, np.abs(x).max())
            if narrow:
                assert error(y["y"], truth) < 5e-7
            else:
                assert_as_good_as(y["y"], activated(x, activation), truth)
    special = np.array([0, -0.0, np.inf, -np.inf, 1e30, -1e30, 100, -100, np.nan, 1e-40], np.float32)
    for narrow in (0, 1):
        y = run_op(
            "activation",
            {"x": special},
            {"y": (special.shape, "float32")},
            {"narrow": narrow},
            {"activation": activation},
        )["y"]
        assert np.isnan(y[8]) and y[2] == np.inf and y[4] == np.float32(1e30) and y[6] == 100
        assert np.abs(y[[0, 1, 5, 7, 9]]).max() < 1e-10
        assert not narrow or abs(y[3]) < 1e-10


def test_bad_arguments(cuda) -> None:
    linear = Linear(8, 16, 8, "float16", "gelu")
    with pytest.raises(ValueError, match="residual and not_finite are for products without activation"):
        linear.run(more={"residual": np.zeros((8, 8), np.float32)})
    with pytest.raises(ValueError, match="activated products must give float16, got float32"):
        linear.run(y_type="float32")
    with pytest.raises(ValueError, match=r"activation must be gelu, .* got 'tanh'"):
        Linear(8, 16, 8, "float16", "tanh").run()
    with pytest.raises(ValueError, match="gated products need an activation"):
        Linear(8, 16, 8, "float16", gated=True).run()


def test_bfloat16_bits(cuda) -> None:
    """y is the nearest bfloat16 of the sum: with one product each, exactly."""
    linear = Linear(64, 1, 32, "bfloat16")
    truth = linear.x * linear.weight[:, 0]
    np.testing.assert_array_equal(linear.run(bias=False), from_bfloat16(to_bfloat16(truth)))
