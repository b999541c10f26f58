"""The direct solver on a device: its parts against NumPy in float64, whole solves against the CPU's."""

import numpy as np
import pytest

from cuda_samples import rounded, run_op, stored
from dvt_fast import _native
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.solvers.average import AverageOptions, solve_average
from dvt_fast.solvers.bilinear_field import BilinearField
from dvt_fast.solvers.gauge import gauge
from test_direct import dense_solution, planted, with_giants

REPORT = ("passes", "iterations", "smoothness", "artifact_ridge", "median_residual", "outlier_share")


def small(views=12, patches=5, channels=20, seed=0, **kwargs):
    return planted(views=views, patches=patches, channels=channels, seed=seed, **kwargs)


def on_device(features, coords, grid, dtype="float32", words=None, prior=None, **numbers):
    """nodes, artifacts, report; features [V, h, w, C], numbers as of the op `direct_solve`."""
    views, h, w, channels = features.shape
    tensors = {
        "features": stored(features.reshape(views, h * w, channels), dtype),
        "coords": coords.reshape(views, h * w, 2),
    }
    if prior is not None:
        tensors["prior"] = np.ascontiguousarray(prior.reshape(h * w, channels), np.float32)
    outputs = {
        "nodes": ((*grid, channels), "float32"),
        "artifacts": ((h * w, channels), "float32"),
        "report": ((6,), "float64"),
    }
    found = run_op("direct_solve", tensors, outputs, {"ny": grid[0], "nx": grid[1], **numbers}, words)
    return found["nodes"], found["artifacts"], dict(zip(REPORT, found["report"], strict=True))


def on_cpu(features, coords, grid, keep="borrow", cosine=False, prior=None, **options):
    views, h, w, channels = features.shape
    solver = _native.DirectSolver(*grid, h * w, channels, keep, cosine)
    solver.add(np.ascontiguousarray(features.reshape(views, h * w, channels)), coords.reshape(views, h * w, 2))
    defaults = {"smoothness": None, "artifact_ridge": None, "passes": 4, "outlier_threshold": 1.5}
    prior = None if prior is None else np.ascontiguousarray(prior.reshape(h * w, channels), np.float32)
    return solver.solve(**{**defaults, **options}, prior=prior)


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


# ------------------------------------------------------------------------------------------------------------ parts --


def located(coords, grid):
    """Cell and taps [rows, 4] in float64 of the arithmetic of bilinear_grid.h, and their nodes."""
    ny, nx = grid
    x = coords.reshape(-1, 2)[:, 0] * np.float32(nx - 1)
    y = coords.reshape(-1, 2)[:, 1] * np.float32(ny - 1)
    j, i = np.minimum(x.astype(int), nx - 2), np.minimum(y.astype(int), ny - 2)
    fx, fy = (x - j.astype(np.float32)).astype(float), (y - i.astype(np.float32)).astype(float)
    taps = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], 1)
    node = i * nx + j
    return i * (nx - 1) + j, taps, np.stack([node, node + 1, node + nx, node + nx + 1], 1)


@pytest.mark.sanitizer
@pytest.mark.parametrize("grid", [(2, 2), (7, 11), (40, 30)])
def test_rows_are_in_order_of_their_cells_and_patches(cuda, grid):
    """Stable orders, of one and of several passes of eight bits."""
    views, patches = 150 if grid == (2, 2) else 60, 36
    coords = np.random.default_rng(0).random((views, patches, 2), np.float32)
    coords[3] = coords[5]
    coords[0, 0], coords[0, 1], coords[0, 2] = (0, 0), (1, 1), (1, 0.25)
    cells = (grid[0] - 1) * (grid[1] - 1)
    found = run_op(
        "direct_rows",
        {"features": np.zeros((views, patches, 1), np.float32), "coords": coords},
        {
            "by_cell": ((views * patches,), "uint32"),
            "by_patch": ((views * patches,), "uint32"),
            "cell_start": ((cells + 1,), "uint32"),
        },
        {"ny": grid[0], "nx": grid[1]},
    )
    cell, *_ = located(coords, grid)
    by_cell = np.argsort(cell, kind="stable")
    patch = np.arange(views * patches) % patches
    np.testing.assert_array_equal(found["by_cell"], by_cell)
    np.testing.assert_array_equal(found["by_patch"], by_cell[np.argsort(patch[by_cell], kind="stable")])
    np.testing.assert_array_equal(found["cell_start"], np.searchsorted(cell[by_cell], np.arange(cells + 1)))


