"""Detection: average precision on small cases counted by hand, frames and boxes, and a detector that must learn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

import torch

from dvt_fast.errors import Cancelled, InputError, NonFiniteError
from dvt_fast.evaluation import detect as task
from dvt_fast.evaluation.average_precision import AveragePrecision, Found
from dvt_fast.evaluation.data.labelled import BoxData, Boxed
from dvt_fast.evaluation.detector import Detector, Inputs, cells, position_waves
from dvt_fast.evaluation.frames import Frame, random_frames
from dvt_fast.evaluation.variants import parse_variant

pytestmark = pytest.mark.usefixtures("one_torch_thread")
RAW = parse_variant("raw")
GRID, SIZE, CHANNELS = (8, 8), (64, 64), 8
TINY = task.DetectSettings(
    iterations=60, batch=8, rate=3e-3, warmup=0.1, width=32, convs=1, flips=False, seeds=(0,), draws=50
)


def found(boxes, scores=None, classes=None) -> Found:
    n = len(boxes)
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Found(boxes, np.array(classes or [0] * n, int), np.array(scores or [1.0] * n))


def precision(truth, boxes, classes=1):
    return AveragePrecision(truth, boxes, classes).official


# --- average precision, by hand


BOX, OTHER = [10, 10, 50, 50], [60, 60, 90, 90]


def test_found_exactly():
    assert precision([found([BOX])], [found([BOX], [0.9])]) == pytest.approx(np.ones((10, 1)))


def test_nothing_found():
    assert precision([found([BOX])], [found([])]) == pytest.approx(np.zeros((10, 1)))


def test_shifted():
    # 40 x 40 moved by 10: 30 * 40 shared of 2 * 1600 - 1200, IoU 0.6: right up to that threshold
    assert precision([found([BOX])], [found([[20, 10, 60, 50]], [0.9])])[:, 0] == pytest.approx([1, 1, 1] + [0] * 7)


def test_missed_one_of_two():
    # right at recall 0 to 0.5, which are 51 of the 101 points
    assert precision([found([BOX, OTHER])], [found([BOX], [0.9])]) == pytest.approx(np.full((10, 1), 51 / 101))


def test_duplicates_count_as_wrong():
    both = [found([BOX, OTHER])]
    # sure of BOX, then of BOX again, then of OTHER: precision 1 up to recall 0.5, then 2 of 3
    boxes = [found([BOX, BOX, OTHER], [0.9, 0.8, 0.7])]
    assert precision(both, boxes) == pytest.approx(np.full((10, 1), (51 + 50 * 2 / 3) / 101))
    last = [found([BOX, BOX, OTHER], [0.9, 0.1, 0.7])]  # after all was found it costs nothing
    assert precision(both, last) == pytest.approx(np.ones((10, 1)))


def test_wrong_class_and_absent_class():
    truth = [found([BOX], classes=[0]), found([OTHER], classes=[1])]
    boxes = [found([BOX], [0.9], [1]), found([OTHER], [0.8], [1])]
    by_class = precision(truth, boxes, classes=3)[0]
    assert by_class[:2] == pytest.approx([0, 0.5]) and np.isnan(by_class[2])


def test_images_are_apart():
    assert precision([found([BOX]), found([])], [found([]), found([BOX], [0.9])]) == pytest.approx(np.zeros((10, 1)))


def random_images(seed, images=7, classes=3):
    rng = np.random.default_rng(seed)
    truth, boxes = [], []
    for _ in range(images):
        n = rng.integers(0, 4)
        start = rng.uniform(0, 60, (n, 2))
        objects = np.concatenate([start, start + rng.uniform(10, 40, (n, 2))], 1)
        truth.append(Found.objects(objects, rng.integers(0, classes, n)))
        near = np.repeat(objects, 3, 0) + rng.normal(0, 4, (3 * n, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        boxes.append(Found(near, rng.integers(0, classes, 3 * n), rng.random(3 * n)))
    return truth, boxes


@pytest.mark.parametrize("seed", range(4))
def test_resampled_agrees_with_pycocotools(seed):
    truth, boxes = random_images(seed)
    made = AveragePrecision(truth, boxes, 3)
    assert made.resampled(np.arange(len(truth))) == pytest.approx(made.official, nan_ok=True)
    drawn = np.random.default_rng(seed).integers(0, len(truth), len(truth))
    again = AveragePrecision([truth[i] for i in drawn], [boxes[i] for i in drawn], 3)
    assert made.resampled(drawn) == pytest.approx(again.official, nan_ok=True)
    assert np.isfinite(again.official).any()


def test_pycocotools_is_silent(capsys):
    precision([found([BOX])], [found([BOX], [0.9])])
    assert capsys.readouterr().out == ""


# --- the detector's parts


def test_cells_tile_the_frame():
    fine, same, coarse = (cells((3, 4), (30, 80), scale) for scale in (2.0, 1.0, 0.5))
    assert [len(level) for level in (fine, same, coarse)] == [6 * 8, 3 * 4, 2 * 2]
    assert same[0].tolist() == [0, 0, 20, 10] and same[-1].tolist() == [60, 20, 80, 30]
    assert fine[1].tolist() == [10, 0, 20, 5]
    assert coarse[-1].tolist() == [40, 20, 80, 40]  # of an odd number of rows the last reaches out


@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (1, 1)])
def test_pyramid_has_a_place_for_each_cell(grid):
    detector = Detector(grid, (grid[0] * 8, grid[1] * 8), CHANNELS, 2, 32, 1).eval()
    found = detector.detect(torch.zeros(2, CHANNELS, *grid))  # lengths that differ are an error
    assert len(found) == 2
    loss = detector.loss(
        torch.zeros(2, CHANNELS, *grid),
        [torch.zeros(0, 4), torch.tensor([[0.0, 0, 8, 8]])],
        [torch.zeros(0, dtype=torch.int64), torch.ones(1, dtype=torch.int64)],
    )
    assert torch.isfinite(loss)


def test_position_waves():
    waves = position_waves((3, 5), 10)
    assert waves.shape == (3, 5, 10) and waves.dtype == np.float32
    y, x = 2, 3
    rates = np.array([1, 0.01])
    angles = [np.sin(y * rates), np.cos(y * rates), np.sin(x * rates), np.cos(x * rates), [0, 0]]
    assert waves[y, x] == pytest.approx(np.concatenate(angles))


def test_inputs_are_standardised_and_get_positions():
    features = np.random.default_rng(0).normal(5, 3, (4, *GRID, CHANNELS)).astype(np.float32)
    features[..., 1] = 7  # a channel that says nothing
    plain = Inputs(features, GRID, False, "cpu")(features).numpy()
    assert plain.shape == (4, CHANNELS, *GRID)
    assert plain.mean((0, 2, 3)) == pytest.approx(np.zeros(CHANNELS), abs=1e-5)
    assert np.delete(plain.std((0, 2, 3)), 1) == pytest.approx(np.ones(CHANNELS - 1), abs=1e-5)
    added = Inputs(features, GRID, True, "cpu")(features).numpy() - plain
    assert added == pytest.approx(
        np.broadcast_to(position_waves(GRID, CHANNELS).transpose(2, 0, 1), added.shape), abs=1e-5
    )


# --- frames and boxes


def test_objects_in_a_frame():
    item = Boxed(Path("x.png"), (100, 50), np.array([[0.0, 0, 20, 10], [70, 20, 90, 40]]), np.array([0, 1]))
    mirrored, size = task._in_frame(item, Frame(item.image, flip=True))
    assert size == (100, 50) and mirrored.boxes.tolist() == [[80, 0, 100, 10], [10, 20, 30, 40]]
    right = Frame(item.image, (0.5, 0.0, 0.5, 1.0))
    cut, size = task._in_frame(item, right)
    assert size == (50, 50) and cut.boxes.tolist() == [[20, 20, 40, 40]] and cut.classes.tolist() == [1]
    scaled = task._to_size(cut, size, (25, 100))
    assert scaled.boxes.tolist() == [[40, 10, 80, 20]]


@pytest.mark.parametrize("visible, kept", [(0.25, 1), (0.26, 0)])
def test_barely_visible_objects_do_not_count(visible, kept):
    item = Boxed(Path("x.png"), (100, 100), np.array([[40.0, 40, 60, 60]]), np.array([0]))  # a quarter is in the crop
    cut, _ = task._in_frame(item, Frame(item.image, (0.0, 0.0, 0.5, 0.5)), visible)
    assert len(cut.boxes) == kept


# --- the task


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> BoxData:
    """24 images of 80 x 40 pixels, each with one of two kinds of squares, the last two of each split with none."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    items = []
    for index in range(32):
        kind = index % 2
        width, height = rng.uniform(20, 40), rng.uniform(10, 20)
        left, top = rng.uniform(0, 80 - width), rng.uniform(0, 40 - height)
        box = np.array([[left, top, left + width, top + height]])
        pixels = rng.integers(0, 60, (40, 80, 3), np.uint8)
        empty = index in (22, 23, 30, 31)
        if not empty:
            pixels[round(top) : round(top + height), round(left) : round(left + width), kind] = 250
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        items.append(Boxed(path, (80, 40), box[: not empty], np.array([kind][: not empty], int)))
    return BoxData("squares", ("red", "green", "none"), tuple(items[:24]), tuple(items[24:]))


