"""The denoiser: the reference's network to the last digit, the kinds it is compared with, and what it refuses."""

import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from dvt_fast.errors import InputError

torch = pytest.importorskip("torch")
timm_vit = pytest.importorskip("timm.models.vision_transformer")
from timm.layers import resample_abs_pos_embed  # noqa: E402
from torch import nn  # noqa: E402

from dvt_fast.denoiser import KINDS, Denoiser  # noqa: E402

DIM, GRID = 128, (6, 6)

# These inputs are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Reference(nn.Module):
    """The paper's denoiser out of timm's own parts, with the names that published checkpoints have."""

    def __init__(self, dim, grid, num_blocks, with_positions=True):
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        blocks = [
            timm_vit.Block(dim, dim // 64, mlp_ratio=4, qkv_bias=True, norm_layer=norm, act_layer=nn.GELU)
            for _ in range(num_blocks)
        ]
        self.denoiser = blocks[0] if num_blocks == 1 else nn.Sequential(*blocks)
        self.pos_embed = nn.Parameter(torch.randn(1, grid[0] * grid[1], dim)) if with_positions else None

    def forward(self, x):
        b, h, w, c = x.shape
        tokens = x.reshape(b, h * w, c)
        if self.pos_embed is not None:
            tokens = tokens + resample_abs_pos_embed(self.pos_embed, (h, w), num_prefix_tokens=0)
        return self.denoiser(tokens).reshape(b, h, w, c)


def randomised(module, seed=0):
    """Every parameter random, so that none keeps a start (of zeros, say) that hides a mistake."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(0.2 * torch.randn(value.shape, generator=random))
    return module.eval()


def features(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("with_positions", [True, False])
@pytest.mark.parametrize("size", [(6, 6), (11, 11), (4, 9), (3, 5)])
def test_equals_the_reference(num_blocks, with_positions, size):
    """On its own grid, a larger one, an oblong one of as many patches, and a smaller one."""
    reference = randomised(Reference(DIM, GRID, num_blocks, with_positions)).double()
    ours = Denoiser(DIM, GRID, num_blocks, kind="block" if with_positions else "block-nopos").double().eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    x = features(2, *size, DIM)
    with torch.no_grad():
        expected = reference(x)
        assert (expected - x).abs().max() > 1, "the reference does something"
        assert (ours(x) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("size", [(4, 9), (6, 6), (9, 4), (8, 18)])
def test_an_oblong_grid_of_its_own(size):
    """The reference takes any grid for a square one; timm's function does not where it is told."""
    denoiser = randomised(Denoiser(DIM, (4, 9), kind="map")).double()
    wanted = resample_abs_pos_embed(denoiser.pos_embed, size, old_size=(4, 9), num_prefix_tokens=0)
    x = features(1, *size, DIM)
    assert (denoiser(x) - x - wanted.reshape(1, *size, DIM)).abs().max() < 1e-12


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_state_dicts_go_both_ways(num_blocks):
    ours, reference = randomised(Denoiser(DIM, GRID, num_blocks)), Reference(DIM, GRID, num_blocks)
    reference.load_state_dict(ours.state_dict(), strict=True)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}
    x = features(1, *GRID, DIM, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(reference.eval()(x), ours(x), atol=1e-5)


def test_gradients_equal_the_references():
    reference, ours = randomised(Reference(DIM, GRID, 2)).double(), Denoiser(DIM, GRID, 2).double()
    ours.load_state_dict(reference.state_dict())
    x = features(2, 5, 8, DIM)
    for module in (reference, ours):
        module(x).pow(2).mean().backward()
    found = {name: value.grad for name, value in ours.named_parameters()}
    for name, value in reference.named_parameters():
        assert (found[name] - value.grad).abs().max() <= 1e-10 * value.grad.abs().max(), name


@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_and_trains_on_any_grid(kind, num_blocks):
    denoiser = randomised(Denoiser(DIM, GRID, num_blocks, kind=kind))
    for size in (GRID, (9, 9), (3, 7), (1, 1)):
        denoiser.zero_grad()
        x = features(2, *size, DIM, dtype=torch.float32)
        clean = denoiser(x)
        assert clean.shape == x.shape and clean.isfinite().all() and not torch.allclose(clean, x)
        assert torch.allclose(denoiser(x[:1]), clean[:1], atol=1e-4), "images of a batch do not see one another"
        clean.pow(2).mean().backward()
        for name, value in denoiser.named_parameters():
            assert value.grad is not None and value.grad.isfinite().all(), name
            assert value.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_one_changes_little(kind):
    """Whatever it is compared with, training starts near the raw features."""
    x = features(1, *GRID, DIM, dtype=torch.float32)
    with torch.no_grad():
        assert (Denoiser(DIM, GRID, kind=kind).eval()(x) - x).abs().max() < 0.2


def moved(x):
    return x.roll((2, 3), dims=(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_can_see(kind):
    """Which of them know the place of a patch, and which look at other patches."""
    denoiser = randomised(Denoiser(DIM, GRID, kind=kind)).double()
    x = features(1, *GRID, DIM)
    changed = x.clone()
    changed[0, 0, 0] += features(DIM, seed=3)
    with torch.no_grad():
        clean = denoiser(x)
        knows_places = not torch.allclose(denoiser(moved(x)), moved(clean), atol=1e-9)
        seen = (denoiser(changed) - clean).abs().amax(-1)[0] > 1e-9
    assert knows_places == (kind != "block-nopos")
    reach = {"map": 1, "conv1": 1, "conv3": 2}.get(kind, 6)  # patches from the corner along either axis
    assert seen[:reach, :reach].all() and seen.sum() == reach**2


def test_map_subtracts_one_map():
    artifacts = features(*GRID, DIM, dtype=torch.float32)
    denoiser = Denoiser(DIM, GRID, kind="map")
    denoiser.start_from(artifacts.numpy())
    assert [name for name, _ in denoiser.named_parameters()] == ["pos_embed"]
    x = features(3, *GRID, DIM, dtype=torch.float32, seed=2)
    assert torch.allclose(denoiser.denoise(x), x - artifacts, atol=1e-6)


def test_rotary_turns_relative_to_one_another():
    """Scores of attention depend on how far apart two patches are, not on where: what rotary embeddings are for."""
    from dvt_fast.denoiser.block import rotary_angles, turn

    cos, sin = rotary_angles(GRID, GRID, 64)
    q, k = features(64), features(64, seed=2)
    tokens = torch.arange(36).reshape(GRID)
    q, k = (turn(v.expand(36, 64), cos.double(), sin.double()) for v in (q, k))
    scores = (q @ k.T).reshape(36, 36)
    near = [scores[tokens[y, x], tokens[y + 1, x + 2]] for y in range(5) for x in range(4)]
    assert torch.stack(near).std() < 1e-5 < scores.std()
    # A finer map of the same frame means the same places: the middle of 2 x 2 fine patches is that of the coarse one.
    fine = torch.atan2(*reversed(rotary_angles(GRID, (12, 12), 8))).reshape(12, 12, 8)[..., :1]
    coarse = torch.atan2(*reversed(rotary_angles(GRID, GRID, 8))).reshape(6, 6, 8)[..., :1]
    assert torch.allclose(fine.reshape(6, 2, 12, 1).mean(1)[:2, ::2], coarse[:2], atol=1e-5)


# start_from and denoise


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"block-nopos", "rotary", "map"}))
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, lambda a: torch.as_tensor(a).half()])
def test_start_from_begins_at_subtraction(kind, convert):
    artifacts = 100 * features(*GRID, DIM).numpy()
    denoiser = Denoiser(DIM, GRID, kind=kind)
    denoiser.start_from(convert(artifacts))
    x = features(2, *GRID, DIM, dtype=torch.float32)
    assert torch.allclose(denoiser.denoise(x), x - torch.from_numpy(artifacts).float(), rtol=1e-3, atol=1e-3)
    assert denoiser.pos_embed.requires_grad and denoiser.pos_embed.dtype == torch.float32


