"""The kernels of Hopper (wgmma, bulk copies, clusters) against float64: every tile, ragged shapes, any thread order."""

import numpy as np
import pytest

from cuda_samples import Emulator, assert_as_good_as, error, run_op

torch = pytest.importorskip("torch")

LOG2E = 1.4426950408889634
DTYPES = ["bfloat16", "float16"]
# Tile, blocks that share a tile's sum, what pairs of blocks share (1: rows of x, 2: rows of the weight).
PLANS = [
    ("narrow", 1, 0),
    ("narrow", 4, 0),
    ("square", 1, 0),
    ("square", 1, 1),
    ("square", 2, 0),
    ("square", 8, 0),
    ("wide", 1, 0),
    ("wide", 1, 1),
    ("wide", 1, 2),
    ("widest", 1, 0),
    ("widest", 1, 1),
    ("widest", 1, 2),
]
# (rows, in, out): more than one tile each way, with tails; less than one; whole ones.
SHAPES = [(150, 584, 392), (5, 520, 8), (128, 512, 256)]


@pytest.fixture(autouse=True)
def hopper(cuda):
    """These kernels are for devices of compute capability 9.0 only."""
    if not cuda.emulated and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the device is not a Hopper one")


@pytest.fixture
def seeds(cuda):
    """Calls a function under several orders of threads (on a device, several times): its results."""
    if not cuda.emulated:
        yield lambda f: [f() for _ in range(3)]
        return
    emulator = Emulator(cuda.library)

    def under(f):
        results = []
        for seed in (1, 2, 3):
            emulator.set(SEED=seed)
            results.append(f())
        return results

    yield under
    emulator.restore()


def operands(rows, n_in, n_out, dtype, seed=0):
    """x, weight, bias, residual."""
    random = np.random.default_rng(seed)
    numbers = [random.standard_normal(shape).astype(np.float32) for shape in ((rows, n_in), (n_out, n_in))]
    x, weight = (torch.from_numpy(a).to(getattr(torch, dtype)) for a in (numbers[0], numbers[1] / n_in**0.5))
    bias, residual = (torch.from_numpy(random.standard_normal(s).astype(np.float32)) for s in (n_out, (rows, n_out)))
    return x, weight, bias, residual


def linear(tensors, y, plan=("square", 1, 0), numbers=None, **words):
    tile, split, sharing = plan
    numbers = {"split": split, "sharing": sharing} | (numbers or {})
    return run_op("linear_sm90", tensors, {"y": y}, numbers, {"tile": tile} | words)["y"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_linear(cuda, plan, shape):
    """A product with a bias, in x's type: what QKV is."""
    x, weight, bias, _ = operands(*shape, "bfloat16")
    y = linear({"x": x, "weight": weight, "bias": bias}, ((shape[0], shape[2]), "bfloat16"), plan)
    truth = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    rival = torch.nn.functional.linear(x, weight, bias.bfloat16())
    assert_as_good_as(y, rival.float().numpy(), truth.numpy())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_residual_in_place(cuda, plan, shape):
    """y = y + x W^T + b in float32: proj and fc2. Twice float32's error, since the operands are exact."""
    x, weight, bias, residual = operands(*shape, "bfloat16", seed=1)
    tensors = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    y = linear(tensors, ((shape[0], shape[2]), "float32"), plan)
    truth = torch.nn.functional.linear(x.double(), weight.double(), bias.double()) + residual.double()
    rival = torch.nn.functional.linear(x.float(), weight.float(), bias) + residual
    assert_as_good_as(y, rival.numpy(), truth.numpy(), times=3)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plan", [("narrow", 1, 0), ("square", 1, 1), ("widest", 1, 0), ("narrow", 2, 0)], ids=str)
def test_gelu(cuda, plan, dtype):
    x, weight, bias, _ = operands(150, 200, 328, dtype, seed=2)
    weight *= 2
    y = linear({"x": x, "weight": weight, "bias": bias}, ((150, 328), dtype), plan, activation="gelu")
    truth = torch.nn.functional.gelu(torch.nn.functional.linear(x.double(), weight.double(), bias.double()))
    rival = torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias.to(x.dtype)))
    assert_as_good_as(y, rival.float().numpy(), truth.numpy())


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("plan", [("square", 1, 0), ("square", 1, 1), ("narrow", 4, 0)], ids=str)
def test_tf32(cuda, plan, activation):
    """float32 that is rounded to tf32 already: its products are exact."""
    x, weight, bias, _ = operands(150, 200, 328, "float32", seed=7)
    for tensor in (x, weight):
        tensor.view(torch.int32).bitwise_and_(-0x2000)
    y = linear({"x": x, "weight": weight, "bias": bias}, ((150, 328), "float32"), plan, activation=activation)
    truth = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    rival = torch.nn.functional.linear(x, weight, bias)
    if activation == "gelu":
        truth, rival = torch.nn.functional.gelu(truth), torch.nn.functional.gelu(rival)
    assert_as_good_as(y, rival.numpy(), truth.numpy(), times=3)


@pytest.mark.parametrize("plan", [("square", 1, 0), ("narrow", 2, 0)], ids=str)
def test_gated(cuda, plan):
    """activation(gate) * value, whose weights alternate."""
    x, weight, bias, _ = operands(70, 136, 2 * 76, "bfloat16", seed=3)
    y = linear({"x": x, "weight": weight, "bias": bias}, ((70, 76), "bfloat16"), plan, {"gated": 1}, activation="silu")

    def of(x, weight, bias):
        both = torch.nn.functional.linear(x, weight, bias)
        return torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]

    truth = of(x.double(), weight.double(), bias.double())
    assert_as_good_as(y, of(x, weight, bias.bfloat16()).float().numpy(), truth.numpy())


