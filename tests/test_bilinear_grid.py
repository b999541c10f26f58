"""The bilinear grid: interpolation, its transpose, and float16, on every instruction set."""

import numpy as np
import pytest

from dvt_fast import _native
from dvt_fast.solvers.bilinear_field import BilinearField


def problem(channels, count=57, ny=5, nx=7, seed=0):
    rng = np.random.default_rng(seed)
    coords = rng.random((count, 2)).astype(np.float32)
    coords[:4] = [[0, 0], [1, 1], [0, 1], [1, 0]]  # the corners belong to the last cells
    nodes = rng.standard_normal((ny, nx, channels)).astype(np.float32)
    return coords, nodes, rng


@pytest.mark.parametrize("channels", [1, 3, 16, 33, 96])
def test_interpolation(isa, channels):
    coords, nodes, _ = problem(channels)
    found = _native.interpolate(nodes, coords)
    np.testing.assert_allclose(found, _native.interpolate(nodes, coords, reference=True), atol=1e-6)
    # A field linear in the coordinates is reproduced exactly: the index mathematics, against a formula.
    y, x = np.meshgrid(np.linspace(0, 1, 5), np.linspace(0, 1, 7), indexing="ij")
    plane = (2 * x - 3 * y + 1).astype(np.float32)[..., None]
    np.testing.assert_allclose(
        _native.interpolate(plane, coords)[:, 0], 2 * coords[:, 0] - 3 * coords[:, 1] + 1, atol=2e-6
    )


@pytest.mark.parametrize("channels", [1, 16, 40, 300])
def test_scatter_is_the_transpose(isa, channels):
    coords, nodes, rng = problem(channels)
    values = rng.standard_normal((len(coords), channels)).astype(np.float32)
    weights = rng.random(len(coords)).astype(np.float32)
    sums, patches = _native.scatter(5, 7, coords, weights, values)
    expected, _ = _native.scatter(5, 7, coords, weights, values, reference=True)
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    np.testing.assert_allclose(patches, weights[:, None] * values, rtol=1e-6)
    # <A nodes, W values> = <nodes, A^T W values>
    left = (_native.interpolate(nodes, coords).astype(float) * weights[:, None] * values).sum()
    right = (nodes.astype(float) * sums).sum()
    assert abs(left - right) < 1e-4 * np.abs(nodes).sum()


def test_patch_means_of_a_plane_are_its_values_at_the_centres():
    y, x = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9), indexing="ij")
    field = BilinearField((x + 2 * y).astype(np.float32)[..., None])
    centres = np.stack(np.meshgrid((np.arange(4) + 0.5) / 4, (np.arange(3) + 0.5) / 3), -1).astype(np.float32)
    np.testing.assert_allclose(field.patch_means(centres)[..., 0], centres[..., 0] + 2 * centres[..., 1], atol=1e-6)


def test_field_survives_its_state():
    field = BilinearField(np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32))
    again = BilinearField.from_state(*field.state())
    points = np.random.default_rng(1).random((2, 6, 2)).astype(np.float32)
    assert np.array_equal(field.query(points), again.query(points)) and field.query(points).shape == (2, 6, 3)
