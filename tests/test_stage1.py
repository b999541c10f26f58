"""From an image to its parts: `decompose`, `solve`, `ArtifactMap` and the baseline, with the embedded ViT."""

import numpy as np
import pytest

import dvt_fast
from dvt_fast.artifact_map import position_share
from dvt_fast.errors import Cancelled, InputError, NonFiniteError, WeightsError
from dvt_fast.solvers.average import _fill_holes
from dvt_fast.solvers.gauge import gauge

torch = pytest.importorskip("torch")
pytest.importorskip("timm")


@pytest.fixture(scope="module")
def vit():
    return dvt_fast.ViT("dvt_mini", size=112)


@pytest.fixture(scope="module")
def picture():
    """Smooth colours with an edge: content that a ViT can see."""
    y, x = np.mgrid[0:180, 0:240] / 180
    image = np.stack([np.sin(7 * x), np.cos(5 * y), np.where(x > y, 1, -1) * 0.5], -1)
    return ((image + 1) * 127).astype(np.uint8)


def test_decompose_is_solve_on_the_views(vit, picture):
    found = dvt_fast.decompose(picture, vit, "fast", passes=1)
    views = dvt_fast.sample_views(picture, vit, "fast")
    again = dvt_fast.solve(vit.features(views.images), views.coords, passes=1)
    assert isinstance(again.semantics, torch.Tensor) and isinstance(found.semantics, np.ndarray)
    np.testing.assert_allclose(found.semantics, again.semantics.numpy(), atol=1e-4 * np.abs(found.raw).max())
    np.testing.assert_allclose(found.semantics + found.artifacts + found.residual, found.raw, rtol=1e-5, atol=1e-4)
    assert found.raw.shape == (7, 7, vit.dim) and found.meta["views"] == 14 and found.meta["vit"]["name"] == "dvt_mini"
    assert found.query([[0.2, 0.7]]).shape == (1, vit.dim)


@pytest.mark.parametrize("solver", ["direct", "average", "hashgrid"])
def test_every_solver_and_its_progress(vit, picture, solver, tmp_path):
    options = {"steps": 20, "batch": 64, "log2_hashmap_size": 10} if solver == "hashgrid" else {}
    seen = []
    found = dvt_fast.decompose(picture, vit, 3, solver, batch_size=2, progress=lambda *at: seen.append(at), **options)
    assert seen[:2] == [(2, 4, "views"), (4, 4, "views")]
    assert all(what == "steps" for *_, what in seen[2:]) and bool(seen[2:]) == (solver == "hashgrid")
    for part in (found.semantics, found.artifacts, found.residual):
        assert part.shape == found.raw.shape and np.isfinite(part).all()
    path = tmp_path / "parts.safetensors"
    found.save(path)
    loaded = dvt_fast.Decomposition.load(path)
    points = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    assert np.array_equal(loaded.query(points), found.query(points)) and loaded.meta == found.meta


@pytest.mark.parametrize("solver", ["direct", "average", "hashgrid"])
def test_progress_can_cancel_among_the_views(vit, picture, solver):
    seen = []

    def stop(*at):
        seen.append(at)
        return False

    with pytest.raises(Cancelled, match="cancelled after 2 of 4 views"):
        dvt_fast.decompose(picture, vit, 3, solver, batch_size=2, progress=stop)
    assert seen == [(2, 4, "views")]


def test_progress_can_cancel_among_the_steps_and_the_images(vit, picture):
    options = {"steps": 50, "batch": 64, "log2_hashmap_size": 10}
    with pytest.raises(Cancelled, match="cancelled at step 20 of 50"):
        dvt_fast.decompose(
            picture, vit, 3, "hashgrid", progress=lambda done, _, what: what == "views" or done < 20, **options
        )
    seen = []
    with pytest.raises(Cancelled, match="cancelled after 1 of 3 images"):
        dvt_fast.ArtifactMap.calibrate(vit, [picture] * 3, "realtime", progress=lambda *at: seen.append(at) or False)
    assert seen == [(1, 3, "images")]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_what_progress_raises_comes_through(vit, picture, stop):
    def fail(done, total, what):
        raise stop

    with pytest.raises(stop):
        dvt_fast.decompose(picture, vit, 3, progress=fail)


@pytest.mark.parametrize("solver", ["direct", "average", "hashgrid"])
def test_every_solver_has_the_same_gauge(vit, picture, solver):
    """Corner tokens far from the others must not move the constant that F and G share."""
    views = dvt_fast.sample_views(picture, vit, "realtime")
    features = vit.features(views.images).numpy()
    features[:, 0, 0] += 500
    options = {"steps": 20, "batch": 64, "log2_hashmap_size": 10} if solver == "hashgrid" else {}
    found = dvt_fast.solve(features, views.coords.numpy(), solver, **options)
    flat = found.artifacts.reshape(-1, vit.dim)
    assert np.abs(gauge(flat)).max() < 1e-3 * np.abs(flat).max()
    np.testing.assert_allclose(found.semantics + found.artifacts + found.residual, found.raw, atol=1e-3)


def test_half_features_stay_half_for_the_solver_that_reads_them(monkeypatch):
    from dvt_fast import _native

    rng = np.random.default_rng(0)
    coords, features = rng.random((3, 4, 4, 2)), rng.standard_normal((3, 4, 4, 8)).astype(np.float16)
    seen, native = [], _native.HashgridFitter

    def spy(given, *args):
        seen.append(given)
        return native(given, *args)

    monkeypatch.setattr(_native, "HashgridFitter", spy)
    options = {"steps": 20, "batch": 16, "log2_hashmap_size": 8, "max_resolution": 32}
    found = dvt_fast.solve(features, coords, "hashgrid", **options)
    assert seen[0].dtype == np.float16 and np.shares_memory(seen[0], features)
    widened = dvt_fast.solve(features.astype(np.float32), coords, "hashgrid", **options)
    for part in ("raw", "semantics", "artifacts", "residual"):
        assert getattr(found, part).dtype == np.float32
        np.testing.assert_array_equal(getattr(found, part), getattr(widened, part))


