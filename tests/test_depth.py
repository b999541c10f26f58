"""Depth by linear heads: losses and errors by hand and against torchmetrics, planted depth, controls."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torchmetrics.functional import mean_squared_error

from dense_samples import GRID, RAW, SIZE, FakeSource, depth_data, noise, places, random_maps, telling
from dvt_fast.errors import InputError, NonFiniteError
from dvt_fast.evaluation.depth import DepthSettings, depth, depth_loss, depth_of, frames, image_errors
from dvt_fast.page import ticks

QUICK = replace(DepthSettings.quick(), seeds=2, iterations=60, warmup=10, rate=0.05, bins=64, max_depth=6.0)
NAN = float("nan")


def metres(maps):
    return [1 + labels.astype(np.float32) for labels in maps]


def bumps(values):
    """One bump a metre: a head can read depth off them."""
    centers = np.arange(1, 6)
    return np.exp(-np.square(np.nan_to_num(values)[..., None] - centers))


@pytest.fixture
def data(tmp_path):
    return depth_data(tmp_path, metres(random_maps(12, 4)), metres(random_maps(5, 4, seed=1)))


def test_errors_by_hand_and_by_torchmetrics():
    truth = np.array([[2.0, 4.0, NAN], [0.0, 12.0, 5.0]], np.float32)
    guess = np.array([[2.2, 3.0, 7.0], [1.0, 1.0, 5.0]], np.float32)
    rmse, relative, near = image_errors(guess, truth, DepthSettings())
    valid = np.array([[True, True, False], [False, False, True]])  # 0 is no depth, 12 m is beyond the bins
    expected = mean_squared_error(torch.from_numpy(guess[valid]), torch.from_numpy(truth[valid]), squared=False)
    assert rmse == pytest.approx(expected.item())
    assert relative == pytest.approx((0.1 + 0.25 + 0) / 3)
    assert near == pytest.approx(2 / 3)
    assert np.isnan(image_errors(guess, np.full((2, 3), np.nan), DepthSettings())).all()


def test_depth_is_the_weighted_mean_of_the_bins():
    settings = DepthSettings(bins=3, min_depth=0.0, max_depth=10.0, upsample=1)
    logits = torch.tensor([0.9, -5.0, 0.4]).view(1, 3, 1, 1, 1)  # weights 1.0, 0.1, 0.5
    assert depth_of(logits, settings).item() == pytest.approx((0.1 * 5 + 0.5 * 10) / 1.6)
    assert depth_of(torch.zeros(2, 3, 1, 4, 5), replace(settings, upsample=4)).shape == (2, 1, 16, 20)


def test_loss_by_hand():
    settings = DepthSettings()
    random = np.random.default_rng(0)
    guess, truth = random.uniform(1, 5, (2, 2, 9, 8)).astype(np.float32)
    truth[random.random(truth.shape) < 0.3] = np.nan
    errors = np.log(guess + 1e-3) - np.log(truth + 1e-3)
    known = errors[np.isfinite(errors)]
    expected = np.sqrt(known.var(ddof=1) + 0.15 * known.mean() ** 2)
    for step in (1, 2, 4, 6):
        part = errors[:, ::step, ::step]
        sums = np.nansum(np.abs(part[:, 2:] - part[:, :-2])) + np.nansum(np.abs(part[:, :, 2:] - part[:, :, :-2]))
        expected += 0.5 * sums / np.isfinite(part).sum()
    found = depth_loss(torch.tensor(guess)[None], torch.tensor(truth)[None], settings)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    warm = depth_loss(
        torch.tensor(guess)[None], torch.tensor(truth)[None], replace(settings, gradient=0.0), warming=True
    )
    assert warm.item() == pytest.approx(np.sqrt(0.15) * abs(known.mean()), rel=1e-5)


def test_pixels_without_depth_change_nothing():
    guess = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).add(1).requires_grad_()
    truth = torch.full((1, 2, 8, 8), 2.0)
    truth[:, :, 4:] = torch.tensor([NAN, 0.0, 11.0, NAN]).repeat(2)
    (slope,) = torch.autograd.grad(depth_loss(guess, truth, DepthSettings()).sum(), guess)
    assert (slope[..., 3, :] == 0).all() and (slope[..., 0, :] != 0).any()
    nothing = depth_loss(guess, torch.full_like(truth, NAN), DepthSettings())
    (slope,) = torch.autograd.grad(nothing.sum(), guess)
    assert nothing.item() == 0 and (slope == 0).all()


def test_planted_depth_is_learned_and_noise_is_not(data):
    found = depth(telling(data, bumps), RAW, data, QUICK)  # what is left is at the edges, where it interpolates
    assert found.scores["RMSE"].value < 0.45 and found.scores["RMSE"].higher is False
    assert found.scores["AbsRel"].value < 0.15 and found.scores["AbsRel"].higher is False
    assert found.scores["delta1"].value > 0.8 and found.scores["delta1"].higher is True
    assert found.scores["RMSE"].low <= found.scores["RMSE"].value <= found.scores["RMSE"].high
    assert len(found.scores["RMSE, crops"].seeds) == 2
    assert found.details["samples"] == {"train": 12, "frames": 12, "val": 5, "pixels": 5 * 576}
    assert found.pictures["examples"].width > 500
    json.dumps([found.details, asdict(QUICK)])
    assert depth(noise(), RAW, data, QUICK).scores["RMSE"].value > 0.9  # the depth's own spread is 1.1


def test_what_knows_only_places_fails_on_crops(tmp_path):
    slope = np.broadcast_to(np.linspace(1, 5, SIZE[0], dtype=np.float32)[:, None], SIZE)
    data = depth_data(tmp_path, [slope] * 6, [slope] * 6)
    scores = depth(places(), RAW, data, QUICK).scores
    assert scores["RMSE"].value < 0.25
    assert scores["RMSE, crops"].value > 2 * scores["RMSE"].value


def test_same_numbers_twice(data):
    first, second = (depth(telling(data, bumps), RAW, data, replace(QUICK, flip=True)) for _ in range(2))
    assert (first.scores, first.details) == (second.scores, second.details)
    assert first.pictures["examples"].tobytes() == second.pictures["examples"].tobytes()


def test_full_recipe_mirrors_and_needs_no_norm(data):
    source = telling(data, bumps)
    settings = replace(DepthSettings(), iterations=3, seeds=1)
    found = depth(source, RAW, data, settings)
    assert found.details["samples"]["frames"] == 24 and not found.scores["RMSE"].seeds
    assert set(source.asked) == set(frames(data, settings))


def test_images_without_valid_depth_are_left_out(tmp_path):
    train, val = metres(random_maps(8, 4)), metres(random_maps(3, 4, seed=1))
    full = depth_data(tmp_path, train, val)
    blank = replace(full.val[0], read=lambda: np.full(SIZE, np.nan, np.float32))
    expected = depth(telling(full, bumps), RAW, full, QUICK)
    found = depth(telling(full, bumps), RAW, replace(full, val=(*full.val, blank)), QUICK)
    assert found.scores["RMSE"].value == pytest.approx(expected.scores["RMSE"].value)
    assert found.details["over pixels"] == pytest.approx(expected.details["over pixels"])


def test_bad_input(data):
    with pytest.raises(InputError, match="planted: the split train is empty"):
        depth(noise(), RAW, replace(data, train=()), QUICK)
    for split in ("train", "val"):
        blank = tuple(replace(item, read=lambda: np.zeros(SIZE, np.float32)) for item in getattr(data, split))
        with pytest.raises(InputError, match=f"planted: no .*depth .*in the split {split}"):
            depth(noise(), RAW, replace(data, **{split: blank}), replace(QUICK, iterations=2))
    with pytest.raises(NonFiniteError, match=r"variant raw: .* at iteration 1"):
        depth(FakeSource(lambda frame: np.full((*GRID, 2), np.inf)), RAW, data, QUICK)
    for wrong in ({"bins": 1}, {"upsample": 0}, {"min_depth": 20.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            DepthSettings(**wrong)


def test_the_scale_of_a_street_has_numbers(data):
    far = replace(QUICK, iterations=1, max_depth=80.0)
    deep = tuple(
        replace(item, read=lambda: np.linspace(1, 79, 576, dtype=np.float32).reshape(SIZE)) for item in data.val
    )
    assert depth(noise(), RAW, replace(data, train=deep, val=deep), far).pictures["examples"].width > 500
    assert ticks(1, 79, logarithmic=False) == [20, 40, 60]
