"""The maximal information coefficient against another library and against all grids; the task that measures with it."""

import json
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import pytest

import dvt_fast
import mic_samples
from dvt_fast.artifact_map import position_share
from dvt_fast.errors import Cancelled, InputError, NonFiniteError
from dvt_fast.evaluation.frames import Frame
from dvt_fast.evaluation.mic import MicSettings, _jackknife, frames, maximal_information, mic
from dvt_fast.evaluation.outcome import bootstrap
from dvt_fast.evaluation.variants import Variant

SAMPLES = [(kind, n) for kind in mic_samples.KINDS for n in mic_samples.SIZES]
ORACLE = json.loads(mic_samples.ORACLE.read_text())["values"]


def coefficient(x, y, **settings):
    return float(maximal_information(np.asarray(x, float)[:, None], y, **settings)[0])


def test_the_oracle_has_every_sample():
    assert [(row["kind"], row["n"]) for row in ORACLE] == SAMPLES and len(SAMPLES) == 50


@pytest.mark.parametrize("row", ORACLE, ids=lambda row: f"{row['kind']} {row['n']}")
def test_agrees_with_the_numbers_of_another_library(row):
    x, y = mic_samples.sample(row["kind"], row["n"])
    # 1e-14 apart where they were made; elsewhere a sine may be rounded differently.
    assert coefficient(x, y) == pytest.approx(row["mic"], abs=1e-6)
    assert coefficient(y, x) == pytest.approx(row["mic"], abs=1e-6)


@pytest.mark.parametrize(("kind", "n"), SAMPLES[::3])
def test_agrees_with_another_library_where_it_is_installed(kind, n):
    pytest.importorskip("minepy", reason="minepy is not installed")
    x, y = mic_samples.sample(kind, n)
    assert coefficient(x, y) == pytest.approx(mic_samples.oracle(x, y), abs=1e-9)


def cuts(values, parts):
    """All ways to cut a variable into that many ranges: the range of each point."""
    ranks = np.unique(values, return_inverse=True)[1]
    for inner in combinations(range(1, ranks.max() + 1), parts - 1):
        yield np.searchsorted(inner, ranks, side="right")


def information(a, b):
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1 / len(a))
    joint = table[table > 0]
    return (joint * np.log(joint / np.outer(table.sum(1), table.sum(0))[table > 0])).sum()


