"""`dvt-fast denoise`: which ViT and denoiser it takes, what it writes, and how it fails."""

import errno
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dvt_fast
from dvt_fast.stage2 import Denoised

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from dvt_fast.denoiser import Denoiser  # noqa: E402  needs torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photos(tmp_path):
    """A folder with two good images of different shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.jpg", (60, 80, 3)), ("b.png", (90, 70, 3))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def vit():
    return dvt_fast.ViT("dvt_mini", norm=False, layer=3, size=64)


@pytest.fixture
def model(vit, tmp_path):
    """The file of a denoiser for `vit`, which differs from the command's own defaults in layer, norm and size."""
    found = Denoiser(vit.dim, vit.grid)
    found.meta = {"vit": vit.describe(), "training": {"images": 7}}
    found.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def run(program):
    return partial(program, "denoise")


def test_the_vit_is_the_one_that_the_denoiser_was_trained_for(run, photos, model, vit, tmp_path):
    code, out, err = run(photos, "--denoiser", model)
    assert (code, err) == (0, "")
    names = ["a-denoised.png", "a-denoised.safetensors", "b-denoised.png", "b-denoised.safetensors"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    assert out.splitlines()[0].startswith(f"{photos}/a.jpg: out/a-denoised.png and a-denoised.safetensors (")
    d = Denoised.load(tmp_path / "out" / "a-denoised.safetensors")
    assert d.meta["vit"] == vit.describe() and d.semantics is None
    expected = dvt_fast.denoise(photos / "a.jpg", vit, model)
    np.testing.assert_allclose(d.denoised, expected.denoised, atol=1e-4)
    with Image.open(tmp_path / "out" / "b-denoised.png") as picture:
        assert picture.height > 500


def test_options_of_the_vit_change_it(run, photos, model, vit, tmp_path):
    assert run(photos / "a.jpg", "--denoiser", model, "--size", "96x64", "--stride", 8, "--vit", "dvt_mini")[0] == 0
    d = Denoised.load(tmp_path / "out" / "a-denoised.safetensors")
    assert d.raw.shape == (11, 7, 192) and d.meta["vit"]["layer"] == vit.layer
    for options, what in ((["--layer", 2], "layer"), (["--norm"], "norm"), (["--weights", "random"], "weights")):
        code, out, err = run(photos, "--denoiser", model, *options)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: the denoiser was trained for a ViT with {what} ") and err.count("\n") == 1


def test_a_vit_of_random_or_local_weights(run, photos, tmp_path):
    vit = dvt_fast.ViT("vit_tiny_patch16_224", weights="random", seed=3, size=64)
    denoiser = Denoiser(vit.dim, vit.grid, kind="map")
    denoiser.meta = {"vit": vit.describe()}
    denoiser.save(tmp_path / "random.safetensors")
    code, _, err = run(photos / "a.jpg", "--denoiser", "random.safetensors")
    assert code == 0, err
    assert Denoised.load("out/a-denoised.safetensors").meta["vit"] == vit.describe()

    torch.save(vit.model.state_dict(), tmp_path / "tiny.pth")
    denoiser.meta = {"vit": dvt_fast.ViT("vit_tiny_patch16_224", weights=tmp_path / "tiny.pth", size=64).describe()}
    denoiser.save(tmp_path / "local.safetensors")
    code, _, err = run(photos / "a.jpg", "--denoiser", "local.safetensors")
    assert code == 1 and err == (
        "error: the denoiser was trained for vit_tiny_patch16_224 with the weights 'tiny.pth': give that file by "
        "--weights\n"
    )
    assert run(photos / "a.jpg", "--denoiser", "local.safetensors", "--weights", "tiny.pth")[0] == 0


def test_without_options_dvt_mini_and_its_own_denoiser(run, photos, monkeypatch, tmp_path):
    """The one in the package is for features before the norm, and for the last block."""
    vit = dvt_fast.ViT("dvt_mini", norm=False)
    packaged = Denoiser(vit.dim, vit.grid, kind="map")
    packaged.meta = {"vit": vit.describe()}
    packaged.save(tmp_path / "dvt_mini_denoiser.safetensors")
    monkeypatch.setattr("dvt_fast.denoiser.checkpoint.ASSETS", tmp_path)
    code, _, err = run("--image", photos / "a.jpg")
    assert (code, err) == (0, "")
    d = Denoised.load(tmp_path / "out" / "a-denoised.safetensors")
    assert d.meta["vit"] == vit.describe() and d.meta["denoiser"]["kind"] == "map"


def test_stage1_and_json(run, photos, model, tmp_path):
    code, out, err = run(photos / "a.jpg", "--image", photos / "b.png", "--denoiser", model, "--stage1", "--views", 3,
                         "--seed", 7, "--option", "passes=1", "--json", "--patch", "1,2")  # fmt: skip
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "b.png"]
    for row in rows:
        d = Denoised.load(row["features"])
        assert d.meta["stage1"]["views"] == 4 and d.meta["stage1"]["options"] == {"passes": 1}
        assert row["cosine"] == pytest.approx(d.cosines()) and row["shape"] == list(d.raw.shape)
        assert row["seconds"] > 0 and Path(row["picture"]).is_file()