def test_start_from_refuses():
    for kind in ("block-nopos", "rotary"):
        with pytest.raises(InputError, match=f"{kind}.*no position embedding"):
            Denoiser(DIM, GRID, kind=kind).start_from(np.zeros((*GRID, DIM)))
    for shape in [(6, 5, DIM), (36, DIM), (*GRID, DIM + 1)]:
        with pytest.raises(InputError, match=r"artifacts must have shape \[6, 6, 128\]"):
            Denoiser(DIM, GRID).start_from(np.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 6, DIM), (2, 6, 6, DIM), (3, 4, DIM)])
def test_denoise_takes_any_array(shape, dtype):
    denoiser = randomised(Denoiser(DIM, GRID))
    x = features(*shape, dtype=dtype)
    clean = denoiser.denoise(x)
    assert clean.dtype == torch.float32 and clean.shape == x.shape and not clean.requires_grad
    with torch.no_grad():
        expected = denoiser(x.float().reshape(-1, *shape[-3:])).reshape(shape)
    assert torch.allclose(clean, expected, atol=1e-6)
    if dtype != torch.bfloat16:
        array = denoiser.denoise(x.numpy())
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        assert np.array_equal(array, clean.numpy())


def test_denoise_by_a_half_precision_module():
    exact = randomised(Denoiser(DIM, GRID))
    x = features(*GRID, DIM, dtype=torch.float32)
    expected = exact.denoise(x)
    clean = exact.to(torch.bfloat16).denoise(x)
    assert clean.dtype == torch.float32 and 0 < (clean - expected).abs().max() < 0.05 * expected.abs().max()


