"""`dvt-fast dataset`: what it prints, its exit codes, and what is wrong in one line."""

import json
import re
from functools import partial

import pytest
from PIL import Image

from dataset_samples import TINY_ARGUMENTS, content
from dvt_fast import PairDataset

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def run(program):
    return partial(program, "dataset")


def test_the_command(run, dataset_photos, finished_dataset, tmp_path):
    code, out, err = run(dataset_photos, "--out", "out", *TINY_ARGUMENTS, "--workers", 2)
    assert (code, err) == (1, f"1 failed:\n  {dataset_photos}/bad.png: not an image that Pillow can read\n")
    first, second = out.splitlines()
    assert first.startswith("14 images: 12 done, 0 done before, 1 duplicates, 1 failed; ")
    assert second.endswith(" bytes an image, 1.9 times less than raw and semantics in float32")
    assert content(tmp_path / "out") == content(finished_dataset)  # two workers or none: the same bytes

    here = [*TINY_ARGUMENTS, "--workers", 0, "--out", "out"]
    code, out, _ = run(dataset_photos / "p01.png", dataset_photos / "p02.png", *here, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["made"], result["skipped"], result["kept"]) == (0, 2, 11)

    assert run("--out", "out", "--check") == (0, "12 pairs: every file is as the manifest has it\n", "")
    pair = tmp_path / "out" / PairDataset(tmp_path / "out").records[0].file
    pair.unlink()
    code, out, err = run("--out", "out", "--check", "--json")
    assert (code, json.loads(out)["good"]) == (1, False) and err.startswith(f"1 missing:\n  {pair}: missing (the pair")
    code, out, err = run(dataset_photos, *here, "--prune")
    assert code == 1 and "1 done, 11 done before" in out
    assert content(tmp_path / "out") == content(finished_dataset)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ([], 2, "some are needed"),
        (["--check", "photos"], 2, "none are needed with --check"),
        (["photos", "--keep", "raw"], 2, "'raw' is not one of"),
        (["photos", "--workers", "-1"], 2, "--workers"),
        (["photos", "--size", "64by64"], 2, "--size"),
        (["empty"], 1, "error: no images found in empty\n"),
        (["photos", "-o", "seed=3"], 1, "error: seed is set by the command itself, not by --option: see --help\n"),
        (["photos", "-o", "coords=official"], 1, "error: unknown option 'coords' of solver 'direct'"),
        (["photos", "--out", "text"], 1, "text: is a file, expected a folder to write to\n"),
        (["photos", "--out", "/proc/out"], 1, "error: /proc/out: cannot be written to: No such file or directory\n"),
        (["photos", "--out", "nosuch://bucket"], 1, "error: nosuch://bucket: not a URL that can be used: "),
        (["--check", "--out", "empty"], 1, "empty: not a dataset, as it holds no dataset.json\n"),
    ],
)
def test_what_is_wrong_is_one_line(run, dataset_photos, tmp_path, arguments, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("x")
    (tmp_path / "photos").symlink_to(dataset_photos)
    settings = [] if "--check" in arguments else [*TINY_ARGUMENTS, "--workers", 0]
    found, out, err = run(*settings, *arguments)
    assert (found, out) == (code, "") and message in err
    assert code == 2 or (err.startswith("error: ") and err.count("\n") == 1)


def test_a_long_list_of_failures_is_cut(run, tmp_path, monkeypatch):
    from dvt_fast.cli import dataset

    monkeypatch.setattr(dataset, "SHOWN", 3)
    for i in range(5):
        (tmp_path / f"{i}.png").write_text("x")
    code, _, err = run(*sorted(tmp_path.glob("*.png")), *TINY_ARGUMENTS, "--workers", 0)
    assert code == 1 and err.splitlines()[0] == "5 failed:" and err.splitlines()[-1] == "  and 2 more"
    assert len(err.splitlines()) == 5


def test_a_line_now_and_then_where_there_is_no_terminal(run, dataset_photos, monkeypatch):
    from dvt_fast.cli.progress import Tally

    monkeypatch.setattr(Tally, "LINE_EVERY", 0.0)
    _, _, err = run(*sorted(dataset_photos.glob("p0[12].png")), "--out", "o", *TINY_ARGUMENTS, "--workers", 0)
    first, second = err.splitlines()
    assert first.startswith("1 of 2 images, ") and re.fullmatch(r"2 of 2 images, \S+/s, 0:00:00 left", second)


def test_a_run_that_finished_nothing_binds_nobody(run, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    code, *_ = run("bad", *TINY_ARGUMENTS, "--workers", 0, "--out", "out")
    assert code == 1 and (tmp_path / "out" / "dataset.json").is_file()
    Image.new("RGB", (80, 60), "red").save(tmp_path / "bad" / "a.png")
    code, *_ = run("bad", *TINY_ARGUMENTS, "--workers", 0, "--dtype", "int8", "--out", "out")
    assert code == 0 and PairDataset(tmp_path / "out").settings["dtype"] == "int8"
    code, _, err = run("bad", *TINY_ARGUMENTS, "--workers", 0, "--out", "out")
    assert code == 1 and 'dtype is "int8" there and "float16" here' in err
