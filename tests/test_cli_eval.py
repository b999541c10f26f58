"""`dvt-fast eval`: results, resumed runs, comparisons, configurations, and failures: one line, before any work."""

import functools
import json
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

import dvt_fast.vit
from dvt_fast.cli.evaluate import show
from dvt_fast.cli.evaluate.config import read_config
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.evaluation import knn, run, tasks
from dvt_fast.evaluation.outcome import Outcome, bootstrap
from dvt_fast.evaluation.tasks import TASKS
from street_samples import KNN, make_street

REAL = knn.knn


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    """Not to be changed."""
    return make_street(tmp_path_factory.mktemp("data") / "street")


@pytest.fixture
def knn_street(program, street, tmp_path_factory):
    """Runs `eval knn` on the street, with features kept for all tests."""
    kept = tmp_path_factory.getbasetemp() / "eval-features"
    return lambda *more: program("eval", "knn", street, *KNN, "--cache", kept, *more)


@pytest.fixture(scope="module")
def vits():
    """ViTs are made once."""
    return functools.lru_cache(dvt_fast.vit.ViT)


@pytest.fixture(autouse=True)
def light(monkeypatch, vits):
    """What takes the time and is tested elsewhere is done quickly; one commit for all tests."""
    monkeypatch.setenv("DVT_FAST_COMMIT", "abc")
    monkeypatch.setattr(dvt_fast.vit, "ViT", vits)

    def measure(features, variant, data, settings, progress=None):
        found = features.load(variant, knn.frames(data, settings), progress)
        return Outcome({"mean": bootstrap(lambda i: float(found[i].mean()) + settings.k, len(found), draws=20)})

    monkeypatch.setattr(knn, "knn", measure)


def documents(folder) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}


def timeless(document):
    """Without what differs from run to run."""
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "date")} for row in document["rows"]]
    return document | {"rows": rows}


def test_a_task_writes_results_a_report_and_a_table(program, street, monkeypatch):
    monkeypatch.setattr(knn, "knn", REAL)
    code, out, err = program("eval", "knn", street, *KNN, "--quick")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "knn street" and lines[1].split()[:3] == ["variant", "mIoU", "↑"]
    assert lines[2].startswith("raw ") and "[" in lines[2] and lines[-1] == "report: eval/report.html"
    (document,) = documents("eval").values()
    assert document["data"]["classes"] == ["left", "right", "ground <b>"]
    assert (document["data"]["train"], document["data"]["val"]) == (4, 3)
    assert document["vit"]["name"] == "dvt_mini" and document["settings"]["limit"] == 20_000
    assert [row["variant"]["name"] for row in document["rows"]] == ["raw", "coordinates"]
    assert all((Path("eval") / name).is_file() for row in document["rows"] for name in row["pictures"])
    assert str(street) not in json.dumps(document)
    assert sorted(os.listdir("eval")) == ["features", "knn-street.json", "panels", "report.html"]
    assert not list(Path("eval").rglob(".dvt-*"))
    page = Path("eval/report.html").read_text()
    assert "ground &lt;b&gt;" in page and "<b>ground" not in page


def test_a_narrow_terminal_has_the_scores_below_each_other(monkeypatch, capsys):
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "higher": True}
    rows = [
        {"variant": {"name": name}, "scores": {f"score {i}": score for i in range(9)}} for name in ("raw", "direct")
    ]
    wide = len("variant") + 9 * len("  0.500 [0.400, 0.600]")
    for width, first in ((60, ["variant", "raw", "direct"]), (wide, ["variant", "score", "0", "↑", "score"])):
        console = Console(width=width, force_terminal=True, color_system=None)
        monkeypatch.setattr("dvt_fast.cli.evaluate.show.Console", lambda console=console: console)
        show.scores({"task": "knn", "name": "street", "rows": rows})
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split()[: len(first)] == first and all(len(line) <= width for line in lines)
        assert len(lines) == (11 if width == 60 else 4)  # a title, and a line a score or a variant


@pytest.mark.parametrize("name", TASKS)
def test_help_offers_what_a_task_takes(program, name):
    task = TASKS[name]
    code, out, _ = program("eval", name, "--help")
    assert code == 0
    assert ("--seeds" in out) == task.heads == hasattr(task.settings(), "seeds")
    assert ("--layout" in out) == ("--read" in out) == bool(task.data)


