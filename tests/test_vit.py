"""ViT: every family of timm's plain transformers, its sizes and strides, weights of every kind, and what it refuses."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dvt_fast.errors import InputError
from dvt_fast.vit import ViT

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

TINY = "vit_tiny_patch16_224"
IMAGENET, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)

# name: (prefix tokens, mean, what norm=True applies). The smallest variant of each family.
FAMILIES = {
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k": (1, HALF, "final"),
    "vit_small_patch16_224.dino": (1, IMAGENET, "final"),
    "vit_small_patch14_dinov2.lvd142m": (1, IMAGENET, "final"),
    "vit_small_patch14_reg4_dinov2.lvd142m": (5, IMAGENET, "final"),
    "vit_small_patch16_dinov3.lvd1689m": (5, IMAGENET, "final"),
    "vit_base_patch16_224.mae": (1, IMAGENET, "final"),
    "vit_base_patch32_clip_224.openai": (1, (0.48145466, 0.4578275, 0.40821073), "final"),
    "vit_base_patch32_siglip_256.v2_webli": (0, HALF, "final"),
    "deit_tiny_distilled_patch16_224.fb_in1k": (2, IMAGENET, "final"),
    "deit3_small_patch16_224.fb_in1k": (1, IMAGENET, "final"),
    "eva02_tiny_patch14_224.mim_in22k": (1, (0.48145466, 0.4578275, 0.40821073), "none for tokens"),
    "beit_base_patch16_224.in22k_ft_in22k": (1, HALF, "none for tokens"),
    "samvit_base_patch16.sa1b": (0, IMAGENET, "neck"),
    "vit_pe_spatial_tiny_patch16_512.fb": (1, HALF, "none for tokens"),
    "vit_small_patch16_rope_mixed_224.naver_in1k": (1, IMAGENET, "final"),
    "test_vit_relpos.untrained": (0, HALF, "none for tokens"),
}

# These inputs are so small that more threads only wait for one another.
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def two_blocks(monkeypatch):
    """Building a model costs seconds, most of it in blocks that are all alike: two of them, built once a test."""
    create, built = timm.create_model, {}

    def small(name, **options):
        if not built:
            if name.startswith("samvit"):
                options["global_attn_indexes"] = (1,)  # one block with windows, one without
            built[name] = create(name, depth=2, **options)
        return copy.deepcopy(built[name])

    monkeypatch.setattr(timm, "create_model", small)


def noise(vit, n=1, seed=0):
    return torch.randn(n, 3, *vit.size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, two_blocks):
    """Two sizes and a stride: shapes, prefix tokens, own mean, and each patch token at the patch it is named after."""
    name = family.removesuffix(".untrained")
    n_prefix, mean, norm = FAMILIES[family]
    patch = int(name.split("patch")[1][:2]) if "patch" in name else 16
    sizes = {"small": (4 * patch, 6 * patch), "square": 5 * patch}
    fingerprints = set()
    for size, stride in [(sizes["small"], None), (sizes["square"], None), (sizes["small"], patch // 2)]:
        vit = ViT(name, weights="random", size=size, stride=stride)
        height, width = (size, size) if isinstance(size, int) else size
        grid = (
            (height // patch, width // patch) if stride is None else (2 * height // patch - 1, 2 * width // patch - 1)
        )
        assert (vit.size, vit.grid, vit.n_prefix, vit.patch_size) == ((height, width), grid, n_prefix, (patch, patch))
        fingerprints.add(vit.fingerprint)
        x = noise(vit, 2)
        patches, prefix = vit.features(x, return_prefix=True)
        assert patches.shape == (2, *grid, vit.dim) and prefix.shape == (2, n_prefix, vit.dim)
        assert patches.dtype == torch.float32 and patches.is_contiguous() and torch.isfinite(patches).all()
        assert not patches.requires_grad and not patches.is_inference()
        assert torch.equal(patches, vit.features(x))
        # Change one corner of the image, and look which token of the first block changes most.
        early = ViT(name, weights="random", size=size, stride=stride, layer=0, norm=False)
        y = x.clone()
        y[:, :, -patch // 2 :, : patch // 2] += 3
        change = (early.features(y) - early.features(x)).norm(dim=-1)[0]
        assert divmod(int(change.argmax()), grid[1]) == (grid[0] - 1, 0)
    assert len(fingerprints) == 1, "the same weights, whatever was resampled"
    described = vit.describe()
    assert described["norm"] == norm and np.allclose(vit.mean, mean)
    assert json.loads(json.dumps(described)) == described


@pytest.fixture(scope="module")
def tiny():
    return ViT(TINY, weights="random", size=64)


def test_features_are_the_models_own_tokens(tiny):
    x = noise(tiny, 2)
    with torch.no_grad():
        tokens = timm.create_model(TINY, num_classes=0, img_size=64).eval()
        tokens.load_state_dict(tiny.model.state_dict())
        tokens = tokens.forward_features(x)
    patches, prefix = tiny.features(x, return_prefix=True)
    assert torch.allclose(patches.flatten(1, 2), tokens[:, 1:], atol=1e-5)
    assert torch.allclose(prefix, tokens[:, :1], atol=1e-5)


def test_layers_and_norm():
    """test_vit is timm's own smallest: six blocks."""
    vits = {layer: ViT("test_vit", weights="random", layer=layer, norm=False) for layer in (0, 3, 5, -1, -6)}
    x = noise(vits[0])
    all_layers = vits[0].model.forward_intermediates(x, norm=False, intermediates_only=True)
    for layer, vit in vits.items():
        assert torch.allclose(vit.features(x).permute(0, 3, 1, 2), all_layers[layer], atol=1e-5)
        assert vit.layer == layer % vit.depth and vit.describe()["norm"] == "none"
    normed = ViT("test_vit", weights="random").features(x)
    assert torch.allclose(vits[5].model.norm(vits[-1].features(x)), normed, atol=1e-5)


