"""The command line: what it writes, what it says, and how it fails: one clear line, an exit code, no partial files."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import dvt_fast
from dvt_fast import Decomposition
from dvt_fast.cli.app import app
from dvt_fast.cli.each_image import output_stems

ROOT = Path(__file__).parents[1]
TINY = ["--vit", "vit_tiny_patch16_224", "--weights", "random", "--size", "64", "--views", "realtime"]


@pytest.fixture
def photos(tmp_path):
    """A folder with two good images of different shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.jpg", (60, 80, 3)), ("b.png", (90, 70, 3))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def run(program):
    return program


def test_folder_of_images(run, photos, tmp_path):
    code, out, err = run("decompose", photos, *TINY, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "a.safetensors", "b.png", "b.safetensors"]
    assert out.splitlines()[0].startswith(f"{photos}/a.jpg: {tmp_path}/out/a.png and a.safetensors (")
    d = Decomposition.load(tmp_path / "out" / "a.safetensors")
    assert d.raw.shape == (4, 4, 192) and d.meta["vit"]["weights"] == "random, seed 0"
    np.testing.assert_allclose(d.semantics + d.artifacts + d.residual, d.raw, atol=1e-4)
    with Image.open(tmp_path / "out" / "b.png") as picture:
        assert picture.height > 500


def test_options_reach_the_solver(run, photos, tmp_path):
    options = [
        "--views",
        3,
        "--layer",
        2,
        "--no-norm",
        "--stride",
        8,
        "--seed",
        7,
        "-o",
        "passes=1",
        "-o",
        "grid=[5,6]",
    ]
    code, _, err = run("decompose", photos / "a.jpg", *TINY, *options, "--patch", "1,2", "--threads", 1)
    assert code == 0, err
    d = Decomposition.load(tmp_path / "out" / "a.safetensors")
    assert d.raw.shape == (7, 7, 192)
    assert d.meta["vit"] | {"layer": 2, "norm": "none", "stride": [8, 8]} == d.meta["vit"]
    assert (d.meta["solver"], d.meta["views"], d.meta["seed"]) == ("direct", 4, 7)
    assert d.meta["options"] == {"passes": 1, "grid": [5, 6]}
    assert load_file(tmp_path / "out" / "a.safetensors")["field.nodes"].shape == (5, 6, 192)
    dvt_fast.set_num_threads(0)


@pytest.mark.parametrize("solver, options", [("average", {}), ("hashgrid", {"steps": 20, "seed": 5})])
def test_other_solvers(run, photos, tmp_path, solver, options):
    steps = ["-o", "steps=20"] if options else []
    code, _, err = run("decompose", photos / "a.jpg", *TINY, "--solver", solver, "--seed", 5, *steps)
    assert code == 0, err
    d = Decomposition.load(tmp_path / "out" / "a.safetensors")
    assert (d.meta["solver"], d.meta["options"]) == (solver, options)
    assert np.isfinite(d.query([[0.5, 0.5]])).all()


def test_json_is_one_object_a_line(run, photos, tmp_path):
    (photos / "c.png").write_bytes(b"")
    code, out, err = run("decompose", photos / "*.*g", *TINY, "--json")
    good, _, bad = (json.loads(line) for line in out.splitlines())
    assert code == 1 and "c.png" in err
    assert good["shape"] == [4, 4, 192] and good["seconds"] > 0
    assert Path(good["features"]).is_file() and Path(good["picture"]).is_file()
    assert bad["image"].endswith("c.png") and "empty" in bad["error"]


