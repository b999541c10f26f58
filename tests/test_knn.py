"""Nearest-neighbour segmentation: votes and ties by hand, planted classes, controls."""

from dataclasses import replace

import numpy as np
import pytest

from dense_samples import RAW, FakeSource, by_place, noise, one_hot, places, random_maps, segmentation_data, telling
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.evaluation.knn import Bank, KnnSettings, frames, knn


@pytest.fixture
def data(tmp_path):
    return segmentation_data(tmp_path, random_maps(12, 3), random_maps(5, 3, seed=1))


def at(*degrees):
    turn = np.radians(np.array(degrees, float))
    return np.stack([np.cos(turn), np.sin(turn)], -1)


def test_votes_by_hand():
    # Seen from 0 degrees: one of class 2 that is near, two of class 1 far off, one of class 0 behind.
    bank, labels = at(5, 70, -75, 180) * [[3.0], [1.0], [9.0], [1.0]], np.array([2, 1, 1, 0])
    query = at(0) * 7

    def vote(**settings):
        return Bank(bank, labels, KnnSettings(**settings)).classify(query, 3).item()

    assert vote(k=1) == 2
    assert vote(k=3) == 1
    assert vote(k=3, vote="similarity") == 2  # cosines 0.996 against 0.342 + 0.259
    assert vote(k=2) == 1  # one vote each: the first class
    assert vote(k=99, vote="similarity") == 2  # more than there are: all; the one behind counts nothing


def test_of_equal_neighbours_the_first_count():
    labels = np.array([1, 1, 0, 0, 0, 2])
    bank = Bank(np.concatenate([at(*[10] * 5), at(90)]), labels, KnnSettings(k=2))
    assert bank.classify(at(10, 0, 20), 3).tolist() == [1, 1, 1]


def test_many_patches_are_as_one_by_one():
    random = np.random.default_rng(0)
    bank = Bank(random.standard_normal((300, 6)), random.integers(0, 4, 300), KnnSettings(k=7))
    queries = random.standard_normal((1100, 6))
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    stored = np.asarray(bank._directions)
    expected = []
    for query in unit:
        nearest = np.argsort(-(stored @ query), kind="stable")[:7]
        expected.append(np.bincount(bank._labels[nearest], minlength=4).argmax())
    assert bank.classify(queries, 4).tolist() == expected


def test_planted_classes_are_found_and_noise_is_not(data):
    source = telling(data, one_hot)
    found = knn(source, RAW, data, KnnSettings(k=5))
    assert found.scores["mIoU"].value > 0.99 and found.scores["aAcc"].value > 0.99
    assert found.scores["mIoU, crops"].value > 0.85
    assert found.details["samples"] == {"train": 12, "bank": 12 * 36, "val": 5}
    assert source.asked == frames(data, KnnSettings())
    assert found.pictures["examples"].width > 500
    assert knn(noise(), RAW, data, KnnSettings(k=5)).scores["mIoU"].value < 0.4


def test_what_knows_only_places_fails_on_crops(tmp_path):
    data = segmentation_data(tmp_path, [by_place()] * 6, [by_place()] * 6)
    scores = knn(places(), RAW, data, KnnSettings(k=5)).scores
    assert scores["mIoU"].value == 1
    assert scores["mIoU, crops"].value < 0.65


def test_same_numbers_twice_also_with_a_part_of_the_bank(data):
    settings = KnnSettings(k=3, limit=50, vote="similarity")
    first, second = (knn(telling(data, one_hot), RAW, data, settings) for _ in range(2))
    assert (first.scores, first.details) == (second.scores, second.details)
    assert first.details["samples"]["bank"] == 50
    other = knn(noise(), RAW, data, replace(settings, seed=1)).scores["mIoU"].value
    assert other != knn(noise(), RAW, data, settings).scores["mIoU"].value


def test_mostly_unlabelled_patches_are_not_in_the_bank(tmp_path):
    maps = random_maps(3, 3)
    maps[0][:8] = -1  # two of six rows of patches
    data = segmentation_data(tmp_path, maps, random_maps(2, 3, seed=1))
    assert knn(places(), RAW, data).details["samples"]["bank"] == 3 * 36 - 12


def test_bad_input(data):
    with pytest.raises(InputError, match="the split val is empty"):
        knn(noise(), RAW, replace(data, val=()))
    for split in ("train", "val"):
        blank = tuple(replace(item, read=lambda: np.full((24, 24), -1, np.int16)) for item in getattr(data, split))
        with pytest.raises(InputError, match=f"planted: no labelled patch in the split {split}"):
            knn(noise(), RAW, replace(data, **{split: blank}))
    with pytest.raises(NonFiniteError, match="variant raw"):
        knn(FakeSource(lambda frame: np.full((6, 6, 2), np.nan)), RAW, data)
    for wrong in ({"k": 0}, {"limit": 0}, {"vote": "loud"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            KnnSettings(**wrong)
