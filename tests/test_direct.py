"""`solver="direct"` against a dense least-squares solution in double precision, and on planted artifacts."""

import numpy as np
import pytest

import dvt_fast
from dvt_fast import _native
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.solvers.direct import fit_grid, gauge
from dvt_fast.views import plan_boxes, view_coords


def planted(views=24, patches=6, channels=20, noise=0.05, seed=0):
    """A smooth field, an artifact map and noise: features, coords, field, artifacts."""
    rng = np.random.default_rng(seed)
    coords = np.ascontiguousarray(view_coords(plan_boxes(views, seed=seed), (patches, patches)))
    waves, phase = rng.normal(0, 2, (2, channels)), rng.uniform(0, 6, channels)

    def field(xy):
        return np.sin(xy @ waves + phase)

    artifacts = rng.normal(0, 1, (patches, patches, channels))
    artifacts -= artifacts.mean((0, 1))
    features = field(coords) + artifacts + noise * rng.standard_normal((*coords.shape[:3], channels))
    return features.astype(np.float32), coords, field, artifacts


def dense_solution(features, coords, grid, smoothness, ridge, weights=None, prior=None):
    """The same equations as one dense matrix in float64: nodes [Ry, Rx, C] and artifacts [P, C], before the gauge."""
    ny, nx = grid
    rows, channels = features.reshape(-1, features.shape[-1]).astype(float), features.shape[-1]
    patches = features.shape[1] * features.shape[2]
    n, at = len(rows), coords.reshape(-1, 2).astype(float)
    matrix = np.zeros((n, ny * nx + patches))
    x, y = at[:, 0] * (nx - 1), at[:, 1] * (ny - 1)
    j, i = np.clip(x.astype(int), 0, nx - 2), np.clip(y.astype(int), 0, ny - 2)
    u, v = x - j, y - i
    for di, dj, w in ((0, 0, (1 - u) * (1 - v)), (0, 1, u * (1 - v)), (1, 0, (1 - u) * v), (1, 1, u * v)):
        matrix[np.arange(n), (i + di) * nx + j + dj] += w
    matrix[np.arange(n), ny * nx + np.arange(n) % patches] = 1
    w = np.ones(n) if weights is None else weights
    normal, rhs = matrix.T @ (w[:, None] * matrix), matrix.T @ (w[:, None] * rows)
    for a in range(ny):
        for b in range(nx):
            for c in ([a * nx + b + 1] if b + 1 < nx else []) + ([(a + 1) * nx + b] if a + 1 < ny else []):
                k = a * nx + b
                normal[[k, c], [k, c]] += smoothness
                normal[[k, c], [c, k]] -= smoothness
    index = ny * nx + np.arange(patches)
    normal[index, index] += ridge
    if prior is not None:
        rhs[index] += ridge * prior.reshape(patches, channels)
    solution = np.linalg.solve(normal, rhs)
    return solution[: ny * nx].reshape(ny, nx, channels), solution[ny * nx :]


def native_solution(features, coords, grid, keep="borrow", prior=None, **options):
    views, h, w, channels = features.shape
    solver = _native.DirectSolver(*grid, h * w, channels, keep, False)
    solver.add(features.reshape(views, h * w, channels), coords.reshape(views, h * w, 2))
    defaults = dict(smoothness=0.1, artifact_ridge=0.5, passes=1, outlier_threshold=1.5)
    prior = None if prior is None else np.ascontiguousarray(prior.reshape(h * w, channels), np.float32)
    return solver.solve(**{**defaults, **options}, prior=prior)


@pytest.mark.parametrize("method", ["schur", "pcg"])
@pytest.mark.parametrize("grid", [(9, 9), (7, 11)])
def test_solves_the_normal_equations(isa, method, grid):
    features, coords, *_ = planted()
    nodes, artifacts, info = native_solution(features, coords, grid, method=method, tolerance=1e-7)
    expected_nodes, expected_artifacts = dense_solution(features, coords, grid, 0.1, 0.5)
    # The artifacts come back unshrunk: what F leaves on average, by (D + mu) G = sum of the residuals.
    expected_artifacts *= (len(features) + 0.5) / len(features)
    assert info["method"] == method
    assert np.abs(nodes - expected_nodes).max() < 2e-4
    assert np.abs(artifacts - expected_artifacts).max() < 2e-4