def test_denoise_takes_views_and_leaves_its_input():
    denoiser = randomised(Denoiser(DIM, GRID))
    x = features(2, 12, 12, DIM, dtype=torch.float32)[:, ::2, ::2]
    array = x.numpy()
    before = array.copy()
    assert np.allclose(denoiser.denoise(array), denoiser.denoise(before), atol=1e-6)
    assert np.array_equal(array, before)


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dim": 0}, "dim must be an int of at least 1, got 0"),
        ({"dim": 128.0}, "dim must be an int"),
        ({"dim": True}, "dim must be an int"),
        ({"num_blocks": 0}, "num_blocks must be an int of at least 1"),
        ({"num_heads": 0}, "num_heads must be an int of at least 1, got 0"),
        ({"num_heads": 3}, "num_heads must divide dim, got dim 128 and num_heads 3"),
        ({"num_heads": 64, "kind": "rotary"}, "heads of a multiple of 4"),
        ({"grid": (0, 6)}, "grid must be at least 1"),
        ({"grid": (6,)}, "grid must be an int or a pair"),
        ({"grid": (6, 6, 6)}, "grid must be an int or a pair"),
        ({"grid": (6.0, 6.0)}, "grid must be an int or a pair"),
        ({"kind": "blok"}, "unknown kind of denoiser 'blok'; expected one of block, block-nopos"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        Denoiser(**{"dim": DIM, "grid": GRID} | arguments)
    assert "\n" not in str(caught.value)


def test_features_that_cannot_be():
    denoiser = Denoiser(DIM, GRID)
    for shape in [(6, 6, 64), (36, DIM), (1, 2, 6, 6, DIM), ()]:
        with pytest.raises(InputError, match=r"features must have shape .*128\], got"):
            denoiser.denoise(np.zeros(shape, np.float32))
    with pytest.raises(InputError, match="features must have shape"):
        denoiser.denoise([[1.0]])
    for integers in (np.zeros((*GRID, DIM), np.int64), torch.zeros(*GRID, DIM, dtype=torch.uint8)):
        with pytest.raises(InputError, match="floating point"):
            denoiser.denoise(integers)
    for shape in [(6, 6, DIM), (1, 6, 6, 64)]:
        with pytest.raises(InputError, match=r"features must have shape \[B, h, w, 128\]"):
            denoiser(torch.zeros(shape))


def test_one_of_dinov2s_size_is_built_quickly():
    start = time.perf_counter()
    denoiser = Denoiser(768, (37, 37))
    assert time.perf_counter() - start < 2
    assert sum(value.numel() for value in denoiser.parameters()) == 1369 * 768 + 7_087_872
    assert denoiser.num_heads == 12


def test_without_torch_it_is_one_line():
    code = "import sys; sys.modules['torch'] = None; import dvt_fast.denoiser"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = "MissingExtraError: this needs the package 'torch', which is not installed: pip install 'dvt-fast[vit]'"
    assert done.stderr.strip().endswith(expected)
