"""Pairs of many images: what is stored, how a run goes on where the last one ended, and what is refused."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from safetensors.numpy import load, save_file

import dvt_fast
from dataset_samples import TINY, TINY_ARGUMENTS, build, content, make_photos
from dvt_fast import InputError, MissingExtraError, NonFiniteError, OutputError, PairDataset, check_dataset
from dvt_fast.cli import main
from dvt_fast.dataset.inputs import find_sources
from dvt_fast.dataset.pairs import pack_pair, unpack_pair

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """12 distinct images, a duplicate, a second one of the first's name, and one that is none. Not to be changed."""
    return make_photos(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A dataset of `photos`. Not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    build(photos, out)
    return out


@pytest.fixture
def copies(photos, finished, tmp_path):
    """The same images and dataset, to be changed; the dataset is that of the images where they are now."""
    images, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, images)
    build(images, out)
    return images, out


def rows(out):
    return pyarrow.parquet.read_table(out / "manifest.parquet").to_pylist()


def test_the_summary_and_the_manifest_name_every_image(photos, tmp_path):
    out = tmp_path / "out"
    summary = build(photos, out)
    assert (summary.images, summary.made, summary.skipped, summary.duplicates) == (14, 12, 0, 1)
    assert summary.failed == [f"{photos}/bad.png: not an image that Pillow can read"]
    table = rows(out)
    names = ["bad.png", "more/p00.png", *(f"p{i:02}.png" for i in range(11)), "q.png"]
    assert [row["image"] for row in table] == names  # in the order of the input
    assert {row["folder"] for row in table} == {str(photos)}
    assert [row["state"] for row in table] == ["failed"] + 12 * ["done"] + ["duplicate"]
    assert [row["error"] for row in table] == summary.failed + 13 * [None]
    for row in table[1:]:
        data = (photos / row["image"]).read_bytes()
        assert (row["hash"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        pair = (out / row["file"]).read_bytes()
        assert (row["file_bytes"], row["file_sha256"]) == (len(pair), hashlib.sha256(pair).hexdigest())
        assert (row["vit"], row["layer"], row["solver"], row["seed"]) == (TINY["name"], 11, "direct", 0)
        assert (row["width"], row["height"]) == (80, 60)
        assert 0 < row["residual"] < 2 and -1 <= row["cosine"] <= 1 and row["raw_norm"] > row["semantics_norm"] > 0
    assert table[-1]["file"] == table[3]["file"] and table[2]["file"] != table[1]["file"]
    assert len(content(out)) == 12 + 2  # one file a distinct content, dataset.json and the manifest
    assert summary.pair_bytes == table[1]["file_bytes"] and summary.reference_bytes == 2 * 4 * 4 * 4 * 192


def test_a_pair_is_what_decompose_gives(photos, finished):
    dataset = PairDataset(finished)
    assert (len(dataset), dataset.grid, dataset.dim, dataset.keep) == (12, (4, 4), 192, "both")
    vit = dvt_fast.ViT(**dataset.vit_options)
    assert vit.describe() == dataset.settings["vit"]
    for i in (0, 7):
        d = dvt_fast.decompose(photos / dataset.records[i].image, vit, "realtime")
        raw, semantics = dataset.read(i)
        assert raw.dtype == semantics.dtype == np.float32
        np.testing.assert_array_equal(raw, d.raw.astype(np.float16))
        np.testing.assert_array_equal(semantics, d.semantics.astype(np.float16))
        record = dataset.records[i]
        assert record.residual == pytest.approx(np.linalg.norm(d.residual) / np.linalg.norm(d.raw), rel=1e-5)
        tokens, clean = d.raw.reshape(-1, 192), d.semantics.reshape(-1, 192)
        cosine = (tokens * clean).sum(1) / np.linalg.norm(tokens, axis=1) / np.linalg.norm(clean, axis=1)
        assert record.cosine == pytest.approx(cosine.mean(), rel=1e-4)
        np.testing.assert_array_equal(dataset.open_image(i), Image.open(photos / record.image))


def test_settings_reach_the_solver(photos, tmp_path):
    options = {"views": 3, "seed": 5, "solver": "direct", "options": {"passes": 1}, "coords": "official"}
    build(photos / "p03.png", tmp_path / "out", **options)
    dataset = PairDataset(tmp_path / "out")
    d = dvt_fast.decompose(photos / "p03.png", dvt_fast.ViT(**TINY), 3, seed=5, coords="official", passes=1)
    np.testing.assert_array_equal(dataset.read(0)[1], d.semantics.astype(np.float16))
    made = dataset.settings
    assert (made["views"], made["seed"], made["coords"], made["options"]["passes"]) == (3, 5, "official", 1)


def test_a_known_artifact_map_is_part_of_the_settings(photos, tmp_path):
    known = dvt_fast.ArtifactMap(np.full((4, 4, 192), 0.5, np.float32), {})
    known.save(tmp_path / "map.safetensors")
    image = photos / "p03.png"
    build(image, tmp_path / "out", options={"artifacts": str(tmp_path / "map.safetensors")})
    d = dvt_fast.decompose(image, dvt_fast.ViT(**TINY), "realtime", artifacts=known)
    np.testing.assert_array_equal(PairDataset(tmp_path / "out").read(0)[1], d.semantics.astype(np.float16))
    assert build(image, tmp_path / "out", options={"artifacts": known}).skipped == 1  # by value, not by name
    with pytest.raises(InputError, match=r'options.artifacts is "sha256 \w{16}" there and null here'):
        build(image, tmp_path / "out")


@pytest.mark.parametrize(
    "dtype, keep, size", [("float16", "semantics", 2), ("int8", "both", 2), ("int8", "semantics", 1)]
)
def test_smaller_pairs(photos, finished, tmp_path, dtype, keep, size):
    """size: bytes of a channel of a token, of both parts together."""
    out = tmp_path / "out"
    build(photos, out, dtype=dtype, keep=keep)
    small, full = PairDataset(out), PairDataset(finished)
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


def test_values_beyond_float16_are_refused():
    values = np.full((1, 1, 4), 65504, np.float32)
    assert unpack_pair(pack_pair(None, values, "float16", {}), "x").semantics.max() == 65504
    with pytest.raises(NonFiniteError, match=r"semantics holds values to 66000, and float16 ends at 65504: use int8"):
        pack_pair(None, values / 65504 * 66000, "float16", {})
    assert unpack_pair(pack_pair(None, values * 2, "int8", {}), "x").semantics.max() == pytest.approx(131008, rel=1e-6)
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="raw holds NaN or infinity"):
            pack_pair(values * bad, values, "int8", {})


def test_images_beyond_float16_fail(photos, tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 4, 192)).astype(np.float32) * 1e7
    options = {"artifacts": dvt_fast.ArtifactMap(values, {}), "passes": 1}
    summary = build([photos / "p01.png", photos / "p02.png"], tmp_path / "out", options=options)
    assert (summary.made, len(summary.failed)) == (0, 2)
    assert re.search(r"p01.png: semantics holds values to \S+, and float16 ends at 65504: use int8$", summary.failed[0])
    assert build(photos / "p01.png", tmp_path / "int8", options=options, dtype="int8").made == 1