def test_bad_images_do_not_stop_the_others(run, photos, tmp_path):
    (photos / "0empty.jpg").write_bytes(b"")
    (photos / "0text.png").write_text("no image")
    (photos / "0cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:600])
    code, out, err = run("decompose", photos, *TINY)
    assert code == 1 and len(out.splitlines()) == 2
    assert sorted(os.listdir("out")) == ["a.png", "a.safetensors", "b.png", "b.safetensors"]
    lines = err.splitlines()
    assert lines[0] == "3 failed:" and len(lines) == 4
    for line, name in zip(lines[1:], ("0cut.jpg", "0empty.jpg", "0text.png")):
        assert line.startswith(f"  {photos}/{name}: ")


def test_an_unexpected_failure_is_reported_like_any_other(run, photos, monkeypatch):
    def fail_on_a(image, *args, **kwargs):
        raise RuntimeError("not enough\nmemory")

    monkeypatch.setattr("dvt_fast.stage1.decompose", fail_on_a)
    monkeypatch.setattr("dvt_fast.decompose", fail_on_a, raising=False)
    code, _, err = run("decompose", photos / "a.jpg", *TINY)
    assert code == 1 and "a.jpg: RuntimeError: not enough memory (--debug shows where)" in err
    assert CliRunner().invoke(app, ["decompose", str(photos / "a.jpg"), *TINY, "--debug"]).exc_info[0] is RuntimeError


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file or folder"),
        (["empty"], "no images found in empty"),
        (["photos", "--vit", "vit_tinny_patch16_224"], "unknown ViT 'vit_tinny_patch16_224'; near it: vit_tiny"),
        (["photos", "--weights", "none.pth"], "none.pth: no such file"),
        (["photos", "--weights", "other.safetensors"], "other.safetensors: does not fit vit_tiny_patch16_224: missing"),
        (["photos", "--weights", "text.pth"], "text.pth: "),
        (["photos", "--size", "65"], "size 65 does not fit patches of 16"),
        (["photos", "--stride", "17"], "stride must be at most the patch size 16"),
        (["photos", "--layer", "12"], "layer must be from -12 to 11"),
        (["photos", "--views", "many"], "unknown view plan 'many'; expected a number or one of realtime, fast"),
        (["photos", "--views", "0"], "a view plan needs at least 1 crop"),
        (["photos", "-o", "stesp=3"], "unknown option 'stesp' of solver 'direct'; expected one of grid, smoothness"),
        (["photos", "-o", "stesp=3", "--solver", "hashgrid"], "unknown option 'stesp' of solver 'hashgrid'"),
        (["photos", "-o", "grid=ab", "--solver", "average"], "grid must be at least 2 nodes a side"),
        (["photos", "-o", "seed=3", "--solver", "hashgrid"], "seed is set by the command itself, not by --option"),
        (["photos", "-o", "steps"], "--option: expected NAME=VALUE, got 'steps'"),
        (["photos", "-o", "views=3"], "views is set by the command itself, not by --option: see --help"),
        (["photos", "-o", "progress=1"], "unknown option 'progress' of solver 'direct'"),
        (["photos", "-o", "batch_size=1", "--solver", "average"], "unknown option 'batch_size' of solver 'average'"),
        (["photos", "--patch", "4,0"], "--patch 4,0 is outside the 4 x 4 patches"),
        (["photos", "--out", "text.pth"], "text.pth: is a file, expected a folder to write to"),
        (["photos", "--out", "text.pth/out"], "text.pth/out: cannot be written to: Not a directory"),
        (["photos", "--out", "/proc/out"], "/proc/out: cannot be written to: No such file or directory"),
    ],
)
def test_what_fails_for_every_image_is_one_line(run, photos, tmp_path, args, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("no weights")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    code, out, err = run("decompose", *TINY, *args)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


@pytest.mark.parametrize(
    "args",
    [
        ["--size", "64by64"],
        ["--patch", "3"],
        ["--solver", "magic"],
        ["--threads", "-1"],
        ["--nonsense"],
    ],
)
def test_wrong_usage(run, photos, args):
    code, _, err = run("decompose", photos, *TINY, *args)
    assert code == 2 and args[0].lstrip("-")[0] in err


def test_folder_without_permission(run, photos, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "out").mkdir(mode=0o555)
    code, _, err = run("decompose", photos, *TINY)
    assert code == 1 and err == "error: out: cannot be written to: Permission denied\n"


@pytest.fixture
def size_limit():
    """A limit on the size of files: writing fails in the middle, as on a full disk, for large files only."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("limit, suffix", [(1_000, "safetensors"), (60_000, "png")])
@pytest.mark.parametrize("older", [False, True])
def test_both_files_or_neither(run, photos, tmp_path, size_limit, limit, suffix, older):
    """The second limit lets the features pass and not the picture; the old pair must then stay a pair."""
    before = {}
    if older:
        assert run("decompose", photos, *TINY, "-o", "grid=3")[0] == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    size_limit(limit)
    code, out, err = run("decompose", photos, *TINY, "-o", "grid=2")
    size_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    lines = [f"  {photos}/{n}: out/{n[0]}.{suffix}: cannot be written: File too large" for n in ("a.jpg", "b.png")]
    assert (code, out, err.splitlines()) == (1, "", ["2 failed:", *lines])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_one_name_that_cannot_be_written_does_not_stop_the_others(run, photos, tmp_path):
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    code, out, err = run("decompose", photos, *TINY)
    assert code == 1 and len(out.splitlines()) == 1
    assert err == f"1 failed:\n  {photos}/a.jpg: out/a.png: cannot be written: Is a directory\n"
    assert sorted(os.listdir("out")) == ["a.png", "b.png", "b.safetensors"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_what_fails_every_file_ends_the_run_and_failures_are_reported(run, photos, monkeypatch, number):
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    (photos / "0empty.jpg").write_bytes(b"")
    monkeypatch.setattr(os, "fsync", full)
    code, out, err = run("decompose", photos, *TINY)
    first, second, third = err.splitlines()
    assert (code, out, first) == (1, "", "1 failed:")
    assert second.startswith(f"  {photos}/0empty.jpg: ")
    assert third == f"error: out/a.safetensors: cannot be written: {os.strerror(number)}"


def test_ctrl_c_stops_cleanly(photos, tmp_path):
    for i in range(30):
        (photos / f"c{i:02}.png").symlink_to(photos / "b.png")
    command = [sys.executable, "-m", "dvt_fast.cli", "decompose", str(photos), *TINY, "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert "a.png" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "stopped; the files written so far are whole\n")
    written = sorted(os.listdir(tmp_path / "out"))
    assert 2 <= len(written) < 64 and not [name for name in written if name.startswith(".")]
    for name in written:
        if name.endswith(".safetensors"):
            Decomposition.load(tmp_path / "out" / name)
        else:
            Image.open(tmp_path / "out" / name).load()


def test_names_are_distinct_and_spare_the_inputs(tmp_path):
    images = [
        Path("x/a.jpg"),
        Path("y/a.png"),
        Path("y/A.png"),
        Path("a-2.jpg"),
        tmp_path / "b.png",
        Path("c.tar.gz.png"),
    ]
    stems = output_stems(images, tmp_path)
    assert stems == ["a", "a-2", "A-3", "a-2-2", "b-2", "c.tar.gz"]


def test_two_images_of_one_name(run, photos, tmp_path):
    Image.open(photos / "b.png").save(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    code, _, err = run("decompose", photos / "a.jpg", photos / "a.png", *TINY, "--out", photos)
    assert code == 0, err
    assert (photos / "a.png").read_bytes() == before
    assert {"a-2.png", "a-2.safetensors", "a-3.png", "a-3.safetensors"} <= set(os.listdir(photos))


def test_a_forced_instruction_set_that_is_none(photos):
    command = [sys.executable, "-m", "dvt_fast.cli", "decompose", str(photos), *TINY]
    env = os.environ | {"DVT_FAST_ISA": "mmx"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 1
    assert done.stderr == "error: cpu: DVT_FAST_ISA must be generic, avx2, avx512 or neon, got 'mmx'\n"


def test_no_network(photos, tmp_path):
    """A ViT whose weights are neither here nor reachable: one line that says what to do."""
    command = [sys.executable, "-m", "dvt_fast.cli", "decompose", str(photos), "--vit", "vit_tiny_patch16_224"]
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: no network: http://127.0.0.1:9 cannot be reached")
    assert "--weights" in done.stderr or "weights=" in done.stderr


def test_version_and_help(run):
    assert run("--version")[1] == f"dvt-fast {dvt_fast.__version__}\n"
    code, out, _ = run("--help")
    assert code == 0 and "decompose" in out and "doctor" in out


def test_doctor(run):
    code, out, err = run("doctor", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["dvt_fast"] == dvt_fast.__version__ and report["threads"] == dvt_fast.get_num_threads()
    cpu = report["backends"][0]
    assert cpu["available"] and cpu["instruction_sets"][cpu["active"]] == ""
    assert report["packages"]["numpy"] == np.__version__
    text = run("doctor")[1]
    assert f"instruction set {cpu['active']}" in text and np.__version__ in text


def test_doctor_says_what_is_missing(run, monkeypatch):
    from dvt_fast.cli import doctor

    monkeypatch.setattr(doctor, "PACKAGES", doctor.PACKAGES | {"no-such-package": ("something", "vit")})
    code, out, _ = run("doctor")
    assert code == 0 and "no-such-package (for something): pip install 'dvt-fast[vit]'" in out


def test_doctor_lists_every_package_of_the_extras():
    tomllib = pytest.importorskip("tomllib")
    from dvt_fast.cli.doctor import PACKAGES

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"]} | project["optional-dependencies"]
    for extra in {"", "cli", "vit", "train"} & extras.keys():
        for requirement in extras[extra]:
            name = re.match(r"[\w-]+", requirement).group()
            assert name == "dvt-fast" or PACKAGES[name][1] == extra, requirement


def test_doctor_where_nothing_can_run(tmp_path):
    command = [sys.executable, "-m", "dvt_fast.cli", "doctor"]
    env = os.environ | {"DVT_FAST_ISA": "mmx", "DVT_FAST_CUDA_LIBRARY": str(tmp_path / "absent.so")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 1 and done.stderr == ""
    assert "cpu: DVT_FAST_ISA must be generic, avx2, avx512 or neon, got 'mmx'" in done.stdout
