"""What evaluations measure: frames cut like their labels, variants by their words, features kept and read back."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import dvt_fast
from dvt_fast.arrays import to_numpy
from dvt_fast.errors import Cancelled, InputError
from dvt_fast.evaluation.features import Features, coordinate_waves
from dvt_fast.evaluation.frames import Frame, random_frames, sliding_frames, whole_frames
from dvt_fast.evaluation.outcome import Score, bootstrap
from dvt_fast.evaluation.variants import Variant, parse_variant, parse_variants


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (10 + i, 16, 3), np.uint8)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).resize((96, 64)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def vit():
    return dvt_fast.ViT("dvt_mini", size=96)


def test_labels_are_cut_as_the_picture_is(photos):
    pixels = np.asarray(Image.open(photos[0]))
    for box in (
        (0.0, 0.0, 1.0, 1.0),
        (0.25, 0.5, 0.5, 0.5),
        (0.111, 0.207, 0.3333, 0.619),
        (0.999, 0.999, 0.001, 0.001),
    ):
        for flip in (False, True):
            frame = Frame(photos[0], box, flip)
            assert np.array_equal(np.asarray(frame.picture()), frame.cut(pixels))
            left, top, right, bottom = frame.edges(96, 64)
            assert 0 <= left < right <= 96 and 0 <= top < bottom <= 64


def test_boxes_move_with_the_frame(photos):
    labels = np.zeros((64, 96), np.uint8)
    labels[20:30, 40:60] = 1
    for flip in (False, True):
        frame = Frame(photos[0], (0.25, 0.25, 0.5, 0.5), flip)
        y, x = np.nonzero(frame.cut(labels))
        (found,) = frame.cut_boxes(np.array([[40, 20, 60, 30]]), 96, 64)
        assert found.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    gone = Frame(photos[0], (0.5, 0.5, 0.5, 0.5)).cut_boxes(np.array([[0, 0, 10, 10]]), 96, 64)[0]
    assert (gone[2] - gone[0]) * (gone[3] - gone[1]) == 0


@pytest.mark.parametrize("box", [(-0.1, 0, 1, 1), (0, 0, 0, 1), (0.5, 0, 0.6, 1), (0, 0, 1, float("nan"))])
def test_a_box_outside_the_image(photos, box):
    with pytest.raises(InputError, match="inside the image"):
        Frame(photos[0], box)


def test_random_frames_are_seeded_and_inside(photos):
    frames = random_frames(photos * 20, seed=3)
    assert frames == random_frames(photos * 20, seed=3) != random_frames(photos * 20, seed=4)
    assert frames[:5] == random_frames((photos * 20)[:5], seed=3), "more images change no earlier crop"
    areas = [frame.box[2] * frame.box[3] for frame in frames]
    assert 0.25 <= min(areas) < 0.35 and 0.5 < max(areas) <= 0.6
    assert sum(frame.flip for frame in frames) == len(frames) // 2


def test_windows_cover_the_image(photos):
    seen = np.zeros((64, 96), int)
    frames = sliding_frames(photos[0], (64, 96), (40, 40), (30, 30))
    for frame in frames:
        left, top, right, bottom = frame.edges(96, 64)
        assert (right - left, bottom - top) == (40, 40)
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1 and len(frames) == 6
    assert sliding_frames(photos[0], (64, 96), (100, 100), (50, 50)) == [Frame(photos[0])]
    with pytest.raises(InputError, match="at least 1"):
        sliding_frames(photos[0], (64, 96), (40, 40), (0, 30))


def test_a_frame_is_known_by_content_and_part(photos, tmp_path):
    copy = tmp_path / "other name.png"
    copy.write_bytes(photos[0].read_bytes())
    assert Frame(copy).key == Frame(photos[0]).key != Frame(photos[1]).key
    parts = {Frame(copy).key, Frame(copy, flip=True).key, Frame(copy, (0, 0, 0.5, 1)).key}
    assert len(parts) == 3
    with pytest.raises(InputError, match=r"absent\.png: No such file"):
        Frame(tmp_path / "absent.png").key  # noqa: B018


def test_variants_by_their_words(tmp_path):
    found = parse_variants(
        ["raw", "few=direct,views=realtime,passes=1", "random=average,views=8,seed=3", "stage2:a/b.pth"]
    )
    assert found[0] == Variant("raw", "raw")
    assert found[1] == Variant("few", "direct", views="realtime", options={"passes": 1})
    assert found[2] == Variant("random", "average", views=8, seed=3)
    assert (found[3].name, found[3].file) == ("stage2 b", "a/b.pth")
    assert parse_variant("G=direct,part=artifacts").part == "artifacts"
    assert len({variant.key for variant in found}) == 4
    assert parse_variant("stage2:runs/lr=0.1/b.pth").file == "runs/lr=0.1/b.pth"
    assert parse_variant("a=stage2:runs/lr=0.1/b.pth").file == "runs/lr=0.1/b.pth"
    assert dataclasses.replace(found[1], name="another").key == found[1].key


@pytest.mark.parametrize(
    "text, message",
    [
        ("magic", "unknown kind 'magic'; expected one of raw, coordinates, map"),
        ("map", "needs the file of an artifact map"),
        ("map:absent.safetensors", "no such file"),
        ("raw:file", "raw takes no file"),
        ("direct,views=some", "unknown view plan 'some'"),
        ("direct,passes=0", "passes must be a whole number of at least 1"),
        ("direct,steps=3", "variant direct: unknown setting 'steps'; expected one of views, seed, part, grid"),
        ("direct,part=all", "part must be one of"),
        ("direct,views", "expected setting=value, got 'views'"),
        ("raw,passes=2", "takes no options of stage 1"),
        ("raw,views=8", "takes no options of stage 1"),
        ("stage2,seed=1", "takes no options of stage 1"),
    ],
)
def test_bad_variants(text, message):
    with pytest.raises(InputError, match=message):
        parse_variant(text)


def test_two_variants_of_one_name():
    with pytest.raises(InputError, match="two variants are called direct: name them"):
        parse_variants(["direct", "direct,views=realtime"])
    with pytest.raises(InputError, match="no variant"):
        parse_variants([])


def test_features_are_those_of_stage_1_and_2(photos, vit, tmp_path):
    known = dvt_fast.ArtifactMap.calibrate(vit, photos[1:], "realtime")
    known.save(tmp_path / "map.safetensors")
    words = ["raw", f"map:{tmp_path / 'map.safetensors'}", "coordinates", "stage2", "direct,views=realtime"]
    words += ["G=direct,views=realtime,part=artifacts", "without G=direct,views=realtime,part=raw - artifacts"]
    variants = parse_variants([*words, "average,views=realtime"])
    features = Features(vit, tmp_path / "cache")
    assert features.prepare(variants, whole_frames(photos[:1])) == []
    found = {variant.name: features.load(variant, whole_frames(photos[:1]))[0] for variant in variants}
    raw = to_numpy(vit.features(vit.transform(photos[0])[None]))[0]
    solved = dvt_fast.decompose(photos[0], vit, "realtime")
    assert np.allclose(found["raw"], raw, atol=1e-5)
    assert np.allclose(found["map"], raw - known.values, atol=1e-4)
    assert np.allclose(found["stage2"], dvt_fast.denoise(photos[0], vit).denoised, atol=1e-4)
    assert np.allclose(found["direct"], solved.semantics, atol=2e-3)  # `decompose` keeps views in float16
    assert np.allclose(found["G"], solved.artifacts, atol=2e-3)
    assert np.allclose(found["without G"], solved.raw - solved.artifacts, atol=2e-3)
    assert np.allclose(found["average"], dvt_fast.decompose(photos[0], vit, "realtime", "average").semantics, atol=1e-4)
    assert np.array_equal(found["coordinates"], coordinate_waves(vit.grid))


def test_what_is_kept_is_not_computed_again(photos, vit, tmp_path, monkeypatch):
    variants, frames = parse_variants(["raw", "direct,views=realtime"]), whole_frames(photos)
    passes = []
    forward = vit.features
    monkeypatch.setattr(vit, "features", lambda images: passes.append(len(images)) or forward(images))
    with pytest.raises(Cancelled):
        Features(vit, tmp_path).prepare(variants, frames, progress=lambda done, total, what: done < 2)
    assert passes == [5, 5], "the variants share the forward passes"
    again = Features(vit, tmp_path)
    assert again.prepare(variants, frames) == [] and passes == [5, 5, 5], "a stopped run goes on where it was"
    first = [again.load(variant, frames) for variant in variants]
    assert passes == [5, 5, 5]
    for variant, kept in zip(variants, first):
        assert np.array_equal(Features(vit).load(variant, frames), kept), "and computed anew it is the same"


def test_a_known_map_is_known_by_its_content(vit, tmp_path):
    keys = []
    for value in (0.0, 0.0, 1.0):
        dvt_fast.ArtifactMap(np.full((*vit.grid, vit.dim), value, np.float32), {}).save(tmp_path / "known.safetensors")
        keys.append(parse_variant(f"direct,artifacts={tmp_path / 'known.safetensors'}").key)
    assert keys[0] == keys[1] != keys[2]


def test_raw_is_the_same_beside_stage_1(vit, tmp_path):
    """Views of so large a picture are of a smaller one."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).resize((1000, 800)).save(tmp_path / "large.png")
    variants, frames = parse_variants(["raw", "direct,views=realtime"]), whole_frames([tmp_path / "large.png"])
    beside, alone = Features(vit, tmp_path / "beside"), Features(vit, tmp_path / "alone")
    assert beside.prepare(variants, frames) == [] == alone.prepare(variants[:1], frames)
    assert np.array_equal(beside.load(variants[0], frames), alone.load(variants[0], frames))


