"""`dvt-fast export`: what it writes, the line that it prints, and how it fails."""

from functools import partial

import numpy as np
import pytest

import dvt_fast

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from dvt_fast.denoiser import Denoiser, load_denoiser  # noqa: E402
from dvt_fast.reference.engine import evaluate  # noqa: E402
from engine_samples import read_header  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def run(program):
    return partial(program, "export")


def test_by_default_dvt_mini_and_its_denoiser(run, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    size = (tmp_path / "engine.safetensors").stat().st_size
    assert out == (
        "engine.safetensors: dvt_mini at 224 x 224 (14 x 14 patches of 192 channels, before the final norm), then a "
        f"denoiser of kind block for 14 x 14 patches of 192 channels; float32, {size / 2**20:.1f} MiB\n"
    )
    vit = dvt_fast.ViT("dvt_mini", norm=False)  # what the denoiser that comes with it is for
    denoiser = load_denoiser(None, vit)
    images = torch.randn(1, 3, *vit.size, generator=torch.Generator().manual_seed(0))
    raw, clean = evaluate((tmp_path / "engine.safetensors").read_bytes(), images, dtype=torch.float32)
    features = vit.features(images)
    assert np.allclose(raw, features, rtol=1e-4, atol=1e-4 * features.abs().max())
    assert np.allclose(clean, denoiser.denoise(features), rtol=1e-4, atol=1e-4 * features.abs().max())


def test_options_of_the_vit_and_the_file(run, tmp_path):
    options = ("--size", "96x128", "--layer", 2, "--no-norm", "--stride", 8)
    code, out, err = run("--only", "vit", *options, "--dtype", "bfloat16", "-o", "made/a.safetensors")
    assert (code, err) == (0, "")
    what = "dvt_mini at 96 x 128 (11 x 15 patches of 192 channels, block 3 of 6, before the final norm)"
    assert out.startswith(f"made/a.safetensors: {what}; bfloat16, ")
    header, tensors = read_header((tmp_path / "made/a.safetensors").read_bytes())
    assert header["source"]["vit"] == dvt_fast.ViT("dvt_mini", layer=2, norm=False, size=(96, 128), stride=8).describe()
    assert header["denoiser"] is None and tensors["vit.blocks.2.fc1.weight"] == "BF16"
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["a.safetensors"]


def test_the_vit_is_the_one_that_the_denoiser_was_trained_for(run, tmp_path):
    vit = dvt_fast.ViT("dvt_mini", norm=False, layer=3, size=64)
    denoiser = Denoiser(vit.dim, vit.grid)
    denoiser.meta = {"vit": vit.describe(), "training": {"score": float("nan")}}
    denoiser.save(tmp_path / "model.safetensors")
    assert run("--denoiser", "model.safetensors")[0] == 0
    source = read_header((tmp_path / "engine.safetensors").read_bytes())[0]["source"]
    assert source["vit"] == vit.describe()
    assert source["denoiser"]["training"] == {"score": None}  # JSON knows no NaN
    code, _, err = run("--denoiser", "model.safetensors", "--layer", 2)
    assert code == 1 and "trained for a ViT with layer 3, and this one has 2" in err


def test_a_denoiser_alone_needs_no_vit(run, tmp_path):
    denoiser = Denoiser(48, (5, 4), num_heads=3)
    described = dvt_fast.ViT("dvt_mini").describe() | {"name": "unknown", "weights": "lost.pth"}
    denoiser.meta = {"vit": described}
    denoiser.save(tmp_path / "model.safetensors")
    code, out, err = run("--only", "denoiser", "--denoiser", "model.safetensors")
    assert (code, err) == (0, "")
    assert out.startswith("engine.safetensors: a denoiser of kind block for 5 x 4 patches of 48 channels; float32, ")
    assert read_header((tmp_path / "engine.safetensors").read_bytes())[0]["vit"] is None


@pytest.mark.parametrize(
    "args, said",
    [
        (
            ("--vit", "vit_tiny_patch16_224"),
            "no denoiser comes with vit_tiny_patch16_224: give one by --denoiser, or",
        ),
        (("--denoiser", "nowhere.pth"), "nowhere.pth: no such file"),
        (("--only", "vit", "--vit", "test_vit_relpos", "--weights", "random"), "blocks.0.attn: RelPosAttention of"),
        (("--size", "100"), "size 100 does not fit"),
        (("--out", "file/engine.safetensors"), "file: is a file, expected a folder"),
        (("--out", "."), "cannot be written: Is a directory"),
    ],
)
def test_what_fails_is_one_line_and_no_file(run, tmp_path, args, said):
    (tmp_path / "file").touch()
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert said in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_options_that_contradict(run):
    code, _, err = run("--only", "vit", "--denoiser", "a.safetensors")
    assert code == 2 and "--denoiser" in err
    assert run("--dtype", "int8")[0] == 2
