"""`distill`: a plain ViT that gives what a ViT and its denoiser give; its file, at any size, and its faults."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt_fast import Denoiser, ViT
from dvt_fast.cli import main
from dvt_fast.errors import Cancelled, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning_fabric")
pytest.importorskip("tensorboard")

from dvt_fast.training import distill  # noqa: E402
from dvt_fast.training.distill_vit import Student  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

MINI = {"name": "dvt_mini", "size": 64}
SMALL = {"name": "test_vit", "weights": "random", "size": 96}  # its own size is 160, on patches of 16
SHORT = {"steps": 12, "batch": 4, "every": 4, "held_out": 0.2, "log_every": 2, "variants": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(10):
        picture = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((80, 60), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.png")
    return folder


def denoiser_for(vit, size=0.5):
    """A denoiser that takes a map off the features, of a size relative to theirs."""
    denoiser = Denoiser(vit.dim, vit.grid, kind="map")
    x = torch.randn(2, 3, *vit.size, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(*vit.grid, vit.dim, generator=torch.Generator().manual_seed(1))
    denoiser.start_from(size * vit.features(x).std() * noise)
    denoiser.meta = {"vit": vit.describe()}
    return denoiser


def inputs(vit, photos):
    return torch.stack([vit.transform(str(path)) for path in sorted(photos.iterdir())])


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).mean().item()


# What it learns


def test_the_student_learns_what_both_give(photos, tmp_path):
    vit = ViT(**SMALL)
    denoiser = denoiser_for(vit)
    summary = distill(photos, tmp_path, vit, denoiser, **(SHORT | {"steps": 120, "every": 60, "blr": 3e-3, "batch": 8}))
    student = ViT(**(SMALL | {"weights": summary.file}))
    x = inputs(vit, photos)
    target = denoiser.denoise(vit.features(x))
    before, after = cosine(vit.features(x), target), cosine(student.features(x), target)
    assert before < 0.92 and after > before + 0.5 * (1 - before)
    assert summary.score["after"] > summary.score["before"] + 0.3 * (1 - summary.score["before"])


def test_without_steps_to_speak_of_it_is_the_teacher(photos, tmp_path):
    """What is saved fits, and gives at this size what was trained: nothing is resampled twice."""
    for options in (MINI, SMALL, SMALL | {"size": (96, 64)}, SMALL | {"stride": 8}):
        vit = ViT(**options)
        summary = distill(
            photos, tmp_path / str(options), vit, denoiser_for(vit), **(SHORT | {"blr": 1e-30, "steps": 1})
        )
        student = ViT(**(options | {"weights": summary.file}))
        x = inputs(vit, photos)
        assert (student.features(x) - vit.features(x)).abs().max() < 1e-5
        assert summary.score["before"] == pytest.approx(summary.score["after"], abs=1e-6)


def test_the_position_embedding_of_the_own_size_is_trained(photos, tmp_path):
    own, vit = ViT(**(SMALL | {"size": None})), ViT(**SMALL)
    summary = distill(photos, tmp_path, vit, denoiser_for(vit), **SHORT)
    found = ViT(**(SMALL | {"weights": summary.file, "size": None}))
    assert found.model.pos_embed.shape == own.model.pos_embed.shape != vit.model.pos_embed.shape
    assert (found.model.pos_embed != own.model.pos_embed).any()


def test_only_what_the_features_depend_on_is_trained(photos, tmp_path):
    vit = ViT(**MINI, layer=2, norm=False)
    summary = distill(photos, tmp_path, vit, denoiser_for(vit), **SHORT)
    before, after = (ViT("dvt_mini", weights).model.state_dict() for weights in (None, summary.file))
    assert after.keys() == before.keys()
    for name, weights in before.items():
        part, _, rest = name.partition(".")
        unused = part == "norm" or (part == "blocks" and int(rest.split(".")[0]) > 2)
        assert torch.equal(after[name], weights) == unused, name


@pytest.mark.parametrize(
    "name, size",
    [
        ("vit_small_patch16_224.dino", 96),
        ("vit_small_patch14_reg4_dinov2.lvd142m", 70),
        ("vit_small_patch16_dinov3.lvd1689m", 64),
        ("vit_base_patch32_siglip_256.v2_webli", 128),
        ("deit3_small_patch16_224.fb_in1k", 64),
        ("eva02_tiny_patch14_224.mim_in22k", 70),
        ("beit_base_patch16_224.in22k_ft_in22k", 64),
        ("vit_small_patch16_rope_mixed_224.naver_in1k", 64),
        ("test_vit_relpos", 96),
        ("samvit_base_patch16.sa1b", 64),
    ],
)
def test_families(name, size, tmp_path, monkeypatch):
    """Gradients reach every family, and the saved state gives the trained features, at a size that is not its own."""
    import timm
    from safetensors.torch import save_file

    create = timm.create_model
    small = {"global_attn_indexes": (1,)} if name.startswith("samvit") else {}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, depth=2, **options, **small))
    vit = ViT(name, weights="random", size=size)
    student = Student(copy.deepcopy(vit))
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert (student(x).detach() - vit.features(x)).abs().max() < 1e-3  # 0, but for SAM's convolutions
    weights = [parameter for parameter in student.parameters() if parameter.requires_grad]
    student(x).square().mean().backward()
    with torch.no_grad():
        for parameter in weights:
            parameter -= 0.05 * parameter.grad / (parameter.grad.norm() + 1e-12)
        moved = student(x)
    assert (moved - vit.features(x)).abs().max() > 1e-3
    save_file(copy.deepcopy(student).state(), tmp_path / "student.safetensors")
    loaded = ViT(name, weights=tmp_path / "student.safetensors", size=size)
    assert (loaded.features(x) - moved).abs().max() < 1e-4 * moved.abs().max()


# The same bits, and what stops it


def test_a_resumed_run_equals_one_that_never_stopped(photos, tmp_path):
    vit = ViT(**SMALL)
    denoiser = denoiser_for(vit).train()
    whole = distill(photos, tmp_path / "whole", vit, denoiser, workers=0, **SHORT)
    for stop in (3, 6, 11):
        with pytest.raises(Cancelled):
            distill(
                photos, tmp_path / "stopped", vit, denoiser, workers=2,
                progress=lambda done, total, what, stop=stop: (what, done) != ("steps", stop), **SHORT,
            )  # fmt: skip
    resumed = distill(photos, tmp_path / "stopped", vit, denoiser, memory=0, **SHORT)
    assert resumed.resumed_from == 8 and resumed.score == whole.score
    assert denoiser.training and all(p.requires_grad for p in denoiser.parameters())  # the caller's own stays as it was
    for name in ("distilled.safetensors", "checkpoint-00000008.safetensors", "checkpoint-00000012.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    with pytest.raises(InputError, match=r"denoiser\.fingerprint is "):
        distill(photos, tmp_path / "stopped", vit, denoiser_for(vit, 0.7), **SHORT)
    with pytest.raises(InputError, match=r"vit\.size is \[96, 96\] there and \[64, 64\] here"):
        other = ViT(**(SMALL | {"size": 64}))
        distill(photos, tmp_path / "stopped", other, denoiser_for(other), **SHORT)


def test_a_denoiser_of_another_vit_is_refused(photos, tmp_path):
    vit = ViT(**MINI)
    other = ViT(**MINI, layer=3)
    with pytest.raises(InputError, match="the denoiser was trained for a ViT with layer 3, and this one has 5"):
        distill(photos, tmp_path, vit, denoiser_for(other), **SHORT)
    with pytest.raises(InputError, match="the denoiser is for features of 64 channels"):
        distill(photos, tmp_path, vit, denoiser_for(ViT(**SMALL)), **SHORT)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".safetensors"]


def test_command(photos, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "cut.png").write_bytes((photos / "1.png").read_bytes()[:200])
    vit = ViT(**MINI, norm=False)
    denoiser_for(vit).save("den.safetensors")
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    args = ["photos", "--denoiser", "den.safetensors", "--size", "64", "--no-norm", "--out", "out", "--json"]
    monkeypatch.setattr("sys.argv", ["dvt-fast", "distill", *args, *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    summary = json.loads(out)
    assert stop.value.code == 1 and err.startswith("1 failed:\n  ") and "cut.png: cannot be decoded" in err
    assert summary["file"] == "out/distilled.safetensors" and summary["images"] + summary["held_out"] == 10
    student = ViT("dvt_mini", weights=Path(summary["file"]), size=64, norm=False)
    assert student.features(inputs(student, photos)).isfinite().all()
    from safetensors import safe_open

    with safe_open(summary["file"], "np") as file:
        header = json.loads(file.metadata()["dvt_fast"])
    assert header["format"] == "dvt_fast.vit" and header["training"]["vit"]["layer"] == 5
    assert header["training"]["steps"] == 12 and header["training"]["score"] == summary["score"]