@pytest.mark.sanitizer
@pytest.mark.parametrize("count", [1, 2, 37, 3000])
def test_ranked_elements_are_exact(cuda, count):
    values = np.random.default_rng(0).standard_normal((3, count)).astype(np.float32)
    values[1] = np.abs(values[1])
    values[2] = np.round(values[2])  # many equals
    for rank in {0, count // 2, count - 1}:
        for across, given in enumerate((values, np.ascontiguousarray(values.T))):
            numbers = {"rank": rank, "across": across}
            found = run_op("select_ranked", {"values": given}, {"out": ((3,), "float32")}, numbers)["out"]
            np.testing.assert_array_equal(found, np.sort(values, 1)[:, rank])


@pytest.mark.sanitizer
@pytest.mark.parametrize(("grid", "channels"), [((9, 9), 20), ((7, 30), 5), ((12, 13), 133)])
def test_the_matrix_is_that_of_the_rows(cuda, grid, channels):
    rng = np.random.default_rng(0)
    features, coords, *_ = small(channels=1, patches=12 if channels == 133 else 5)
    views, patches, nodes = len(coords), coords.shape[1] * coords.shape[2], grid[0] * grid[1]
    weights = rng.uniform(0.01, 2, views * patches).astype(np.float32)
    ridge = rng.uniform(0, 3, patches).astype(np.float32)
    values = rng.standard_normal((nodes, channels)).astype(np.float32)
    found = run_op(
        "direct_matrix",
        {
            "features": np.zeros((views, patches, channels), np.float32),
            "coords": coords.reshape(views, patches, 2),
            "weights": weights,
            "ridge": ridge,
            "values": values,
        },
        {
            "product": ((patches, channels), "float32"),
            "patch_weights": ((patches,), "float32"),
            "stencil": ((nodes, 5), "float64"),
        },
        {"ny": grid[0], "nx": grid[1], "smoothness": 0.3},
    )
    _, taps, at = located(coords, grid)
    a, w = np.zeros((len(at), nodes)), weights.astype(float)
    np.add.at(a, (np.arange(len(at))[:, None], at), taps)
    patch = np.arange(len(at)) % patches
    coupling = np.zeros((nodes, patches))
    np.add.at(coupling.T, patch, w[:, None] * a)
    np.testing.assert_allclose(found["patch_weights"], np.bincount(patch, w), rtol=1e-5)
    expected = coupling.T @ values.astype(float)
    assert np.abs(found["product"] - expected).max() < 3e-6 * np.abs(coupling).sum(0).max() * np.abs(values).max()
    matrix = a.T @ (w[:, None] * a)
    diagonal, nx = matrix.diagonal().copy(), grid[1]
    for n in range(nodes):
        i, j = divmod(n, nx)
        diagonal[n] += 0.3 * ((i > 0) + (i + 1 < grid[0]) + (j > 0) + (j + 1 < nx))
        steps = ((1, j + 1 < nx, -0.3), (nx - 1, j > 0, 0), (nx, True, -0.3), (nx + 1, j + 1 < nx, 0))
        for k, (step, inside, extra) in enumerate(steps):
            there = inside and n + step < nodes
            assert found["stencil"][n, 1 + k] == pytest.approx(matrix[n, n + step] + extra if there else 0, abs=1e-6)
    np.testing.assert_allclose(found["stencil"][:, 0], diagonal, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------- whole solves --


@pytest.mark.parametrize(("grid", "channels"), [((9, 9), 20), ((7, 11), 23), ((8, 8), 1), ((6, 6), 130)])
def test_solves_the_normal_equations(cuda, grid, channels):
    features, coords, *_ = small(channels=channels)
    nodes, artifacts, report = on_device(
        features, coords, grid, smoothness=0.1, artifact_ridge=0.5, passes=1, tolerance=1e-6
    )
    expected_nodes, expected_artifacts = dense_solution(features, coords, grid, 0.1, 0.5)
    expected_artifacts *= (len(features) + 0.5) / len(features)
    assert np.abs(nodes - expected_nodes).max() < 2e-4
    assert np.abs(artifacts - expected_artifacts).max() < 2e-4
    assert 1 <= report["iterations"] < 40 and report["passes"] == 1


OPTIONS = {
    "one pass": {"passes": 1},
    "defaults": {},
    "fixed numbers": {"smoothness": 0.1, "artifact_ridge": 0.5, "passes": 3},
    "threshold": {"outlier_threshold": 0.8, "passes": 2},
    "residual": {"residual": 2, "passes": 2},
    "cosine": {"cosine": True},
    "cosine and residual": {"cosine": True, "residual": 1},
}


@pytest.mark.sanitizer
@pytest.mark.parametrize("name", OPTIONS)
def test_agrees_with_the_cpu(cuda, name):
    features, coords, *_ = small(noise=0.2)
    features[3] += 2
    features[:, 2, 2] *= 4
    options = OPTIONS[name]
    expected_nodes, expected_artifacts, expected = on_cpu(features, coords, (9, 9), **options)
    # The CPU solves exactly: PCG's own error must be well below what is asked for.
    nodes, artifacts, report = on_device(features, coords, (9, 9), tolerance=1e-6, **options)
    assert relative(nodes, expected_nodes) < 1e-3
    assert relative(artifacts, expected_artifacts) < 1e-3
    assert report["passes"] == expected["passes"]
    for number in REPORT[2:5]:
        assert report[number] == pytest.approx(expected[number], rel=1e-2)
    assert report["outlier_share"] == pytest.approx(expected["outlier_share"], abs=1e-2)


PRIORS = (
    {},
    {"artifact_ridge": 3.0, "passes": 1},
    {"residual": 1},
    {"fixed": True},
    {"fixed": True, "residual": 1},
    {"fixed": True, "cosine": True},
)


@pytest.mark.parametrize("options", PRIORS, ids=str)
def test_a_prior_pulls_and_a_fixed_map_is_subtracted(cuda, options):
    features, coords, _, truth = small(noise=0.2)
    features[1] += 2
    prior = (truth + 0.1).astype(np.float32)
    options = dict(options)
    fixed = options.pop("fixed", False)
    expected = on_cpu(features, coords, (8, 8), prior=prior, fix_artifacts=fixed, **options)
    numbers = {"fix_artifacts": 1, "solves_artifacts": 0} if fixed else {}
    nodes, artifacts, report = on_device(features, coords, (8, 8), prior=prior, **options, **numbers)
    assert relative(nodes, expected[0]) < 1e-3
    assert relative(artifacts, expected[1]) < 1e-3
    assert report["passes"] == expected[2]["passes"]
    if fixed:
        assert np.array_equal(artifacts, prior.reshape(artifacts.shape))


@pytest.mark.parametrize("channels", [20, 22])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_features_of_16_bits(cuda, dtype, channels):
    features, coords, *_ = small(channels=channels, noise=0.2)
    features[:, 2, 2] *= 4
    expected = on_cpu(rounded(features, dtype), coords, (8, 8))
    for keep in ("borrow", "half"):
        nodes, artifacts, _ = on_device(features, coords, (8, 8), dtype, {"keep": keep})
        assert relative(nodes, expected[0]) < 1e-3 and relative(artifacts, expected[1]) < 1e-3


def test_batches_give_the_bits_of_all_at_once(cuda):
    features, coords, *_ = small(views=11, noise=0.2)
    for options in ({}, {"cosine": 1, "passes": 2}, {"residual": 1, "passes": 2}):
        whole = on_device(features, coords, (8, 8), **options)
        parts = on_device(features, coords, (8, 8), batch=4, **options)
        again = on_device(features, coords, (8, 8), again=1, **options)
        for other in (parts, again):
            assert np.array_equal(whole[0], other[0]) and np.array_equal(whole[1], other[1])


def test_float16_bank_and_batches_agree_with_borrowed_features(cuda):
    features, coords, *_ = small(noise=0.2)
    features[::7, 2, 3] *= 10
    options = {"smoothness": 0.1, "artifact_ridge": 0.5, "passes": 3}
    whole = on_device(features, coords, (8, 8), **options)
    nodes, artifacts, _ = on_device(features, coords, (8, 8), words={"keep": "half"}, batch=5, **options)
    assert np.abs(nodes - whole[0]).max() < 5e-3 and np.abs(artifacts - whole[1]).max() < 5e-3


def test_same_bits_twice(cuda):
    features, coords, *_ = small(channels=33, noise=0.2)
    first, second = (on_device(features, coords, (8, 8), residual=1) for _ in range(2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


def test_the_order_of_threads_changes_no_bit(emulator):
    features, coords, *_ = small(views=7, channels=6, noise=0.2)
    results = []
    for seed, threads in ((0, 1), (1, 1), (2, 2)):
        emulator.set(SEED=seed, THREADS=threads)
        results.append(on_device(features, coords, (6, 6), residual=1))
    for nodes, artifacts, _ in results[1:]:
        assert np.array_equal(nodes, results[0][0]) and np.array_equal(artifacts, results[0][1])


def test_outlier_tokens_lose_their_say(cuda):
    features, coords = with_giants(views=12)
    expected = on_cpu(features, coords, (10, 10))
    nodes, artifacts, report = on_device(features, coords, (10, 10))
    assert report["passes"] == expected[2]["passes"] > 1
    assert relative(nodes, expected[0]) < 2e-3 and relative(artifacts, expected[1]) < 1e-3
    plain, *_ = on_device(features, coords, (10, 10), passes=1)
    assert relative(plain, expected[0]) > 0.1


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_constant_that_is_free_moves_nothing_else(cuda, ridge):
    features, coords, *_ = small()
    nodes, *_ = on_device(features, coords, (8, 8), smoothness=0.1, artifact_ridge=ridge, passes=1)
    expected_nodes, _ = dense_solution(features, coords, (8, 8), 0.1, ridge or 1e-7)
    moved = (nodes - expected_nodes).mean((0, 1))
    assert np.abs(nodes - moved - expected_nodes).max() < 1e-3
    assert np.abs(moved).max() < (1e-3 if ridge else np.inf)


def test_a_token_without_length_does_not_decide(cuda):
    features, coords, *_ = small()
    features[5, 2, 2] = 0
    nodes, artifacts, _ = on_device(features, coords, (8, 8), cosine=1, passes=2)
    expected = on_cpu(features, coords, (8, 8), cosine=True, passes=2)
    assert relative(nodes, expected[0]) < 1e-3 and relative(artifacts, expected[1]) < 1e-3


@pytest.mark.parametrize("views", [1, 2, 7, 8, 159])  # with the whole image; of 160 every second is looked at
def test_a_patch_that_stands_out_counts_as_such_in_all_its_rows(cuda, views):
    features, coords, *_ = small(views=views, patches=4, channels=8, noise=0.3)
    features[:, 1, 2] += 3 * np.random.default_rng(1).standard_normal((len(features), 8)).astype(np.float32)
    options = {"passes": 2, "smoothness": 0.1, "artifact_ridge": 0.5}
    expected = on_cpu(features, coords, (6, 6), **options)
    nodes, _, report = on_device(features, coords, (6, 6), tolerance=1e-6, **options)
    assert relative(nodes, expected[0]) < 1e-3
    assert report["outlier_share"] == pytest.approx(expected[2]["outlier_share"], abs=1e-9)


def test_many_channels_are_reweighted_in_two_sweeps(cuda):
    features, coords, *_ = small(views=6, patches=3, channels=2052, noise=0.3)
    features[1] += 1
    features[:, 2, 0] += np.random.default_rng(1).standard_normal((len(features), 2052)).astype(np.float32)
    prior = np.full((3, 3, 2052), 0.2, np.float32)
    expected = on_cpu(features, coords, (4, 4), passes=2, prior=prior, fix_artifacts=True)
    nodes, *_ = on_device(features, coords, (4, 4), passes=2, prior=prior, fix_artifacts=1, solves_artifacts=0)
    assert relative(nodes, expected[0]) < 1e-3


# -------------------------------------------------------------------------------------------------------- bad input --


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"solves_artifacts": 0}, {"batch": 3}, {"cosine": 1}], ids=str)
def test_non_finite_features_name_the_view(cuda, value, options):
    features, coords, *_ = small()
    features[4, 1, 2, 3] = features[7, 0, 0, 0] = value
    with pytest.raises(NonFiniteError, match="features of view 4 contain NaN or infinity"):
        on_device(features, coords, (8, 8), **options)


def test_values_beyond_float16_are_refused_where_a_copy_would_lose_them(cuda):
    features, coords, *_ = small()
    features[2, 0, 0, 0] = 1e5
    with pytest.raises(InputError, match="view 2 exceed the range of float16"):
        on_device(features, coords, (8, 8), words={"keep": "half"})
    assert np.isfinite(on_device(features, coords, (8, 8), passes=2)[0]).all()


BAD = {
    "smoothness must be positive, got 0": {"smoothness": 0.0},
    "artifact_ridge must not be negative, got -2": {"artifact_ridge": -2.0},
    "passes must be at least 1, got 0": {"passes": 0},
    "max_iterations must be at least 1, got 0": {"max_iterations": 0},
    "residual must not be negative, got -1": {"residual": -1},
    "need the features, and they were not kept": {"words": {"keep": "nothing"}},
    "fixed artifacts were asked for and none were given": {"fix_artifacts": 1},
    "solved for only where the solver was made for it": {"solves_artifacts": 0},
    "method must be 'auto' or 'pcg' on CUDA, got 'schur'": {"words": {"method": "schur"}},
    "pcg did not reach the tolerance of 1e-05 in 1 iterations": {"words": {"method": "pcg"}, "max_iterations": 1},
    "grid must have at least 2 x 2 nodes, got 1 x 8": {"grid": (1, 8)},
}


@pytest.mark.parametrize("message", BAD, ids=lambda m: m[:30])
def test_bad_input_is_one_clear_line(cuda, message):
    features, coords, *_ = small(views=4, patches=3, channels=4)
    with pytest.raises(InputError, match=message) as caught:
        on_device(features, coords, **{"grid": (8, 8), **BAD[message]})
    assert "\n" not in str(caught.value)


def test_numbers_too_large_for_float32_are_an_error(cuda):
    features, coords, *_ = small(views=4, patches=3, channels=4)
    with pytest.raises(NonFiniteError, match="not finite"):
        on_device(features * 1e30, coords, (5, 5))


# -------------------------------------------------------------------------------------- the average, fields, gauges --


@pytest.mark.sanitizer
@pytest.mark.parametrize("grid", [(8, 8), (40, 33)])
def test_the_average_is_the_cpus(cuda, grid):
    """The finer grid has nodes that no row reaches."""
    features, coords, *_ = small(views=5 if grid[0] > 8 else 12, patches=6)
    views, h, w, channels = features.shape
    expected = solve_average(features, coords, AverageOptions(grid=grid))
    found = run_op(
        "direct_average",
        {"features": features.reshape(views, h * w, channels), "coords": coords.reshape(views, h * w, 2)},
        {"nodes": ((*grid, channels), "float32"), "artifacts": ((h * w, channels), "float32")},
        {"ny": grid[0], "nx": grid[1], "batch": 5},
        {"keep": "nothing"},
    )
    constant = gauge(found["artifacts"])
    np.testing.assert_allclose(found["nodes"] + constant, expected.field.nodes, atol=2e-4)
    np.testing.assert_allclose(found["artifacts"] - constant, expected.artifacts.reshape(h * w, channels), atol=2e-4)


@pytest.mark.sanitizer
@pytest.mark.parametrize("channels", [1, 8, 35])
def test_a_field_is_queried_and_averaged_over_patches(cuda, channels):
    rng = np.random.default_rng(0)
    nodes = rng.standard_normal((9, 7, channels)).astype(np.float32)
    coords = rng.uniform(-0.1, 1.1, (50, 2)).astype(np.float32)
    out = {"out": ((50, channels), "float32")}
    found = run_op("bilinear_field", {"nodes": nodes, "coords": coords}, out, words={"what": "query"})["out"]
    np.testing.assert_allclose(found, BilinearField(nodes).query(coords), atol=1e-6)
    *_, centres = small(views=3, patches=6)[1]
    out = {"out": ((*centres.shape[:2], channels), "float32")}
    found = run_op("bilinear_field", {"nodes": nodes, "coords": centres}, out, words={"what": "means"})["out"]
    np.testing.assert_allclose(found, BilinearField(nodes).patch_means(centres), atol=2e-6)


@pytest.mark.sanitizer
@pytest.mark.parametrize("patches", [1, 36, 49])
def test_the_gauge_is_the_cpus(cuda, patches):
    rng = np.random.default_rng(0)
    artifacts = rng.standard_normal((patches, 37)).astype(np.float32)
    artifacts[:4] += 500
    nodes = rng.standard_normal((30, 37)).astype(np.float32)
    workspace = np.zeros(4 * (patches + 37 + 2), np.uint8)
    found = run_op(
        "gauge",
        {"artifacts": artifacts, "nodes": nodes, "workspace": workspace},
        {"artifacts": None, "nodes": None},
    )
    constant = gauge(artifacts)
    scale = np.abs(constant).max()
    np.testing.assert_allclose(found["artifacts"], artifacts - constant, atol=2e-6 * max(scale, 500))
    np.testing.assert_allclose(found["nodes"], nodes + constant, atol=2e-6 * max(scale, 500))
