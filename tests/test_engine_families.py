"""The engine against float64: every family of ViTs, every kind of denoiser, five grids, two batches, any strides.

The bound is the one of the project: at most twice the error of torch's own float32.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from dvt_fast.denoiser import KINDS, Denoiser, load_denoiser  # noqa: E402
from dvt_fast.engine import Engine  # noqa: E402
from dvt_fast.engine.export import to_bytes  # noqa: E402
from dvt_fast.reference.engine import evaluate  # noqa: E402
from dvt_fast.vit import ViT  # noqa: E402
from engine_samples import FAMILIES, distance, lively_denoiser, lively_vit, noise  # noqa: E402

# For fewer than a dozen tokens torch has products that sum in another order, with half the error.
GRIDS = [(4, 4), (3, 5), (7, 2), (2, 11), (9, 9)]
BATCHES = (1, 4)
TRANSFORMERS = [kind for kind in KINDS if not kind.startswith("conv")]

# Kinds of blocks: plain, gated with rotary pairs of neighbours, of halves, a norm within attention and MLP.
VARIED = ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "beit3_base_patch16_224"]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def patch_of(name):
    return int(name.split("patch")[1][:2])


def run(session, x):
    """(raw, result) of a session on a torch tensor."""
    raw = np.empty((len(x), *session.grid, session.dim), np.float32)
    result = session.run(x.numpy(), raw=raw if session.engine.has_vit and session.input != "features" else None)
    return torch.from_numpy(raw), torch.from_numpy(result)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    patch = patch_of(name)
    vit = lively_vit(name, size=(2 * patch, 3 * patch))
    denoiser = lively_denoiser("block", vit.dim, num_heads=2)
    engine = Engine.from_vit(vit, denoiser)
    data = to_bytes(vit, denoiser)
    for i, grid in enumerate(GRIDS):
        vit = lively_vit(name, size=(grid[0] * patch, grid[1] * patch))
        batch = BATCHES[i % 2]
        images = noise(batch, 3, *vit.size, seed=i)
        session = engine.session(input="normalized", size=vit.size, batch=batch, threads=1)
        assert session.grid == grid
        raw, clean = run(session, images)
        true_raw, true_clean = evaluate(data, images)
        features = vit.features(images)
        assert distance(raw, true_raw) <= 2 * distance(features, true_raw)
        assert distance(clean, true_clean) <= 2 * distance(denoiser.denoise(features), true_clean)


@pytest.mark.parametrize("name", VARIED)
def test_strides_and_layers(name):
    """Overlapping patches, an inner layer, no final norm."""
    patch = patch_of(name)
    size = (3 * patch, 4 * patch)
    vit = lively_vit(name, size=size, blocks=3, stride=(patch // 2, patch), layer=1, norm=False)
    images = noise(2, 3, *size)
    features = torch.from_numpy(Engine.from_vit(vit).session(input="normalized", batch=2).run(images.numpy()))
    truth, _ = evaluate(to_bytes(vit, None), images)
    assert features.shape == (2, 5, 4, vit.dim)
    assert distance(features, truth) <= 2 * distance(vit.features(images), truth)


@pytest.mark.parametrize("name", VARIED)
def test_instruction_sets(name, isa):
    patch = patch_of(name)
    vit = lively_vit(name, size=(5 * patch, 3 * patch))
    images = noise(2, 3, *vit.size)
    features = torch.from_numpy(Engine.from_vit(vit).session(input="normalized", batch=2).run(images.numpy()))
    truth, _ = evaluate(to_bytes(vit, None), images)
    assert distance(features, truth) <= 2 * distance(vit.features(images), truth)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_denoiser(kind, num_blocks, batch):
    for dim, heads in ((48, 3), (160, 2)):  # heads of 16 and of 80 channels
        denoiser = lively_denoiser(kind, dim, num_blocks=num_blocks, num_heads=heads)
        engine = Engine.load(denoiser)
        for grid in GRIDS:
            features = noise(batch, *grid, dim)
            _, clean = run(engine.session(grid=grid, batch=batch), features)
            _, truth = evaluate(to_bytes(None, denoiser), features, input="features")
            assert distance(clean, truth) <= 2 * distance(denoiser.denoise(features), truth)


def laid_out(x):
    """The same numbers with other strides and offsets: name -> array."""
    x = x.numpy()
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    larger = np.full([n + 3 for n in x.shape], np.nan, np.float32)
    inner = larger[tuple(slice(1, n + 1) for n in x.shape)]
    inner[...] = x
    return {
        "channels last": np.moveaxis(last, -1, 1),
        "within a larger array": inner,
        "backwards": np.ascontiguousarray(x[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
        "fortran order": np.asfortranarray(x),
    }


@pytest.mark.parametrize("batch", BATCHES)
def test_layouts_of_inputs_and_outputs_change_no_bit(batch):
    vit = lively_vit("vit_tiny_patch16_224", size=(48, 80))
    denoiser = lively_denoiser(dim=vit.dim)
    engine = Engine.from_vit(vit, denoiser)
    for input, x in (("normalized", noise(batch, 3, *vit.size)), ("features", noise(batch, 3, 5, vit.dim))):
        session = engine.session(input=input, batch=batch, grid=(3, 5) if input == "features" else None)
        expected = session.run(x.numpy())
        for layout, array in laid_out(x).items():
            assert np.array_equal(array, x) and not array.flags.c_contiguous, layout
            assert np.array_equal(session.run(array), expected), layout
            out = laid_out(torch.zeros(expected.shape))[layout]
            assert session.run(array, out) is out
            assert np.array_equal(out, expected), layout


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", VARIED)
def test_half_weights(name, dtype):
    """Weights of 16 bits cost what rounding them costs; a file of such weights loses nothing in float32."""
    patch = patch_of(name)
    vit = lively_vit(name, size=(4 * patch, 3 * patch))
    denoiser = lively_denoiser(dim=vit.dim, num_heads=2)
    images = noise(1, 3, *vit.size)
    truth = evaluate(to_bytes(vit, denoiser), images)
    data = to_bytes(vit, denoiser, dtype)
    rounded = evaluate(data, images)
    for engine in (Engine.from_vit(vit, denoiser, dtype=dtype), Engine.load(data, dtype=dtype)):
        found = run(engine.session(input="normalized"), images)
        assert all(
            0.1 * distance(r, t) < distance(f, t) <= 2 * distance(r, t) for f, r, t in zip(found, rounded, truth)
        )
    found = run(Engine.load(data).session(input="normalized"), images)
    in_float32 = evaluate(data, images, dtype=torch.float32)
    assert all(distance(f, r) <= 2 * distance(g, r) for f, g, r in zip(found, in_float32, rounded))


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "dvt_mini"])
def test_trained_weights(model, shared_data):
    """Real weights and photos. All photos together: some tokens amplify any rounding a hundredfold, and which of two
    roundings they amplify more is chance."""
    if model == "dvt_mini":
        vit = ViT(model, norm=False, size=(160, 208))
        denoiser = load_denoiser(None, vit)
    else:
        vit = ViT(model, shared_data / "weights" / "vit_tiny_patch16_224_augreg.safetensors")
        denoiser = Denoiser(vit.dim, vit.grid, kind="map")
    photos = sorted((shared_data / "images").glob("n0*.jpg"))[::8]
    assert len(photos) > 5
    images = torch.stack([vit.transform(photo) for photo in photos])
    found = run(Engine.from_vit(vit, denoiser).session(input="normalized", batch=len(images)), images)
    truth = evaluate(to_bytes(vit, denoiser), images)
    features = vit.features(images)
    for ours, torchs, true in zip(found, (features, denoiser.denoise(features)), truth):
        assert distance(ours, true) <= 2 * distance(torchs, true)
