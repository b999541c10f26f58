"""Attention on CUDA against float64: every width of a head and type, ragged numbers of tokens, scores of any size.

These are the portable kernels; those for Hopper are in test_cuda_sm90.py.
"""

import numpy as np
import pytest

from cuda_samples import assert_as_good_as, error, run_op

torch = pytest.importorskip("torch")

LOG2E = 1.4426950408889634
DTYPES = ["bfloat16", "float16", "float32"]
# (batch, tokens, heads, head_dim)
SHAPES = [
    (1, 1, 1, 64),
    (2, 5, 2, 32),
    (1, 31, 3, 48),
    (2, 33, 2, 64),
    (1, 130, 1, 64),
    (1, 65, 1, 80),
    (1, 40, 2, 96),
    (1, 70, 1, 112),
    (1, 97, 1, 128),
]


def samples(batch, tokens, heads, head_dim, dtype, scale=1.0, seed=0):
    """qkv with scaled queries as its product gives it, rounded to `dtype`."""
    qkv = np.random.default_rng(seed).standard_normal((batch, tokens, 3, heads, head_dim)).astype(np.float32)
    qkv[:, :, 0] *= scale * LOG2E / head_dim**0.5
    return torch.from_numpy(qkv).to(getattr(torch, dtype)).reshape(batch, tokens, -1)


def attention(qkv, heads):
    """In the arithmetic of `qkv`: softmax to the base of 2."""
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = torch.softmax((q @ k.transpose(-1, -2)) * float(np.log(2)), dim=-1)
    return (weights @ v).transpose(1, 2).reshape(batch, tokens, width // 3)


def run(qkv, heads, **words):
    batch, tokens, width = qkv.shape
    dtype = str(qkv.dtype).removeprefix("torch.")
    outputs = {"out": ((batch, tokens, width // 3), dtype)}
    return run_op("attention", {"qkv": qkv}, outputs, {"heads": heads, "portable": 1}, words)["out"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_that_of_torch(cuda, shape, dtype):
    qkv, heads = samples(*shape, dtype), shape[2]
    truth = attention(qkv.double(), heads)
    assert_as_good_as(run(qkv, heads), attention(qkv, heads).float().numpy(), truth.numpy())


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_of_many_queries(cuda, dtype):
    """Enough heads that blocks take as many queries as they can."""
    qkv = samples(1 if cuda.emulated else 4, 150, 52, 64, dtype)
    truth = attention(qkv.double(), 52)
    assert_as_good_as(run(qkv, 52), attention(qkv, 52).float().numpy(), truth.numpy())


@pytest.mark.sanitizer
@pytest.mark.parametrize("head_dim", [64, 128])
def test_tf32_is_as_good_as_its_numbers(cuda, head_dim):
    qkv = samples(2, 45, 2, head_dim, "float32")
    truth = attention(qkv.double(), 2).numpy()
    found = error(run(qkv, 2, products="tf32"), truth)
    assert error(run(qkv, 2), truth) < 1e-6 < found < 2**-10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 8.0, 60.0])
def test_scores_of_any_size(cuda, dtype, scale):
    """From weights that are all the same to ones of a single key; the running maximum changes from tile to tile."""
    qkv = samples(1, 100, 1, 64, dtype, scale)
    truth = attention(qkv.double(), 1)
    assert_as_good_as(run(qkv, 1), attention(qkv, 1).float().numpy(), truth.numpy(), times=3)


def test_same_bits_every_time_and_images_apart(cuda):
    qkv = samples(3, 50, 2, 64, "bfloat16")
    first = run(qkv, 2)
    np.testing.assert_array_equal(run(qkv, 2), first)
    np.testing.assert_array_equal(run(qkv[1:2], 2), first[1:2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_seen(cuda, dtype):
    """In the queries of a token: in its row; in the values of one: in every row that has weight for it."""
    qkv = samples(1, 40, 1, 64, dtype)
    qkv[0, 7, 3] = float("nan")
    bad = ~np.isfinite(run(qkv, 1)[0]).all(1)
    assert bad[7] and bad.sum() == 1
    qkv = samples(1, 40, 1, 64, dtype)
    qkv[0, 7, 128 + 3] = float("inf")
    found = run(qkv, 1)[0]
    assert not np.isfinite(found[:, 3]).any() and np.isfinite(np.delete(found, 3, 1)).all()


@pytest.mark.parametrize("head_dim", [16, 40, 144])
def test_heads_that_it_does_not_take(cuda, head_dim):
    with pytest.raises(Exception, match=f"head_dim must be a multiple of 16 from 32 to 128, got {head_dim}"):
        run(samples(1, 4, 1, head_dim, "bfloat16"), 1)
