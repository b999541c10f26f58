"""What a frame costs: times that add up, by the roads that exist, on the small ViT that comes with the package."""

import dataclasses
import json
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

import torch

from dvt_fast import ArtifactMap, ViT
from dvt_fast.errors import Cancelled, InputError
from dvt_fast.evaluation import speed as task
from dvt_fast.evaluation.features import Features
from dvt_fast.evaluation.frames import Frame
from dvt_fast.evaluation.memory import peak_growth
from dvt_fast.evaluation.variants import Variant, parse_variant

pytestmark = pytest.mark.usefixtures("one_torch_thread")
FEW = task.SpeedSettings(runs=3, warmup=1, seconds=60, draws=20)


@pytest.fixture(scope="module")
def features() -> Features:
    return Features(ViT("dvt_mini", size=64))


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[Frame]:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for index in range(2):
        Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8)).save(folder / f"{index}.png")
    return [Frame(folder / "0.png"), Frame(folder / "1.png", (0.0, 0.0, 0.5, 0.5))]


@pytest.fixture(scope="module")
def known_map(features, tmp_path_factory) -> str:
    vit = features.vit
    path = tmp_path_factory.mktemp("map") / "map.safetensors"
    ArtifactMap(np.zeros((*vit.grid, vit.dim), np.float32), {"vit": vit.describe()}).save(path)
    return str(path)


@pytest.mark.parametrize(
    "text, parts, views, engine",
    [
        ("raw", ["views", "vit", "copy"], 1, True),
        ("coordinates", ["views", "waves"], 0, False),
        ("map", ["views", "vit", "subtract"], 1, False),
        ("average,views=realtime", ["views", "vit", "solve"], 5, False),
        ("direct,views=realtime", ["views", "vit", "solve"], 5, False),
        ("hashgrid,views=2,steps=3,n_levels=2,max_resolution=32", ["views", "vit", "solve"], 3, False),
        ("stage2", ["views", "vit", "denoiser"], 1, True),
    ],
)
def test_each_kind(text, parts, views, engine, features, frames, known_map):
    variant = Variant("map", "map", known_map) if text == "map" else parse_variant(text)
    made = task.speed(features, variant, frames, FEW)
    assert list(made.details["parts"]) == parts and all(part >= 0 for part in made.details["parts"].values())
    assert made.details["views"] == views and made.details["runs"] == 3 and made.details["device"] == "cpu"
    assert made.details["threads"]["torch"] == torch.get_num_threads()
    milliseconds, rate = made.scores["ms"], made.scores["frames/s"]
    assert 0 < made.details["best ms"] <= milliseconds.low <= milliseconds.value <= milliseconds.high
    assert milliseconds.higher is False and rate.higher is True
    assert rate.value == pytest.approx(1000 / milliseconds.value)
    assert rate.low <= rate.value <= rate.high
    assert ("engine ms" in made.scores) == engine
    if engine:
        assert 0 < made.details["engine"]["best ms"] <= made.scores["engine ms"].value
    else:
        assert made.details["engine"] == f"does not compute {variant.kind}"
    json.dumps(made.details, allow_nan=False)


def test_parts_are_of_what_they_say(features, frames, monkeypatch):
    """Work that takes a known time is found in its part, and the parts of a run add up to it."""

    def slow(work, seconds):
        def slower(*given, **named):
            time.sleep(seconds)
            return work(*given, **named)

        return slower

    vit = features.vit
    monkeypatch.setattr(vit, "transform", slow(vit.transform, 0.02))
    monkeypatch.setattr(vit, "features", slow(vit.features, 0.04))
    monkeypatch.setattr("dvt_fast.denoiser.Denoiser.denoise", slow(lambda self, x: x, 0.06))
    road = task._road(parse_variant("stage2"), vit)
    runs = task._time(road, [frame.picture() for frame in frames], FEW, lambda done: None)
    assert len(runs) == 3
    for run in runs:
        assert run["views"] >= 0.02 and run["vit"] >= 0.04 and run["denoiser"] >= 0.06
        assert run["views"] + run["vit"] + run["denoiser"] == pytest.approx(run["total"])


