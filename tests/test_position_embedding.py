"""benchmarks/position_embedding.py: what each scheme can know of a place, that the recipe learns, the measurements."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

SCHEMES = ["learned", "learned x20", "sinusoidal", "rotary", "alibi", "none"]
ABSOLUTE = ["learned", "learned x20", "sinusoidal"]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    """They are found, and run on one thread: nets this small only wait for a second."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def size():
    from position_vit import Size

    return Size(dim=16, depth=2, heads=2, patch=4, grid=(3, 4))


@pytest.fixture
def pictures(size) -> "torch.Tensor":
    return torch.rand(2, 3, *size.pixels, generator=torch.Generator().manual_seed(0))


def vit(scheme: str, size, seed: int = 0):
    """One whose attention is far from uniform, and whose learned vectors are not near 0, as if it were trained."""
    from position_vit import PositionViT

    model = PositionViT(scheme, size, seed).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.qkv.weight *= 4
        if model.table is not None:
            model.table *= 20
    return model


def rearranged(model, pictures, order):
    """Tokens [n, N, C] of the pictures with their patches in another order, put back into the first."""
    with torch.no_grad():
        return model.tokens(model.patches(pictures)[:, order])[:, order.argsort()]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_without_a_position_is_the_order_of_patches_no_matter(scheme, size, pictures):
    model = vit(scheme, size)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    whole = model(pictures).detach()
    difference = (rearranged(model, pictures, order) - whole).abs().max()
    assert difference < 1e-5 if scheme == "none" else difference > 1e-2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_absolute_positions_show_in_a_constant_picture(scheme, size):
    tokens = vit(scheme, size)(torch.full((1, 3, *size.pixels), 0.7)).detach()[0]
    spread = (tokens - tokens[0]).abs().max()
    assert spread > 0.1 if scheme in ABSOLUTE else spread < 1e-5


@pytest.mark.parametrize("scheme", ["rotary", "alibi", "sinusoidal"])
def test_relative_positions_are_the_same_wherever_the_grid_begins(scheme, size, pictures):
    model = vit(scheme, size)
    before = model(pictures).detach()
    model.places += torch.tensor([5.0, -3.0])
    moved = (model(pictures).detach() - before).abs().max()
    assert moved > 0.1 if scheme in ABSOLUTE else moved < 1e-4
    model.places *= torch.tensor([2.0, 1.0])  # other distances: nobody is blind to those
    assert (model(pictures).detach() - before).abs().max() > 1e-3


def test_rotation_keeps_lengths_and_tells_x_from_y(size):
    from position_vit import _angles, rotate

    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    angles = _angles(places, 4, 100.0)
    assert torch.allclose(angles, torch.tensor([[0, 0, 0, 0], [1, 0.1, 0, 0], [0, 0, 1, 0.1]]))
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, angles.cos(), angles.sin())
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1)) and torch.equal(turned[0], x[0])
    # A pair (a, b) is turned as the complex number a + ib.
    pairs = torch.complex(x[:, :4], x[:, 4:]) * torch.polar(torch.ones_like(angles), angles)
    assert torch.allclose(turned, torch.cat([pairs.real, pairs.imag], -1), atol=1e-6)