def test_overlapping_patches_contain_the_others():
    """Every second patch of half the stride is a patch of the whole stride, cut by the same convolution."""
    whole, half = (ViT(TINY, weights="random", size=(64, 96), stride=stride) for stride in (None, 8))
    x = noise(whole)
    a, b = (vit.model.patch_embed(x).unflatten(1, vit.grid) for vit in (whole, half))
    assert torch.allclose(a, b[:, ::2, ::2], atol=1e-5)
    assert half.model.pos_embed.shape[1] == 1 + 7 * 11
    same = ViT(TINY, weights="random", size=(64, 96), stride=16)
    assert torch.equal(same.features(x), whole.features(x))


def test_numpy_in_numpy_out(tiny):
    x = noise(tiny)
    patches, prefix = tiny.features(x.numpy(), return_prefix=True)
    assert isinstance(patches, np.ndarray) and isinstance(prefix, np.ndarray)
    assert np.array_equal(patches, tiny.features(x).numpy())


def test_seed(tiny):
    x = noise(tiny)
    state = torch.get_rng_state()
    again, other = (ViT(TINY, weights="random", size=64, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert torch.equal(again.features(x), tiny.features(x))
    assert not torch.allclose(other.features(x), tiny.features(x))


def test_transform_takes_the_whole_frame(tiny):
    image = np.zeros((30, 90, 3), np.uint8)
    image[:, :45] = 255
    x = tiny.transform(Image.fromarray(image))
    assert x.shape == (3, 64, 64) and x.dtype == torch.float32
    assert torch.allclose(x[:, :, :30], torch.ones(1)) and torch.allclose(x[:, :, 34:], -torch.ones(1))
    vit = ViT(TINY, weights="random", size=32, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0)))
    assert torch.allclose(vit.to_input(pixels), (images - mean) / std, atol=1e-6)


def test_real_weights(shared_data):
    path = shared_data / "weights" / "vit_tiny_patch16_224_augreg.safetensors"
    vit = ViT("vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights=path, norm=False)
    assert vit.mean == vit.std == (0.5, 0.5, 0.5) and vit.describe()["weights"] == path.name
    norms = vit.features(vit.transform(shared_data / "images" / "n01843383_toucan.jpg")[None])[0].norm(dim=-1)
    assert norms[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 5 * norms.median(), "its known artifact, in the corners"


def test_arguments_by_place():
    """The order that the documentation promises: name, weights, stride, layer, norm, device."""
    vit = ViT("test_vit", "random", 8, 2, False, "cpu", size=64)
    assert (vit.stride, vit.layer, vit.norm, vit.size) == ((8, 8), 2, False, (64, 64))


# Bad input


def test_unknown_name_has_close_matches():
    with pytest.raises(InputError, match=r"vit_small_patch14_dinov2\b"):
        ViT("vit_smal_patch14_dinov2.lvd142m")
    with pytest.raises(InputError, match="dvt_mini"):
        ViT("dvt_mimi")
    with pytest.raises(InputError, match="it has: lvd142m"):
        ViT("vit_small_patch14_dinov2.lvd")


@pytest.mark.parametrize(
    "name", ["resnet18", "test_convnext", "vit_tiny_r_s16_p8_224", "volo_d1_224", "cait_xxs24_224"]
)
def test_not_a_plain_vit(name):
    with pytest.raises(InputError, match="not a plain ViT"):
        ViT(name, weights="random")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 100}, "use 96 or 112"),
        ({"size": 8}, "use 16"),
        ({"size": (64, 70)}, "use 64 or 80"),
        ({"size": 64, "stride": 5}, "use 61 or 66"),
        ({"size": 0}, "at least 1"),
        ({"size": "big"}, "size must be"),
        ({"size": (1, 2, 3)}, "size must be"),
        ({"stride": 32}, "at most the patch size"),
        ({"stride": 0}, "at least 1"),
        ({"layer": 6}, "layer must be from -6 to 5"),
        ({"layer": -7}, "layer must be"),
        ({"layer": 1.5}, "layer must be"),
        ({"mean": (0.5, 0.5)}, "mean must be three"),
        ({"std": (1, 1, 0)}, "std must be above 0"),
        ({"std": (1, 1, float("nan"))}, "finite"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
    ],
    ids=str,
)
def test_bad_option(options, message):
    with pytest.raises(InputError, match=message) as caught:
        ViT("test_vit", weights="random", **options)
    assert "\n" not in str(caught.value)


def test_bad_images(tiny):
    for shape in [(3, 64, 64), (1, 3, 64, 80), (1, 1, 64, 64), (0,)]:
        with pytest.raises(InputError, match=r"shape \[B, 3, 64, 64\]"):
            tiny.features(torch.zeros(shape))
    with pytest.raises(InputError, match="uint8"):
        tiny.features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(InputError, match="images are on meta"):
        tiny.features(torch.zeros(1, 3, 64, 64, device="meta"))
    with pytest.raises(InputError, match="got list"):
        tiny.features([[1.0]])


def test_import_is_light():
    code = "import sys, dvt_fast.vit, dvt_fast.views; assert not {'torch', 'timm', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