def test_views_cost_forward_passes(features, frames, monkeypatch):
    """Stage 1 is timed with all its views: here 0.03 s for each forward pass of five views."""
    vit = features.vit
    real = vit.features

    def slower(images):
        time.sleep(0.03 * len(images))
        return real(images)

    monkeypatch.setattr(vit, "features", slower)
    made = task.speed(features, parse_variant("direct,views=realtime"), frames, dataclasses.replace(FEW, runs=1))
    assert made.details["parts"]["vit"] >= 150
    assert made.scores["ms"].value >= 150 and made.scores["ms"].low is None  # no interval of a single run


class Clock:
    """Takes the place of the module `time`: stands still but for what is done."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(task, "time", self)

    def perf_counter(self):
        return self.now


def test_frames_in_turn_and_warm_up(frames, monkeypatch):
    clock, seen = Clock(monkeypatch), []

    def road(picture):
        seen.append(picture.size)
        clock.now += 1 if len(seen) == 1 else 0.25  # as first runs are
        return {"vit": 0.125}

    runs = task._time(road, [frame.picture() for frame in frames], FEW, lambda done: None)
    assert seen == [(120, 90), (60, 45)] * 2
    assert runs == [{"views": 0.125, "vit": 0.125, "total": 0.25}] * 3


@pytest.mark.parametrize("seconds, calls, kept", [(0.0, 1, 1), (5.0, 1, 1), (5.5, 2, 1), (11.5, 3, 2), (99.0, 4, 3)])
def test_no_run_begins_when_time_is_up(seconds, calls, kept, frames, monkeypatch):
    clock, seen, told = Clock(monkeypatch), [], []

    def road(picture):
        seen.append(1)
        clock.now += 4 + len(seen)
        return {}

    settings = dataclasses.replace(FEW, seconds=seconds)
    runs = task._time(road, [frames[0].picture()], settings, told.append)
    assert [run["total"] for run in runs] == [4 + n + 1 for n in range(calls - kept, calls)]
    assert len(seen) == calls and told[-1] == 4


def test_engine_only_where_asked_for(features, frames):
    made = task.speed(features, parse_variant("raw"), frames, dataclasses.replace(FEW, engine=False))
    assert "engine ms" not in made.scores and made.details["engine"] == "not asked for"


def test_progress(features, frames):
    told = []
    task.speed(features, parse_variant("raw"), frames, FEW, lambda *where: told.append(where))
    assert [(done, total) for done, total, _ in told if done in (1, 8)] == [(1, 8), (8, 8)]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    with pytest.raises(Cancelled):
        task.speed(features, parse_variant("raw"), frames, FEW, lambda *where: False)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is told by Linux alone")
def test_memory_is_that_of_the_work():
    cpu = torch.device("cpu")
    peak_growth(lambda: None, cpu)
    nothing, on_device = peak_growth(lambda: None, cpu)
    if nothing is None:
        pytest.skip("the system does not let the peak be reset")
    grown, _ = peak_growth(lambda: np.ones(40_000_000, np.uint8).sum(), cpu)  # freed at once, and yet counted
    assert on_device is None and nothing < 5 and 38 < grown < 60
    again, _ = peak_growth(lambda: np.ones(20_000_000, np.uint8).sum(), cpu)  # less than the peak before
    assert 18 < again < 40


@pytest.mark.parametrize("wrong", [dict(runs=0), dict(warmup=-1), dict(seconds=float("nan")), dict(draws=0)])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(InputError, match="at least"):
        dataclasses.replace(FEW, **wrong)


def test_no_frames(features):
    with pytest.raises(InputError, match="at least one image"):
        task.speed(features, parse_variant("raw"), [], FEW)


def test_file_of_another_vit(features, frames, tmp_path):
    vit = features.vit
    other = vit.describe() | {"layer": 1}
    ArtifactMap(np.zeros((*vit.grid, vit.dim), np.float32), {"vit": other}).save(tmp_path / "map.safetensors")
    with pytest.raises(InputError, match="layer 1"):
        task.speed(features, Variant("map", "map", str(tmp_path / "map.safetensors")), frames, FEW)