def test_all_schemes_start_from_the_same_weights_and_see_the_same_batches(size):
    from position_vit import PositionViT, Recipe, batches

    state = torch.random.get_rng_state()
    models = {scheme: PositionViT(scheme, size, 3).state_dict() for scheme in SCHEMES}
    assert torch.equal(state, torch.random.get_rng_state())
    for scheme, weights in models.items():
        assert set(weights) - set(models["none"]) == ({"table"} if "learned" in scheme else set())
        assert all(torch.equal(value, weights[name]) for name, value in models["none"].items())
    assert not torch.equal(PositionViT("none", size, 4).embed.weight, models["none"]["embed.weight"])

    images = torch.randint(0, 256, (6, 3, 24, 24), generator=torch.Generator().manual_seed(0))
    one, same, other = (list(batches(images, size, Recipe(steps=2, batch=4), seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for x, y in zip(one, same) for a, b in zip(x, y))
    assert not torch.equal(one[0][0], other[0][0])
    views, masks = one[0]
    assert views.shape == (8, 3, 12, 16) and 0 <= views.min() < views.max() <= 1
    assert masks.sum(1).tolist() == [0] * 4 + [6] * 4  # half the patches of the second views


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_few_steps_lower_both_losses(scheme, size):
    from position_vit import PositionViT, Recipe, train

    images = torch.randint(0, 256, (8, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(images.float(), 24, mode="bilinear").byte()
    found = train(PositionViT(scheme, size), images, Recipe(steps=30, batch=8, lr=3e-3), 0)
    assert found["image_loss_last"] < found["image_loss_first"] - 0.1
    assert found["patch_loss_last"] < found["patch_loss_first"] - 0.1


def test_a_hidden_patch_is_not_seen(size, pictures):
    model, hidden = vit("learned", size), torch.zeros(2, 12, dtype=torch.bool)
    hidden[:, 5] = True
    changed = pictures.clone()
    changed[:, :, 4:8, 4:8] = 0  # the sixth of 3 x 4 patches of 4 x 4 pixels
    assert torch.equal(model(changed, hidden), model(pictures, hidden))
    assert not torch.equal(model(changed), model(pictures))


def test_crops_are_where_the_box_says(size):
    from position_vit import crop, random_boxes

    image = torch.arange(64).view(1, 1, 8, 8)
    right_half = crop(image, np.array([[0.5, 0, 0.5, 1, 0.0]]), (8, 4))
    assert torch.allclose(right_half[0, 0], image[0, 0, :, 4:].float(), atol=1e-4)
    mirrored = crop(image, np.array([[0.5, 0, 0.5, 1, 1.0]]), (8, 4), "nearest")
    assert torch.equal(mirrored[0, 0], image[0, 0, :, 4:].flip(-1).float())
    boxes = random_boxes(np.random.default_rng(0), 500, (0.3, 1.0))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:4] <= 1 + 1e-9).all()
    assert set(boxes[:, 4]) == {0, 1} and boxes[:, 2].min() > 0.4


def test_shuffling_moves_patches_and_nothing_else(size, pictures):
    from position_measures import shuffled
    from position_vit import PositionViT

    model = PositionViT("none", size)
    before, after = (model.patches(x).sum(-1).sort(1).values for x in (pictures, shuffled(pictures, 4)))
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.equal(shuffled(pictures, 4), pictures)
    same = shuffled(pictures[:1].repeat(2, 1, 1, 1), 4)
    assert not torch.equal(same[0], same[1])  # each in an order of its own


def planted(strength: float, n: int = 40) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(n, 4, 5, 6)) + strength * random.normal(size=(4, 5, 6))).astype(np.float32)


def test_position_that_was_planted_is_found_and_none_where_none_is():
    from position_measures import artifacts

    found = {strength: artifacts(planted(strength), informed=0) for strength in (0.0, 1.0, 10.0)}
    for name in ("position_share", "share_within"):
        assert found[0.0][name] == pytest.approx(found[0.0]["floor"], abs=0.01)
        assert found[1.0][name] == pytest.approx(0.5, abs=0.1) and found[10.0][name] > 0.97
    assert abs(found[0.0]["same_place_excess"]) < 0.02 < 0.3 < found[1.0]["same_place_excess"]
    # What the images differ in as wholes lowers the share, but not the share within.
    differing = planted(1.0) + 5 * np.random.default_rng(1).normal(size=(40, 1, 1, 6))
    assert artifacts(differing, 0)["position_share"] < 0.1 < 0.4 < artifacts(differing, 0)["share_within"]


def test_share_by_place_tells_where():
    from position_measures import artifacts, position_share, share_by_place

    maps = planted(0.0)
    maps[:, 0, 0] += [4, 0, 0, 0, 0, 0]  # a vector of 16 / 6 of the variance of the others
    shares = share_by_place(maps)
    assert shares.shape == (4, 5) and shares[0, 0] > 10 * np.delete(shares.ravel(), 0).max()
    assert shares.mean() == pytest.approx(position_share(maps - maps.mean((1, 2), keepdims=True)), rel=1e-5)
    found = artifacts(maps, 0)
    assert found["share_corners"] == pytest.approx(shares[[0, 0, -1, -1], [0, -1, 0, -1]].mean())
    assert found["share_middle"] == pytest.approx(shares[1:3, 1:4].mean())


