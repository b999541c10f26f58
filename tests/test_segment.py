"""Segmentation by linear heads: counts and scores by hand and against torchmetrics, planted labels, controls."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from dense_samples import (
    CLASSES,
    GRID,
    RAW,
    SIZE,
    by_place,
    noise,
    one_hot,
    places,
    random_maps,
    segmentation_data,
    telling,
)
from dvt_fast.errors import InputError
from dvt_fast.evaluation import dense
from dvt_fast.evaluation.frames import Frame
from dvt_fast.evaluation.segment import SegmentSettings, _predict, cross_entropy, frames, segment

QUICK = replace(SegmentSettings.quick(), seeds=2, iterations=50, warmup=5, rate=0.1)


@pytest.fixture
def data(tmp_path):
    return segmentation_data(tmp_path, random_maps(12, 3), random_maps(5, 3, seed=1))


def test_counts_and_scores_by_hand():
    truth = np.array([[0, 0, 1], [1, -1, -1]])
    guess = np.array([[0, 1, 1], [1, 2, 0]])
    counts = dense.count_classes(guess, truth, 4)
    assert counts.tolist() == [[1, 2, 0, 0], [2, 2, 0, 0], [1, 3, 0, 0]]
    np.testing.assert_array_equal(dense.class_iou(counts), [0.5, 2 / 3, np.nan, np.nan])
    scores = dense.class_scores(counts[None, None])
    assert [scores[name].value for name in ("mIoU", "aAcc", "mAcc")] == pytest.approx([7 / 12, 0.75, 0.75])
    wrong = dense.count_classes(np.full((2, 3), 2), truth, 4)  # predicted, and of no pixel: absent all the same
    assert np.isnan(dense.class_iou(wrong)[2])
    details = dense.class_details(counts[None, None], ["a", "b", "c", "d"])
    assert details == {"IoU": {"a": 0.5, "b": pytest.approx(2 / 3), "c": None, "d": None}, "absent": ["c", "d"]}


def test_scores_are_torchmetrics():
    random = np.random.default_rng(0)
    truth, guess = random.integers(-1, 5, (6, 9, 9)), random.integers(0, 5, (6, 9, 9))
    counts = np.array([[dense.count_classes(g, t, 5)] for g, t in zip(guess, truth)])
    t, g = torch.from_numpy(truth), torch.from_numpy(guess)
    found = {name: score.value for name, score in dense.class_scores(counts).items()}
    common = {"num_classes": 5, "ignore_index": -1}
    assert found["mIoU"] == pytest.approx(multiclass_jaccard_index(g, t, average="macro", **common).item())
    assert found["aAcc"] == pytest.approx(multiclass_accuracy(g, t, average="micro", **common).item())
    assert found["mAcc"] == pytest.approx(multiclass_accuracy(g, t, average="macro", **common).item())
    score = dense.class_scores(counts)["mIoU"]
    assert score.low < score.value < score.high


def test_a_resample_without_a_class_is_a_mean_over_the_same_classes():
    right = dense.count_classes(np.zeros((2, 2), int), np.zeros((2, 2), int), 2)
    wrong = dense.count_classes(np.zeros((2, 2), int), np.ones((2, 2), int), 2)  # the only image of class 1
    score = dense.class_scores(np.array([[right], [right], [right], [wrong]]))["mAcc"]
    assert (score.value, score.low, score.high) == (0.5, 0.5, 0.5)


def test_labels_at_other_sizes():
    labels = np.arange(24).reshape(4, 6)
    assert dense.nearest(labels, (2, 3)).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert (dense.nearest(labels, (8, 12)) == labels.repeat(2, 0).repeat(2, 1)).all()
    pixels = np.array([[0, 0, 1, 1], [1, 1, 1, -1], [-1, -1, -1, -1], [2, -1, 2, 2]])
    assert dense.patch_labels(pixels, (2, 2), 3).tolist() == [[0, 1], [-1, 2]]  # a tie; mostly unlabelled; half is not


def test_planted_classes_are_learned_and_noise_is_not(data):
    found = segment(telling(data, one_hot), RAW, data, QUICK)
    assert found.scores["mIoU"].value > 0.97 and found.scores["aAcc"].value > 0.97
    assert found.scores["mIoU, crops"].value > 0.75  # its patches straddle classes
    assert len(found.scores["mIoU"].seeds) == 2 and found.scores["mIoU"].low <= found.scores["mIoU"].value
    assert found.details["samples"] == {"train": 12, "frames": 12, "val": 5}
    assert list(found.details["IoU"]) == list(CLASSES) and not found.details["absent"]
    assert max(found.details["training loss"]) < 0.3
    assert found.pictures["examples"].width > 500
    json.dumps([found.details, asdict(QUICK)])
    assert segment(noise(), RAW, data, QUICK).scores["mIoU"].value < 0.4


def test_what_knows_only_places_fails_on_crops(tmp_path):
    data = segmentation_data(tmp_path, [by_place()] * 6, [by_place()] * 6)
    scores = segment(places(), RAW, data, replace(QUICK, iterations=150)).scores
    assert scores["mIoU"].value > 0.9
    assert scores["mIoU, crops"].value < 0.65


def test_same_numbers_twice(data):
    first, second = (segment(telling(data, one_hot), RAW, data, replace(QUICK, flip=True)) for _ in range(2))
    assert (first.scores, first.details) == (second.scores, second.details)
    assert first.pictures["examples"].tobytes() == second.pictures["examples"].tobytes()


def test_full_recipe_mirrors_and_sees_input_pixels(data):
    source = telling(data, one_hot)
    settings = replace(SegmentSettings(), iterations=3, seeds=1)
    assert settings.loss_size(GRID, SIZE) == SIZE
    found = segment(source, RAW, data, settings)
    assert found.details["samples"]["frames"] == 24
    assert [frame.flip for frame in source.asked[:24]] == [False, True] * 12
    assert set(source.asked) == set(frames(data, settings))


def test_one_window_of_all_the_image_is_the_whole_image(tmp_path):
    wide = [np.concatenate([a, b[:, :12]], 1) for a, b in zip(random_maps(8, 3), random_maps(8, 3, seed=3))]
    data = segmentation_data(tmp_path, wide[:5], wide[5:])
    whole = segment(telling(data, one_hot), RAW, data, QUICK)
    slide = segment(telling(data, one_hot), RAW, data, replace(QUICK, inference="slide", window=(1.0, 1.5)))
    assert (whole.scores, whole.details) == (slide.scores, slide.details)
    windows = segment(telling(data, one_hot), RAW, data, replace(QUICK, inference="slide"))
    assert windows.details["samples"]["frames"] == 10  # of 24 pixels, 12 apart from the last, in 36
    assert windows.scores["mIoU"].value > 0.9


def test_logits_are_averaged_where_windows_overlap(tmp_path):
    class Sure:  # window 0 votes 1 for class 0, window 1 votes 3 for class 1
        def predict(self, features):
            return torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])[..., None, None]

    image = tmp_path / "a.png"
    windows = [Frame(image, (0, 0, 0.75, 1)), Frame(image, (0.25, 0, 0.75, 1))]
    assert _predict(Sure(), np.zeros((2, 1, 1, 1)), windows, (2, 4))[0].tolist() == [[0, 1, 1, 1]] * 2


def test_pixels_without_a_label_change_nothing():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 4, 4, generator=random)
    labels = torch.randint(0, 3, (1, 2, 8, 8), generator=random)
    labels[:, :, 4:] = -1  # what lies below the third row of patches touches no labelled pixel
    before = cross_entropy(logits, labels)
    logits[..., 3, :] += 100
    assert torch.equal(before, cross_entropy(logits, labels)) and before > 0.5
    assert cross_entropy(logits, torch.full_like(labels, -1)).item() == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_splits_without_anything_to_learn_or_measure(data, split):
    with pytest.raises(InputError, match=f"planted: the split {split} is empty"):
        segment(noise(), RAW, replace(data, **{split: ()}), QUICK)
    blank = tuple(replace(item, read=lambda: np.full(SIZE, -1, np.int16)) for item in getattr(data, split))
    with pytest.raises(InputError, match=f"planted: no labelled pixel in the split {split}"):
        segment(noise(), RAW, replace(data, **{split: blank}), replace(QUICK, iterations=2))


def test_absent_classes_are_named_and_do_not_count(tmp_path):
    data = segmentation_data(tmp_path, random_maps(8, 3), random_maps(4, 2, seed=1))
    found = segment(telling(data, one_hot), RAW, data, QUICK)
    assert found.details["absent"] == ["car"] and found.details["IoU"]["car"] is None
    assert found.scores["mIoU"].value > 0.95


def test_settings_that_make_no_sense():
    for wrong in ({"inference": "tiles"}, {"window": (0.0, 1.0)}, {"stride": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            SegmentSettings(**wrong)