def test_the_same_numbers_twice_and_from_kept_features(program, street):
    few = ["--train-images", 2, "--val-images", 2]
    for out in ("one", "two"):
        assert program("eval", "knn", street, *KNN, *few, "--out", out)[0] == 0
    assert program("eval", "knn", street, *KNN, *few, "--out", "three", "--cache", "one/features")[0] == 0
    one, two, three = (timeless(documents(out)["knn-street"]) for out in ("one", "two", "three"))
    assert one == two == three
    assert not Path("three/features").exists()


def test_a_stopped_run_goes_on(knn_street, monkeypatch):
    assert knn_street("--out", "whole")[0] == 0
    calls, own = [], knn.knn

    def stopping(features, variant, *rest):
        calls.append(variant.name)
        if calls == ["raw", "coordinates"]:
            raise KeyboardInterrupt
        return own(features, variant, *rest)

    monkeypatch.setattr(knn, "knn", stopping)
    code, _, err = knn_street()
    assert code == 130 and "goes on from here" in err
    assert [row["variant"]["name"] for row in documents("eval")["knn-street"]["rows"]] == ["raw"]
    assert "raw" in Path("eval/report.html").read_text()
    code, out, _ = knn_street()
    assert code == 0 and calls == ["raw", "coordinates", "coordinates"] and "measured before: raw" in out
    assert timeless(documents("eval")["knn-street"]) == timeless(documents("whole")["knn-street"])
    assert knn_street("--again")[0] == 0
    assert calls[3:] == ["raw", "coordinates"]


def test_other_settings_replace_results_after_saying_so(knn_street):
    assert knn_street()[0] == 0
    code, _, err = knn_street("-s", "k=3")
    assert code == 0
    assert err.splitlines() == [
        "eval/knn-street.json: not the same any more, so its 2 rows will be replaced: settings: k 20, now 3"
    ]
    assert documents("eval")["knn-street"]["settings"]["k"] == 3
    assert knn_street("-s", "k=3", "--read", "ignore=[2]", "--name", "other")[0] == 0
    assert documents("eval")["knn-other"]["data"]["read"] == {"ignore": [2]}
    assert documents("eval").keys() == {"knn-street", "knn-other"}


def test_a_variant_that_fails_does_not_stop_the_others(knn_street, monkeypatch):
    own = knn.knn

    def failing(features, variant, *rest):
        if variant.name == "raw":
            raise NonFiniteError("NaN in the features")
        return own(features, variant, *rest)

    monkeypatch.setattr(knn, "knn", failing)
    code, out, err = knn_street()
    assert code == 1 and err.splitlines() == ["1 failed:", "  knn street: raw: NaN in the features"]
    assert [row["variant"]["name"] for row in documents("eval")["knn-street"]["rows"]] == ["coordinates"]
    assert "report: eval/report.html" in out