class Pictures:
    """Features that are the mean colours of the patches, and noise."""

    grid, size = GRID, SIZE

    def __init__(self):
        self.loaded = []

    def load(self, variant, frames, progress=None):
        self.loaded.append(list(frames))
        rng = np.random.default_rng(len(frames))
        out = rng.normal(0, 0.1, (len(frames), *GRID, CHANNELS)).astype(np.float32)
        for features, frame in zip(out, frames):
            small = frame.picture().resize(GRID[::-1], Image.Resampling.BOX)
            features[..., :3] += np.asarray(small, np.float32) / 100
        return out


@pytest.fixture(scope="module")
def outcome(images):
    source = Pictures()
    return source, task.detect(source, RAW, images, TINY)


def test_objects_are_learned(outcome, images):
    _, made = outcome
    assert made.scores["AP50"].value > 0.7
    assert made.scores["mAP"].value > 0.3
    assert made.scores["mAP, crops"].value > 0.2
    assert made.scores["AP50"].value >= made.scores["mAP"].value >= 0
    for score in made.scores.values():
        assert score.low <= score.value <= score.high and score.higher


def test_details_and_picture(outcome, images):
    source, made = outcome
    assert made.details["absent"] == ["none"] and made.details["AP by class"]["none"] is None
    assert made.details["objects"] == {"train": 22, "val": 6} and made.details["images"] == {"train": 24, "val": 8}
    json.dumps(made.details, allow_nan=False)
    values = [made.details["AP by class"][name] for name in ("red", "green")]
    assert np.mean(values) == pytest.approx(made.scores["mAP"].value)
    sheet = np.asarray(made.pictures["detections"])
    assert sheet.shape == (500, 960, 3)
    for color in (task.TRUTH, task.FOUND):
        assert (sheet[:480] == color).all(-1).any()
    assert [frame for frames in source.loaded for frame in frames] == task.frames(images, TINY)


