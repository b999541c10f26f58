"""The page of results says what the committed results say."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results_page(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "tools" / "results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made_up(results_page, tmp_path, monkeypatch):
    """The module, with results of two variants, one of which lacks a score."""
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    (tmp_path / "evaluation").mkdir()
    full = {"mIoU": {"value": 0.51234, "low": 0.5, "high": 0.6}, "ms": {"value": 123.456, "low": None, "high": None}}
    rows = [
        {"variant": {"name": "raw"}, "scores": full},
        {"variant": {"name": "few views"}, "scores": {"mIoU": full["mIoU"]}},
    ]
    machine = {"processor": "P", "cores": 2, "python": "3.11", "torch": "2", "numpy": None}
    rows[1]["made"] = {"machine": machine, "dvt_fast": "0.1", "commit": "aaa"}
    document = {"rows": rows, "machine": machine, "commit": "abc"}
    (tmp_path / "evaluation" / "knn-x.json").write_text(json.dumps(document))
    (tmp_path / "other.json").write_text(json.dumps({"a": [{"b | c": 0.98765}]}))
    return results_page


def test_the_committed_page_is_what_the_results_give(results_page):
    assert (
        results_page.make_page((ROOT / "tools" / "results_page.md").read_text())
        == (ROOT / "docs" / "results.md").read_text()
    )


def test_markers_become_numbers(made_up):
    text = "{{score knn-x few views mIoU}}; {{value other.json a/0/b | c .2f}}; {{made knn-x}}"
    text += "\n{{table raw; few views | IoU = knn-x mIoU\n| cost = knn-x ms}}"
    assert made_up.make_page(text).splitlines()[2:] == [
        "0.512 [0.500, 0.600]; 0.99; P, 2 cores, python 3.11, torch 2; commits aaa, abc",
        "| | IoU | cost |",
        "|---|---|---|",
        "| raw | 0.512 [0.500, 0.600] | 123.5 |",
        "| few views | 0.512 [0.500, 0.600] | - |",
    ]


def test_folds_become_a_mean(made_up, tmp_path):
    for fold, value in enumerate((0.4, 0.6)):
        scores = {"mIoU": {"value": value, "low": value - 0.03, "high": value + 0.04}}
        document = {"rows": [{"variant": {"name": "raw"}, "scores": scores}]}
        (tmp_path / "evaluation" / f"knn-fold-{fold}.json").write_text(json.dumps(document))
    half = 2**0.5 / 2
    expected = f"0.500 [{0.5 - 0.03 * half:.3f}, {0.5 + 0.04 * half:.3f}]"
    assert made_up.make_page("{{score knn-fold-* raw mIoU}}").endswith(expected)


@pytest.mark.parametrize(
    "marker",
    ["score knn-x raw mAP", "score absent raw mIoU", "score knn-x none mIoU", "value other.json a/1/b .2f",
     "value other.json a .2f", "table raw | x = knn-x mAP", "picture x"],
)  # fmt: skip
def test_a_marker_that_cannot_be_filled_is_an_error(made_up, marker):
    with pytest.raises(ValueError, match=marker.split()[0]):
        made_up.make_page("{{" + marker + "}}")
