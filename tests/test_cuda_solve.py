"""`solve` and `decompose` with device="cuda", and `HashGrid` there: what they return, and that the CPU finds the same.

The solvers themselves have tests of their own, test_cuda_direct.py and test_cuda_fitter.py.
"""

import numpy as np
import pytest

import dvt_fast
import dvt_fast.solvers.hashgrid
from dvt_fast import _native
from dvt_fast.views import plan_boxes, view_coords

SMALL = {
    "direct": {},
    "average": {},
    "hashgrid": {"steps": 4, "batch": 32, "n_levels": 3, "log2_hashmap_size": 8, "max_resolution": 16},
}
# hashgrid multiplies in tf32; the others differ by the order of float32 sums.
TOLERANCE = {"direct": 1e-4, "average": 1e-5, "hashgrid": 2e-3}


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Features [12, 5, 6, 20] of a smooth field with artifacts, and where they lie."""
    rng = np.random.default_rng(0)
    coords = view_coords(plan_boxes(11, seed=3), (5, 6))
    waves = rng.standard_normal((2, 20)) * 4
    features = (
        np.sin(coords @ waves) + 0.5 * rng.standard_normal((5, 6, 20)) + 0.05 * rng.standard_normal((12, 5, 6, 20))
    )
    return features.astype(np.float32), coords


@pytest.mark.parametrize("solver", SMALL)
def test_a_device_finds_what_the_cpu_finds(cuda, problem, solver, tmp_path):
    features, coords = problem
    expected = dvt_fast.solve(features, coords, solver, **SMALL[solver])
    found = dvt_fast.solve(features, coords, solver, device="cuda", **SMALL[solver])
    assert found.meta["device"] == "cuda:0" and expected.meta["device"] == "cpu"
    for name in ("raw", "semantics", "artifacts", "residual"):
        part = getattr(found, name)
        assert isinstance(part, np.ndarray) and part.dtype == np.float32
        np.testing.assert_allclose(part, getattr(expected, name), atol=TOLERANCE[solver])
    np.testing.assert_allclose(found.raw, found.semantics + found.artifacts + found.residual, atol=1e-5)

    places = [[0.1, 0.2], [0.7, 1.0]]
    np.testing.assert_allclose(found.query(places), expected.query(places), atol=TOLERANCE[solver])
    found.save(tmp_path / "d.safetensors")
    again = dvt_fast.Decomposition.load(tmp_path / "d.safetensors")
    np.testing.assert_allclose(again.query(places), found.query(places), atol=1e-6)


def test_a_device_averages_a_hash_grid_over_patches(cuda, problem):
    options = SMALL["hashgrid"] | {"patch_means": True}
    expected = dvt_fast.solve(*problem, "hashgrid", **options)
    found = dvt_fast.solve(*problem, "hashgrid", device="cuda", **options)
    np.testing.assert_allclose(found.semantics, expected.semantics, atol=TOLERANCE["hashgrid"])
    np.testing.assert_allclose(found.raw, found.semantics + found.artifacts + found.residual, atol=1e-5)
    centre = dvt_fast.solve(*problem, "hashgrid", device="cuda", **SMALL["hashgrid"])
    assert np.abs(found.semantics - centre.semantics).max() > 5 * TOLERANCE["hashgrid"]


@pytest.mark.parametrize("solver", SMALL)
def test_tensors_come_back_as_tensors_where_they_were(cuda, problem, solver):
    torch = pytest.importorskip("torch")
    features, coords = problem
    given = cuda.to_device(torch.from_numpy(features))
    found = dvt_fast.solve(given, coords, solver, device="cuda", **SMALL[solver])
    for part in (found.raw, found.semantics, found.artifacts, found.residual):
        assert isinstance(part, torch.Tensor) and part.device == given.device
    expected = dvt_fast.solve(features, coords, solver, **SMALL[solver])
    np.testing.assert_allclose(cuda.to_numpy(found.semantics), expected.semantics, atol=TOLERANCE[solver])
    if not cuda.emulated:  # without saying so it is solved where the features are
        assert dvt_fast.solve(given, coords, solver, **SMALL[solver]).meta["device"] == "cuda:0"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_narrow_and_wide_features(cuda, problem, dtype):
    torch = pytest.importorskip("torch")
    features, coords = problem
    given = torch.from_numpy(features).to(getattr(torch, dtype))
    there = given if dtype == "float64" else cuda.to_device(given)  # our arrays have no doubles
    found = dvt_fast.solve(there, coords, device="cuda")
    expected = dvt_fast.solve(given, coords)
    np.testing.assert_allclose(cuda.to_numpy(found.semantics), expected.semantics.numpy(), atol=1e-3)


def test_several_images_together(cuda, problem):
    """The bits of each alone, and the steps of all counted."""
    features, coords = problem
    images, places = [features, features[::-1][:6].copy()], [coords, coords[::-1][:6].copy()]
    options = SMALL["hashgrid"] | {"deterministic": True, "steps": 60}
    seen = []
    found = dvt_fast.solve_many(
        images, places, device="cuda", progress=lambda done, steps, what: seen.append((done, steps)), **options
    )
    for image, place, together in zip(images, places, found):
        alone = dvt_fast.solve(image, place, "hashgrid", device="cuda", **options)
        np.testing.assert_array_equal(together.semantics, alone.semantics)
        np.testing.assert_array_equal(together.raw, image[-1])
    assert seen[-1] == (120, 120) and seen == sorted(seen)
    one_by_one = dvt_fast.solve_many(images, places, "direct")
    np.testing.assert_array_equal(one_by_one[1].semantics, dvt_fast.solve(images[1], places[1]).semantics)
    with pytest.raises(dvt_fast.InputError, match="must be of as many images, got 2 and 1"):
        dvt_fast.solve_many(images, places[:1])


def test_grids_of_any_order_of_sizes(cuda, problem):
    """More shared memory, then less, then as much again."""
    features, coords = problem
    for grid in (18, 8, 18):
        dvt_fast.solve(features, coords, device="cuda", grid=grid, passes=1)


def test_strided_features_on_a_device(cuda, problem):
    torch = pytest.importorskip("torch")
    features, coords = problem
    there = cuda.to_device(torch.from_numpy(features))
    with pytest.raises(dvt_fast.InputError, match="features must be contiguous"):
        _native.CudaHashgridFitter(
            there[::2], coords[::2].copy(), dvt_fast.solvers.hashgrid.HashgridOptions(**SMALL["hashgrid"]).native()
        )
    found = dvt_fast.solve(there[::2], coords[::2], device="cuda")
    expected = dvt_fast.solve(features[::2], coords[::2])
    np.testing.assert_allclose(cuda.to_numpy(found.semantics), expected.semantics, atol=1e-4)


def test_a_known_artifact_map(cuda, problem):
    features, coords = problem
    known = dvt_fast.solve(features, coords).artifacts
    expected = dvt_fast.solve(features, coords, artifacts=known)
    found = dvt_fast.solve(features, coords, artifacts=known, device="cuda")
    np.testing.assert_allclose(found.semantics, expected.semantics, atol=1e-4)
    np.testing.assert_allclose(found.artifacts, expected.artifacts, atol=1e-5)


def test_decompose_takes_views_in_as_they_come(cuda):
    pytest.importorskip("timm")
    vit = dvt_fast.ViT("dvt_mini", norm=False, size=64)
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    expected = dvt_fast.decompose(image, vit, "realtime")
    found = dvt_fast.decompose(image, vit, "realtime", device="cuda", batch_size=2)
    scale = np.abs(expected.raw).max()
    assert isinstance(found.semantics, np.ndarray) and found.meta["device"] == "cuda:0"
    np.testing.assert_allclose(found.semantics, expected.semantics, atol=2e-3 * scale)
    averaged = dvt_fast.decompose(image, vit, "realtime", "average", device="cuda")
    np.testing.assert_allclose(
        averaged.semantics, dvt_fast.decompose(image, vit, "realtime", "average").semantics, atol=1e-4 * scale
    )


@pytest.mark.parametrize("solver", SMALL)
def test_nan_is_named_by_view(cuda, problem, solver):
    features, coords = problem
    broken = features.copy()
    broken[7, 2, 3, 4] = np.nan
    with pytest.raises(dvt_fast.NonFiniteError, match="view 7"):
        dvt_fast.solve(broken, coords, solver, device="cuda", **SMALL[solver])


def test_what_a_device_does_not_take(cuda, problem):
    features, coords = problem
    with pytest.raises(dvt_fast.InputError, match="device 'cuda:99' does not exist"):
        dvt_fast.solve(features, coords, device="cuda:99")
    with pytest.raises(dvt_fast.InputError, match="coords must have shape"):
        dvt_fast.solve(features, coords[:-1], device="cuda")
    with pytest.raises(dvt_fast.InputError, match="schur"):
        dvt_fast.solve(features, coords, device="cuda", method="schur")
    with pytest.raises(dvt_fast.InputError, match="compute must be 'float32' on the CPU"):
        dvt_fast.solve(features, coords, "hashgrid", compute="tf32", **SMALL["hashgrid"])


def test_a_fit_on_a_device_can_be_stopped(cuda, problem):
    features, coords = problem
    options = SMALL["hashgrid"] | {"steps": 2000}
    with pytest.raises(dvt_fast.Cancelled):
        dvt_fast.solve(features, coords, "hashgrid", device="cuda", progress=lambda *_: False, **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_hash_grid_operators(cuda, dims):
    """The operators that torch calls for CUDA tensors, against those of the CPU."""
    torch = pytest.importorskip("torch")
    from dvt_fast import hash_grid

    grid = dvt_fast.HashGrid(dims, n_levels=4, n_features_per_level=2, log2_hashmap_size=8, base_resolution=4)
    generator = torch.Generator().manual_seed(0)
    coords, d_out = (torch.rand(50, n, generator=generator) for n in (dims, grid.n_output_dims))
    params = torch.randn(grid.params.shape, generator=generator)
    there = [cuda.to_device(x) for x in (coords, params, d_out)]
    ops = torch.ops.dvt_fast
    checks = {
        "forward": (hash_grid._forward_cuda(*there[:2], *grid.config), ops.hash_grid(coords, params, *grid.config)),
        "params": (
            hash_grid._backward_params_cuda(there[0], there[2], *grid.config),
            ops.hash_grid_backward_params(coords, d_out, *grid.config),
        ),
        "coords": (
            hash_grid._backward_coords_cuda(*there, *grid.config),
            ops.hash_grid_backward_coords(coords, params, d_out, *grid.config),
        ),
    }
    for name, (found, expected) in checks.items():
        scale = expected.abs().max().item()
        np.testing.assert_allclose(cuda.to_numpy(found), expected.numpy(), atol=1e-5 * scale, err_msg=name)


def test_hash_grid_gradients_are_the_same_bits_where_torch_asks_for_them(cuda):
    torch = pytest.importorskip("torch")
    from dvt_fast import hash_grid

    grid = dvt_fast.HashGrid(2, n_levels=2, n_features_per_level=4, log2_hashmap_size=6, base_resolution=4)
    coords, d_out = cuda.to_device(torch.rand(200, 2)), cuda.to_device(torch.randn(200, grid.n_output_dims))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (hash_grid._backward_params_cuda(coords, d_out, *grid.config) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(first, second)


def test_hash_grid_gradients_from_any_address(cuda):
    """Autograd may hand over a slice of a larger tensor, where no four floats can be read at a time."""
    torch = pytest.importorskip("torch")
    from dvt_fast import hash_grid

    grid = dvt_fast.HashGrid(2, n_levels=2, n_features_per_level=4, log2_hashmap_size=6, base_resolution=4)
    coords = cuda.to_device(torch.rand(20, 2))
    larger = cuda.to_device(torch.randn(1 + 20 * grid.n_output_dims))
    d_out = larger[1:].reshape(20, grid.n_output_dims)
    assert d_out.data_ptr() % 16 != 0
    found = hash_grid._backward_params_cuda(coords, d_out, *grid.config)
    expected = hash_grid._backward_params_cuda(coords, d_out.clone(), *grid.config)
    np.testing.assert_allclose(cuda.to_numpy(found), cuda.to_numpy(expected), atol=1e-5)
    layout = _native.HashGrid(n_input_dims=2, **dict(zip(hash_grid.TCNN_DEFAULTS, grid.config[1:])))
    with pytest.raises(dvt_fast.InputError, match="d_out must be aligned to 16 bytes"):
        _native.cuda_hash_grid_backward_params(layout, coords, d_out, found, 20, None, 0, 0)


def test_memory_that_a_device_lacks(cuda):
    """An error with the size, and then a smaller array can be had."""
    free, _ = _native.cuda_memory(0)
    with pytest.raises(dvt_fast.OutOfMemoryError, match=r"memory: an array needs .* MB, and .* MB of .* MB are free"):
        _native.DeviceArray([free, 4], "float32")
    assert _native.DeviceArray([16], "float32").shape == (16,)