@pytest.mark.parametrize("plan", [("square", 1, 0), ("square", 2, 0)], ids=str)
def test_odd_columns_and_what_is_not_finite(cuda, plan):
    """The caller's tensor: rows of any alignment, any type, and a flag."""
    for bad in (False, True):
        x, weight, bias, residual = operands(40, 136, 77, "float16", seed=4)
        if bad:
            residual[3, 5] = 70000.0  # infinite as a float16
        flag = np.zeros(1, np.uint32)
        tensors = {"x": x, "weight": weight, "bias": bias, "residual": residual, "not_finite": flag}
        numbers = {"split": plan[1]}
        outputs = {"y": ((40, 77), "float16"), "not_finite": None}
        out = run_op("linear_sm90", tensors, outputs, numbers, {"tile": plan[0]})
        assert out["not_finite"][0] == bad
        truth = torch.nn.functional.linear(x.double(), weight.double(), bias.double()) + residual.double()
        if not bad:
            rival = torch.nn.functional.linear(x, weight, bias.half()) + residual.half()
            assert_as_good_as(out["y"], rival.float().numpy(), truth.numpy())


@pytest.mark.parametrize("plan", [("widest", 1, 1), ("square", 1, 2), ("square", 4, 0), ("narrow", 1, 0)], ids=str)
def test_linear_gives_the_same_bits(seeds, plan):
    x, weight, bias, residual = operands(200, 456, 648, "bfloat16", seed=5)
    tensors = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    first, *others = seeds(lambda: linear(tensors, ((200, 648), "float32"), plan))
    assert all(np.array_equal(first, other) for other in others)


def attention_of(qkv, heads):
    """In the arithmetic of `qkv`: softmax to the base of 2."""
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = torch.softmax((q @ k.transpose(-1, -2)) * float(np.log(2)), dim=-1)
    return (weights @ v).transpose(1, 2).reshape(batch, tokens, width // 3)


def samples(batch, tokens, heads, head_dim, dtype, scale=1.0, seed=0):
    qkv = np.random.default_rng(seed).standard_normal((batch, tokens, 3, heads, head_dim)).astype(np.float32)
    qkv[:, :, 0] *= scale * LOG2E / head_dim**0.5
    return torch.from_numpy(qkv).to(getattr(torch, dtype)).reshape(batch, tokens, -1)


def attention(qkv, heads, queries):
    batch, tokens, width = qkv.shape
    outputs = {"out": ((batch, tokens, width // 3), str(qkv.dtype).removeprefix("torch."))}
    return run_op("attention_sm90", {"qkv": qkv}, outputs, {"heads": heads, "queries": queries})["out"]


@pytest.mark.sanitizer
@pytest.mark.parametrize("queries", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 64), (2, 130, 2, 64), (1, 700, 1, 64), (2, 128, 1, 128), (1, 300, 1, 128)], ids=str
)
def test_attention(cuda, shape, dtype, queries):
    """The keys of another image are none of this one's; tails; one tile and more than there are stages."""
    qkv, heads = samples(*shape, dtype), shape[2]
    truth = attention_of(qkv.double(), heads)
    assert_as_good_as(attention(qkv, heads, queries), attention_of(qkv, heads).float().numpy(), truth.numpy())


def test_attention_of_large_scores(cuda):
    """Maxima that rise from tile to tile, and weights of one."""
    qkv = samples(1, 400, 1, 64, "bfloat16", scale=30, seed=1)
    qkv[0, :, 64:128] *= torch.linspace(0.1, 2, 400)[:, None].bfloat16()
    truth = attention_of(qkv.double(), 1)
    assert_as_good_as(attention(qkv, 1, 128), attention_of(qkv, 1).float().numpy(), truth.numpy())


def test_attention_gives_the_same_bits(seeds):
    qkv = samples(2, 300, 1, 64, "bfloat16", seed=2)
    first, *others = seeds(lambda: attention(qkv, 1, 128))
    assert all(np.array_equal(first, other) for other in others)


def test_attention_with_nan_is_nan_where_it_must_be(cuda):
    qkv = samples(1, 140, 2, 64, "bfloat16", seed=3)
    qkv[0, 7, 3] = float("nan")  # of a query of the first head
    out = attention(qkv, 2, 128)
    assert np.isnan(out[0, 7, :64]).all()
    assert np.isfinite(np.delete(out[0], 7, 0)).all() and np.isfinite(out[0, 7, 64:]).all()


def test_the_door_leads_here(cuda):
    """`linear` and `attention` of 16-bit types are these kernels on Hopper; `portable` is the others."""
    x, weight, bias, _ = operands(70, 136, 80, "bfloat16", seed=6)
    both = [
        run_op(
            "linear", {"x": x, "weight": weight, "bias": bias}, {"y": ((70, 80), "bfloat16")}, {"portable": portable}
        )
        for portable in (0, 1)
    ]
    assert error(both[0]["y"], both[1]["y"]) < 3e-3
    qkv = samples(1, 70, 1, 64, "bfloat16")
    outputs = {"out": ((1, 70, 64), "bfloat16")}
    both = [run_op("attention", {"qkv": qkv}, outputs, {"portable": portable}) for portable in (0, 1)]
    assert error(both[0]["out"], both[1]["out"]) < 1e-2