def test_same_place_is_the_mean_over_pairs():
    from position_measures import same_place

    maps = planted(0.5, n=4).reshape(4, 20, 6)
    unit = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
    cosines = np.einsum("ipc,jqc->ijpq", unit, unit)[~np.eye(4, dtype=bool)]  # [12, 20, 20]
    diagonal = np.eye(20, dtype=bool)
    expected = cosines[:, diagonal].mean(), cosines[:, ~diagonal].mean()
    assert same_place(maps.reshape(4, 4, 5, 6)) == pytest.approx(expected, abs=1e-6)


def test_mic_finds_a_channel_that_follows_x_and_not_shuffled_places():
    from position_measures import mic

    maps = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    nothing, shuffled_nothing = mic(maps), mic(maps, seed=0)
    maps[..., 1] = np.arange(8)
    maps[..., 2] = np.arange(8)[:, None]
    assert mic(maps) == pytest.approx(1, abs=1e-6)
    assert nothing < 0.6 and shuffled_nothing < 0.6 and mic(maps, seed=0) < 0.6


def test_norms_count_what_stands_out():
    from position_measures import norms

    maps = np.zeros((2, 4, 5, 3), np.float32)
    maps[..., 0] = 2
    maps[0, 0, 0] = [0, 6, 8]  # a norm of 10 beside 2
    assert norms(maps) == pytest.approx({"median_norm": 2, "max_over_median": 3, "outliers": 1 / 40})


def test_quality_is_full_for_features_that_tell_and_low_for_noise():
    from position_measures import knn, retrieval

    random = np.random.default_rng(0)
    one = random.normal(size=(9, 1, 1, 8)) + np.zeros((9, 4, 5, 8))
    assert retrieval(np.concatenate([one, one + 0.01 * random.normal(size=one.shape)])) == 1
    assert retrieval(random.normal(size=(18, 4, 5, 8))) < 0.5

    labels = random.integers(0, 3, (8, 4, 5))
    labels[0, 0] = 11  # unlabelled
    telling = np.eye(12)[labels] + 0.01 * random.normal(size=(8, 4, 5, 12))
    noise = random.normal(size=telling.shape)
    good, bad = (knn(x[:4], labels[:4], x[4:], labels[4:], k=5) for x in (telling, noise))
    assert good == 1 and bad < 0.5


def test_labels_of_patches_are_the_majority():
    from position_measures import majority

    labels = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    labels[0, 0, 1:, :4] = 7
    labels[0, 0, :, 4:] = 11
    assert majority(labels, 4).tolist() == [[[7, 11]]]


def test_quick_run_writes_rows_and_goes_on_where_it_stopped(shared_data, monkeypatch, tmp_path, capsys):
    import position_embedding

    out = tmp_path / "out.json"
    options = ["--quick", "--seeds", "0", "--work", str(tmp_path), "--json", str(out), "--schemes"]
    monkeypatch.setattr(sys, "argv", ["position_embedding.py", *options, "none"])
    position_embedding.main()
    first = json.loads(out.read_text())["rows"]
    assert list(first) == ["none untrained", "none seed 0"]
    found = first["none seed 0"]["norm=True"]
    assert list(found) == ["whole", "crops", "shuffled", "stage 1", "quality"]
    for way in ("whole", "crops", "shuffled", "stage 1"):
        assert 0 < found[way]["position_share"] < 1 and 0 < found[way]["mic"] <= 1
    assert list(found["quality"]) == ["retrieval", "knn whole", "knn crops", "knn stage 1"]
    assert all(0 < value <= 1 for value in found["quality"].values())
    monkeypatch.setattr(sys, "argv", ["position_embedding.py", *options, "none", "alibi"])
    monkeypatch.setattr(position_embedding, "train", _only_alibi(position_embedding.train))
    position_embedding.main()
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == [*first, "alibi untrained", "alibi seed 0"]
    assert {name: rows[name] for name in first} == first


def _only_alibi(train):
    def check(vit, *arguments):
        assert vit.scheme == "alibi", "trained again"
        return train(vit, *arguments)

    return check
