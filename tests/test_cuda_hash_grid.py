"""The hash grid, the batch and the feature bank on the device, against the CPU's operators and their references."""

import numpy as np
import pytest

from cases import cases
from cuda_samples import run_op, stored
from dvt_fast import _native

pytestmark = pytest.mark.usefixtures("cuda")


def config_of(case):
    """The options of `_native.HashGrid`."""
    s = case.shape
    return {
        "n_input_dims": s["dims"],
        "n_levels": s["levels"],
        "n_features_per_level": s["features"],
        "log2_hashmap_size": s["log2_size"],
        "base_resolution": s["base"],
        "per_level_scale": (s["max"] / s["base"]) ** (1 / (s["levels"] - 1)),
    }


def problem(case, seed=0):
    """A grid, its options, points (corners of the square among them), parameters and an output gradient."""
    rng = np.random.default_rng(seed)
    config, n, dims = config_of(case), case.shape["n"], case.shape["dims"]
    grid = _native.HashGrid(**config)
    coords = rng.random((n, dims), np.float32)
    coords[:3] = [[0] * dims, [1] * dims, [0.5] * dims]
    params = rng.standard_normal(grid.n_params).astype(np.float32)
    d_out = rng.standard_normal((n, grid.n_output_dims)).astype(np.float32)
    return grid, config, coords, params, d_out


@pytest.mark.sanitizer
@pytest.mark.parametrize("case", cases("hash_grid", small=True), ids=str)
def test_forward_and_backward_match_the_reference(case):
    grid, config, coords, params, d_out = problem(case)
    out = run_op("hash_grid_forward", {"coords": coords, "params": params}, {"out": (d_out.shape, "float32")}, config)
    np.testing.assert_allclose(out["out"], grid.forward(coords, params, reference=True), atol=2e-6)

    d_params, d_coords = grid.backward_reference(coords, params, d_out)
    wanted = {"d_params": ((grid.n_params,), "float32")}
    fast = run_op("hash_grid_backward_params", {"coords": coords, "d_out": d_out}, wanted, config)["d_params"]
    np.testing.assert_allclose(fast, d_params, rtol=1e-5, atol=1e-5)
    workspace = np.zeros(grid.n_params + 1, np.int64)
    given = {"coords": coords, "d_out": d_out, "workspace": workspace}
    fixed = run_op("hash_grid_backward_params", given, wanted, config)["d_params"]
    np.testing.assert_allclose(fixed, d_params, rtol=1e-6, atol=1e-6)
    # The order of the points changes nothing in fixed point.
    turned = given | {"coords": coords[::-1].copy(), "d_out": d_out[::-1].copy()}
    np.testing.assert_array_equal(run_op("hash_grid_backward_params", turned, wanted, config)["d_params"], fixed)

    got = run_op(
        "hash_grid_backward_coords",
        {"coords": coords, "params": params, "d_out": d_out},
        {"d_coords": (coords.shape, "float32")},
        config,
    )["d_coords"]
    np.testing.assert_allclose(got, d_coords, rtol=1e-5, atol=1e-5 * grid.levels[-1][0])


def test_tiny_and_huge_gradients_in_fixed_point():
    """The unit of the sums follows the largest gradient."""
    grid, config, coords, params, d_out = problem(cases("hash_grid")[3])
    for scale in (1e-25, 1e20):
        expected = grid.backward_reference(coords, params, d_out * np.float32(scale))[0]
        given = {
            "coords": coords,
            "d_out": d_out * np.float32(scale),
            "workspace": np.zeros(grid.n_params + 1, np.int64),
        }
        got = run_op("hash_grid_backward_params", given, {"d_params": ((grid.n_params,), "float32")}, config)
        np.testing.assert_allclose(got["d_params"], expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("case", cases("hash_grid", small=False)[:1], ids=str)
def test_official_grid_on_the_device(cuda, case):
    if cuda.emulated:
        pytest.skip("a device's work: seconds in the emulator")
    grid, config, coords, params, d_out = problem(case)
    out = run_op("hash_grid_forward", {"coords": coords, "params": params}, {"out": (d_out.shape, "float32")}, config)
    np.testing.assert_allclose(out["out"], grid.forward(coords, params), atol=2e-6)
    wanted = {"d_params": ((grid.n_params,), "float32")}
    got = run_op("hash_grid_backward_params", {"coords": coords, "d_out": d_out}, wanted, config)["d_params"]
    np.testing.assert_allclose(got, grid.backward_params(coords, d_out), rtol=1e-5, atol=2e-5)


def batch(features, n, dtype="float32", operand="tf32", seed=5, step=7, offset=2, coords=None):
    channels = features.shape[1]
    ld = -(-channels // 8) * 8
    return run_op(
        "hashgrid_batch",
        {
            "features": stored(features, dtype),
            "coords": np.full((len(features), 2), 0.5, np.float32) if coords is None else coords,
            "clock": np.array([step, 0], np.int32),
        },
        {
            "samples": ((n,), "int64"),
            "gathered": ((n, ld), "bfloat16" if operand == "bfloat16" else "float32"),
            "bad": ((2,), "int64"),
        },
        {"seed": seed, "offset": offset},
        {"dtype": dtype, "operand": operand},
    )


def splitmix(seed, stream, n, rows):
    """SplitMix64, written out: the patches of a step."""
    mask = 2**64 - 1

    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    state = mix(seed) ^ mix(~stream & mask)
    return [mix(state + (i + 1) * 0x9E3779B97F4A7C15 & mask) * rows >> 64 for i in range(n)]


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels", [24, 21])
def test_batch_is_the_streams_and_gathered_as_operands(dtype, channels):
    features = np.random.default_rng(0).standard_normal((100, channels)).astype(np.float32)
    values = batch(features, 37, dtype, "float32")
    assert values["samples"].tolist() == splitmix(5, 4 + 9, 37, 100)  # streams 0 to 3 are the initial values'
    assert (values["bad"] == 2**63 - 1).all()
    bank = features.astype(np.float16).astype(np.float32) if dtype == "float16" else features
    rows = values["gathered"][:, :channels]
    np.testing.assert_allclose(rows, bank[values["samples"]], rtol=2**-8 if dtype == "bfloat16" else 0)
    assert not values["gathered"][:, channels:].any()
    for operand, bits in (("tf32", 11), ("bfloat16", 8)):
        rounded = batch(features, 37, dtype, operand)["gathered"][:, :channels]
        np.testing.assert_allclose(rounded, rows, rtol=2.0**-bits)
        assert (np.frexp(rounded)[0] * 2**bits % 1 == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_numbers_are_found(dtype, value):
    features = np.ones((70, 11), np.float32)
    features[63, 5] = features[69, 10] = value
    coords = np.full((70, 2), 0.5, np.float32)
    coords[3, 1], coords[60, 0] = np.nan, 1.5
    assert batch(features, 4, dtype, coords=coords)["bad"].tolist() == [63 * 11 + 5, 7]
    features[63, 5] = 1
    assert batch(features, 4, dtype)["bad"][0] == 69 * 11 + 10
