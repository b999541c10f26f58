"""The files of a dataset: what a pair holds, reading it back, files that are damaged or forbidden, and the check."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from safetensors.numpy import load, save_file

import dvt_fast
from dataset_samples import build, content
from dvt_fast import InputError, NonFiniteError, OutputError, PairDataset, check_dataset
from dvt_fast.dataset.pairs import pack_pair, unpack_pair

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize(
    "dtype, keep, size", [("float16", "semantics", 2), ("int8", "both", 2), ("int8", "semantics", 1)]
)
def test_smaller_pairs(dataset_photos, finished_dataset, tmp_path, dtype, keep, size):
    """size: bytes of a channel of a token, of both parts together."""
    out = tmp_path / "out"
    build(dataset_photos, out, dtype=dtype, keep=keep)
    small, full = PairDataset(out), PairDataset(finished_dataset)
    for i in range(len(full)):
        (raw, semantics), (expected_raw, expected) = small.read(i), full.read(i)
        assert (raw is None) == (keep == "semantics")
        # half a step of 127, and float16's own error in `full`
        bound = np.abs(expected).max(-1, keepdims=True) / 254 + 1e-3 * np.abs(expected) if dtype == "int8" else 0
        assert (np.abs(semantics - expected) <= bound).all()
        if raw is not None:
            bound = np.abs(expected_raw).max(-1, keepdims=True) / 254 + 1e-3 * np.abs(expected_raw)
            assert (np.abs(raw - expected_raw) <= bound).all()
    assert small.records[0].file_bytes < 4 * 4 * 192 * size + 1000
    assert check_dataset(out).good


def test_one_scale_a_token_keeps_the_small_ones():
    """With one scale for all, tokens of a 25th of the largest norm would have 5 levels."""
    values = np.random.default_rng(0).standard_normal((5, 6, 32)).astype(np.float32)
    values[0, 0] *= 1000
    values[1, 1] = 0
    back = unpack_pair(pack_pair(None, values, "int8", {}), "x").semantics
    error = np.linalg.norm(back - values, axis=-1) / np.maximum(np.linalg.norm(values, axis=-1), 1e-9)
    assert error.max() < 0.02 and (back[1, 1] == 0).all()


def test_bytes_depend_on_values_and_record_alone():
    values = np.random.default_rng(0).standard_normal((2, 5, 6, 32)).astype(np.float32)
    first, second = (pack_pair(values[0], values[1].copy(), "int8", {"hash": "ab", "width": 3}) for _ in range(2))
    assert first == second
    assert set(load(first)) == {"raw", "raw.scale", "semantics", "semantics.scale"}
    pair = unpack_pair(first, "x")
    assert pair.header | {"hash": "ab", "width": 3, "shape": [5, 6, 32]} == pair.header


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_values_beyond_float16_are_refused(dtype):
    values = np.full((1, 1, 4), 65504, np.float32)
    assert unpack_pair(pack_pair(None, values, dtype, {}), "x").semantics.max() == pytest.approx(65504, rel=1e-6)
    with pytest.raises(NonFiniteError, match=r"semantics holds values to 66000, and float16 ends at 65504$"):
        pack_pair(None, values / 65504 * 66000, dtype, {})
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="raw holds NaN or infinity"):
            pack_pair(values * bad, values, dtype, {})


@pytest.mark.parametrize("value", [2e-43, 1e-44, 1e-38])
def test_a_scale_that_is_rounded_does_not_wrap(value):
    values = np.full((1, 1, 4), value, np.float32)
    values[..., 0] *= -1
    back = unpack_pair(pack_pair(None, values, "int8", {}), "x").semantics
    assert np.abs(back - values).max() <= max(2.3e-44, value / 100)


def test_images_that_moved_are_found(dataset_copies, tmp_path):
    images, out = dataset_copies
    os.rename(images, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"photos/more/p00.png: no such file"):
        PairDataset(out).open_image(0)
    dataset = PairDataset(out, images=tmp_path / "elsewhere")
    assert dataset.open_image(0).size == (80, 60)
    shutil.copy(tmp_path / "elsewhere" / "p01.png", tmp_path / "elsewhere" / "more" / "p00.png")
    with pytest.raises(InputError, match=r"more/p00.png: its content has changed since its pair was made"):
        dataset.open_image(0)


def test_a_manifest_of_other_settings_is_refused(dataset_copies, dataset_photos, tmp_path):
    images, out = dataset_copies
    build(dataset_photos / "p01.png", tmp_path / "other", seed=9)
    shutil.copy(tmp_path / "other" / "manifest.parquet", out)
    for read in (lambda: build(images, out), lambda: PairDataset(out)):
        with pytest.raises(InputError, match=r"manifest.parquet: made with other settings: seed is 9 there and 0 here"):
            read()
    (out / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"manifest.parquet: made with other settings"):
        build(images, out)


@pytest.mark.parametrize("file", ["dataset.json", "manifest.parquet"])
def test_a_newer_version_is_refused(dataset_copies, file):
    images, out = dataset_copies
    if file == "dataset.json":
        text = json.loads((out / file).read_text()) | {"version": 2}
        (out / file).write_text(json.dumps(text))
    else:
        table = pyarrow.parquet.read_table(out / file)
        header = json.loads(table.schema.metadata[b"dvt_fast"]) | {"version": 2}
        pyarrow.parquet.write_table(table.replace_schema_metadata({"dvt_fast": json.dumps(header)}), out / file)
    for read in (lambda: build(images, out), lambda: PairDataset(out), lambda: check_dataset(out)):
        with pytest.raises(InputError, match=rf"{file}: dvt_fast.\w+ version 2, expected version 1: it is newer"):
            read()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a dvt_fast.dataset file"),
        ("[]", "not a dvt_fast.dataset file"),
        ('{"format": "other", "version": 1}', "not a dvt_fast.dataset file, but 'other'"),
        ('{"format": "dvt_fast.dataset", "version": 1}', "lacks 'settings' or 'vit_options'"),
    ],
)
def test_a_foreign_settings_file(dataset_photos, tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    for read in (lambda: build(dataset_photos, tmp_path), lambda: PairDataset(tmp_path)):
        with pytest.raises(InputError, match=f"^{tmp_path}/dataset.json: {message}"):
            read()


def test_reading_what_is_no_dataset(dataset_photos, tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}/none: not a dataset, as it holds no dataset.json$"):
        PairDataset(tmp_path / "none")
    build(dataset_photos / "bad.png", tmp_path / "out")
    with pytest.raises(InputError, match=r"out: holds no finished pair yet; dvt-fast dataset makes them$"):
        PairDataset(tmp_path / "out")


def test_a_damaged_pair_is_named_when_read(dataset_copies):
    _, out = dataset_copies
    dataset = PairDataset(out)
    path = out / dataset.records[0].file
    good = path.read_bytes()
    path.write_bytes(good[:-100])
    with pytest.raises(InputError, match=f"^{path}: not a readable safetensors file: "):
        dataset.read(0)
    save_file({"raw": np.zeros(3)}, path)
    with pytest.raises(InputError, match=f"^{path}: not a dvt_fast.pair file"):
        dataset.read(0)
    path.write_bytes(good.replace(b'"version\\": 1', b'"version\\": 7'))
    with pytest.raises(InputError, match=f"^{path}: dvt_fast.pair version 7, expected version 1"):
        dataset.read(0)
    path.write_bytes(pack_pair(None, np.zeros((2, 2, 192), np.float32), "float16", {}))
    with pytest.raises(InputError, match=f"^{path}: of another dataset than {out}"):
        dataset.read(0)
    path.unlink()
    with pytest.raises(InputError, match=f"^{path}: no such file$"):
        dataset.read(0)


@pytest.fixture
def as_nobody():
    """Runs a test without root's permission to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def readable(tmp_path):
    """A folder that everyone may enter."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(folder, 0o755)
    return tmp_path


@pytest.mark.parametrize("what", ["folder", "dataset.json", "manifest.parquet", "pair"])
def test_no_permission_to_read(readable, dataset_copies, request, what):
    _, out = dataset_copies
    pair = PairDataset(out).records[0].file
    path = {"folder": out, "pair": out / pair}.get(what, out / what)
    os.chmod(path, 0)
    request.getfixturevalue("as_nobody")
    message = f"^{out / 'dataset.json' if what == 'folder' else path}: cannot be read: Permission denied$"
    with pytest.raises(InputError, match=message):
        PairDataset(out).read(0)
    with pytest.raises(InputError, match=message):
        check_dataset(out)


def test_no_permission_to_write(readable, dataset_photos, tmp_path, request):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    for folder in dataset_photos.parents[:3]:
        os.chmod(folder, 0o755)
    request.getfixturevalue("as_nobody")
    with pytest.raises(OutputError, match=f"^{out}/dataset.json: cannot be written: Permission denied$"):
        build(dataset_photos, out)


def test_an_image_without_permission_fails_alone(readable, dataset_photos, tmp_path, request):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(dataset_photos / "p01.png", images / "a.png")
    shutil.copy(dataset_photos / "p02.png", images / "b.png")
    os.chmod(images / "a.png", 0)
    os.chmod(images, 0o755)
    (tmp_path / "out").mkdir()
    os.chmod(tmp_path / "out", 0o777)
    request.getfixturevalue("as_nobody")
    summary = build(images, tmp_path / "out")
    assert (summary.made, summary.failed) == (1, [f"{images}/a.png: cannot be read: Permission denied"])


def test_check_finds_what_is_missing_damaged_and_extra(dataset_copies, tmp_path):
    images, out = dataset_copies
    before = content(out)
    assert check_dataset(out).good
    files = [out / record.file for record in PairDataset(out).records]
    files[0].unlink()
    os.truncate(files[1], 100)
    flipped = bytearray(files[2].read_bytes())
    flipped[-1] ^= 1
    files[2].write_bytes(flipped)
    (out / "pairs" / "extra.txt").write_text("x")
    (out / "pairs" / ".dvt-00.tmp").write_text("x")
    report = check_dataset(out)
    assert (report.pairs, report.good, report.removed) == (12, False, 0)
    assert report.missing == [f"{files[0]}: missing (the pair of {images}/more/p00.png)"]
    assert report.damaged == [
        f"{files[1]}: 100 bytes, expected {len(before[str(files[1].relative_to(out))])} (the pair of {images}/p00.png)",
        f"{files[2]}: its sha256 is not the manifest's (the pair of {images}/p01.png)",
    ]
    assert report.extra == [
        f"{out}/pairs/.dvt-00.tmp: what a killed writer left",
        f"{out}/pairs/extra.txt: no row of the manifest names it",
    ]
    assert check_dataset(out, prune=True).removed == 4
    summary = build(images, out)
    assert (summary.made, summary.skipped) == (3, 9)
    assert content(out) == before and check_dataset(out).good


def test_nothing_is_built_while_files_are_pruned(dataset_copies):
    images, out = dataset_copies
    tried = []

    def build_meanwhile(done, total, what):
        if not tried:
            tried.append(done)
            with pytest.raises(OutputError, match="out: another run is writing to it"):
                build(images, out)

    assert check_dataset(out, prune=True, progress=build_meanwhile).good and tried


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_reading_a_manifest_starts_no_thread(finished_dataset):
    """Arrow's threads may abort a process that ends while they still hold what it gave them."""
    program = """if True:
        import os, sys
        import pyarrow.parquet
        from dvt_fast import PairDataset

        before = len(os.listdir("/proc/self/task"))
        assert len(PairDataset(sys.argv[1])) and len(os.listdir("/proc/self/task")) == before
    """
    subprocess.run([sys.executable, "-c", program, finished_dataset], check=True)


