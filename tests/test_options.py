"""The solvers' options: what each takes, and one clear line for everything else, before any work is done."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import dvt_fast
from dvt_fast import Decomposition
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.options import MAX_NODES
from dvt_fast.solvers.average import AverageOptions
from dvt_fast.solvers.direct import DirectOptions
from dvt_fast.solvers.hashgrid import HashgridOptions
from dvt_fast.views import plan_boxes
from samples import make_decomposition

MAP = np.zeros((3, 3, 4), np.float32)
NAN = float("nan")

BAD_DIRECT = [
    ({"smoothness": "x"}, "smoothness must be a number, got 'x'"),
    ({"smoothness": True}, "smoothness must be a number, got True"),
    ({"passes": None}, "passes must be a whole number of at least 1 and at most 1000, got None"),
    ({"smoothness": NAN}, "smoothness must be positive, got nan"),
    ({"smoothness": float("inf")}, "smoothness must be finite, got inf"),
    ({"smoothness": 10**400}, "smoothness must be finite, got inf"),
    ({"passes": 2.0}, "passes must be a whole number of at least 1 and at most 1000, got 2.0"),
    ({"passes": 2**70}, f"passes must be a whole number of at least 1 and at most 1000, got {2**70}"),
    ({"residual": 1.5}, "residual must be a whole number of at least 0 and at most 1000, got 1.5"),
    ({"outlier_threshold": 0}, "outlier_threshold must be positive, got 0.0"),
    ({"outlier_threshold": -1}, "outlier_threshold must be positive, got -1.0"),
    ({"outlier_threshold": NAN}, "outlier_threshold must be positive, got nan"),
    ({"artifact_ridge": "auto"}, "artifact_ridge must be a number, got 'auto'"),
    ({"cosine": "yes"}, "cosine must be true or false, got 'yes'"),
    ({"solve_artifacts": 0}, "solve_artifacts must be true or false, got 0"),
    ({"method": 3}, "method must be 'auto', 'schur' or 'pcg', got 3"),
    ({"method": ["pcg"]}, "method must be 'auto', 'schur' or 'pcg', got ['pcg']"),
    ({"tolerance": 0}, "tolerance must be between 0 and 1, got 0.0"),
    ({"tolerance": "small"}, "tolerance must be a number, got 'small'"),
    ({"max_iterations": 0}, "max_iterations must be a whole number of at least 1 and at most 1000000, got 0"),
    ({"artifacts": "file"}, "file: no such file"),
    ({"artifacts": {"values": MAP}}, "artifacts must be a NumPy array, a torch tensor or a DLPack object"),
    ({"artifacts": MAP[0]}, "artifacts must be an ArtifactMap or an array of shape [H, W, C], got shape [3, 4]"),
    ({"grid": "ab"}, "grid must be at least 2 nodes a side, a whole number or a pair, got 'ab'"),
    ({"grid": 2.5}, "grid must be at least 2 nodes a side, a whole number or a pair, got 2.5"),
    ({"grid": [5.9, 6]}, "grid must be at least 2 nodes a side, a whole number or a pair, got [5.9, 6]"),
    ({"grid": (5, 6, 7)}, "grid must be at least 2 nodes a side, a whole number or a pair, got (5, 6, 7)"),
    ({"grid": (5, 1)}, "grid must be at least 2 nodes a side, a whole number or a pair, got (5, 1)"),
    ({"grid": 5000}, "grid must have at most 16777216 nodes, got 5000"),
    ({"grid": [2, 2**60]}, "grid must have at most 16777216 nodes, got [2, 1152921504606846976]"),
]
BAD_HASHGRID = [
    ({"learning_rate": 1}, "unknown option 'learning_rate' of solver 'hashgrid'; expected one of steps, batch, seed"),
    ({"steps": 0}, "steps must be a whole number of at least 1"),
    ({"steps": 2.5}, "steps must be a whole number of at least 1 and at most 1073741824, got 2.5"),
    ({"batch": 2**70}, f"batch must be a whole number of at least 1 and at most 1048576, got {2**70}"),
    ({"seed": 2**70}, f"seed must be a whole number of at least 0 and at most {2**64 - 1}, got {2**70}"),
    ({"seed": -1}, "seed must be a whole number of at least 0"),
    ({"lr": "fast"}, "lr must be a number, got 'fast'"),
    ({"lr": NAN}, "lr must be positive, got nan"),
    ({"betas": 0.9}, "betas must be a pair of numbers, got 0.9"),
    ({"betas": ("a", "b")}, "betas[0] must be a number, got 'a'"),
    ({"betas": (0.9, 1.0)}, "betas[1] must be in [0, 1), got 1.0"),
    ({"betas": (0.5, 0.9)}, "betas[0] must be above 0.5, got 0.5"),
    ({"warmup": 2}, "warmup must be in [0, 1], got 2.0"),
    ({"hidden_dim": 0}, "hidden_dim must be a whole number of at least 1"),
    ({"max_resolution": 8}, "max_resolution must be at least base_resolution, got 8 and 16"),
    ({"n_features_per_level": 5}, "n_features_per_level must be 1, 2, 4 or 8, got 5"),
    ({"n_levels": 33}, "n_levels must be a whole number of at least 1 and at most 32, got 33"),
    ({"log2_hashmap_size": 40}, "log2_hashmap_size must be a whole number of at least 3 and at most 26, got 40"),
    ({"loss_scale": 0}, "loss_scale must be positive, got 0.0"),
    ({"eps": -1e-8}, "eps must not be negative, got -1e-08"),
]
BAD_AVERAGE = [
    ({"steps": 3}, "unknown option 'steps' of solver 'average'; expected grid"),
    ({"grid": "ab"}, "grid must be at least 2 nodes a side, a whole number or a pair, got 'ab'"),
]
BAD = [
    (solver, *case)
    for solver, cases in (("direct", BAD_DIRECT), ("hashgrid", BAD_HASHGRID), ("average", BAD_AVERAGE))
    for case in cases
]


class NoViT:
    """Stands for a ViT that must not be used."""

    grid, dim = (3, 3), 4
    device = SimpleNamespace(type="cpu", index=None)
    stride = patch_size = (16, 16)
    size = (48, 48)


@pytest.mark.parametrize("solver, options, message", BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_a_bad_option_is_one_line_before_any_view(solver, options, message, monkeypatch):
    def no_views(*args):
        raise AssertionError("views were computed before the options were checked")

    monkeypatch.setattr("dvt_fast.stage1.iter_views", no_views)
    attempts = [
        lambda: dvt_fast.solve("no features", None, solver, **options),
        lambda: dvt_fast.decompose("no image", NoViT(), 3, solver, **options),
    ]
    for attempt in attempts:
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_an_unknown_solver_is_found_before_any_view():
    for solver in ("magic", None, ["direct"]):
        with pytest.raises(InputError, match=r"unknown solver .* expected one of direct, hashgrid, average"):
            dvt_fast.decompose("no image", NoViT(), 3, solver)


def test_an_artifact_map_is_checked_before_any_view():
    with pytest.raises(InputError, match=r"artifacts must have shape \[3, 3, 4\], got \[2, 2, 4\]"):
        dvt_fast.decompose("no image", NoViT(), 3, artifacts=np.zeros((2, 2, 4)))
    for value in (NAN, np.inf, 1e300):
        bad = np.full((3, 3, 4), value)
        for artifacts in (bad, dvt_fast.ArtifactMap(bad)):
            with pytest.raises(NonFiniteError, match="artifacts contain NaN or infinity"):
                dvt_fast.decompose("no image", NoViT(), 3, artifacts=artifacts)


def test_good_options_get_their_proper_types():
    found = DirectOptions.parse({"smoothness": np.float32(2), "passes": np.int64(3), "grid": [np.int32(5), 6]})
    assert (found.smoothness, found.passes, found.grid) == (2.0, 3, (5, 6))
    assert type(found.smoothness) is float and type(found.passes) is int and type(found.grid[0]) is int
    assert DirectOptions.parse({"grid": 7}).grid == AverageOptions.parse({"grid": 7}).grid == (7, 7)
    assert DirectOptions.parse({"grid": 4096}).grid[0] ** 2 == MAX_NODES
    assert DirectOptions.parse({"artifacts": dvt_fast.ArtifactMap(MAP)}).artifacts.shape == MAP.shape
    none = {"grid": None, "smoothness": None, "artifact_ridge": None, "artifacts": None}
    assert DirectOptions.parse(none) == DirectOptions.parse({}) == DirectOptions()
    assert HashgridOptions.parse({"betas": [0.8, 0], "hidden_dim": None, "seed": 2**64 - 1}).betas == (0.8, 0.0)


@pytest.mark.parametrize("seed", [-1, 1.5, "x", 2**70, True])
def test_a_bad_seed_of_views(seed):
    with pytest.raises(InputError, match="seed must be a whole number of at least 0"):
        plan_boxes(3, seed)


@pytest.mark.parametrize("coords", ["abc", ["a", "b"], [1j, 2], [[0.5], [0.5, 0.5]], object()])
def test_a_query_with_no_numbers(coords):
    with pytest.raises(InputError, match="coords must be a NumPy array, a torch tensor or a DLPack object") as caught:
        make_decomposition().query(coords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 4, 3), (4, 1, 3), (4, 4, 0), (4, 4)])
def test_a_field_of_no_grid(shape, tmp_path):
    make_decomposition().save(tmp_path / "good.safetensors")
    arrays = load_file(tmp_path / "good.safetensors") | {"field.nodes": np.zeros(shape, np.float32)}
    with safe_open(tmp_path / "good.safetensors", framework="np") as file:
        save_file(arrays, tmp_path / "bad.safetensors", metadata=file.metadata())
    with pytest.raises(InputError, match=r"nodes must have shape \[Ry >= 2, Rx >= 2, C >= 1\]"):
        Decomposition.load(tmp_path / "bad.safetensors")
