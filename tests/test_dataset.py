"""Pairs of many images: what is made, how a run goes on where the last one ended, and what is refused."""

import dataclasses
import hashlib
import os
import re
import shutil
import sys

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import dvt_fast
from dataset_samples import TINY, build, content
from dvt_fast import DvtError, InputError, MissingExtraError, OutputError, PairDataset, check_dataset, stage1
from dvt_fast.dataset import worker
from dvt_fast.dataset.inputs import find_sources

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def rows(out):
    return pyarrow.parquet.read_table(out / "manifest.parquet").to_pylist()


def test_the_summary_and_the_manifest_name_every_image(dataset_photos, tmp_path):
    out = tmp_path / "out"
    summary = build(dataset_photos, out)
    assert (summary.images, summary.made, summary.skipped, summary.duplicates) == (14, 12, 0, 1)
    assert summary.failed == [f"{dataset_photos}/bad.png: not an image that Pillow can read"]
    table = rows(out)
    names = ["bad.png", "more/p00.png", *(f"p{i:02}.png" for i in range(11)), "q.png"]
    assert [row["image"] for row in table] == names  # in the order of the input
    assert {row["folder"] for row in table} == {str(dataset_photos)}
    assert [row["state"] for row in table] == ["failed"] + 12 * ["done"] + ["duplicate"]
    assert [row["error"] for row in table] == summary.failed + 13 * [None]
    for row in table[1:]:
        data = (dataset_photos / row["image"]).read_bytes()
        assert (row["hash"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        pair = (out / row["file"]).read_bytes()
        assert (row["file_bytes"], row["file_sha256"]) == (len(pair), hashlib.sha256(pair).hexdigest())
        assert (row["vit"], row["layer"], row["solver"], row["seed"]) == (TINY["name"], 11, "direct", 0)
        assert (row["width"], row["height"]) == (80, 60)
        assert 0 < row["residual"] < 2 and -1 <= row["cosine"] <= 1 and row["raw_norm"] > row["semantics_norm"] > 0
    assert table[-1]["file"] == table[3]["file"] and table[2]["file"] != table[1]["file"]
    assert len(content(out)) == 12 + 2  # one file a distinct content, dataset.json and the manifest
    assert summary.pair_bytes == table[1]["file_bytes"] and summary.reference_bytes == 2 * 4 * 4 * 4 * 192


def test_a_pair_is_what_decompose_gives(dataset_photos, finished_dataset):
    dataset = PairDataset(finished_dataset)
    assert (len(dataset), dataset.grid, dataset.dim, dataset.keep) == (12, (4, 4), 192, "both")
    vit = dvt_fast.ViT(**dataset.vit_options)
    assert vit.describe() == dataset.settings["vit"]
    for i in (0, 7):
        d = dvt_fast.decompose(dataset_photos / dataset.records[i].image, vit, "realtime")
        raw, semantics = dataset.read(i)
        assert raw.dtype == semantics.dtype == np.float32
        np.testing.assert_array_equal(raw, d.raw.astype(np.float16))
        np.testing.assert_array_equal(semantics, d.semantics.astype(np.float16))
        record = dataset.records[i]
        assert record.residual == pytest.approx(np.linalg.norm(d.residual) / np.linalg.norm(d.raw), rel=1e-5)
        tokens, clean = d.raw.reshape(-1, 192), d.semantics.reshape(-1, 192)
        cosine = (tokens * clean).sum(1) / np.linalg.norm(tokens, axis=1) / np.linalg.norm(clean, axis=1)
        assert record.cosine == pytest.approx(cosine.mean(), rel=1e-4)
        np.testing.assert_array_equal(dataset.open_image(i), Image.open(dataset_photos / record.image))


def test_settings_reach_the_solver(dataset_photos, tmp_path):
    options = {"views": 3, "seed": 5, "solver": "direct", "options": {"passes": 1}, "coords": "official"}
    build(dataset_photos / "p03.png", tmp_path / "out", **options)
    dataset = PairDataset(tmp_path / "out")
    d = dvt_fast.decompose(dataset_photos / "p03.png", dvt_fast.ViT(**TINY), 3, seed=5, coords="official", passes=1)
    np.testing.assert_array_equal(dataset.read(0)[1], d.semantics.astype(np.float16))
    made = dataset.settings
    assert (made["views"], made["seed"], made["coords"], made["options"]["passes"]) == (3, 5, "official", 1)


def test_a_known_artifact_map_is_part_of_the_settings(dataset_photos, tmp_path):
    known = dvt_fast.ArtifactMap(np.full((4, 4, 192), 0.5, np.float32), {})
    known.save(tmp_path / "map.safetensors")
    image = dataset_photos / "p03.png"
    build(image, tmp_path / "out", options={"artifacts": str(tmp_path / "map.safetensors")})
    d = dvt_fast.decompose(image, dvt_fast.ViT(**TINY), "realtime", artifacts=known)
    np.testing.assert_array_equal(PairDataset(tmp_path / "out").read(0)[1], d.semantics.astype(np.float16))
    assert build(image, tmp_path / "out", options={"artifacts": known}).skipped == 1  # by value, not by name
    with pytest.raises(InputError, match=r'options.artifacts is "sha256 \w{16}" there and null here'):
        build(image, tmp_path / "out")


def test_images_beyond_float16_fail(dataset_photos, tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 4, 192)).astype(np.float32) * 1e7
    options = {"artifacts": dvt_fast.ArtifactMap(values, {}), "passes": 1}
    summary = build([dataset_photos / "p01.png", dataset_photos / "p02.png"], tmp_path / "out", options=options)
    assert (summary.made, len(summary.failed)) == (0, 2)
    assert re.search(r"p01.png: semantics holds values to \S+, and float16 ends at 65504$", summary.failed[0])
    assert len(build(dataset_photos / "p01.png", tmp_path / "int8", options=options, dtype="int8").failed) == 1


def test_raw_features_beyond_float16_fail_where_they_are_not_kept(dataset_photos, tmp_path, monkeypatch):
    original = stage1.decompose

    def large(*args, **options):
        found = original(*args, **options)
        return dataclasses.replace(found, raw=found.raw * 1e7)

    monkeypatch.setattr(stage1, "decompose", large)
    failed = build(dataset_photos / "p01.png", tmp_path / "out", keep="semantics").failed
    assert len(failed) == 1 and re.search(r"p01.png: raw holds values to \S+, and float16 ends at 65504$", failed[0])


def test_a_name_that_is_not_text_fails_alone(dataset_photos, tmp_path):
    """Two such names, as folders may hold them, in a run and in the next one."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shutil.copy(dataset_photos / "p01.png", images)
    for name in (b"a\xff.png", b"b\xfe.png"):
        shutil.copy(dataset_photos / "p02.png", os.path.join(os.fsencode(images), name))
    message = rf"{images}/a\xff.png: its name is not UTF-8: rename it"
    for workers, made in ((1, 1), (0, 0)):
        summary = build(images, out, workers=workers)
        assert (summary.images, summary.made, len(summary.failed), summary.failed[0]) == (3, made, 2, message)
        assert [(row["image"], row["state"]) for row in rows(out)] == [
            (r"a\xff.png", "failed"), (r"b\xfe.png", "failed"), ("p01.png", "done")
        ]  # fmt: skip
    os.rename(os.path.join(os.fsencode(images), b"a\xff.png"), images / "a.png")
    assert build(images, out).made == 1


def test_an_image_out_of_reach_keeps_its_pair(dataset_copies):
    """However often it is so when others are pruned; once it is not given any more, its pair goes."""
    images, out = dataset_copies
    before = content(out)
    image = (images / "p02.png").read_bytes()
    pair = f"pairs/{hashlib.sha256(image).hexdigest()[:2]}/{hashlib.sha256(image).hexdigest()}.safetensors"
    (images / "p02.png").write_bytes(b"")
    for _ in range(2):
        summary = build(images, out, prune=True)
        assert (summary.made, len(summary.failed), summary.pruned) == (0, 2, 0)
        assert content(out)[pair] == before[pair]
        assert check_dataset(out, prune=True).good and len(PairDataset(out)) == 11
    (images / "p02.png").write_bytes(image)
    assert build(images, out, prune=True).made == 0
    assert content(out).keys() == before.keys() and len(PairDataset(out)) == 12
    (images / "p02.png").write_bytes(b"")
    build(images, out)
    (images / "p02.png").unlink()
    assert build(images, out, prune=True).pruned == 1 and pair not in content(out)


def test_two_that_make_one_pair_at_once_and_differ_in_a_bit(dataset_photos, tmp_path, monkeypatch):
    """As workers of two kinds of machine may: the last to write is the one whose file stays."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(dataset_photos / "p02.png", images / name)
    original = worker.measures
    seen = []

    def measure(d):
        seen.append(d)
        return original(d) | {"residual": 0.5 + len(seen)}

    monkeypatch.setattr(worker, "measures", measure)
    monkeypatch.setattr(worker.Worker, "find", lambda self, hash: None)  # each looked before the other had written
    build(images, out)
    assert len(seen) == 2 and check_dataset(out).good
    assert [(row["state"], row["residual"]) for row in rows(out)] == [("done", 2.5), ("duplicate", 2.5)]


def test_a_lost_device_ends_the_run_and_not_the_caller(dataset_photos, tmp_path, monkeypatch):
    def fail(self, data, hash, place):
        self.vit.device = torch.device("cuda:99")  # which there is nowhere
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(worker.Worker, "_compute", fail)
    with pytest.raises(
        DvtError, match=r"^device 'cuda:99' no longer computes, restart the program: .*p01.png: Runtime"
    ):
        build(dataset_photos / "p01.png", tmp_path / "out")


def test_a_second_run_changes_nothing(dataset_copies):
    images, out = dataset_copies
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    summary = build(images, out)
    assert (summary.made, summary.skipped, summary.duplicates, len(summary.failed)) == (0, 12, 1, 1)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_failed_image_is_tried_again(dataset_copies, tmp_path):
    images, out = dataset_copies
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(images / "bad.png")
    summary = build(images, out)
    assert (summary.made, summary.skipped, summary.failed) == (1, 12, [])
    build(images, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.parametrize("lost", ["manifest.parquet", "dataset.json", "both", "cut manifest"])
def test_what_is_lost_is_made_again_from_the_pairs(dataset_copies, lost):
    images, out = dataset_copies
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


def test_rows_of_other_images_outlive_the_settings_file(dataset_copies):
    images, out = dataset_copies
    (out / "dataset.json").unlink()
    summary = build(images / "p01.png", out)
    assert (summary.kept, summary.failed, summary.made) == (12, [], 0)


def test_images_that_come_change_and_go(dataset_copies, tmp_path):
    images, out = dataset_copies
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


def test_a_touched_image_is_hashed_and_not_computed(dataset_copies):
    images, out = dataset_copies
    os.utime(images / "p06.png", ns=(1, 1))
    summary = build(images, out)
    assert (summary.made, summary.skipped) == (0, 12)
    row = next(row for row in rows(out) if row["image"] == "p06.png")
    assert row["stamp"] == "1"


def test_a_pair_that_is_gone_with_its_image_is_reported(dataset_copies):
    images, out = dataset_copies
    lost = next(row for row in rows(out) if row["image"] == "p07.png")
    (out / lost["file"]).unlink()
    (images / "p07.png").unlink()
    summary = build(images, out)
    assert summary.failed[1:] == [
        f"{images}/p07.png: its pair is gone or damaged, and it was not given now to make it again"
    ]
    assert "p07.png" not in [row["image"] for row in rows(out)]


def test_two_folders_with_the_same_names(dataset_photos, tmp_path):
    for name, source in (("a", "p01.png"), ("b", "p02.png")):
        (tmp_path / name).mkdir()
        shutil.copy(dataset_photos / source, tmp_path / name / "x.png")
    assert build([tmp_path / "a", tmp_path / "b"], tmp_path / "out").made == 2
    dataset = PairDataset(tmp_path / "out")
    assert [(os.path.basename(r.folder), r.image) for r in dataset.records] == [("a", "x.png"), ("b", "x.png")]
    for i, source in enumerate(("p01.png", "p02.png")):
        np.testing.assert_array_equal(dataset.open_image(i), Image.open(dataset_photos / source))


def test_sources_are_in_order_and_none_is_twice(dataset_photos, tmp_path, monkeypatch):
    monkeypatch.chdir(dataset_photos)
    paths = ["p03.png", "more", "p0[1-3].png", dataset_photos, "more/p00.png"]
    found = [(s.folder, s.image) for s in find_sources(paths)]
    here = str(dataset_photos)
    assert found[:4] == [(here, "p03.png"), (f"{here}/more", "p00.png"), (here, "p01.png"), (here, "p02.png")]
    assert len(found) == 14 and len(set(found)) == 14
    assert [s.image for s in find_sources("**/p00.png")] == ["more/p00.png", "p00.png"]
    assert find_sources(f"file://{dataset_photos}/p01.png")[0].place == f"{dataset_photos}/p01.png"


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
def test_other_settings_are_refused_by_name(dataset_photos, finished_dataset, options, message):
    before = content(finished_dataset)
    arguments = {"vit": TINY, "views": "realtime", "keep": "both", "workers": 0} | options
    with pytest.raises(InputError, match=message) as caught:
        dvt_fast.build_dataset(dataset_photos, finished_dataset, **arguments)
    assert str(caught.value).startswith(f"{finished_dataset}: made with other settings: ")
    assert "\n" not in str(caught.value)
    assert content(finished_dataset) == before


def test_the_same_settings_said_otherwise_are_the_same(dataset_photos, finished_dataset):
    plan = ((2, 2, 0.6, 0.6),)
    assert build(dataset_photos, finished_dataset, views=plan, options={"passes": 4, "smoothness": None}).made == 0


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
def test_bad_arguments(dataset_photos, tmp_path, arguments, message):
    defaults = {"images": dataset_photos, "out": tmp_path / "out", "vit": TINY, "views": "realtime", "workers": 0}
    with pytest.raises((InputError, dvt_fast.UnsupportedError), match=message) as caught:
        dvt_fast.build_dataset(**(defaults | arguments))
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"no images found in {tmp_path}/empty"):
        build(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_every_kind_of_bad(dataset_photos, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    good = (dataset_photos / "p01.png").read_bytes()
    for name, data in (("empty.png", b""), ("cut.png", good[:3000]), ("text.jpg", b"hello"), ("good.png", good)):
        (images / name).write_bytes(data)
    summary = build(images, tmp_path / "out")
    assert summary.made == 1
    reasons = dict(line.removeprefix(f"{images}/").split(": ", 1) for line in summary.failed)
    assert list(reasons) == ["cut.png", "empty.png", "text.jpg"]
    assert reasons["empty.png"] == "the file is empty (0 bytes)"
    assert reasons["text.jpg"] == "not an image that Pillow can read" and "cannot be decoded" in reasons["cut.png"]


def test_an_image_that_goes_while_it_is_listed_fails_alone(dataset_photos, tmp_path, monkeypatch):
    sources = find_sources([dataset_photos / "p01.png", dataset_photos / "p02.png"])
    gone = dataclasses.replace(sources[0], image="gone.png")
    monkeypatch.setattr("dvt_fast.dataset.build.find_sources", lambda images: [gone, sources[1]])
    summary = build(dataset_photos, tmp_path / "out")
    assert (summary.made, summary.failed) == (1, [f"{dataset_photos}/gone.png: no such file"])


def test_two_runs_at_once_are_refused(dataset_photos, tmp_path):
    from dvt_fast.dataset.store import Store

    with Store(tmp_path / "out").lock(), pytest.raises(OutputError, match=r"out: another run is writing to it"):
        build(dataset_photos, tmp_path / "out")
    assert build(dataset_photos / "p01.png", tmp_path / "out").made == 1


def test_progress_counts_images_and_can_stop(dataset_photos, tmp_path):
    seen = []

    def stop_at_4(done, total, what):
        seen.append((done, total, what))
        return done < 4

    with pytest.raises(dvt_fast.Cancelled):
        build(dataset_photos, tmp_path / "out", progress=stop_at_4)
    assert seen == [(n, 14, "images") for n in range(1, 5)]
    assert len(PairDataset(tmp_path / "out")) == 3  # one of the four was bad: the rows so far were saved
    assert build(dataset_photos, tmp_path / "out").skipped == 3
    build(dataset_photos, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_the_manifest_is_saved_now_and_then(dataset_photos, tmp_path):
    saved = []

    def look(done, total, what):
        path = tmp_path / "out" / "manifest.parquet"
        saved.append(len(rows(tmp_path / "out")) if path.exists() else 0)

    build(dataset_photos, tmp_path / "out", progress=look, save_every=0)
    assert saved[0] == 0 and saved[-1] > 3 and saved == sorted(saved)


def test_threads_are_set_back(dataset_photos, tmp_path):
    import torch

    dvt_fast.set_num_threads(2)
    try:
        build(dataset_photos / "p01.png", tmp_path / "out", threads=1)
        assert (torch.get_num_threads(), dvt_fast.get_num_threads()) == (1, 2)
    finally:
        dvt_fast.set_num_threads(0)


def test_without_pyarrow(dataset_photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'pyarrow'.*dvt-fast\[train\]"):
        build(dataset_photos, tmp_path / "out")