def test_check_does_not_trust_a_manifest_that_agrees(dataset_copies, monkeypatch):
    """A row and its file that go together, and are of another image or hold no numbers."""
    from dvt_fast.dataset import check

    _, out = dataset_copies
    dataset = PairDataset(out)
    monkeypatch.setattr(check, "PairDataset", lambda url: dataset)
    first, second, third, fourth = dataset.records[:4]
    (out / first.file).write_bytes((out / second.file).read_bytes())
    values = np.zeros((4, 4, 192), np.float16)
    values[0, 0, 0] = np.nan
    header = json.dumps({"format": "dvt_fast.pair", "version": 1, "shape": [4, 4, 192]})
    save_file({"semantics": values}, out / third.file, {"dvt_fast": header})
    (out / fourth.file).write_bytes(pack_pair(None, np.zeros((4, 5, 192), np.float32), "float16", {}))
    for record in (first, third, fourth):
        data = (out / record.file).read_bytes()
        record.file_bytes, record.file_sha256 = len(data), hashlib.sha256(data).hexdigest()
    problems = [line.removeprefix(str(out)).split(": ", 1)[1] for line in check.check_dataset(out).damaged]
    assert problems[0].startswith("of another image or other settings than its row")
    assert problems[1].startswith("damaged: semantics holds NaN or infinity")
    assert problems[2].startswith("holds shape [4, 5, 192], expected [4, 4, 192] of both")


def test_real_images_and_a_real_vit(shared_data, tmp_path):
    """The last block before the norm has tokens of 25 times the usual norm: float16 and int8 keep all of them."""
    vit = {
        "name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "weights": shared_data / "weights" / "vit_tiny_patch16_224_augreg.safetensors",
        "norm": False,
    }
    images = sorted((shared_data / "images").glob("n*.jpg"))[:2]
    for dtype in ("float16", "int8"):
        dvt_fast.build_dataset(images, tmp_path / dtype, vit, views="realtime", keep="both", dtype=dtype, workers=0)
    full, small = (PairDataset(tmp_path / dtype) for dtype in ("float16", "int8"))
    model = dvt_fast.ViT(**full.vit_options)
    for i, image in enumerate(images):
        d = dvt_fast.decompose(image, model, "realtime")
        norms = np.linalg.norm(d.raw, axis=-1)
        assert norms.max() > 10 * np.median(norms)
        for expected, half, byte in zip((d.raw, d.semantics), full.read(i), small.read(i)):
            for found, bound in ((half, 1e-3), (byte, 0.05)):
                error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
                assert error.max() < bound
