"""Files of results: rows under keys, whole or absent, replaced when what they depend on has changed."""

import json

import numpy as np
import pytest

from dvt_fast import machine
from dvt_fast.errors import InputError
from dvt_fast.evaluation.outcome import Outcome, Score
from dvt_fast.evaluation.store import Store, as_json, check_name, name_for, read, read_all
from dvt_fast.evaluation.variants import parse_variant
from street_samples import DATA, VIT, an_outcome

RAW, DIRECT = parse_variant("raw"), parse_variant("direct")


@pytest.fixture
def open_store(tmp_path):
    def opened(**changed):
        given = {"data": DATA, "vit": VIT, "vit_key": "v", "settings": {"iterations": 5}} | changed
        return Store(tmp_path / "eval", "segment", "street", **given)

    return opened


def test_a_row_is_written_and_found_again(open_store):
    store = open_store()
    assert not store.has(RAW) and not store.path.exists()
    store.add(RAW, an_outcome(), 1.23456)
    found = read(store.path)
    assert {"format", "version", "task", "name", "data", "vit", "settings", "machine", "dvt_fast", "commit", "problems",
            "rows"} == found.keys()  # fmt: skip
    (row,) = found["rows"]
    assert row["scores"]["mIoU"] == {"value": 0.5, "low": 0.49, "high": 0.51, "higher": True}
    assert row["variant"] == {"name": "raw", "kind": "raw"} and row["seconds"] == 1.235
    assert [(store.folder / name).read_bytes()[:4] for name in row["pictures"]] == [b"RIFF"]
    again = open_store()
    assert again.has(RAW) and not again.has(DIRECT) and again.rows == found["rows"]


def test_keys_stand_for_all_that_scores_depend_on(open_store):
    first = open_store().key(RAW)
    assert open_store().key(RAW) == first
    assert open_store().key(parse_variant("other=raw")) == first
    others = [
        open_store(data=DATA | {"digest": "e"}).key(RAW),
        open_store(vit_key="w").key(RAW),
        open_store(settings={"iterations": 6}).key(RAW),
        open_store().key(DIRECT),
        open_store().key(parse_variant("direct,passes=1")),
    ]
    assert len({first, *others}) == 6


def test_rows_are_replaced_by_name_and_their_pictures_go(open_store):
    store = open_store()
    store.add(RAW, an_outcome(0.1), 1)
    store.add(DIRECT, an_outcome(0.2), 1)
    old = store.rows[1]["pictures"][0]
    other = parse_variant("direct=direct,passes=1")
    assert not open_store().has(other)
    store.add(other, an_outcome(0.3), 1)
    assert [(row["variant"]["name"], row["scores"]["mIoU"]["value"]) for row in store.rows] == [
        ("raw", 0.1),
        ("direct", 0.3),
    ]
    assert not (store.folder / old).exists()
    assert all((store.folder / name).is_file() for row in store.rows for name in row["pictures"])


def test_changed_settings_replace_the_file_after_saying_so(open_store):
    open_store().add(RAW, an_outcome(), 1)
    said = []
    store = open_store(settings={"iterations": 6}, say=said.append)
    assert not store.has(RAW)
    assert said == [
        f"{store.path}: not the same any more, so its 1 row will be replaced: settings: iterations 5, now 6"
    ]
    assert read(store.path)["settings"] == {"iterations": 5}  # until there is something better
    store.add(DIRECT, an_outcome(), 1)
    found = read(store.path)
    assert found["settings"] == {"iterations": 6} and [row["variant"]["name"] for row in found["rows"]] == ["direct"]


def test_where_weights_and_data_lie_changes_nothing(open_store):
    open_store().add(RAW, an_outcome(), 1)
    moved = open_store(vit=VIT | {"weights": "copy.safetensors"}, data=DATA | {"name": "copy"})
    assert moved.has(RAW)


def test_again_makes_rows_once_more(open_store):
    open_store().add(RAW, an_outcome(0.1), 1)
    store = open_store(again=True)
    assert not store.has(RAW) and store.rows
    store.add(RAW, an_outcome(0.2), 1)
    assert store.has(RAW) and store.rows[0]["scores"]["mIoU"]["value"] == 0.2