def test_a_second_run_changes_nothing(copies):
    images, out = copies
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    summary = build(images, out)
    assert (summary.made, summary.skipped, summary.duplicates, len(summary.failed)) == (0, 12, 1, 1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_failed_image_is_tried_again(copies, tmp_path):
    images, out = copies
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(images / "bad.png")
    summary = build(images, out)
    assert (summary.made, summary.skipped, summary.failed) == (1, 12, [])
    build(images, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.parametrize("lost", ["manifest.parquet", "dataset.json", "both", "cut manifest"])
def test_what_is_lost_is_made_again_from_the_pairs(copies, lost):
    images, out = copies
    before = content(out)
    if lost == "cut manifest":
        (out / "manifest.parquet").write_bytes(before["manifest.parquet"][:1000])
        with pytest.raises(InputError, match=r"manifest.parquet: not a readable manifest: .* makes it again"):
            PairDataset(out)
    for name in ("manifest.parquet", "dataset.json"):
        if lost in (name, "both"):
            (out / name).unlink()
    pair = next((out / "pairs").rglob("*.safetensors"))
    written = pair.stat().st_mtime_ns
    assert build(images, out).made == 0
    assert content(out) == before and pair.stat().st_mtime_ns == written


def test_images_that_come_change_and_go(copies, tmp_path):
    images, out = copies
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(images / "new.png")
    (images / "p02.png").write_bytes((images / "p03.png").read_bytes())  # changed, into one that is there
    os.rename(images / "p04.png", images / "renamed.png")
    gone = (images / "p05.png").read_bytes()
    (images / "p05.png").unlink()
    (images / "bad.png").unlink()
    summary = build(images, out)
    assert (summary.images, summary.made, summary.skipped, summary.duplicates) == (13, 1, 10, 2)
    assert (summary.kept, summary.failed) == (2, [])  # p04 under its old name, and p05: nothing done is lost
    table = rows(out)
    assert [row["image"] for row in table[-2:]] == ["p04.png", "p05.png"]
    assert [row["state"] for row in table[-2:]] == ["duplicate", "done"]

    summary = build(images, out, prune=True)
    assert (summary.made, summary.kept, summary.pruned) == (0, 0, 2)  # the pairs of what p02 and p05 were
    build(images, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")
    assert check_dataset(out).good

    (images / "p05.png").write_bytes(gone)
    assert build(images, out).made == 1


def test_a_touched_image_is_hashed_and_not_computed(copies):
    images, out = copies
    os.utime(images / "p06.png", ns=(1, 1))
    summary = build(images, out)
    assert (summary.made, summary.skipped) == (0, 12)
    row = next(row for row in rows(out) if row["image"] == "p06.png")
    assert row["stamp"] == "1"


def test_a_pair_that_is_gone_with_its_image_is_reported(copies):
    images, out = copies
    lost = next(row for row in rows(out) if row["image"] == "p07.png")
    (out / lost["file"]).unlink()
    (images / "p07.png").unlink()
    summary = build(images, out)
    assert summary.failed[1:] == [
        f"{images}/p07.png: its pair is gone or damaged, and it was not given now to make it again"
    ]
    assert "p07.png" not in [row["image"] for row in rows(out)]


def test_two_folders_with_the_same_names(photos, tmp_path):
    for name, source in (("a", "p01.png"), ("b", "p02.png")):
        (tmp_path / name).mkdir()
        shutil.copy(photos / source, tmp_path / name / "x.png")
    assert build([tmp_path / "a", tmp_path / "b"], tmp_path / "out").made == 2
    dataset = PairDataset(tmp_path / "out")
    assert [(os.path.basename(r.folder), r.image) for r in dataset.records] == [("a", "x.png"), ("b", "x.png")]
    for i, source in enumerate(("p01.png", "p02.png")):
        np.testing.assert_array_equal(dataset.open_image(i), Image.open(photos / source))


def test_sources_are_in_order_and_none_is_twice(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    found = [(s.folder, s.image) for s in find_sources(["p03.png", "more", "p0[1-3].png", photos, "more/p00.png"])]
    here = str(photos)
    assert found[:4] == [(here, "p03.png"), (f"{here}/more", "p00.png"), (here, "p01.png"), (here, "p02.png")]
    assert len(found) == 14 and len(set(found)) == 14
    assert [s.image for s in find_sources("**/p00.png")] == ["more/p00.png", "p00.png"]
    assert find_sources(f"file://{photos}/p01.png")[0].place == f"{photos}/p01.png"


def test_images_that_moved_are_found(copies, tmp_path):
    images, out = copies
    os.rename(images, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"photos/more/p00.png: no such file"):
        PairDataset(out).open_image(0)
    dataset = PairDataset(out, images=tmp_path / "elsewhere")
    assert dataset.open_image(0).size == (80, 60)
    shutil.copy(tmp_path / "elsewhere" / "p01.png", tmp_path / "elsewhere" / "more" / "p00.png")
    with pytest.raises(InputError, match=r"more/p00.png: its content has changed since its pair was made"):
        dataset.open_image(0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": 3}, "seed is 0 there and 3 here"),
        ({"views": "fast"}, r'views is "realtime" there and "fast" here'),
        ({"views": 12}, r'views is "realtime" there and 12 here'),
        ({"solver": "average"}, r'solver is "direct" there and "average" here; .*options.passes is 4 there and absent'),
        ({"options": {"passes": 2}}, "options.passes is 4 there and 2 here"),
        ({"keep": "semantics"}, r'keep is "both" there and "semantics" here'),
        ({"dtype": "int8"}, r'dtype is "float16" there and "int8" here'),
        ({"vit": TINY | {"layer": 3}}, "vit.layer is 11 there and 3 here"),
        ({"vit": TINY | {"seed": 1}}, r"vit.fingerprint is \"\w{16}\" there"),
    ],
)
def test_other_settings_are_refused_by_name(photos, finished, options, message):
    before = content(finished)
    arguments = {"vit": TINY, "views": "realtime", "workers": 0} | options
    with pytest.raises(InputError, match=message) as caught:
        dvt_fast.build_dataset(photos, finished, **arguments)
    assert str(caught.value).startswith(f"{finished}: made with other settings: ") and "\n" not in str(caught.value)
    assert content(finished) == before


def test_the_same_settings_said_otherwise_are_the_same(photos, finished):
    plan = ((2, 2, 0.6, 0.6),)
    assert build(photos, finished, views=plan, options={"passes": 4, "smoothness": None}).made == 0


def test_a_manifest_of_other_settings_is_refused(copies, photos, tmp_path):
    images, out = copies
    build(photos / "p01.png", tmp_path / "other", seed=9)
    shutil.copy(tmp_path / "other" / "manifest.parquet", out)
    for read in (lambda: build(images, out), lambda: PairDataset(out)):
        with pytest.raises(InputError, match=r"manifest.parquet: made with other settings: seed is 9 there and 0 here"):
            read()
    (out / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"manifest.parquet: made with other settings"):
        build(images, out)


@pytest.mark.parametrize("file", ["dataset.json", "manifest.parquet"])
def test_a_newer_version_is_refused(copies, file):
    images, out = copies
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
def test_a_foreign_settings_file(photos, tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    for read in (lambda: build(photos, tmp_path), lambda: PairDataset(tmp_path)):
        with pytest.raises(InputError, match=f"^{tmp_path}/dataset.json: {message}"):
            read()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"images": []}, "no images found in an empty list of paths"),
        ({"images": "nowhere"}, "nowhere: no such file or folder"),
        ({"keep": "raw"}, "keep must be 'both' or 'semantics', got 'raw'"),
        ({"dtype": "float8"}, "dtype must be 'float16' or 'int8', got 'float8'"),
        ({"coords": "corner"}, "coords must be 'center' or 'official', got 'corner'"),
        ({"engine": "cluster"}, "engine must be 'local' or 'ray', got 'cluster'"),
        ({"workers": -1}, "workers must be a whole number of at least 0"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"views": "many"}, "unknown view plan 'many'"),
        ({"options": {"stesp": 2}}, "unknown option 'stesp' of solver 'direct'"),
        ({"vit": TINY | {"size": 65}}, "size 65 does not fit patches of 16"),
        ({"out": "memory://x", "workers": 2}, "memory://x: memory is of one process: workers must be 0"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_bad_arguments(photos, tmp_path, arguments, message):
    defaults = {"images": photos, "out": tmp_path / "out", "vit": TINY, "views": "realtime", "workers": 0}
    with pytest.raises(InputError, match=message) as caught:
        dvt_fast.build_dataset(**(defaults | arguments))
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"no images found in {tmp_path}/empty"):
        build(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_every_kind_of_bad(photos, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    good = (photos / "p01.png").read_bytes()
    for name, data in (("empty.png", b""), ("cut.png", good[:3000]), ("text.jpg", b"hello"), ("good.png", good)):
        (images / name).write_bytes(data)
    summary = build(images, tmp_path / "out")
    assert summary.made == 1
    reasons = dict(line.removeprefix(f"{images}/").split(": ", 1) for line in summary.failed)
    assert list(reasons) == ["cut.png", "empty.png", "text.jpg"]
    assert reasons["empty.png"] == "the file is empty (0 bytes)"
    assert reasons["text.jpg"] == "not an image that Pillow can read" and "cannot be decoded" in reasons["cut.png"]


def test_an_image_that_goes_while_it_is_listed_fails_alone(photos, tmp_path, monkeypatch):
    sources = find_sources([photos / "p01.png", photos / "p02.png"])
    gone = dataclasses.replace(sources[0], image="gone.png")
    monkeypatch.setattr("dvt_fast.dataset.build.find_sources", lambda images: [gone, sources[1]])
    summary = build(photos, tmp_path / "out")
    assert (summary.made, summary.failed) == (1, [f"{photos}/gone.png: no such file"])


def test_reading_what_is_no_dataset(photos, tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}/none: not a dataset, as it holds no dataset.json$"):
        PairDataset(tmp_path / "none")
    build(photos / "bad.png", tmp_path / "out")
    with pytest.raises(InputError, match=r"out: holds no finished pair yet; dvt-fast dataset makes them$"):
        PairDataset(tmp_path / "out")


def test_a_damaged_pair_is_named_when_read(copies):
    _, out = copies
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
def test_no_permission_to_read(readable, copies, request, what):
    _, out = copies
    pair = PairDataset(out).records[0].file
    path = {"folder": out, "pair": out / pair}.get(what, out / what)
    os.chmod(path, 0)
    request.getfixturevalue("as_nobody")
    message = f"^{out / 'dataset.json' if what == 'folder' else path}: cannot be read: Permission denied$"
    with pytest.raises(InputError, match=message):
        PairDataset(out).read(0)
    with pytest.raises(InputError, match=message):
        check_dataset(out)


def test_no_permission_to_write(readable, photos, tmp_path, request):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    for folder in photos.parents[:3]:
        os.chmod(folder, 0o755)
    request.getfixturevalue("as_nobody")
    with pytest.raises(OutputError, match=f"^{out}/dataset.json: cannot be written: Permission denied$"):
        build(photos, out)


def test_an_image_without_permission_fails_alone(readable, photos, tmp_path, request):
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(photos / "p01.png", images / "a.png")
    shutil.copy(photos / "p02.png", images / "b.png")
    os.chmod(images / "a.png", 0)
    os.chmod(images, 0o755)
    (tmp_path / "out").mkdir()
    os.chmod(tmp_path / "out", 0o777)
    request.getfixturevalue("as_nobody")
    summary = build(images, tmp_path / "out")
    assert (summary.made, summary.failed) == (1, [f"{images}/a.png: cannot be read: Permission denied"])


def test_two_runs_at_once_are_refused(photos, tmp_path):
    from dvt_fast.dataset.store import Store

    with Store(tmp_path / "out").lock(), pytest.raises(OutputError, match=r"out: another run is writing to it"):
        build(photos, tmp_path / "out")
    assert build(photos / "p01.png", tmp_path / "out").made == 1


def test_check_finds_what_is_missing_damaged_and_extra(copies, tmp_path):
    images, out = copies
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


def test_check_does_not_trust_a_manifest_that_agrees(copies, monkeypatch):
    """A row and its file that go together, and are of another image or hold no numbers."""
    from dvt_fast.dataset import check

    _, out = copies
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


def test_progress_counts_images_and_can_stop(photos, tmp_path):
    seen = []

    def stop_at_4(done, total, what):
        seen.append((done, total, what))
        return done < 4

    with pytest.raises(dvt_fast.Cancelled):
        build(photos, tmp_path / "out", progress=stop_at_4)
    assert seen == [(n, 14, "images") for n in range(1, 5)]
    assert len(PairDataset(tmp_path / "out")) == 3  # one of the four was bad: the rows so far were saved
    assert build(photos, tmp_path / "out").skipped == 3
    build(photos, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_the_manifest_is_saved_now_and_then(photos, tmp_path):
    saved = []

    def look(done, total, what):
        path = tmp_path / "out" / "manifest.parquet"
        saved.append(len(rows(tmp_path / "out")) if path.exists() else 0)

    build(photos, tmp_path / "out", progress=look, save_every=0)
    assert saved[0] == 0 and saved[-1] > 3 and saved == sorted(saved)


def test_threads_are_set_back(photos, tmp_path):
    import torch

    dvt_fast.set_num_threads(2)
    try:
        build(photos / "p01.png", tmp_path / "out", threads=1)
        assert (torch.get_num_threads(), dvt_fast.get_num_threads()) == (1, 2)
    finally:
        dvt_fast.set_num_threads(0)


def test_without_pyarrow(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'pyarrow'.*dvt-fast\[train\]"):
        build(photos, tmp_path / "out")


def test_real_images_and_a_real_vit(shared_data, tmp_path):
    """The last block before the norm has tokens of 25 times the usual norm: float16 and int8 keep all of them."""
    vit = {
        "name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "weights": shared_data / "weights" / "vit_tiny_patch16_224_augreg.safetensors",
        "norm": False,
    }
    images = sorted((shared_data / "images").glob("n*.jpg"))[:2]
    for dtype in ("float16", "int8"):
        dvt_fast.build_dataset(images, tmp_path / dtype, vit, views="realtime", dtype=dtype, workers=0)
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


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """Runs the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dvt-fast", "dataset", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def test_the_command(run, photos, finished, tmp_path):
    code, out, err = run(photos, "--out", "out", *TINY_ARGUMENTS, "--workers", 2)
    assert (code, err) == (1, f"1 failed:\n  {photos}/bad.png: not an image that Pillow can read\n")
    first, second = out.splitlines()
    assert first.startswith("14 images: 12 done, 0 done before, 1 duplicates, 1 failed; ")
    assert second.endswith(" bytes an image, 1.9 times less than raw and semantics in float32")
    assert content(tmp_path / "out") == content(finished)  # two workers or none: the same bytes

    here = [*TINY_ARGUMENTS, "--workers", 0, "--out", "out"]
    code, out, _ = run(photos / "p01.png", photos / "p02.png", *here, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["made"], result["skipped"], result["kept"]) == (0, 2, 11)

    assert run("--out", "out", "--check") == (0, "12 pairs: every file is as the manifest has it\n", "")
    pair = tmp_path / "out" / PairDataset(tmp_path / "out").records[0].file
    pair.unlink()
    code, out, err = run("--out", "out", "--check", "--json")
    assert (code, json.loads(out)["good"]) == (1, False) and err.startswith(f"1 missing:\n  {pair}: missing (the pair")
    code, out, err = run(photos, *here, "--prune")
    assert code == 1 and "1 done, 11 done before" in out
    assert content(tmp_path / "out") == content(finished)


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
def test_what_is_wrong_is_one_line(run, photos, tmp_path, arguments, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("x")
    (tmp_path / "photos").symlink_to(photos)
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


def test_a_line_now_and_then_where_there_is_no_terminal(run, photos, monkeypatch):
    from dvt_fast.cli.progress import Tally

    monkeypatch.setattr(Tally, "LINE_EVERY", 0.0)
    _, _, err = run(photos / "p01.png", photos / "p02.png", "--out", "o", *TINY_ARGUMENTS, "--workers", 0)
    first, second = err.splitlines()
    assert first.startswith("1 of 2 images, ") and re.fullmatch(r"2 of 2 images, \S+/s, 0:00:00 left", second)
