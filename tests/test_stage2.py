"""Stage 2 on an image: what it computes, what its result keeps, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import dvt_fast
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.stage2 import Denoised, denoise
from samples import make_decomposition

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_torch_thread")

from dvt_fast.denoiser import Denoiser  # noqa: E402  needs torch


@pytest.fixture(scope="module")
def vit():
    return dvt_fast.ViT("dvt_mini", norm=False, size=64)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))


@pytest.fixture
def denoiser(vit):
    torch.manual_seed(0)
    found = Denoiser(vit.dim, vit.grid)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    found.meta = {"vit": vit.describe(), "training": {"images": 7}}
    return found


def make(h=3, w=4, c=5, stage1=True, seed=0) -> Denoised:
    d = make_decomposition(h, w, c, seed=seed)
    noise = np.random.default_rng(seed + 1).standard_normal((h, w, c)).astype(np.float32)
    return Denoised(d.raw, d.semantics + 0.1 * noise, decomposition=d if stage1 else None, meta={"version": "x"})


def test_it_is_the_denoiser_on_the_features_of_the_vit(vit, image, denoiser):
    d = denoise(image, vit, denoiser)
    raw = vit.features(vit.transform(image)[None])
    np.testing.assert_array_equal(d.raw, raw[0].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(d.denoised, denoiser(raw)[0].numpy(), rtol=1e-5, atol=1e-5)
    assert isinstance(d.denoised, np.ndarray) and d.denoised.dtype == np.float32
    assert not np.allclose(d.raw, d.denoised, atol=0.1)
    assert d.semantics is None and d.decomposition is None and d.cosines() == {}


def test_meta_says_how_it_was_made(vit, image, denoiser):
    meta = denoise(image, vit, denoiser).meta
    assert meta["vit"] == vit.describe() and meta["stage1"] is None
    assert meta["denoiser"]["kind"] == "block" and meta["denoiser"]["training"] == {"images": 7}
    assert meta["denoiser"]["parameters"] == sum(p.numel() for p in denoiser.parameters())
    seconds = meta["seconds"]
    assert seconds["denoiser"] > 0 and seconds["vit"] + seconds["denoiser"] <= seconds["total"]
    assert json.loads(json.dumps(meta)) == meta


def test_a_path_is_as_good_as_a_denoiser(vit, image, denoiser, tmp_path):
    denoiser.save(tmp_path / "d.safetensors")
    from_file = denoise(image, vit, tmp_path / "d.safetensors")
    np.testing.assert_array_equal(from_file.denoised, denoise(image, vit, denoiser).denoised)


def test_stage1_beside_it(vit, image, denoiser):
    seen = []
    d = denoise(image, vit, denoiser, stage1=3, seed=4, passes=1, progress=lambda *step: seen.append(step))
    alone = dvt_fast.decompose(image, vit, 3, seed=4, passes=1)
    np.testing.assert_allclose(d.semantics, alone.semantics, atol=1e-4)
    assert d.decomposition.semantics is d.semantics
    assert d.meta["stage1"]["views"] == 4 and d.meta["stage1"]["options"] == {"passes": 1}
    assert seen[-1] == (4, 4, "views")
    assert denoise(image, vit, denoiser, stage1=True).meta["stage1"]["plan"] == "balanced"
    assert denoise(image, vit, denoiser, stage1=False).semantics is None


def test_cosines_are_means_over_the_patches():
    d = make()
    expected = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(d.denoised.reshape(-1, 5), d.semantics.reshape(-1, 5))
    ]
    assert d.cosines()["denoised"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert d.cosines()["raw"] < d.cosines()["denoised"] < 1
    assert Denoised(d.semantics, d.raw, d.semantics).cosines()["raw"] == pytest.approx(1)


def test_what_is_refused(vit, image, denoiser, tmp_path):
    with pytest.raises(InputError, match=r"vit must be a dvt_fast\.ViT, got str"):
        denoise(image, "dvt_mini", denoiser)
    with pytest.raises(InputError, match=r"denoiser must be a dvt_fast\.Denoiser or the path of one, got Identity"):
        denoise(image, vit, torch.nn.Identity())
    with pytest.raises(InputError, match="device: features are denoised where the ViT is, so give it there"):
        dvt_fast.denoise(image, vit, device="cuda")
    with pytest.raises(InputError, match="passes: options of stage 1, which is not asked for: give stage1, too"):
        denoise(image, vit, denoiser, passes=1)
    with pytest.raises(InputError, match="unknown option 'pases'"):
        denoise(image, vit, denoiser, stage1="realtime", pases=1)
    with pytest.raises(InputError, match="norm"):
        denoise(image, dvt_fast.ViT("dvt_mini", size=64), denoiser)
    with pytest.raises(InputError, match="channels"):
        denoise(image, vit, Denoiser(64, vit.grid))
    with pytest.raises(InputError, match="none"):
        denoise(tmp_path / "none.jpg", vit, denoiser)


def test_weights_that_overflow_are_an_error_and_not_a_result(vit, image, denoiser):
    denoiser.denoiser.mlp.fc2.bias.data[3] = torch.inf
    with pytest.raises(NonFiniteError, match="the denoised features hold NaN or infinity"):
        denoise(image, vit, denoiser)


@pytest.mark.parametrize("stage1", [True, False])
def test_save_and_load_give_the_same(tmp_path, stage1):
    d = make(stage1=stage1)
    d.save(tmp_path / "d.safetensors")
    assert set(load_file(tmp_path / "d.safetensors")) == {"raw", "denoised"} | ({"semantics"} if stage1 else set())
    loaded = Denoised.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(loaded.raw, d.raw)
    np.testing.assert_array_equal(loaded.denoised, d.denoised)
    assert loaded.meta == d.meta and loaded.decomposition is None
    assert loaded.cosines() == d.cosines() and bool(loaded.cosines()) == stage1
    assert os.listdir(tmp_path) == ["d.safetensors"]


def test_shapes_must_agree():
    d = make()
    with pytest.raises(InputError, match=r"denoised must have raw's shape \[3, 4, 5\], got \[2, 4, 5\]"):
        Denoised(d.raw, d.denoised[:2])
    with pytest.raises(InputError, match=r"semantics must have raw's shape"):
        Denoised(d.raw, d.denoised, d.semantics[:, :2])
    with pytest.raises(InputError, match=r"raw must have shape \[H, W, C\], got \[4, 5\]"):
        Denoised(d.raw[0], d.denoised[0])


def header(**changes) -> dict[str, str]:
    return {"dvt_fast": json.dumps({"format": "dvt_fast.denoised", "version": 1, "meta": {}} | changes)}


@pytest.mark.parametrize(
    "metadata, message",
    [
        (None, "not a dvt_fast.denoised file"),
        (header(format="dvt_fast.decomposition"), "not a dvt_fast.denoised file"),
        (header(version=2), "version 2, expected version 1"),
        (header(meta=None), "lacks 'meta'"),
        (header(), "holds no 'denoised'"),
    ],
)
def test_load_refuses_other_files(tmp_path, metadata, message):
    path = tmp_path / "other.safetensors"
    save_file({"raw": np.zeros((1, 2, 3), np.float32)}, path, metadata=metadata)
    with pytest.raises(InputError, match=message) as caught:
        Denoised.load(path)
    assert str(path) in str(caught.value)


def test_nan_is_not_written(tmp_path):
    d = make()
    d.denoised[0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="denoised holds NaN"):
        d.save(tmp_path / "d.safetensors")
    assert not os.listdir(tmp_path)


def test_loading_needs_neither_torch_nor_pillow(tmp_path):
    make().save(tmp_path / "d.safetensors")
    code = (
        "import sys; sys.modules.update(torch=None, PIL=None)\n"
        "from dvt_fast import Denoised\n"
        "d = Denoised.load(sys.argv[1]); print(d, sorted(d.cosines()))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "d.safetensors")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "Denoised(3x4 patches, 5 channels, denoiser=None) ['denoised', 'raw']\n", done.stderr
