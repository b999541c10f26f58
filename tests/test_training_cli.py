"""`dvt-fast train` on real datasets and images: in full, of semantics, made on the fly; killed; in two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dvt_fast import Denoiser, ViT
from dvt_fast.errors import Cancelled, InputError

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
pytest.importorskip("tensorboard")

from dvt_fast.dataset import PairDataset, build_dataset  # noqa: E402
from dvt_fast.denoiser import KINDS  # noqa: E402
from dvt_fast.training import train  # noqa: E402
from dvt_fast.training.crops import box_of, crop_pixels, crop_semantics  # noqa: E402
from dvt_fast.training.sources import StoredPairs  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ROOT = Path(__file__).parents[1]
VIT = {"name": "dvt_mini", "size": 64, "norm": False}
STAGE1 = ["--size", "64", "--no-norm", "--views", "realtime"]
SHORT = {"steps": 12, "batch": 4, "every": 4, "held_out": 0.2, "blr": 2e-3, "log_every": 2}
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Ten photos, and datasets of them: in full, and of semantics."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(10):
        picture = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((80, 60), Image.Resampling.BICUBIC)
        picture.save(folder / "photos" / f"{i}.png")
    for keep in ("both", "semantics"):
        build_dataset(folder / "photos", folder / keep, VIT, views="realtime", keep=keep, workers=0)
    return folder


@pytest.fixture
def run(program):
    return program


def weights_of(path):
    from safetensors.numpy import load_file

    return load_file(path)


# Where the pairs come from


def test_a_dataset(run, work, tmp_path):
    code, out, err = run("train", work / "both", "--out", "den", *ARGUMENTS, "--json")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    expected = train(work / "both", tmp_path / "python", **SHORT)
    assert summary | {"seconds": 0, "images_per_second": 0} == expected.as_dict() | {
        "seconds": 0, "images_per_second": 0, "file": "den/denoiser.safetensors",
    }  # fmt: skip
    assert Path("den/denoiser.safetensors").read_bytes() == Path(expected.file).read_bytes()
    assert summary["images"] + summary["held_out"] == 10 and summary["step"] == 12
    vit = ViT(**VIT)
    denoiser = Denoiser.from_checkpoint("den/denoiser.safetensors")
    denoiser.check(vit)
    assert denoiser.meta["vit"] == vit.describe()
    code, out, err = run("train", work / "both", "--out", "den", *ARGUMENTS)
    assert (code, err) == (0, "") and out.startswith("den/denoiser.safetensors: 12 steps from step 12 on ")
    assert f"was {summary['score']['before']:.4f} ({summary['held_out']} images)" in out


def test_every_kind_can_be_asked_for():
    from dvt_fast.cli.train import Kind

    assert [kind.value for kind in Kind] == list(KINDS)


def test_raw_features_computed_anew_are_those_kept(work, tmp_path):
    """Small images are not shrunk on the way, so that the same pixels reach the ViT: the same bits come out."""
    for memory in (10**9, 0):
        full = train(work / "both", tmp_path / f"full {memory}", memory=memory, **SHORT)
        half = train(work / "semantics", tmp_path / f"half {memory}", memory=memory, **SHORT)
        fresh = train(
            work / "photos", tmp_path / f"fresh {memory}", on_the_fly=True, vit=VIT, views="realtime", memory=memory,
            **SHORT,
        )  # fmt: skip
        assert full.score == half.score == fresh.score
        for other in (half, fresh):
            found, expected = weights_of(other.file), weights_of(full.file)
            assert all((found[name] == expected[name]).all() for name in expected)


def test_crops_are_of_images(work, tmp_path):
    """The raw features are those of the crop, not a crop of features: its artifacts are where they always are."""
    dataset, vit = PairDataset(work / "semantics"), ViT(**VIT)
    source = StoredPairs(dataset, vit)
    whole, crop = source.load([(3, 0), (3, 1)])
    box = box_of(source.hashes[3], 1)
    pixels = crop_pixels(dataset.open_image(3), box, vit.size)
    expected = vit.features(vit.to_input(pixels[None]))[0].numpy()
    np.testing.assert_allclose(crop["raw"], expected, rtol=1e-3, atol=0.05)
    assert (crop["target"] == crop_semantics(whole["target"], box, vit)).all()
    one, several = (train(work / "semantics", tmp_path / str(n), variants=n, **SHORT) for n in (1, 8))
    assert one.score["before"] == several.score["before"] and one.score != several.score


def test_a_dataset_without_its_images_serves_whole_ones(run, work, tmp_path):
    shutil.copytree(work / "both", tmp_path / "both")
    moved = [f"--images={tmp_path}"]
    code, _, err = run("train", tmp_path / "both", "--out", tmp_path / "run", *moved, *ARGUMENTS)
    assert code == 1 and "variants=1 does without the images" in err
    code, *_ = run("train", tmp_path / "both", "--out", tmp_path / "run", "--variants=1", *moved, *ARGUMENTS)
    assert code == 0


def test_on_the_fly_leaves_no_pairs(run, work, tmp_path):
    shutil.copytree(work / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "bad.png").write_text("no image")
    shutil.copy(tmp_path / "photos" / "1.png", tmp_path / "photos" / "again.png")
    code, out, err = run("train", "photos", "--on-the-fly", *STAGE1, "--out", "den", *ARGUMENTS)
    assert code == 1 and out.startswith("den/denoiser.safetensors: 12 steps on ")
    assert err == f"1 failed:\n  {tmp_path}/photos/bad.png: not an image that Pillow can read\n"
    names = sorted(path.name for path in Path("den").iterdir())
    assert names == [
        "checkpoint-00000008.safetensors", "checkpoint-00000012.safetensors", "denoiser.safetensors", "log.jsonl",
        "tensorboard",
    ]  # fmt: skip
    training = Denoiser.from_checkpoint("den/denoiser.safetensors").meta["training"]
    assert training["data"]["images"] + training["data"]["held_out"] == 10  # the second of equal ones is not counted


def test_a_dataset_in_a_bucket(work, tmp_path):
    import fsspec

    url = "memory://pairs-for-training"
    fsspec.filesystem("memory").put(str(work / "both") + "/", "/pairs-for-training", recursive=True)
    there = train(url, tmp_path / "there", memory=0, workers=3, **SHORT)
    here = train(work / "both", tmp_path / "here", **SHORT)
    assert Path(there.file).read_bytes() == Path(here.file).read_bytes()


# Images that are not what they were


def test_images_are_let_go_when_they_are_checked(work, tmp_path):
    opened, alive = [], []

    class Watched(PairDataset):
        def open_image(self, i):
            image = super().open_image(i)
            opened.append(weakref.ref(image))
            return image

    def count(done, total, what):
        if what == "images":
            alive.append(sum(image() is not None for image in opened))

    train(Watched(work / "semantics"), tmp_path, workers=1, progress=count, **(SHORT | {"steps": 1}))
    assert len(alive) == 10 and max(alive) <= 2 and alive[-1] == 0


def test_images_that_changed_or_vanished(run, work, tmp_path):
    shutil.copytree(work / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "3.png").unlink()
    shutil.copy(tmp_path / "photos" / "1.png", tmp_path / "photos" / "5.png")
    code, out, err = run("train", work / "semantics", "--images", "photos", "--out", "den", *ARGUMENTS, "--json")
    summary = json.loads(out)
    assert code == 1 and summary["images"] + summary["held_out"] == 8 and len(summary["failed"]) == 2
    assert err.splitlines() == [
        "2 failed:",
        f"  {tmp_path}/photos/3.png: no such file",
        f"  {tmp_path}/photos/5.png: its content has changed since its pair was made",
    ]
    (tmp_path / "photos" / "4.png").unlink()
    code, out, err = run("train", work / "semantics", "--images", "photos", "--out", "den", *ARGUMENTS)
    assert (code, out) == (1, "") and err.count("\n") == 1
    why = f"(3 cannot be used; the first: {tmp_path}/photos/3.png: no such file)"
    assert f"other settings: the images are not the same, 8 there and 7 here {why}: give the same" in err
    shutil.rmtree(tmp_path / "photos")
    code, out, err = run("train", work / "semantics", "--images", "photos", "--out", "den2", *ARGUMENTS)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("error: none of the dataset's 10 source images can be used; the first: ")


def test_an_image_that_changes_during_training(work, tmp_path):
    shutil.copytree(work / "photos", tmp_path / "photos")

    def spoil(done, total, what):
        if what == "steps":
            for path in (tmp_path / "photos").iterdir():
                path.write_bytes(b"other")

    with pytest.raises(Exception, match=r"photos/\d\.png: its content has changed since training began") as caught:
        train(
            tmp_path / "photos", tmp_path / "out", on_the_fly=True, vit=VIT, views="realtime", memory=0, progress=spoil,
            **(SHORT | {"steps": 100}),
        )  # fmt: skip
    assert caught.typename == "InputError" and "\n" not in str(caught.value)


# What is refused


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere"], "CWD/nowhere: not a dataset, as it holds no dataset.json"),
        (["DATA", "--batch", "0"], "batch must be a whole number of at least 1"),
        (["DATA", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["DATA", "--heads", "5"], "num_heads must divide dim"),
        (["DATA", "--variants", "0"], "variants must be a whole number of at least 1"),
        (["PHOTOS", "--on-the-fly", "--views", "many"], "unknown view plan 'many'"),
        (["PHOTOS", "--on-the-fly", "-o", "stesp=3"], "unknown option 'stesp' of solver 'direct'"),
        (["empty", "--on-the-fly"], "no images found in empty"),
        (["bad", "--on-the-fly"], "none of 1 images can be used; the first: "),
        (["SEMANTICS", "--weights", "random"], "the ViT of this dataset: made with other settings: vit.fingerprint is"),
        (["DATA", "--out", "text"], "text: is a file, expected a folder to write to"),
        (["DATA", "--out", "s3://bucket/run"], "out must be a folder, got 's3://bucket/run', a URL"),
    ],
)
def test_one_line(run, work, tmp_path, args, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    (tmp_path / "text").write_text("")
    names = {"DATA": work / "both", "SEMANTICS": work / "semantics", "PHOTOS": work / "photos"}
    code, out, err = run("train", *(names.get(arg, arg) for arg in args))
    assert (code, out) == (1, "") and err.startswith(f"error: {message.replace('CWD', str(tmp_path))}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "args", [["a", "b"], ["DATA", "--layer", "3"], ["DATA", "--views", "fast"], ["DATA", "--kind", "blok"], []]
)
def test_wrong_usage(run, work, args):
    code, _, err = run("train", *(work / "both" if arg == "DATA" else arg for arg in args))
    assert code == 2 and "Usage" in err


def test_the_option_that_a_dataset_has_itself_is_named(run, work):
    code, _, err = run("train", work / "both", "--weights", "a.pth", "--size", "64")
    assert code == 2 and "Invalid value for --size: only with --on-the-fly" in err


def test_a_dataset_of_another_vit_is_refused(run, work, tmp_path):
    """The same images and options: the checkpoint is of other features."""
    assert run("train", work / "both", "--out", "den", *ARGUMENTS)[0] == 0
    build_dataset(work / "photos", tmp_path / "other", VIT | {"layer": 2}, views="fast", workers=0)
    code, _, err = run("train", "other", "--out", "den", *ARGUMENTS)
    assert code == 1 and err.count("\n") == 1
    assert "vit.layer is 5 there and 2 here" in err and "dataset.views is [[2" in err


# What happens to processes


def command(*args):
    return [sys.executable, "-m", "dvt_fast.cli", "train", *map(str, args), "--threads", "1"]


def files_of(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".safetensors"}


def last_step(out):
    lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").is_file() else []
    return max((json.loads(line)["step"] for line in lines[:-1]), default=0)


@pytest.mark.parametrize(
    "given, variants, stage1",
    [
        ("semantics", 4, {}),
        ("photos", 4, {"on_the_fly": True, "vit": VIT, "views": "realtime"}),
        ("photos", 1, {"on_the_fly": True, "vit": VIT, "views": "realtime"}),
    ],
)
def test_a_resumed_run_of_crops_equals_one_that_never_stopped(given, variants, stage1, work, tmp_path):
    """Raw features computed anew, semantics too: what was kept in memory is found again, to the last bit."""
    options = SHORT | {"variants": variants, "memory": 2_000_000} | stage1
    for stop in (6, 11):
        with pytest.raises(Cancelled):
            train(
                work / given, tmp_path / "stopped", workers=2,
                progress=lambda done, total, what, stop=stop: (what, done) != ("steps", stop), **options,
            )  # fmt: skip
    assert train(work / given, tmp_path / "stopped", workers=0, **options).resumed_from == 8
    train(work / given, tmp_path / "whole", **options)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_kill_9_between_checkpoints(work, tmp_path):
    """Twice, in runs with readers; then the rest with none. Every byte is as of a run that nothing disturbed."""
    options = {"steps": 500, "batch": 4, "every": 100, "held_out": 0.2, "variants": 1, "memory": 0}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    out = tmp_path / "killed"
    for until in (130, 330):
        arguments += ["--workers=2", "--log-every=1"]
        with subprocess.Popen(command(work / "both", "--out", out, *arguments), cwd=ROOT) as process:
            while last_step(out) < until and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL and until <= last_step(out) < 500
    assert "denoiser.safetensors" not in files_of(out)
    summary = train(work / "both", out, workers=0, **options)
    assert summary.resumed_from in (300, 400)
    train(work / "both", tmp_path / "whole", **options)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_ctrl_c(work, tmp_path):
    arguments = ["--out", tmp_path / "out", "--steps=100000", "--every=50", "--log-every=1", "--variants=1"]
    with subprocess.Popen(command(work / "both", *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while last_step(tmp_path / "out") < 60 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "stopped; the same command goes on from the last checkpoint\n")
    assert all(name.startswith("checkpoint-") for name in files_of(tmp_path / "out"))


def test_two_processes_are_as_one(work, tmp_path):
    """torchrun, gloo, half of each batch on either side: the same weights up to rounding, and one writer."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    args = command(work / "both", "--out", tmp_path / "two", *ARGUMENTS, "--json")[1:]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *args], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # one line: the other process prints nothing
    one = train(work / "both", tmp_path / "one", **SHORT)
    assert summary["score"] == pytest.approx(one.score, abs=1e-5) and summary["images"] == one.images
    found, expected = (weights_of(path) for path in (summary["file"], one.file))
    start = train(work / "both", tmp_path / "start", **(SHORT | {"blr": 1e-30, "final_lr": 0.0}))
    for name, before in weights_of(start.file).items():
        moved = np.abs(expected[name] - before).max()
        assert np.abs(found[name] - expected[name]).max() < 1e-3 * max(moved, 1e-6), name
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    for line, other in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert line.keys() == other.keys() and line["step"] == other["step"]
        for number in line.keys() - {"images_per_second"}:
            assert line[number] == pytest.approx(other[number], rel=1e-4)


def test_two_processes_go_on_where_only_the_first_has_the_checkpoints(work, tmp_path):
    """As on two nodes without a shared folder: each process has its own current folder."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    with pytest.raises(Cancelled):
        train(work / "both", tmp_path / "0" / "out", progress=lambda done, *_: done < 6, **(SHORT | {"variants": 1}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    args = ["bash", "-c", 'cd "$RANK" && exec "$@"', "bash", *command(work / "both", "--out", "out", *ARGUMENTS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, *args, "--variants=1", "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["resumed_from"] == 4 and list((tmp_path / "1").iterdir()) == []
    one = train(work / "both", tmp_path / "one", **(SHORT | {"variants": 1}))
    assert summary["score"] == pytest.approx(one.score, abs=1e-5)


def test_a_batch_that_cannot_be_shared(work, tmp_path, monkeypatch):
    monkeypatch.setattr("dvt_fast.training.run.launch", lambda device, precision: SimpleNamespace(world_size=3))
    with pytest.raises(InputError, match="batch 4 does not divide into 3 processes"):
        train(work / "both", tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()