def test_images_that_cannot_be_used_are_left_out_and_told(program, tmp_path):
    street = make_street(tmp_path / "bad")
    (street / "labels" / "train" / "train0.png").unlink()
    whole = (street / "images" / "val" / "val0.png").read_bytes()
    (street / "images" / "val" / "val0.png").write_bytes(whole[: len(whole) // 2])  # its size can still be read
    code, _, err = program("eval", "knn", street, *KNN)
    assert code == 1 and err.splitlines()[0] == "2 left out:"
    document = documents("eval")["knn-bad"]
    assert len(document["rows"]) == 2 and len(document["problems"]) == 2
    assert any(line.startswith("images/val/val0.png: ") for line in document["problems"])
    assert "left out" in Path("eval/report.html").read_text()
    code, _, again = program("eval", "knn", street, *KNN)
    assert (code, again) == (1, err)


def test_paths_of_problems_are_within_the_folder():
    line = "s/images/train/a.png: no label of that name in s/labels/train"
    assert run._within(Path("s"), line) == "images/train/a.png: no label of that name in labels/train"
    assert run._within(Path("../s"), line.replace("s/images", "../s/images")).startswith("images/train/a.png")


def test_compare_puts_runs_side_by_side(program, knn_street):
    assert knn_street("--out", "a")[0] == 0
    code, out, _ = knn_street("--out", "b", "-s", "k=3", "--compare", "a")
    assert code == 0
    assert "knn street, against a" in out and "not the same: settings: k 20, now 3" in out
    page = Path("b/report.html").read_text()
    assert "Compared" in page and "settings: k 20, now 3" in page
    code, out, err = program("eval", "report", "b", "--compare", "a")
    assert (code, err) == (0, "") and out.splitlines()[-1] == "report: b/report.html"
    assert Path("b/report.html").read_text() == page
    assert program("eval", "report", "b")[0] == 0
    assert "Compared" not in Path("b/report.html").read_text()


def test_two_denoisers_beside_raw(program, street):
    import dvt_fast.denoiser.checkpoint as checkpoint

    for folder in ("x", "y"):
        Path(folder).mkdir()
        Path(folder, "best.safetensors").write_bytes(
            (checkpoint.ASSETS / "dvt_mini_denoiser_norm.safetensors").read_bytes()
        )
    few = ["--val-images", 1, "--train-images", 1]
    files = [part for folder in "xy" for part in ("--denoiser", f"{folder}/best.safetensors")]
    code, out, err = program("eval", "knn", street, "--size", 64, "-v", "raw", *files, "--json", *few)
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [row["variant"]["name"] for row in document["rows"]] == ["raw", "stage2 x/best", "stage2 y/best"]
    assert document["data"]["val"] == 1
    assert document["rows"][1]["key"] == document["rows"][2]["key"] != document["rows"][0]["key"]


CONFIG = """
out = "results"
variants = ["raw", "few=direct,views=realtime,passes=1", {name = "place", kind = "coordinates"}]

[vits.before]
size = 64
norm = false
[vits.after]
size = 64

[[tasks]]
task = "knn"
data = "street"
train_images = 1
val_images = 1
settings = {k = 3}
variants = ["raw", "place"]

[[tasks]]
task = "knn"
name = "few"
data = "street"
quick = true
train_images = 2
val_images = 1
vits = ["after"]
"""


def test_a_configuration_runs_all_its_tasks(program, street, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "all.toml").write_text(CONFIG)
    code, out, err = program("eval", "run", "configs/all.toml", "--data-root", street.parent)
    assert (code, err) == (0, "")
    found = documents("configs/results")
    assert found.keys() == {"knn-street-before", "knn-street-after", "knn-few-after"}
    assert [row["variant"]["name"] for row in found["knn-few-after"]["rows"]] == ["raw", "few", "place"]
    assert [row["variant"]["name"] for row in found["knn-street-before"]["rows"]] == ["raw", "place"]
    assert found["knn-street-before"]["vit"]["norm"] == "none" and found["knn-street-before"]["settings"]["k"] == 3
    assert found["knn-few-after"]["data"]["train"] == 2 and found["knn-few-after"]["settings"]["limit"] == 20_000
    assert "At a glance" in Path("configs/results/report.html").read_text()
    code, out, _ = program("eval", "run", "configs/all.toml", "--data-root", street.parent, "--only", "knn-few-after")
    assert code == 0 and "measured before: raw, few, place" in out and "knn street" not in out


@pytest.mark.parametrize(
    "config, message",
    [
        ("[[tasks", "not readable as TOML"),
        ("", "no [[tasks]] in it"),
        ("colour = 3", "unknown key 'colour'; expected one of out, vit"),
        ("tasks = [3]", "tasks[0]: expected a table, got 3"),
        ('[[tasks]]\ntask = "knn"', "tasks[0]: data is missing"),
        ('[[tasks]]\ntask = "nn"\ndata = "street"', "tasks[0]: unknown task 'nn'; expected one of mic"),
        ('[[tasks]]\ntask = "knn"\ndata = "absent"', "tasks[0]: absent: not in "),
        ('[[tasks]]\ntask = "knn"\ndata = "street"\nquick = 1', "tasks[0]: quick must be bool, got 1"),
        ('[[tasks]]\ntask = "knn"\ndata = "street"\nseeds = 3', "knn trains no heads"),
        ('[[tasks]]\ntask = "knn"\ndata = "street"\nvits = ["x"]', "tasks[0]: vits: unknown name 'x'"),
        ('[[tasks]]\ntask = "knn"\ndata = "street"\nvariants = ["x"]', "tasks[0]: variants: unknown name 'x'"),
        ('[[tasks]]\ntask = "knn"\ndata = "street"\n' * 2, "two runs of knn are called street"),
        ('variants = ["blur"]', "variants[0]: variant blur: unknown kind 'blur'"),
        ('variants = ["map:absent.safetensors"]', "variants[0]: absent.safetensors: not in "),
        ('variants = [{name = "x"}]', "variants[0]: kind is missing"),
        ("[vit]\nsize = 1.5", "vit: size must be int or list, got 1.5"),
        ("[vit]\n[vits.x]", "either [vit], for one ViT, or [vits.NAME]"),
    ],
)
def test_bad_configurations_are_one_line(program, street, tmp_path, config, message):
    (tmp_path / "bad.toml").write_text(config)
    code, out, err = program("eval", "run", "bad.toml", "--data-root", street.parent)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert not list(Path().rglob("*.json"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["knn", "{street}", "-v", "blur"], "variant blur: unknown kind 'blur'; expected one of raw"),
        (["knn", "{street}", "-v", "direct,steps=3"], "unknown setting 'steps'; expected one of views, seed, part"),
        (["knn", "{street}", "-v", "raw", "-v", "raw"], "two variants are called raw"),
        (["knn", "{street}", "--denoiser", "absent.safetensors"], "absent.safetensors: no such file"),
        (["knn", "absent"], "absent: no such folder"),
        (["knn", "{street}", "-s", "kk=3"], "unknown setting 'kk' of knn; expected one of k, vote"),
        (["knn", "{street}", "-s", "k=many"], "knn: k must be int, got 'many'"),
        (["knn", "{street}", "-s", "k"], "--setting: expected NAME=VALUE, got 'k'"),
        (["knn", "{street}", "-s", "k=0"], "k and limit must be at least 1"),
        (["knn", "{street}", "--read", "x=3"], "unknown option 'x' for reading segmentation"),
        (["knn", "{street}", "--name", "a/b"], "the name of a run is letters"),
        (["knn", "{street}", "--size", "65"], "size"),
        (["knn", "{street}", "--compare", "absent"], "absent: no such folder to compare with"),
        (["knn", "{street}", "--compare", "{street}"], "no results of dvt-fast eval in it"),
        (["run", "absent.toml"], "absent.toml: No such file"),
        (["report", "absent"], "absent: no such folder"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(program, street, monkeypatch, arguments, message):
    monkeypatch.setattr("dvt_fast.vit.ViT.features", lambda *_, **__: pytest.fail("computed"))
    code, out, err = program("eval", *(str(part).format(street=street) for part in arguments))
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert not list(Path().rglob("*.json"))


def test_a_missing_package_is_named_with_its_extra(program, street, monkeypatch):
    real = tasks.require

    def lacking(package, extra):
        return real("no_such_package" if package == "pycocotools" else package, extra)

    monkeypatch.setattr(tasks, "require", lacking)
    monkeypatch.delitem(tasks.TASKS["detect"].__dict__, "module", raising=False)
    code, _, err = program("eval", "detect", street)
    assert code == 1 and "dvt-fast[eval]" in err


def test_the_configuration_in_the_documents_is_understood(street, tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    (block,) = re.findall(r"^```text\n([^`]*\[\[tasks\]\][^`]*)^```", text, re.M)
    (tmp_path / "config.toml").write_text(block)
    root = tmp_path / "data"
    for name in re.findall(r'(?:data|weights|file) = "(.*?)"', block):
        if Path(name).suffix:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        else:
            (root / name).mkdir(parents=True, exist_ok=True)
    jobs, out = read_config(tmp_path / "config.toml", [root])
    assert out == tmp_path / "results"
    assert [f"{job.task.name}-{job.name}{job.suffix}" for job in jobs] == [
        "segment-camvid-before",
        "segment-camvid-after",
        "knn-voc-after",
    ]
    assert [[variant.name for variant in job.variants] for job in jobs][:2] == [
        ["few views", "raw"],
        ["few views", "raw", "denoiser"],
    ]
    assert all(job.task.settings(job.quick, **job.settings) for job in jobs)


def test_settings_by_name_are_fitted_to_their_types():
    found = tasks.TASKS["segment"].settings(quick=True, window=[1, 2], stride=1, seeds=2)
    assert found.window == (1.0, 2.0) and found.stride == 1.0 and found.seeds == 2 and found.iterations == 1000
    assert tasks.TASKS["knn"].settings(limit=None).limit is None
    for values in ({"window": [1]}, {"window": 1}, {"seeds": True}, {"norm": 1}, {"seeds": 1.5}):
        with pytest.raises(InputError, match=f"segment: {next(iter(values))} must be"):
            tasks.TASKS["segment"].settings(**values)


def test_every_task_has_its_parts():
    for task in tasks.TASKS.values():
        assert callable(task.run) and task.settings(quick=True) == task.settings_class.quick()