def test_what_only_speaks_dlpack_gives_numpy():
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    rng = np.random.default_rng(0)
    coords, features = rng.random((3, 4, 4, 2)), rng.standard_normal((3, 4, 4, 8)).astype(np.float32)
    found = dvt_fast.solve(Foreign(features), Foreign(coords))
    assert type(found.semantics) is np.ndarray and np.array_equal(found.raw, features[-1])


def test_artifact_map(vit, picture, tmp_path):
    images = [picture, picture[::-1].copy(), np.roll(picture, 60, 1)]
    done = []
    known = dvt_fast.ArtifactMap.calibrate(vit, images, "realtime", progress=lambda *at: done.append(at))
    assert done == [(1, 3, "images"), (2, 3, "images"), (3, 3, "images")]
    assert known.values.shape == (7, 7, vit.dim) and np.abs(gauge(known.values.reshape(-1, vit.dim))).max() < 1e-3
    assert 1 / 3 <= known.meta["agreement"] <= 1
    known.save(tmp_path / "map.safetensors")
    loaded = dvt_fast.ArtifactMap.load(tmp_path / "map.safetensors")
    assert np.array_equal(loaded.values, known.values) and loaded.meta == known.meta
    raw = vit.features(vit.transform(dvt_fast.images.load_image(picture))[None])
    clean = loaded.subtract(raw)
    assert isinstance(clean, torch.Tensor) and np.allclose(clean.numpy(), raw.numpy() - known.values, atol=1e-5)
    fixed = dvt_fast.decompose(picture, vit, "realtime", artifacts=loaded)
    assert np.allclose(fixed.artifacts, known.values, atol=1e-3)


def test_artifact_map_errors(vit, picture, tmp_path):
    with pytest.raises(InputError, match="at least one image"):
        dvt_fast.ArtifactMap.calibrate(vit, [])
    known = dvt_fast.ArtifactMap(np.zeros((7, 7, vit.dim), np.float32))
    with pytest.raises(InputError, match=r"features must end in shape \[7, 7, \d+\], got \[1, 3, 3, 4\]"):
        known.subtract(np.zeros((1, 3, 3, 4), np.float32))
    dvt_fast.decompose(picture, vit, 2).save(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"dvt_fast\.artifact_map"):
        dvt_fast.ArtifactMap.load(tmp_path / "other.safetensors")
    with pytest.raises(NonFiniteError, match="artifacts holds NaN"):
        dvt_fast.ArtifactMap(np.full((2, 2, 3), np.nan, np.float32)).save(tmp_path / "nan.safetensors")
    assert not (tmp_path / "nan.safetensors").exists()


def test_position_share_has_its_two_ends():
    rng = np.random.default_rng(0)
    unrelated = rng.standard_normal((10, 6, 6, 50))
    assert position_share(unrelated) == pytest.approx(0.1, abs=0.01)
    assert position_share(np.broadcast_to(unrelated[:1], unrelated.shape)) == pytest.approx(1)


def test_average_is_the_coverage_weighted_mean():
    rng = np.random.default_rng(0)
    coords = rng.random((5, 3, 3, 2)).astype(np.float32)
    constant = np.broadcast_to(rng.standard_normal(4).astype(np.float32), (5, 3, 3, 4)).copy()
    found = dvt_fast.solve(constant, coords, solver="average", grid=6)
    np.testing.assert_allclose(found.semantics, constant[0], atol=1e-5)
    np.testing.assert_allclose(found.artifacts, 0, atol=1e-5)


def test_holes_fill_from_their_rim():
    sums, coverage = np.zeros((1, 5, 1), np.float32), np.zeros((1, 5), np.float32)
    sums[0, [0, 4], 0], coverage[0, [0, 4]] = (2, 12), (1, 2)
    np.testing.assert_allclose(_fill_holes(sums, coverage)[0, :, 0], [2, 2, 4, 6, 6])


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "wrong.pth"
    torch.save({"blocks.0.norm1.weight": torch.zeros(7)}, path)
    with pytest.raises(WeightsError, match=r"blocks\.0\.norm1\.weight|cls_token"):
        dvt_fast.ViT("vit_tiny_patch16_224", weights=path)


def test_a_map_of_another_vit_is_refused(vit, picture, tmp_path):
    known = dvt_fast.ArtifactMap.calibrate(vit, [picture], "realtime")
    other = dvt_fast.ViT("dvt_mini", size=112, norm=not vit.norm)
    with pytest.raises(InputError, match="measured on a ViT with norm"):
        dvt_fast.decompose(picture, other, "realtime", artifacts=known)
    path = tmp_path / "map.safetensors"
    known.save(path)
    from_path = dvt_fast.decompose(picture, vit, "realtime", artifacts=str(path))
    assert np.array_equal(from_path.artifacts, dvt_fast.decompose(picture, vit, "realtime", artifacts=known).artifacts)
    assert repr(known) == f"ArtifactMap(7x7 patches, {vit.dim} channels, vit='dvt_mini')"


def test_a_name_is_no_vit_and_a_path_no_list(vit, picture):
    with pytest.raises(InputError, match=r"vit must be a dvt_fast\.ViT, got str"):
        dvt_fast.decompose(picture, "dvt_mini")
    with pytest.raises(InputError, match="several images, got one path: photos"):
        dvt_fast.ArtifactMap.calibrate(vit, "photos")