def test_bad_images_do_not_stop_the_others(run, photos, model):
    (photos / "0empty.jpg").write_bytes(b"")
    (photos / "0text.png").write_text("no image")
    code, out, err = run(photos, "--denoiser", model, "--json")
    assert code == 1 and [("error" in json.loads(line)) for line in out.splitlines()] == [True, True, False, False]
    lines = err.splitlines()
    assert lines[0] == "2 failed:" and len(lines) == 3
    for line, name in zip(lines[1:], ("0empty.jpg", "0text.png")):
        assert line.startswith(f"  {photos}/{name}: ")
    assert len(os.listdir("out")) == 4


def test_a_full_disk_ends_the_run(run, photos, model, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = run(photos, "--denoiser", model)
    expected = "error: out/a-denoised.safetensors: cannot be written: No space left on device\n"
    assert (code, out, err, os.listdir("out")) == (1, "", expected, [])


def test_decompositions_in_the_same_folder_stay(run, photos, model):
    (photos / "a-denoised.png").write_bytes((photos / "b.png").read_bytes())
    (photos / "a.safetensors").write_bytes(b"a decomposition")
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    assert run(photos, "--denoiser", model, "--out", photos)[0] == 0
    now = {path.name: path.read_bytes() for path in photos.iterdir()}
    assert {name: now[name] for name in before} == before
    assert {"a-2-denoised.png", "a-denoised-denoised.png", "b-denoised.png"} <= now.keys()


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["photos", "--denoiser", "none.safetensors"], "none.safetensors: no such file"),
        (["photos", "--denoiser", "cut.safetensors"], "cut.safetensors: cannot be read as weights"),
        (["photos", "--denoiser", "photos/b.png"], "photos/b.png: "),
        (
            ["photos", "--denoiser", "hf://nothing"],
            "expected hf://OWNER/REPOSITORY/path/of/the/file, got 'hf://nothing'",
        ),
        (["photos", "--denoiser", "voc_denoised"], "there is no voc_denoised for 'dvt_mini'"),
        (["photos", "--vit", "vit_tiny_patch16_224", "--weights", "random"], "no denoiser comes with vit_tiny_patch16"),
        (["photos", "--denoiser", "model.safetensors", "--patch", "4,0"], "--patch 4,0 is outside the 4 x 4 patches"),
        (["photos", "--stage1", "--views", "many"], "unknown view plan 'many'"),
        (["photos", "--stage1", "--option", "stesp=3"], "unknown option 'stesp' of solver 'direct'"),
        (["photos", "--stage1", "--option", "stage1=3"], "stage1 is set by the command itself, not by --option"),
        (["photos", "--out", "cut.safetensors"], "cut.safetensors: is a file, expected a folder to write to"),
    ],
)
def test_what_fails_for_every_image_is_one_line(run, photos, model, tmp_path, args, message):
    (tmp_path / "cut.safetensors").write_bytes(model.read_bytes()[:500])
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_a_denoiser_that_says_too_little_of_its_vit(run, photos, model):
    data = model.read_bytes()
    told = data.replace(b'\\"size\\"', b'\\"sise\\"')
    assert told != data
    model.write_bytes(told)
    expected = "error: model.safetensors: what it says of the ViT it is for lacks size\n"
    assert run(photos, "--denoiser", "model.safetensors") == (1, "", expected)


@pytest.mark.parametrize(
    "option, published",
    [("--weights", "voc_distilled or imgnet_distilled"), ("--denoiser", "voc_denoised or imgnet_denoised")],
)
def test_help_says_which_names_there_are(run, monkeypatch, option, published):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = run("--help")
    (line,) = [line for line in out.splitlines() if option in line.split()]
    assert code == 0 and "hf://OWNER/REPO/path" in line and published in line


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "expected images, a folder, a pattern, a video, a camera or a bag"),
        (["photos", "--views", "fast"], "is an option of stage 1: give --stage1, too"),
        (["photos", "--option", "passes=1"], "is an option of stage 1: give --stage1, too"),
        (["photos", "--seed", "0"], "is an option of stage 1: give --stage1, too"),
        (["photos", "--patch", "3"], "--patch"),
    ],
)
def test_wrong_usage(run, photos, args, message):
    code, _, err = run(*args)
    assert code == 2 and message in " ".join(err.replace("│", "").split())


def test_ctrl_c_stops_cleanly(photos, model, tmp_path):
    for i in range(30):
        (photos / f"c{i:02}.png").symlink_to(photos / "b.png")
    command = [sys.executable, "-m", "dvt_fast.cli", "denoise", str(photos), "--denoiser", str(model)]
    command += ["--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert "a-denoised.png" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "stopped; the files written so far are whole\n")
    written = sorted(os.listdir(tmp_path / "out"))
    assert 2 <= len(written) < 64 and not [name for name in written if name.startswith(".")]
    for name in written:
        if name.endswith(".safetensors"):
            Denoised.load(tmp_path / "out" / name)
        else:
            Image.open(tmp_path / "out" / name).load()
