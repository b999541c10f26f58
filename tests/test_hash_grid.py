"""The hash grid against its scalar reference (double) and the plain-torch one, on every instruction set."""

import numpy as np
import pytest
import torch

from dvt_fast import _native
from dvt_fast.reference import HashGridEncoding

# Dense and hashed levels, every width, two and three dimensions, and the official size.
SMALL = {"n_levels": 5, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 1.7}
CONFIGS = [
    *(dict(n_input_dims=d, n_features_per_level=f, **SMALL) for d in (2, 3) for f in (1, 2, 4, 8)),
    {
        "n_input_dims": 3,
        "n_levels": 1,
        "n_features_per_level": 2,
        "log2_hashmap_size": 6,
        "base_resolution": 9,
        "per_level_scale": 1,
    },
]
OFFICIAL = {
    "n_input_dims": 2,
    "n_levels": 16,
    "n_features_per_level": 8,
    "log2_hashmap_size": 20,
    "base_resolution": 16,
    "per_level_scale": 2 ** (6 / 15),
}


def problem(config, n=333, seed=0):
    """A grid, points (corners and edges of the square among them), parameters and an output gradient."""
    rng = np.random.default_rng(seed)
    grid = _native.HashGrid(**config)
    coords = rng.random((n, config["n_input_dims"]), np.float32)
    coords[:4] = [[0] * config["n_input_dims"], [1] * config["n_input_dims"], [0.5] * config["n_input_dims"], coords[0]]
    params = rng.standard_normal(grid.n_params).astype(np.float32)
    d_out = rng.standard_normal((n, grid.n_output_dims)).astype(np.float32)
    return grid, coords, params, d_out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['n_input_dims']}d-{c['n_features_per_level']}")
def test_forward_and_backward_match_the_reference(isa, config):
    grid, coords, params, d_out = problem(config)
    # Sums of at most 8 corners, then of at most 333 points: a few roundings of numbers of size 1.
    np.testing.assert_allclose(grid.forward(coords, params), grid.forward(coords, params, reference=True), atol=2e-6)
    d_params, d_coords = grid.backward_reference(coords, params, d_out)
    np.testing.assert_allclose(grid.backward_params(coords, d_out), d_params, rtol=1e-5, atol=1e-5)
    scale = grid.levels[-1][0]
    np.testing.assert_allclose(grid.backward_coords(coords, params, d_out), d_coords, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("config", [CONFIGS[3], CONFIGS[6], CONFIGS[8]], ids=["2d", "3d", "one-level"])
def test_matches_plain_torch_in_double(config):
    grid, coords, params, d_out = problem(config)
    encoding = HashGridEncoding(**config, dtype=torch.float64)
    assert encoding.params.numel() == grid.n_params
    encoding.params.data = torch.from_numpy(params).double()
    x = torch.from_numpy(coords).double().requires_grad_()
    out = encoding(x)
    out.backward(torch.from_numpy(d_out).double())
    np.testing.assert_allclose(grid.forward(coords, params), out.detach(), atol=2e-6)
    np.testing.assert_allclose(grid.backward_params(coords, d_out), encoding.params.grad, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grid.backward_coords(coords, params, d_out), x.grad, rtol=1e-5, atol=1e-4)


def test_layout_is_tiny_cuda_nns():
    grid = _native.HashGrid(**OFFICIAL)
    resolutions = [level[1] for level in grid.levels]
    entries = [level[2] for level in grid.levels]
    # The last float32 scale lies a rounding above 1023, so tiny-cuda-nn's ceiling makes 1,025 corners of the nominal
    # 1,024, and the last level is the only one that hashes.
    assert (resolutions[0], resolutions[-2:]) == (16, [777, 1025])
    assert all(e == min(-(-r * r // 8) * 8, 2**20) for r, e in zip(resolutions, entries))
    assert [level[3] for level in grid.levels] == [0, *np.cumsum(entries)[:-1]]
    assert grid.n_params == 8 * sum(entries) and 19.5e6 < grid.n_params < 19.9e6
    reference = HashGridEncoding(**OFFICIAL)
    assert [(r.resolution, r.entries, r.offset) for r in reference.levels] == [level[1:] for level in grid.levels]
    assert [np.float32(r.scale) for r in reference.levels] == [np.float32(level[0]) for level in grid.levels]


def test_hashing_written_out():
    """One level of 64 corners a side in 256 entries: every corner of a cell reads the hash of its position."""
    config = {
        "n_input_dims": 2,
        "n_levels": 1,
        "n_features_per_level": 1,
        "log2_hashmap_size": 8,
        "base_resolution": 64,
    }
    grid = _native.HashGrid(**config, per_level_scale=1)
    # At x = (k - 0.5) / 63 the point is corner k itself, with weight 1.
    corners = np.array([[3, 5], [40, 61], [62, 1]])
    params = np.arange(256, dtype=np.float32)
    out = grid.forward(((corners - 0.5) / 63).astype(np.float32), params)[:, 0]
    expected = [(x ^ (y * 2654435761) % 2**32) % 256 for x, y in corners.tolist()]
    np.testing.assert_allclose(out, expected, atol=0.05)  # 63 * x + 0.5 misses the corner by a rounding


@pytest.mark.parametrize("n_input_dims", [2, 3])
def test_gradients_are_those_of_finite_differences(n_input_dims):
    grid, coords, params, d_out = problem(CONFIGS[7 if n_input_dims == 3 else 3], n=20)
    loss = lambda p: (grid.forward(coords, p).astype(np.float64) * d_out).sum()  # noqa: E731
    d_params = grid.backward_params(coords, d_out)
    for i in np.flatnonzero(d_params)[::37]:
        up, down = params.copy(), params.copy()
        up[i] += 0.5
        down[i] -= 0.5
        assert loss(up) - loss(down) == pytest.approx(d_params[i], rel=1e-4, abs=1e-4)  # linear: any step will do


def test_gradients_do_not_depend_on_the_number_of_threads(isa):
    grid, coords, params, d_out = problem(OFFICIAL, n=10_000)
    results = []
    try:
        for threads in (1, 2, 5):
            _native.set_num_threads(threads)
            results.append([grid.forward(coords, params), grid.backward_params(coords, d_out)])
    finally:
        _native.set_num_threads(0)
    assert all(np.array_equal(a, b) for result in results for a, b in zip(result, results[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_input_dims": 4}, "n_input_dims must be 2 or 3, got 4"),
        ({"n_levels": 0}, "n_levels must be 1 to 32, got 0"),
        ({"n_features_per_level": 3}, "n_features_per_level must be 1, 2, 4 or 8, got 3"),
        ({"log2_hashmap_size": 40}, "log2_hashmap_size must be 3 to 26, got 40"),
        ({"per_level_scale": 0.5}, "per_level_scale must be at least 1, got 0.5"),
    ],
)
def test_impossible_grids_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        _native.HashGrid(**(OFFICIAL | change))