def test_a_prior_pulls_and_a_fixed_map_is_subtracted():
    features, coords, _, truth = planted(views=8)
    prior = (truth + 0.1).astype(np.float32)
    nodes, artifacts, _ = native_solution(features, coords, (8, 8), prior=prior, artifact_ridge=3.0)
    expected_nodes, expected = dense_solution(features, coords, (8, 8), 0.1, 3.0, prior=prior)
    assert np.abs(nodes - expected_nodes).max() < 2e-4
    flat = prior.reshape(36, -1)
    assert np.abs(artifacts - (flat + (expected - flat) * (9 + 3.0) / 9)).max() < 4e-4
    nodes, artifacts, _ = native_solution(features, coords, (8, 8), prior=prior, fix_artifacts=True)
    expected_nodes, _ = dense_solution(features - prior, coords, (8, 8), 0.1, 1e9)
    assert np.abs(nodes - expected_nodes).max() < 2e-4
    assert np.array_equal(artifacts, flat)


@pytest.mark.parametrize("views", [3, 24, 25])
def test_reweighting_uses_the_weights_it_says(views):
    features, coords, *_ = planted(views=views, noise=0.2)
    features[2] += 5  # a bad view
    features[:, 2, 4] += np.random.default_rng(1).standard_normal((len(features), 20)).astype(np.float32)  # a bad patch
    grid = (8, 8)
    first_nodes, first_artifacts, _ = native_solution(features, coords, grid)
    nodes, _, info = native_solution(features, coords, grid, passes=2)
    # By hand: residuals under the first solution (shrunk G, as the pass sees it), then the weighted equations.
    shrunk = first_artifacts * len(features) / (len(features) + 0.5)
    fitted = _native.interpolate(first_nodes, coords.reshape(-1, 2)) + np.tile(shrunk, (len(features), 1))
    error = np.linalg.norm(features.reshape(len(fitted), -1) - fitted, axis=1)
    middle = np.sort(error)[len(error) // 2]
    error = error.reshape(len(features), -1)
    typical = np.sort(error, 0)[(len(error) - 1) // 2]  # of each patch
    assert (typical > 1.5 * middle).any() and (error < typical).any()
    weights = 1 / np.maximum(1, np.maximum(error, typical).ravel() / (1.5 * middle)) ** 2
    expected, _ = dense_solution(features, coords, grid, 0.1, 0.5, weights)
    assert np.abs(nodes - expected).max() < 1e-3
    assert info["passes"] == 2 and info["median_residual"] == pytest.approx(middle, rel=1e-3)
    assert info["outlier_share"] == pytest.approx((weights < 0.5).mean(), abs=2e-3)


def test_float16_bank_and_batches_agree_with_borrowed_features():
    features, coords, *_ = planted()
    features[::7, 2, 3] *= 10
    views, h, w, channels = features.shape
    whole = native_solution(features, coords, (8, 8), passes=4)
    solver = _native.DirectSolver(8, 8, h * w, channels, "half", False)
    for v in range(0, views, 5):
        solver.add(features[v : v + 5].reshape(-1, h * w, channels), coords[v : v + 5].reshape(-1, h * w, 2))
    nodes, artifacts, _ = solver.solve(smoothness=0.1, artifact_ridge=0.5, passes=4, outlier_threshold=1.5)
    # float16 keeps 11 bits of values up to about 30: 0.008 a row, averaged over many rows.
    assert np.abs(nodes - whole[0]).max() < 5e-3 and np.abs(artifacts - whole[1]).max() < 5e-3


def test_same_bits_with_any_number_of_threads(isa):
    features, coords, *_ = planted(channels=70)
    results = []
    try:
        for threads in (1, 2, 3):
            _native.set_num_threads(threads)
            results.append([native_solution(features, coords, (8, 8), passes=3, method=m)[0] for m in ("schur", "pcg")])
    finally:
        _native.set_num_threads(0)
    for schur, pcg in results:
        assert np.array_equal(schur, results[0][0]) and np.array_equal(pcg, results[0][1])


def test_recovers_what_was_planted():
    features, coords, field, artifacts = planted(views=60, patches=8)
    found = dvt_fast.solve(features, coords)
    truth = field(coords[-1])
    centre = found.query(coords[-1])
    difference = (centre - centre.mean((0, 1))) - (truth - truth.mean((0, 1)))
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(truth - truth.mean((0, 1)))
    assert np.linalg.norm(found.artifacts - artifacts) < 0.05 * np.linalg.norm(artifacts)
    np.testing.assert_allclose(found.semantics + found.artifacts + found.residual, found.raw, atol=1e-5)


def test_outlier_tokens_lose_their_say():
    """Tokens at fixed places with 25 times the norm, different in every view: only reweighting keeps F clean."""
    features, coords, field, _ = planted(views=60, patches=8)
    rng = np.random.default_rng(1)
    features[:, [0, 0, -1, -1], [0, -1, 0, -1]] += 100 + 40 * rng.standard_normal((len(features), 4, 20)).astype(
        np.float32
    )
    truth = field(coords[-1])

    def error(found):
        difference = (found - np.median(found, (0, 1))) - (truth - np.median(truth, (0, 1)))
        return np.linalg.norm(difference) / np.linalg.norm(truth)

    robust = dvt_fast.solve(features, coords).query(coords[-1])
    plain = dvt_fast.solve(features, coords, passes=1).query(coords[-1])
    assert error(robust) < 0.15 < 0.5 < error(plain)


def test_what_only_outlying_patches_see_does_not_follow_them():
    """Only corner tokens see a corner of the image. Of many views, some agree with an F that has their noise."""
    features, coords, field, _ = planted(views=400, patches=8, noise=0.3)
    rng = np.random.default_rng(1)
    corners = np.s_[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    features[corners] += (100 + 4 * rng.standard_normal((len(features), 4, 1))).astype(np.float32)
    truth, found = field(coords[-1]), dvt_fast.solve(features, coords).query(coords[-1])
    difference = (found - np.median(found, (0, 1))) - (truth - np.median(truth, (0, 1)))
    error = np.linalg.norm(difference, axis=-1) / np.linalg.norm(truth, axis=-1).mean()
    assert error[corners[1:]].max() < 0.25  # 0.76 where rows are weighted by their own residuals only


def test_gauge_ignores_giants_and_is_the_mean_without_them():
    rng = np.random.default_rng(0)
    artifacts = rng.standard_normal((100, 30)).astype(np.float32)
    np.testing.assert_allclose(gauge(artifacts), artifacts.mean(0), atol=1e-6)
    giants = artifacts.copy()
    giants[:4] += 500
    assert np.abs(gauge(giants) - artifacts.mean(0)).max() < 0.6 < np.abs(giants.mean(0)).min()


def test_grid_follows_the_finer_views():
    wide = view_coords(plan_boxes(((2, 0.6),)), (14, 14))
    fine = view_coords(plan_boxes(((2, 0.6), (3, 0.45))), (14, 14))
    assert fit_grid(wide, None) == (23, 23) and fit_grid(fine, None) == (31, 31)
    assert fit_grid(fine, 17) == (17, 17) and fit_grid(fine, (5, 9)) == (5, 9)


@pytest.mark.parametrize("kind", ["float64", "float16", "torch", "bfloat16"])
def test_what_comes_back_is_of_the_kind_that_went_in(kind):
    features, coords, *_ = planted()
    if kind in ("float64", "float16"):
        found = dvt_fast.solve(features.astype(kind), coords)
        assert isinstance(found.semantics, np.ndarray) and found.semantics.dtype == np.float32
        return
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(features)
    found = dvt_fast.solve(tensor.bfloat16() if kind == "bfloat16" else tensor, torch.from_numpy(coords))
    assert isinstance(found.semantics, torch.Tensor) and found.semantics.dtype == torch.float32


def bad_features(value):
    features, coords, *_ = planted()
    features[4, 1, 2, 3] = value
    return features, coords


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("solver", ["direct", "average"])
def test_non_finite_features_name_the_view(value, solver):
    with pytest.raises(NonFiniteError, match="view 4 contain NaN or infinity"):
        dvt_fast.solve(*bad_features(value), solver=solver)


FEATURES, COORDS, *_ = planted(views=2, patches=3, channels=4)
BAD = {
    "features must have shape": (FEATURES[0], COORDS, {}),
    r"coords must have shape \[3, 3, 3, 2\], got \[2, 3, 3, 2\]": (FEATURES, COORDS[:2], {}),
    "features must be float16": (FEATURES.astype(int), COORDS, {}),
    "at least 2 views": (FEATURES[:1], COORDS[:1], {}),
    "at least 2 views, the last of the whole image, got 0": (FEATURES[:0], COORDS[:0], {}),
    r"coords must be in \[0, 1\], got": (FEATURES, COORDS * 2, {}),
    "unknown solver 'magic'; expected one of direct, hashgrid, average": (FEATURES, COORDS, {"solver": "magic"}),
    "unknown option 'grids' of solver 'direct'; expected one of grid, smoothness": (FEATURES, COORDS, {"grids": 3}),
    "unknown option 'steps' of solver 'average'": (FEATURES, COORDS, {"solver": "average", "steps": 3}),
    "smoothness must be positive, got 0": (FEATURES, COORDS, {"smoothness": 0.0}),
    "passes must be a whole number of at least 1": (FEATURES, COORDS, {"passes": 0}),
    "grid must be at least 2 nodes": (FEATURES, COORDS, {"grid": 1}),
    "method must be": (FEATURES, COORDS, {"method": "lu"}),
    r"artifacts must have shape \[3, 3, 4\], got \[2, 2, 4\]": (FEATURES, COORDS, {"artifacts": np.zeros((2, 2, 4))}),
    "artifact_ridge must not be negative": (FEATURES, COORDS, {"artifact_ridge": -1.0}),
    "features must be a NumPy array": (object(), COORDS, {}),
}


@pytest.mark.parametrize("message", BAD, ids=lambda m: m[:40])
def test_bad_input_is_one_clear_line(message):
    features, coords, options = BAD[message]
    with pytest.raises(InputError, match=message) as caught:
        dvt_fast.solve(features, coords, **options)
    assert "\n" not in str(caught.value)


def test_values_beyond_float16_are_refused_where_a_copy_would_lose_them():
    features, coords, *_ = planted()
    features[2, 0, 0, 0] = 1e5
    views, h, w, channels = features.shape
    solver = _native.DirectSolver(8, 8, h * w, channels, "half", False)
    with pytest.raises(InputError, match="view 2 exceed the range of float16"):
        solver.add(features.reshape(views, h * w, channels), coords.reshape(views, h * w, 2))
    assert np.isfinite(dvt_fast.solve(features, coords).semantics).all()  # borrowed: no copy, no limit


def test_a_gain_field_is_found_in_turns(isa):
    """h = A_p * (f - mean f): fitting it in turn with F and G brings both closer to the truth."""
    features, coords, field, artifacts = planted(views=80, patches=8)
    gain = 0.4 * np.random.default_rng(3).standard_normal(artifacts.shape)
    content = field(coords)
    features = features + (gain * (content - content.mean((0, 1, 2)))).astype(np.float32)
    truth = field(coords[-1])

    def errors(found):
        centre = found.query(coords[-1])
        difference = (centre - centre.mean((0, 1))) - (truth - truth.mean((0, 1)))
        return np.array([np.linalg.norm(difference), np.linalg.norm(found.artifacts - artifacts)])

    without, once, often = (errors(dvt_fast.solve(features, coords, residual=n)) for n in (0, 1, 5))
    assert (once < 0.8 * without).all() and (often < once).all()


def test_cosine_weights_are_the_ones_of_the_design():
    features, coords, *_ = planted()
    features *= np.random.default_rng(0).uniform(0.2, 3, features.shape[:3]).astype(np.float32)[..., None]
    views, h, w, channels = features.shape
    solver = _native.DirectSolver(8, 8, h * w, channels, "borrow", True)
    solver.add(features.reshape(views, h * w, channels), coords.reshape(views, h * w, 2))
    nodes, *_ = solver.solve(smoothness=0.1, artifact_ridge=0.5, passes=1, outlier_threshold=1.5)
    energy = (features.reshape(-1, channels).astype(float) ** 2).sum(1)
    expected, _ = dense_solution(features, coords, (8, 8), 0.1, 0.5, 1 + channels / (2 * energy))
    assert np.abs(nodes - expected).max() < 1e-3


def test_a_gain_field_with_a_prior_starts_from_the_same_equations():
    """Settled weights end the passes early; the turns that follow must still know the prior."""
    features, coords, _, truth = planted(views=40)
    prior = (3 + truth).astype(np.float32)
    plain = native_solution(features, coords, (8, 8), prior=prior, artifact_ridge=100.0, passes=4)
    gained = native_solution(features, coords, (8, 8), prior=prior, artifact_ridge=100.0, passes=4, residual=1)
    assert plain[2]["passes"] < 4
    assert np.abs(plain[0] - gained[0]).max() < 0.2  # nothing to find: no gain was planted


def with_giants(views=15):
    features, coords, *_ = planted(views=views, patches=7)
    rng = np.random.default_rng(1)
    features[:, [0, 0, -1, -1], [0, -1, 0, -1]] += 60 + 5 * rng.standard_normal((len(features), 4, 20)).astype(
        np.float32
    )
    return features, coords


def test_both_methods_agree_where_patches_have_their_own_ridge():
    """Giant tokens get less ridge than the others; the pin of the null direction must not favour either."""
    features, coords = with_giants()
    options = dict(artifact_ridge=None, passes=4)
    schur = native_solution(features, coords, (12, 12), method="schur", **options)
    pcg = native_solution(features, coords, (12, 12), method="pcg", tolerance=1e-7, max_iterations=2000, **options)
    scale = np.abs(schur[0]).max()
    assert schur[2]["passes"] > 1 and np.abs(schur[0] - pcg[0]).max() < 2e-3 * scale


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_a_constant_is_pinned_and_nothing_else(ridge):
    """Without a ridge a constant may move between F and G; what both add up to is still that of the dense solution."""
    features, coords, *_ = planted()
    nodes, artifacts, _ = native_solution(features, coords, (8, 8), artifact_ridge=ridge, method="schur")
    expected_nodes, expected = dense_solution(features, coords, (8, 8), 0.1, ridge or 1e-7)
    moved = (nodes - expected_nodes).mean((0, 1))
    assert np.abs(nodes - moved - expected_nodes).max() < 1e-3
    assert np.abs(moved).max() < (1e-3 if ridge else np.inf)


def test_float16_bank_serves_the_gain_field():
    features, coords, *_ = planted(views=20)
    views, h, w, channels = features.shape
    results = []
    for keep in ("borrow", "half"):
        results.append(native_solution(features, coords, (8, 8), keep=keep, passes=2, residual=2)[0])
    assert np.abs(results[0] - results[1]).max() < 5e-3


def test_a_token_without_length_does_not_decide():
    features, coords, *_ = planted()
    features[5, 2, 2] = 0
    found = dvt_fast.solve(features, coords, cosine=True)
    assert np.isfinite(found.semantics).all()


def test_pcg_that_does_not_converge_is_an_error_or_another_method():
    features, coords, *_ = planted()
    with pytest.raises(InputError, match="pcg did not reach the tolerance of 1e-05 in 2 iterations"):
        dvt_fast.solve(features, coords, method="pcg", max_iterations=2)
    found = dvt_fast.solve(features, coords, max_iterations=2)
    assert found.meta["info"]["method"] == "schur"


def test_numbers_too_large_for_float32_are_an_error():
    features, coords, *_ = planted()
    with pytest.raises(NonFiniteError, match="not finite"):
        dvt_fast.solve(features * 1e30, coords)


def test_a_refused_batch_leaves_nothing_behind():
    features, coords, *_ = planted()
    views, h, w, channels = features.shape
    rows, places = features.reshape(views, h * w, channels), coords.reshape(views, h * w, 2)
    solver = _native.DirectSolver(8, 8, h * w, channels, "half", False)
    huge = rows.copy()
    huge[3, 0, 0] = 1e6
    with pytest.raises(InputError, match="view 3"):
        solver.add(huge, places)
    solver.add(rows, places)
    found = solver.solve(smoothness=0.1, artifact_ridge=0.5, passes=3, outlier_threshold=1.5)
    expected = native_solution(features, coords, (8, 8), keep="half", passes=3)
    assert np.array_equal(found[0], expected[0])