def test_same_numbers_twice_whatever_the_global_generator(outcome, images):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    few = dataclasses.replace(TINY, iterations=5, draws=5)
    one = task.detect(Pictures(), RAW, images, few)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(7)
    two = task.detect(Pictures(), RAW, images, few)
    assert one.scores == two.scores and one.details == two.details
    other = task.detect(Pictures(), RAW, images, dataclasses.replace(few, seeds=(1,)))
    assert other.details["loss"] != one.details["loss"]


def test_seeds_and_progress(images):
    told = []
    few = dataclasses.replace(TINY, iterations=3, seeds=(0, 1), draws=5, crops=False, positions=False)
    made = task.detect(Pictures(), RAW, images, few, lambda *where: told.append(where))
    assert told == [(i, 6, "iterations") for i in range(1, 7)]
    assert "mAP, crops" not in made.scores
    score = made.scores["mAP"]
    assert len(score.seeds) == len(made.details["loss"]) == 2
    assert score.value == pytest.approx(np.mean(score.seeds))
    with pytest.raises(Cancelled):
        task.detect(Pictures(), RAW, images, few, lambda done, total, what: done < 2)


def test_flips_are_mirrored_frames(images, monkeypatch):
    seen = {}

    def no_training(inputs, goals, *rest):
        seen["goals"] = goals
        raise InterruptedError

    monkeypatch.setattr("dvt_fast.evaluation.detector.train_detector", no_training)
    source = Pictures()
    with pytest.raises(InterruptedError):
        task.detect(source, RAW, images, dataclasses.replace(TINY, flips=True))
    (shown,) = source.loaded
    assert [frame.flip for frame in shown] == [False] * 24 + [True] * 24
    plain, mirrored = seen["goals"][0], seen["goals"][24]
    assert mirrored.boxes[:, [0, 2]] == pytest.approx(SIZE[1] - plain.boxes[:, [2, 0]])
    assert mirrored.boxes[:, [1, 3]] == pytest.approx(plain.boxes[:, [1, 3]])
    box = images.train[0].boxes * [0.8, 1.6, 0.8, 1.6]  # of 80 x 40 pixels
    assert plain.boxes == pytest.approx(box)


# --- what cannot be


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(train=()), "squares: no images to train a detector on"),
        (dict(val=()), "squares: no objects in the test images"),
    ],
)
def test_splits_without_anything(images, change, message):
    with pytest.raises(InputError, match=message):
        task.detect(Pictures(), RAW, dataclasses.replace(images, **change), TINY)


def test_training_images_without_objects(images):
    with pytest.raises(InputError, match="no objects to train a detector on"):
        task.detect(Pictures(), RAW, dataclasses.replace(images, train=images.train[22:]), TINY)


def test_features_too_wild(images):
    class Wild(Pictures):
        def load(self, variant, frames, progress=None):
            return np.full((len(frames), *GRID, CHANNELS), np.nan, np.float32)

    with pytest.raises(NonFiniteError, match="raw: the detector's loss is nan with seed 0"):
        task.detect(Wild(), RAW, images, TINY)


@pytest.mark.parametrize("wrong", [dict(iterations=0), dict(width=48), dict(seeds=()), dict(rate=0.0), dict(visible=0)])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        dataclasses.replace(TINY, **wrong)


def test_crops_without_objects_have_no_score(images):
    corner = Boxed(images.val[0].image, (80, 40), np.array([[0.0, 0, 1, 1]]), np.array([0]))
    (crop,) = random_frames([corner.image])
    assert len(task._in_frame(corner, crop, 0.25)[0].boxes) == 0
    few = dataclasses.replace(TINY, iterations=1, draws=5)
    made = task.detect(Pictures(), RAW, dataclasses.replace(images, val=(corner,)), few)
    assert np.isnan(made.scores["mAP, crops"].value) and made.scores["mAP, crops"].low is None
