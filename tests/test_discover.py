"""LOST on features whose object is known, CorLoc counted by hand, and the boxes that never look at the image."""

import numpy as np
import pytest

from dvt_fast.errors import Cancelled, InputError
from dvt_fast.evaluation.data.labelled import BoxData, Boxed
from dvt_fast.evaluation.discover import DiscoverSettings, discover, frames, iou, lost
from dvt_fast.evaluation.variants import Variant

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("scipy")

RAW = Variant("raw", "raw")


def planted(h=9, w=12, rows=(2, 5), columns=(6, 10), seed=0):
    """Features [h, w, 16]: a background along one direction, an object along its opposite, and a little noise."""
    random = np.random.default_rng(seed)
    background, across = np.linalg.qr(random.standard_normal((16, 2)))[0].T
    features = np.broadcast_to(background, (h, w, 16)).copy()
    features[slice(*rows), slice(*columns)] = across - 0.3 * background
    return (features + 0.01 * random.standard_normal(features.shape)).astype(np.float32)


def test_by_hand():
    """One row of five patches, in one channel each but for the third, which is in two."""
    features = np.array([[[1, 0, 0], [0, 2, 0], [0, 1, 1], [-1, 0, 1], [1, 0, -1]]], np.float32)
    # Products:  .  0  0 -1  1     degrees: 1 (with the fifth)
    #            0  .  2  0  0              1 (with the third)
    #            0  2  .  1 -1              2
    #           -1  0  1  . -2              1 (with the third)
    #            1  0 -1 -2  .              1 (with the first)
    found = lost(features)
    assert found.seed == (0, 0)  # the first of those of degree 1
    # Its set is itself and the fifth: summed correlations 2, 0, -1, -3, 3; the fifth is not beside the first.
    assert found.mask.tolist() == [[True, False, False, False, False]]
    np.testing.assert_allclose(found.box, [0, 0, 0.2, 1])
    # With k = 1 the set is the seed alone, with the same mask; a mask of 2 needs the next seed, the second patch: its
    # set is itself (of the four of degree 1 none else is positive with it), whose correlations are 0, 4, 2, 0, 0.
    assert lost(features, DiscoverSettings(k=1)).mask.tolist() == found.mask.tolist()
    found = lost(features, DiscoverSettings(min_patches=2, k=4))
    assert (found.seed, found.mask.tolist()) == ((0, 1), [[False, True, True, False, False]])
    np.testing.assert_allclose(found.box, [0.2, 0, 0.6, 1])
    assert lost(features, DiscoverSettings(min_patches=6)).seed == (0, 0)  # no mask is so large: as without


@pytest.mark.parametrize("gram", ["features", "centred", "cosine"])
@pytest.mark.parametrize("place", [((2, 5), (6, 10)), ((0, 2), (0, 3)), ((6, 9), (8, 12))])
def test_a_planted_object_is_found(gram, place):
    found = lost(planted(rows=place[0], columns=place[1]), DiscoverSettings(gram))
    (top, bottom), (left, right) = place
    np.testing.assert_allclose(found.box, [left / 12, top / 9, right / 12, bottom / 9])
    assert found.mask.sum() == (bottom - top) * (right - left)
    assert top <= found.seed[0] < bottom and left <= found.seed[1] < right


def test_two_objects_apart_are_not_one():
    features = planted()
    features[7:9, 1:3] = features[3, 7]
    assert lost(features).mask.sum() in (12, 4)


def test_a_large_mean_hides_the_object_and_the_gram_matrix_brings_it_back():
    features = np.concatenate([planted(), np.full((9, 12, 1), 5, np.float32)], -1)  # 25 more in every product
    whole = lost(features)
    assert whole.seed == (0, 0) and whole.mask.all()
    for settings in (DiscoverSettings("centred"), DiscoverSettings(bias=25)):
        np.testing.assert_array_equal(lost(features, settings).mask, lost(planted()).mask)


def test_a_bias_above_all_products_leaves_the_seed():
    found = lost(planted(), DiscoverSettings(bias=1e6))
    assert found.mask.sum() == 1 and found.mask[found.seed]


def test_the_settings_are_checked():
    assert DiscoverSettings.quick() == DiscoverSettings()
    with pytest.raises(InputError, match="gram must be one of features, centred, cosine, got 'keys'"):
        DiscoverSettings(gram="keys")
    for wrong in ({"k": 0}, {"min_patches": 0}, {"draws": 0}, {"bias": float("nan")}):
        with pytest.raises(InputError, match="at least 1, and bias finite"):
            DiscoverSettings(**wrong)


def test_iou_by_hand():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 4, 4]])
    others = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]])
    np.testing.assert_allclose(iou(boxes, others), [[1 / 7, 1, 0], [4 / 16, 4 / 16, 0]])


class Planted:
    """A `FeatureSource` whose images hold an object at a place of the grid that their names say."""

    grid, size = (8, 8), (64, 64)

    def load(self, variant, frames, progress=None):
        found = []
        for frame in frames:
            left, top, right, bottom = map(int, frame.image.stem.split("_"))
            found.append(planted(8, 8, (top, bottom), (left, right)))
        return np.stack(found)