def test_rows_kept_from_another_machine_or_commit_say_so(open_store, monkeypatch):
    monkeypatch.setenv("DVT_FAST_COMMIT", "first")
    open_store().add(RAW, an_outcome(), 1)
    assert "made" not in open_store().rows[0]
    monkeypatch.setenv("DVT_FAST_COMMIT", "second")
    store = open_store()
    store.add(DIRECT, an_outcome(), 1)
    assert store.document["commit"] == "second"
    assert store.rows[0]["made"]["commit"] == "first" and "made" not in store.rows[1]


def test_a_failed_write_leaves_the_old_file(open_store, monkeypatch):
    store = open_store()
    store.add(RAW, an_outcome(0.1), 1)
    before = store.path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"segment-street.*No space left"):
        open_store().add(DIRECT, an_outcome(0.2), 1)
    assert store.path.read_bytes() == before
    assert not list(store.folder.rglob(".dvt-*"))


def test_numbers_that_json_has_not(open_store):
    store = open_store()
    details = {"a": np.float32(0.5), "b": np.array([1, 2]), "c": float("nan"), "d": {1: (True, None, np.int64(3))}}
    store.add(RAW, Outcome({"x": Score(float("nan"))}, details), 1)
    row = read(store.path)["rows"][0]
    assert row["scores"]["x"]["value"] is None
    assert row["details"] == {"a": 0.5, "b": [1, 2], "c": None, "d": {"1": [True, None, 3]}}
    assert as_json({"x": [float("inf")]}) == {"x": [None]}


def _broken(**changed):
    good = {"format": "dvt_fast.evaluation", "version": 1, "task": "t", "name": "n", "data": {}, "vit": {},
            "settings": {}, "machine": {}, "dvt_fast": "0", "commit": None, "problems": [], "rows": []}  # fmt: skip
    return json.dumps(good | changed)


ROW = {"key": "k", "variant": {"name": "raw"}, "scores": {}, "details": {}, "pictures": [], "date": ""}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not readable as JSON"),
        ("[]", "not results of dvt-fast eval"),
        (_broken(version=2), "version 2, expected version 1"),
        (_broken(rows=None), "rows is of another type"),
        (_broken(rows=[3]), "row 0: expected an object, got int"),
        (_broken(rows=[{"key": "k"}]), "row 0: variant is missing"),
        (_broken(rows=[ROW | {"variant": {}}]), "row 0: its variant has no name"),
        (_broken(rows=[ROW | {"scores": {"x": {"value": "high"}}}]), "row 0: score 'x' is no number"),
        (_broken(rows=[ROW | {"pictures": ["panels/../../secret.png"]}]), "row 0: a picture"),
        (_broken(rows=[ROW | {"pictures": ["/etc/passwd"]}]), "row 0: a picture"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, message):
    path = tmp_path / "segment-x.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_read_without_foreign_files(tmp_path, open_store):
    store = open_store()
    store.add(RAW, an_outcome(), 1)
    (store.folder / "other.json").write_text('{"a": 1}')
    (store.folder / "cut.json").write_text('{"format"')
    found, problems = read_all(store.folder)
    assert [document["name"] for document in found] == ["street"]
    assert len(problems) == 1 and "cut.json" in problems[0]
    with pytest.raises(InputError, match="no such folder"):
        read_all(tmp_path / "absent")


def test_names_are_fit_for_files():
    for name in ("camvid", "a-b.c_2", "x"):
        assert check_name(name) == name
    for name in ("", ".x", "a/b", "a b", "-a", "a.", "<b>"):
        with pytest.raises(InputError, match="the name of a run"):
            check_name(name)
        assert check_name(name_for(name))


def test_commit_and_machine(monkeypatch):
    monkeypatch.delenv("DVT_FAST_COMMIT", raising=False)
    found = machine.commit()
    assert found is None or len(found.removesuffix("-dirty")) == 12
    monkeypatch.setenv("DVT_FAST_COMMIT", "abc")
    assert machine.commit() == "abc"
    assert {"processor", "cores", "torch", "numpy", "python", "platform"} == machine.describe().keys()