def test_coordinates_tell_every_place_apart():
    waves = coordinate_waves((14, 10)).reshape(140, -1)
    distance = np.linalg.norm(waves[:, None] - waves[None], axis=-1)
    assert distance[~np.eye(140, dtype=bool)].min() > 0.1


def test_an_image_that_fails_is_named_and_stops_no_other(photos, vit, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    variants = parse_variants(["raw"])
    features = Features(vit, tmp_path / "cache")
    (line,) = features.prepare(variants, whole_frames([bad, *photos]))
    assert line == f"{bad}: not an image that Pillow can read"
    assert features.load(variants[0], whole_frames(photos)).shape == (3, *vit.grid, vit.dim)
    with pytest.raises(InputError, match=r"bad\.png: not an image"):
        features.load(variants[0], whole_frames([bad]))


def test_a_denoiser_of_another_vit(photos, vit):
    other = dvt_fast.ViT("dvt_mini", size=96, layer=2)
    with pytest.raises(InputError, match="layer"):
        Features(other).load(parse_variant("stage2"), whole_frames(photos[:1]))


def test_bootstrap_intervals_hold_what_they_say():
    """Of 200 samples of 40 numbers, about 95 % of the intervals hold the true mean."""
    random = np.random.default_rng(0)
    held = 0
    for i in range(200):
        values = random.normal(size=40)
        score = bootstrap(lambda pick, v=values: float(v[pick].mean()), 40, draws=300, seed=i)
        assert score.low < score.value < score.high
        held += score.low < 0 < score.high
    assert 180 <= held <= 199
    assert bootstrap(lambda pick: float("nan"), 3).low is None
    assert bootstrap(lambda pick: 1.0, 1) == Score(1.0), "one item is no sample"


def test_scores_are_json():
    assert Score(float("nan"), 1.0, None, (0.5, 1.5), False).as_dict() == {
        "value": None, "low": 1.0, "high": None, "higher": False, "seeds": [0.5, 1.5],
    }  # fmt: skip