@pytest.fixture
def data(tmp_path):
    """Images of 160 x 80 pixels, so a patch is 20 x 10: what LOST will find, and what there is."""

    def boxed(place, *boxes):
        path = tmp_path / ("_".join(map(str, place)) + ".png")
        Image.new("RGB", (160, 80), (40, 90, 140)).save(path)
        return Boxed(path, (160, 80), np.array(boxes, float).reshape(-1, 4), np.zeros(len(boxes), np.int64))

    return BoxData(
        "planted",
        ("thing",),
        (boxed((0, 0, 2, 2), (0, 0, 40, 20)),),  # exactly: IoU 1
        (
            boxed((2, 2, 6, 5), (40, 20, 120, 100 - 20), (0, 0, 5, 5)),  # the upper half of 80 x 60: IoU 1/2
            boxed((1, 1, 4, 4), (100, 50, 160, 80)),  # elsewhere: 0
            boxed((5, 1, 8, 4)),  # no object: cannot count
            boxed((3, 3, 6, 6), (60, 30, 120, 70), (0, 0, 10, 10)),  # 30 of 40 rows: 3/4
        ),
    )


def test_corloc_by_hand(data):
    outcome = discover(Planted(), RAW, data)
    scores = outcome.scores
    assert scores["CorLoc"].value == 3 / 4
    assert scores["mean IoU"].value == pytest.approx((1 + 1 / 2 + 0 + 3 / 4) / 4)
    assert 0 <= scores["CorLoc"].low <= 0.75 <= scores["CorLoc"].high <= 1
    assert (outcome.details["images"], outcome.details["without objects"]) == (4, 1)
    assert outcome.details["mean area"] == pytest.approx((4 + 12 + 9 + 9) / 64 / 4)
    assert outcome.details["share of nearly whole images"] == 0


def test_controls_by_hand(data):
    outcome = discover(Planted(), RAW, data)
    scores, details = outcome.scores, outcome.details
    assert scores["CorLoc, whole image"].value == 0
    # 800, 4800, 1800 and 2400 of 12800 pixels.
    assert scores["mean IoU, whole image"].value == pytest.approx((800 + 4800 + 1800 + 2400) / 12800 / 4)
    left, top, right, bottom = np.array(details["centre box"]) * (160, 80, 160, 80)
    assert (right - left) * (bottom - top) == pytest.approx(6400)
    shared = (120 - 40) * (bottom - 20)  # with 40..120 x 20..80, the one image that it can reach
    assert shared / (6400 + 4800 - shared) > 0.5
    assert scores["CorLoc, centre box"].value == 1 / 4
    assert scores["CorLoc over centre box"].value == 1 / 2
    # A box of eighths can have two of the four: 40..120 x 20..80 and 60..120 x 30..70 are alike enough.
    assert scores["CorLoc, best fixed box"].value == 1 / 2
    best = np.array(details["best fixed box"]) * (160, 80, 160, 80)
    both = iou(best[None], np.array([[40, 20, 120, 80], [60, 30, 120, 70]]))[0]
    assert (both >= 0.5).all()
    assert scores["CorLoc, whole image"].higher is None and scores["CorLoc"].higher is True


def test_crops_are_scored_by_what_is_in_them(tmp_path):
    """Features that show the one object of each image, wherever the crop has left it, find it in all crops; those that
    always show the place where it was in the whole image do not."""
    images = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (320, 320)).save(path)
        images.append(Boxed(path, (320, 320), np.array([[100 + 4 * i, 90, 210 + 4 * i, 230.0]]), np.zeros(1, np.int64)))
    by_path = {one.image: one for one in images}

    class Shown:
        grid, size = (32, 32), (320, 320)

        def __init__(self, follows):
            self.follows = follows

        def load(self, variant, shown, progress=None):
            maps = []
            for frame in shown:
                one = by_path[frame.image]
                inside = one.cut(frame) if self.follows else one
                left, top, right, bottom = (inside.boxes[0] / np.tile(inside.size, 2) * 32).round().astype(int)
                maps.append(planted(32, 32, (top, bottom), (left, right)))
            return np.stack(maps)

    data = BoxData("crops", ("thing",), (), tuple(images))
    following, fixed = (discover(Shown(follows), RAW, data) for follows in (True, False))
    count = following.details["crops with objects"]
    assert count == len(frames(data, DiscoverSettings())) - 12 > 8
    assert following.scores["CorLoc"].value == fixed.scores["CorLoc"].value == 1
    assert following.scores["CorLoc, crops"].value == 1 > fixed.scores["CorLoc, crops"].value + 0.2
    centre = np.array(following.details["centre box"])[None]
    hits = []
    for frame in frames(data, DiscoverSettings())[12:]:
        inside = by_path[frame.image].cut(frame, 0.25)
        hits.append(iou(centre * np.tile(inside.size, 2), inside.boxes).max() >= 0.5)
    assert following.scores["CorLoc, crops, centre box"].value == pytest.approx(np.mean(hits))


def test_the_same_again_and_something_to_look_at(data):
    first, second = (discover(Planted(), RAW, data) for _ in range(2))
    assert (first.scores, first.details) == (second.scores, second.details)
    sheet = np.asarray(first.pictures["boxes"]).reshape(-1, 3)
    assert (sheet == (255, 60, 160)).all(1).any() and (sheet == 255).all(1).any()
    assert len(sheet) == 972 * 486  # four images in two rows


def test_it_can_be_stopped(data):
    seen = []
    discover(Planted(), RAW, data, progress=lambda *told: seen.append(told))
    crops = len(frames(data, DiscoverSettings())) - 4
    assert seen == [(done, 4 + crops, "images") for done in range(1, 5 + crops)]
    with pytest.raises(Cancelled):
        discover(Planted(), RAW, data, progress=lambda *told: False)


def test_without_any_object_there_is_nothing_to_discover(data):
    with pytest.raises(InputError, match="planted: no image has an object to discover"):
        discover(Planted(), RAW, BoxData("planted", ("thing",), (), data.val[2:3]))
