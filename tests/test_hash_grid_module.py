"""`HashGrid`, the torch module: registered as torch asks, differentiable, and a drop-in for tiny-cuda-nn's."""

import numpy as np
import pytest
import torch

import dvt_fast
from dvt_fast.errors import InputError
from dvt_fast.reference import HashGridEncoding

TCNN = {
    "otype": "HashGrid",
    "n_levels": 4,
    "n_features_per_level": 2,
    "log2_hashmap_size": 8,
    "base_resolution": 4,
    "per_level_scale": 1.8,
    "interpolation": "Linear",
}


def make(n_input_dims=2):
    grid = dvt_fast.HashGrid(n_input_dims, TCNN)
    torch.nn.init.normal_(grid.params, generator=torch.Generator().manual_seed(0))
    return grid, torch.rand(50, n_input_dims, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_input_dims", [2, 3])
def test_operators_pass_opcheck(n_input_dims):
    grid, coords = make(n_input_dims)
    d_out = torch.randn(50, grid.n_output_dims)
    coords.requires_grad_()
    torch.library.opcheck(torch.ops.dvt_fast.hash_grid.default, (coords, grid.params, *grid.config))
    coords, params = coords.detach(), grid.params.detach()
    torch.library.opcheck(torch.ops.dvt_fast.hash_grid_backward_params.default, (coords, d_out, *grid.config))
    torch.library.opcheck(torch.ops.dvt_fast.hash_grid_backward_coords.default, (coords, params, d_out, *grid.config))


@pytest.mark.parametrize("n_input_dims", [2, 3])
def test_output_and_gradients_are_the_references(n_input_dims):
    grid, coords = make(n_input_dims)
    encoding = HashGridEncoding(n_input_dims, 4, 2, 8, 4, 1.8, dtype=torch.float64)
    encoding.params.data = grid.params.detach().double()
    x, x64 = coords.clone().requires_grad_(), coords.double().requires_grad_()
    d_out = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    out, expected = grid(x), encoding(x64)
    assert out.dtype == torch.float32 and out.shape == (50, grid.n_output_dims)
    out.backward(d_out)
    expected.backward(d_out.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grid.params.grad.double(), encoding.params.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-5, atol=1e-4)


def test_it_learns_and_compiles():
    """A few Adam steps on a picture of a disc, through torch.compile's tracing of the operator."""
    grid, _ = make()
    torch.nn.init.uniform_(grid.params, -1e-4, 1e-4, generator=torch.Generator().manual_seed(0))
    coords = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1))
    target = ((coords - 0.5).norm(dim=1) < 0.3).float()
    encode = torch.compile(grid, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.Adam(grid.parameters(), 0.05)
    losses = []
    for _ in range(40):
        loss = (encode(coords).sum(1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]


def test_layout_and_defaults():
    assert dvt_fast.HashGrid().config == (2, 16, 8, 20, 16, pytest.approx(2**0.4))
    assert dvt_fast.HashGrid(3, {"otype": "HashGrid", "n_levels": 2}).config == (3, 2, 2, 19, 16, 2.0)  # tcnn's own
    keywords = dvt_fast.HashGrid(
        n_levels=4, n_features_per_level=2, log2_hashmap_size=8, base_resolution=4, per_level_scale=1.8, seed=5
    )
    assert keywords.config == make()[0].config
    # Scales 3, 6.2, 11.96 and 22.3: 4, 8 and 13 corners a side fit 256 entries (169 rounded up to 176), 24 do not.
    assert keywords.params.shape == (2 * (16 + 64 + 176 + 256),)
    assert keywords.params.abs().max() <= 1e-4 and keywords.n_output_dims == 8
    assert list(keywords.state_dict()) == ["params"]
    other = dvt_fast.HashGrid(2, TCNN, seed=6)
    assert not torch.equal(keywords.params, other.params)
    other.load_state_dict(keywords.state_dict())
    coords = torch.rand(3, 2)
    np.testing.assert_array_equal(keywords(coords).detach(), other(coords).detach())


def test_double_and_half_coordinates_are_taken_as_float32():
    grid, coords = make()
    torch.testing.assert_close(grid(coords.double()), grid(coords), rtol=0, atol=0)
    torch.testing.assert_close(grid(coords.half()), grid(coords.half().float()), rtol=0, atol=0)
    assert grid(coords[:0]).shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"otype": "Frequency"}, r"encoding_config\['otype'\] must be HashGrid or Grid, got 'Frequency'"),
        ({"interpolation": "Smoothstep"}, r"encoding_config\['interpolation'\] must be Linear, got 'Smoothstep'"),
        ({"levels": 3}, "unknown key 'levels' in encoding_config; expected one of n_levels"),
        ({"n_features_per_level": 3}, "n_features_per_level must be 1, 2, 4 or 8, got 3"),
    ],
)
def test_what_it_cannot_do_is_named(change, message):
    with pytest.raises(InputError, match=message):
        dvt_fast.HashGrid(2, TCNN | change)


def test_wrong_inputs_are_named():
    grid, _ = make()
    with pytest.raises(InputError, match=r"coords must have shape \(N, 2\), got \(5, 3\)"):
        grid(torch.rand(5, 3))