def brute_force(rows_of, columns_of, cells):
    """The best of all grids whose rows come from `rows_of(parts)` and columns from `columns_of(parts)`."""
    return max(
        information(row, column) / log(min(x, y))
        for y in range(2, cells // 2 + 1)
        for x in range(2, cells // y + 1)
        for row in rows_of(y)
        for column in columns_of(x)
    )


def equal_rows(values, parts):
    """Rows of as equal numbers of points as ties allow, by the rule of the paper's supplement."""
    row, count, placed, wanted = 0, 0, 0, len(values) / parts
    rows = np.zeros(len(values), int)
    for value in np.unique(values):
        same = values == value
        if count and abs(count + same.sum() - wanted) >= abs(count - wanted):
            row, count, wanted = row + 1, 0, (len(values) - placed) / (parts - row - 1)
        rows[same] = row
        count, placed = count + same.sum(), placed + same.sum()
    return [rows]


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_best_of_all_cuts_across_equal_rows(seed):
    """Clumps leave no better column out, and the dynamic programme misses none."""
    random = np.random.default_rng(seed)
    n = 12 - seed // 2
    x, y = random.random(n), random.integers(0, 3 + seed, n) + 0.0
    expected = max(
        brute_force(lambda k: equal_rows(y, k), lambda k: cuts(x, k), n),
        brute_force(lambda k: equal_rows(x, k), lambda k: cuts(y, k), n),
    )
    assert coefficient(x, y, alpha=1.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_best_of_all_grids_where_one_variable_is_binary(seed):
    """Its only cut is the equal one, so that nothing is left to approximate; of other variables it is a lower bound."""
    random = np.random.default_rng(seed)
    x, y = random.random(11), random.integers(0, 2, 11)
    y[:2] = 0, 1
    every = brute_force(lambda k: cuts(x, k), lambda k: cuts(y, k), 11)
    assert coefficient(x, y, alpha=1.0) == pytest.approx(every, abs=1e-12)
    z = random.random(9)
    assert coefficient(x[:9], z, alpha=1.0) <= brute_force(lambda k: cuts(x[:9], k), lambda k: cuts(z, k), 9) + 1e-12


def test_known_values():
    place = np.arange(196) % 14 / 14
    noise = np.random.default_rng(0).standard_normal((196, 400))
    values = np.stack([place, -(place**3), np.full(196, 2.5), (place >= 0.5) + 0.0], 1)
    assert maximal_information(values, place) == pytest.approx([1, 1, 0, 1], abs=1e-12)
    assert not maximal_information(noise, np.zeros(196)).any()
    assert maximal_information(noise[:, :0], place).shape == (0,)
    by_chance = maximal_information(noise, place)
    assert 0.1 < by_chance.mean() < 0.2 and by_chance.min() > 0.05 and by_chance.max() < 0.4
    assert np.array_equal(maximal_information(np.exp(noise), place**2), by_chance)  # the order is all that counts


def test_number_of_threads_changes_no_bit():
    noise = np.random.default_rng(1).standard_normal((300, 50)).astype(np.float32)
    target = np.arange(300) // 20
    try:
        found = []
        for threads in (1, 2, 5):
            dvt_fast.set_num_threads(threads)
            found.append(maximal_information(noise, target))
    finally:
        dvt_fast.set_num_threads(0)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    alone = [coefficient(channel, target) for channel in noise.T]
    assert np.array_equal(found[0], alone)


def test_errors_say_what_came():
    values, target = np.zeros((9, 2)), np.arange(9)
    with pytest.raises(InputError, match=r"values must be \[n, C\] and target \[n\], got shapes \[9, 2\] and \[8\]"):
        maximal_information(values, target[:8])
    with pytest.raises(InputError, match=r"got shapes \[9\] and \[9\]"):
        maximal_information(values[:, 0], target)
    with pytest.raises(InputError, match="n must be 4 points to 2147483647, got 3"):
        maximal_information(values[:3], target[:3])
    for broken in (np.nan, np.inf):
        holed = values.copy()
        holed[7, 1] = broken
        with pytest.raises(NonFiniteError, match=f"values hold {broken} at point 7, channel 1"):
            maximal_information(holed, target)
        with pytest.raises(NonFiniteError, match=f"target holds {broken} at point 7"):
            maximal_information(values, holed[:, 1])
    for settings, message in (({"alpha": 0.0}, "alpha must be"), ({"alpha": 1.1}, "alpha"), ({"clumps": 0}, "clumps")):
        with pytest.raises(InputError, match=message):
            maximal_information(values, target, **settings)
    for settings in ({"alpha": 0.0}, {"alpha": float("nan")}, {"clumps": 0}, {"limit": 2}):
        with pytest.raises(InputError):
            MicSettings(**settings)


RAW = Variant("raw", "raw")


class Maps:
    """Features that are given."""

    size = (64, 64)

    def __init__(self, maps, crops=None):
        self.maps = np.asarray(maps, np.float32)
        self.crops = None if crops is None else np.asarray(crops, np.float32)
        self.grid = self.maps.shape[1:3]
        self.frames = [Frame(Path(f"{i}.png")) for i in range(len(maps))]

    def load(self, variant, frames, progress=None):
        """The same for a crop of an image as for the image, or as `self.crops` has it."""
        places = [[one.image for one in self.frames].index(frame.image) for frame in frames]
        return (self.maps if self.crops is None or frames[0] in self.frames else self.crops)[places]

    def measured(self, settings=None, progress=None):
        return mic(self, RAW, self.frames, settings or MicSettings(draws=50), progress)


def unrelated(n=12, h=6, w=8, c=5, seed=0):
    return np.random.default_rng(seed).standard_normal((n, h, w, c))


def test_scores_are_what_they_say():
    maps = unrelated() + 3 + unrelated(1, seed=1)
    found = Maps(maps).measured()
    names = {"MIC", "MIC, crops", "MIC, images together", "position share", "position share, crops"}
    names |= {"same-place similarity", "same-place excess"}
    assert set(found.scores) == names
    for name, score in found.scores.items():
        assert score.low < score.value < score.high
        assert score.higher is (None if name in ("MIC", "MIC, crops", "same-place similarity") else False)
    assert found.scores["position share"].value == pytest.approx(position_share(maps), abs=1e-6)
    floor, share = found.details["position share"]["floor"], found.scores["position share"]
    for key, raw in (("corrected", share.value), ("corrected, low", share.low), ("corrected, high", share.high)):
        assert found.details["position share"][key] == pytest.approx((raw - 1 / 12) / (11 / 12)) and floor == 1 / 12

    unit = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
    pairs = [(unit[i], unit[j]) for i in range(12) for j in range(12) if i != j]
    same = np.mean([(a * b).sum(-1) for a, b in pairs], 0)
    assert found.scores["same-place similarity"].value == pytest.approx(same.mean(), abs=1e-6)
    similarity = found.details["same-place similarity"]
    assert similarity["four corners"] == pytest.approx(same[[0, 0, -1, -1], [0, -1, 0, -1]].mean(), abs=1e-6)
    any_two = np.mean([np.einsum("abc,dec->abde", a, b) for a, b in pairs])
    assert similarity["any two places"] == pytest.approx(any_two, abs=1e-6) and any_two < same.mean()
    assert found.scores["same-place excess"].value == pytest.approx(same.mean() - any_two, abs=1e-6)

    y, x = np.divmod(np.arange(48), 8)
    each = [[maximal_information(image.reshape(48, 5).astype(np.float32), at).max() for at in (x, y)] for image in maps]
    assert found.details["MIC by image"] == pytest.approx(np.mean(each, 1))
    assert found.scores["MIC"].value == pytest.approx(np.mean(each))
    assert [found.details["MIC"][axis] for axis in "xy"] == pytest.approx(np.mean(each, 0))
    json.dumps(found.details, allow_nan=False)


def test_features_that_tell_the_place_score_high_and_clean_ones_do_not():
    content = unrelated(20, 10, 10, 6)
    place = np.zeros((10, 10, 6))
    place[..., 2] = np.linspace(-3, 3, 10)  # of x alone
    dirty, clean = Maps(content / 10 + place).measured(), Maps(content).measured()
    assert dirty.details["MIC"]["x"] == pytest.approx(1, abs=1e-9) and dirty.details["MIC"]["y"] < 0.5
    assert dirty.scores["position share"].value > 0.9 and dirty.scores["same-place similarity"].value > 0.8
    assert clean.scores["MIC"].value == pytest.approx(clean.details["MIC"]["patches shuffled"], abs=0.05)
    assert clean.scores["position share"].value == pytest.approx(0.05, abs=0.01)
    assert clean.details["position share"]["corrected"] == pytest.approx(0, abs=0.01)
    assert clean.scores["same-place similarity"].value == pytest.approx(0, abs=0.02)
    assert dirty.pictures["places"].size == clean.pictures["places"].size
    assert np.asarray(dirty.pictures["places"]).mean() != np.asarray(clean.pictures["places"]).mean()


def test_smooth_content_tells_the_place_within_an_image_but_not_over_images():
    random = np.random.default_rng(0)
    y, x = (np.arange(10) / 10 for _ in range(2))
    slopes = random.standard_normal((40, 2, 1, 1, 4))
    content = slopes[:, 0] * y[:, None, None] + slopes[:, 1] * x[None, :, None]
    found = Maps(content).measured()
    chance = found.details["MIC, images together"]["patches shuffled"]
    assert found.scores["MIC"].value > 0.7, "a smooth map is a function of the place"
    assert found.scores["MIC, images together"].value < chance + 0.15
    place = np.stack(np.broadcast_arrays(x, x, y[:, None], y[:, None]), -1)
    assert Maps(content / 10 + place).measured().scores["MIC, images together"].value > 0.7


def test_crops_are_measured_apart():
    """What only whole pictures have, such as a subject in the middle, crops do not show."""
    place = np.zeros((6, 8, 5))
    place[..., 0] = np.linspace(-9, 9, 8)
    found = Maps(unrelated() + place, crops=unrelated(seed=3)).measured()
    assert found.scores["position share"].value > 0.7 > 0.2 > found.scores["position share, crops"].value
    assert found.scores["MIC"].value > found.scores["MIC, crops"].value + 0.2
    same = Maps(unrelated()).measured()
    for name in ("MIC", "position share"):
        assert same.scores[f"{name}, crops"].value == same.scores[name].value


def test_all_patches_together_are_drawn_from_all_images():
    maps = unrelated(9, 6, 8)
    few, again = (Maps(maps).measured(MicSettings(draws=20, together=100)) for _ in range(2))
    assert few.scores["MIC, images together"] == again.scores["MIC, images together"]
    everything = Maps(maps).measured(MicSettings(draws=20)).scores["MIC, images together"].value
    y, x = np.divmod(np.arange(48), 8)
    values = maps.reshape(-1, 5).astype(np.float32)
    assert everything == pytest.approx(np.mean([maximal_information(values, np.tile(at, 9)).max() for at in (x, y)]))
    with pytest.raises(InputError, match="together must be at least 4 patches, got 3"):
        MicSettings(together=3)


def test_constant_features_tell_nothing():
    found = Maps(np.full((4, 3, 3, 2), 0.1)).measured()
    assert found.scores["MIC"].value == found.scores["position share"].value == 0
    assert found.scores["MIC, images together"].value == 0
    assert found.scores["same-place similarity"].value == pytest.approx(1)


def test_the_interval_leaves_one_out_because_resampling_would_inflate_it():
    """Over many sets of images its width is right; the bootstrap's lies above the value that it is for."""
    strength = 0.5 * unrelated(1, seed=1)
    found = []
    for seed in range(200):
        maps = unrelated(10, seed=seed + 2) + strength
        found.append(_jackknife(lambda chosen, maps=maps: position_share(maps[chosen]), 10))
    values, lows, highs = np.array([(s.value, s.low, s.high) for s in found]).T
    covered = ((lows < values.mean()) & (values.mean() < highs)).mean()
    assert 0.88 < covered < 0.99
    resampled = bootstrap(lambda chosen: position_share(maps[chosen]), 10, draws=200)
    assert resampled.low > resampled.value


def test_images_are_limited_evenly_and_too_few_refused():
    given = [Frame(Path(f"{i}.png")) for i in range(10)]
    assert frames(given, MicSettings())[:10] == given == frames(given, MicSettings(limit=99))[:10]
    assert [frame.image for frame in frames(given, MicSettings())[10:]] == [frame.image for frame in given]
    assert frames(given, MicSettings(limit=4))[:4] == [given[i] for i in (0, 2, 5, 7)]
    assert MicSettings.quick().limit == 10
    assert Maps(unrelated()).measured(MicSettings(limit=3, draws=9)).details["images"] == 3
    for count in (0, 2):
        with pytest.raises(InputError, match=f"needs at least 3, got {count}"):
            Maps(unrelated(count)).measured()


def test_it_repeats_and_can_be_stopped():
    source, told = Maps(unrelated(4)), []
    first = source.measured(progress=lambda *state: told.append(state))
    again = source.measured()
    assert first.scores == again.scores and first.details == again.details
    assert told == [(i, 8, "images") for i in range(1, 9)]
    with pytest.raises(Cancelled, match="2 of 8 images"):
        source.measured(progress=lambda done, total, what: done < 2)
    source.maps[1, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        source.measured()


def test_raw_features_of_a_real_vit_tell_the_place(shared_data):
    from dvt_fast.evaluation.features import Features
    from dvt_fast.evaluation.frames import whole_frames
    from dvt_fast.images import find_images

    weights = next((shared_data / "weights").glob("*.safetensors"))
    vit = dvt_fast.ViT("vit_tiny_patch16_224", weights=weights)
    photos = whole_frames(find_images(shared_data / "images")[:3])
    found = mic(Features(vit), RAW, photos, MicSettings(draws=50))
    assert found.details["MIC"]["patches shuffled"] + 0.05 < found.scores["MIC"].value
    similarity = found.details["same-place similarity"]
    assert similarity["four corners"] > 0.9 > 0.5 > similarity["any two places"]
