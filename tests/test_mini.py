"""The embedded ViT: within its limits, a plain timm ViT, and as near to its teacher as the model card says."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import dvt_fast

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
from safetensors import safe_open  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from dvt_fast.denoiser import load_denoiser  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ASSET = ROOT / "dvt_fast" / "assets" / "dvt_mini.safetensors"
CORNERS = ([0, 0, -1, -1], [0, -1, 0, -1])


@pytest.fixture(scope="module")
def train_mini():
    """tools/train_mini.py as a module; tools is a folder of programs, not a package."""
    spec = importlib.util.spec_from_file_location("train_mini", ROOT / "tools" / "train_mini.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def header_and_weights():
    with safe_open(ASSET, "pt") as file:
        return json.loads(file.metadata()["dvt_fast"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_asset_is_within_its_limits(header_and_weights):
    header, weights = header_and_weights
    assert ASSET.stat().st_size <= 6_000_000
    assert sum(tensor.numel() for tensor in weights.values()) <= 3_000_000
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert (header["format"], header["version"]) == ("dvt_fast.vit", 1)
    assert header["mean"] == header["std"] == [0.5, 0.5, 0.5]


def test_asset_is_a_plain_timm_vit_with_finite_features(header_and_weights):
    header, weights = header_and_weights
    vit = VisionTransformer(**header["config"], num_classes=0).eval()
    vit.load_state_dict(weights)  # strict: every key, and no other
    ramp = torch.linspace(-1, 1, 224)
    image = torch.stack([ramp.expand(224, 224), ramp[:, None].expand(224, 224), torch.zeros(224, 224)])
    with torch.inference_mode():
        features = vit.forward_features(image[None])
    assert features.shape == (1, 1 + 14 * 14, 192)
    assert features.isfinite().all()
    assert features[0, 1:].std(0).mean() > 0.1, "every patch looks the same"


def test_asset_scores_what_its_card_says(train_mini, shared_data):
    """Margins on the card's scores; the corners are what the demo shows, so they are held to most."""
    scores = train_mini.score(train_mini.load_student(ASSET), train_mini.load_teacher(shared_data), shared_data)
    assert scores["cosine"] > 0.57
    assert scores["cosine, normed"] > 0.55
    assert abs(scores["position share, student"] - scores["position share, teacher"]) < 0.04
    assert 0.8 < scores["corner norm, student"] / scores["corner norm, teacher"] < 1.1
    assert 0.5 < scores["median norm, student"] / scores["median norm, teacher"] < 1.1


def test_training_writes_a_file_that_loads(train_mini, shared_data, tmp_path, monkeypatch):
    """The whole script at a tiny size: a bank, two steps, a file."""
    path = tmp_path / "folder" / "mini.safetensors"
    options = ["--data", str(shared_data), "--out", str(path), "--bank", "8", "--steps", "2", "--batch", "4"]
    options += ["--threads", str(torch.get_num_threads()), "--no-bfloat16"]
    monkeypatch.setattr(train_mini, "SOURCES", {"video/davis-mallard-water/*.jpg": 1.0})
    monkeypatch.setattr("sys.argv", ["train_mini.py", *options])
    train_mini.main()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert all(value.isfinite().all() for value in train_mini.load_student(path).state_dict().values())


@pytest.mark.parametrize("norm", [False, True])
def test_the_denoisers_that_come_with_it_clean_a_photo(norm):
    """Of a photograph that nothing was trained on; the corners are where the artifacts are giant before the norm."""
    data = pytest.importorskip("skimage").data
    vit = dvt_fast.ViT("dvt_mini", norm=norm)
    denoiser = load_denoiser(None, vit)
    assert denoiser.meta["vit"]["fingerprint"] == vit.fingerprint and denoiser.kind == "block"
    found = dvt_fast.decompose(data.astronaut(), vit)
    before, after = (cosine(features, found.semantics) for features in (found.raw, denoiser.denoise(found.raw)))
    assert after.mean() > before.mean() + 0.08
    assert after[CORNERS].mean() > 0.7 > 0.3 > before[CORNERS].mean()


def test_the_denoisers_are_small():
    files = sorted(ASSET.parent.glob("dvt_mini_denoiser*.safetensors"))
    assert len(files) == 2 and sum(file.stat().st_size for file in files) < 4_000_000
    for file in files:
        with safe_open(file, "pt") as opened:
            assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"F16"}  # noqa: SIM118


def cosine(a, b):
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
