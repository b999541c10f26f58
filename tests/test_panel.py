"""The picture: what its colours mean, and that outlier tokens do not own it."""

import numpy as np
import pytest
from PIL import Image

from dvt_fast import visual
from dvt_fast.errors import InputError
from dvt_fast.page import BAR, CAPTION, Page, ticks
from dvt_fast.stage2 import Denoised
from samples import make_decomposition as make

RNG = np.random.default_rng


def with_corners(h=14, w=14, c=32, factor=25.0):
    """Smooth features with two regions, and the same with corner tokens of 25 times the norm."""
    y, x = np.mgrid[:h, :w] / h
    basis = RNG(0).standard_normal((4, c))
    clean = np.stack([np.sin(4 * x), np.cos(5 * y), x * y, x > 0.5], -1) @ basis
    raw = clean.copy()
    for i in (0, -1):
        for j in (0, -1):
            raw[i, j] = factor * np.linalg.norm(clean, axis=-1).mean() * basis[0] / np.linalg.norm(basis[0])
    return clean.astype(np.float32), raw.astype(np.float32)


def test_outliers_do_not_own_the_colours():
    clean, raw = with_corners()
    usual = np.ones((14, 14), bool)
    usual[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    alone = visual.ColorBasis.fit(clean, clean).colors(clean)[usual].astype(int)
    beside = visual.ColorBasis.fit(raw, clean).colors(clean)[usual].astype(int)
    assert np.abs(alone - beside).mean() < 4  # of 255
    assert (beside.max(0) - beside.min(0)).min() > 200  # the usual tokens span the whole range


def test_colours_add_up():
    rng = RNG(1)
    semantics, offset = rng.standard_normal((2, 9, 9, 16)) * [[[[1.0]]], [[[0.05]]]]
    basis = visual.ColorBasis.fit(semantics)
    total, part = basis.colors(semantics + offset).astype(int), basis.colors(semantics).astype(int)
    shift = basis.offset_colors(offset).astype(int) - 128
    inside = (total > 0) & (total < 255) & (part > 0) & (part < 255)
    assert inside.mean() > 0.8
    assert np.abs(total - part - shift)[inside].max() <= 2  # rounding
    assert (basis.offset_colors(np.zeros((1, 16))) == 128).all()


def test_principal_axes_are_the_exact_ones():
    tokens = RNG(2).standard_normal((300, 24)) * np.linspace(4, 1, 24)
    tokens -= tokens.mean(0)
    exact = np.linalg.svd(tokens, full_matrices=False)[2][:3].T
    found = visual._principal_axes(tokens, rounds=200)
    np.testing.assert_allclose(np.abs((exact * found).sum(0)), 1, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels_have_colours(channels):
    features = RNG(3).standard_normal((5, 5, channels))
    colors = visual.ColorBasis.fit(features).colors(features)
    assert colors.shape == (5, 5, 3) and len(np.unique(colors[..., 0])) > 10


def test_kmeans_finds_directions_whatever_their_norm():
    rng = RNG(4)
    truth = rng.integers(0, 4, (12, 12))
    tokens = np.eye(8)[truth] + 0.05 * rng.standard_normal((12, 12, 8))
    tokens *= rng.uniform(0.1, 30, (12, 12, 1))
    labels = visual.match_labels(visual.kmeans(tokens, 4), truth, 4)
    np.testing.assert_array_equal(labels, truth)


def test_kmeans_of_fewer_tokens_than_clusters():
    assert set(visual.kmeans(np.eye(3)[None], 6).ravel()) == {0, 1, 2}
    assert (visual.kmeans(np.ones((4, 4, 2)), 6) >= 0).all()


def test_similarity_is_the_cosine():
    features = RNG(5).standard_normal((3, 4, 6))
    values = visual.similarity(features, (1, 2))
    expected = features[0, 3] @ features[1, 2] / np.linalg.norm(features[0, 3]) / np.linalg.norm(features[1, 2])
    assert values[0, 3] == pytest.approx(expected) and values[1, 2] == pytest.approx(1)


def test_telling_patch_is_on_the_object():
    features = RNG(6).standard_normal((16, 16, 8)) * 0.05 + np.eye(8)[0]
    features[6:10, 6:10] += 6 * np.eye(8)[1]
    row, column = visual.telling_patch(features)
    assert 6 <= row < 10 and 6 <= column < 10


@pytest.mark.parametrize("size", [None, (60, 20), (10, 90), (1, 1)])
def test_panel_of_any_image(size):
    picture = make(6, 8, 5).panel(size and Image.new("L", size))
    assert picture.mode == "RGB" and 700 < picture.width < 2000 and 700 < picture.height < 3000
    assert len(picture.getcolors(1 << 24)) > 100


def test_panel_shows_the_artifacts_where_they_are():
    """The tile of raw has bright corners on the norm scale, that of F has none."""
    clean, raw = with_corners()
    d = make(14, 14, 32)
    d.raw, d.semantics, d.artifacts, d.residual = raw, clean, raw - clean, np.zeros_like(raw)
    picture = np.asarray(d.panel()).astype(int)
    page = Page(1.0, 5, (CAPTION, CAPTION + BAR, BAR), "", [""])
    brightest = visual.scale_colors(np.array(1.0), 0, 1)
    for column, bright in ((1, True), (2, False), (3, True), (4, False)):
        x, y = page.corner(1, column)
        assert (np.abs(picture[y + 3, x + 3] - brightest).max() < 20) == bright


def test_patch_outside_the_grid():
    with pytest.raises(InputError, match=r"patch must be \(row, column\) within 6 x 8 patches, got \(6, 0\)"):
        make(6, 8, 5).panel(patch=(6, 0))


def test_zero_and_constant_features_still_draw():
    d = make(4, 4, 3)
    d.raw, d.semantics, d.artifacts, d.residual = (np.full((4, 4, 3), v, np.float32) for v in (1, 1, 0, 0))
    d.panel()
    d.raw = d.semantics = np.zeros((4, 4, 3), np.float32)
    d.panel()


def denoised(stage1=True, h=14, w=14) -> Denoised:
    """Corners of raw that stand out, and are gone from denoised."""
    clean, raw = with_corners(h, w)
    meta = {"denoiser": {"kind": "block", "parameters": 480_000}, "seconds": {"vit": 0.02, "denoiser": 0.002}}
    meta |= {"vit": {"name": "x", "layer": 3, "depth": 6, "norm": "none"}}
    return Denoised(raw, clean, 0.9 * clean if stage1 else None, meta=meta)


@pytest.fixture
def drawn(monkeypatch):
    """Every text that is drawn on a page, and by how many pixels it stands out of the page."""
    texts = []
    draw_text = Page._text

    def record(self, x, y, text, *args, **kwargs):
        width = draw_text(self, x, y, text, *args, **kwargs)
        left = x - {"l": 0, "m": width / 2, "r": width}[kwargs.get("anchor", "la")[0]]
        texts.append((text, max(0, left + width - self.image.width)))
        return width

    monkeypatch.setattr(Page, "_text", record)
    return texts


@pytest.mark.parametrize("size", [None, (60, 20), (20, 60), (40, 40)])
@pytest.mark.parametrize("stage1", [False, True])
def test_panel_of_stage2(drawn, size, stage1):
    picture = denoised(stage1).panel(size and Image.new("L", size))
    names = ["raw", "stage 1 F", "denoised"] if stage1 else ["raw", "denoised"]
    labels = {text for text, *_ in drawn}
    assert {f"Norm of {name}" for name in [*names, "removed"]} <= labels
    assert {f"6 clusters of {name}" for name in names} <= labels
    assert {f"Similarity in {name}" for name in names} <= labels
    assert {"Raw", "Denoised", "Removed", "Cosine raw to denoised"} <= labels
    assert ("Stage 1 F" in labels) == stage1 and ("Input" in labels) == (size is not None)
    assert picture.mode == "RGB" and len(picture.getcolors(1 << 24)) > 100
    assert not [text for text, outside in drawn if outside]


def test_panel_of_stage2_says_the_cosines_and_how_it_was_made(drawn):
    d = denoised()
    d.panel()
    near = d.cosines()
    texts = [text for text, *_ in drawn]
    assert f"Cosine to stage 1's F, mean over the patches: raw {near['raw']:.3f}, denoised 1.000" in texts
    about = "  ".join(texts)
    assert "layer 3 of 0 to 5, norm: none" in about and "denoiser: block, 0.48 M parameters" in about
    assert "ViT 20 ms, denoiser 2 ms" in about


def test_panel_of_stage2_shows_what_was_removed_where_it_was():
    d = denoised(stage1=False)
    d.meta = {}  # nothing to say about it, in one line
    picture = np.asarray(d.panel()).astype(int)
    page = Page(1.0, 3, (CAPTION, CAPTION + BAR, CAPTION, BAR), "", [""])
    brightest = visual.scale_colors(np.array(1.0), 0, 1)
    for column, bright in ((0, True), (1, False), (2, True)):
        x, y = page.corner(1, column)
        assert (np.abs(picture[y + 3, x + 3] - brightest).max() < 20) == bright
    x, y = page.corner(0, 2)
    assert np.abs(picture[y + page.tile_h // 2, x + page.tile_w // 2] - 128).max() <= 1  # nothing removed is grey


@pytest.mark.parametrize("h, w", [(1, 14), (14, 1), (1, 1), (2, 3)])
def test_panel_of_a_small_grid(h, w):
    rng = RNG(h)
    Denoised(*rng.standard_normal((3, h, w, 8)).astype(np.float32)).panel(Image.new("RGB", (70, 50)))
    make(h, w, 8).panel()


def test_rounding_is_not_drawn_as_contrast(drawn):
    """A constant image, but for the last bits: one cluster, mid-grey, all similar."""
    features = (np.ones((8, 8, 16)) + 1e-6 * RNG(7).standard_normal((3, 8, 8, 16))).astype(np.float32)
    d = Denoised(features[0], features[1], features[2])
    picture = np.asarray(d.panel())
    labels = [text for text, *_ in drawn]
    assert {"Raw: all alike", "Denoised: all alike", "Stage 1 F: all alike"} <= set(labels)
    page = Page(1.0, 4, (CAPTION, CAPTION + BAR, CAPTION, BAR), "", [""])
    for row in (0, 2, 3):
        for column in range(3):
            x, y = page.corner(row, column)
            tile = picture[y : y + page.tile_h, x : x + page.tile_w]
            if row == 3:
                tile = tile[: page.tile_h // 5]  # above the mark
            assert tile.reshape(-1, 3).astype(int).std(axis=0).max() < 6, (row, column)


def test_white_cells_have_an_edge():
    page = Page(1.0, 1, (0,), "")
    page.tile(0, 0, "", np.full((2, 2, 3), 255, np.uint8))
    x, y = page.corner(0, 0)
    edge = np.asarray(page.image)[y : y + page.tile_h, x - 1]
    assert (edge < 240).all()


def test_what_stage1_says_of_the_layer_is_the_option(drawn):
    d = make(4, 4, 3)
    d.meta["vit"] = {"name": "x", "layer": 11, "depth": 12, "norm": "final"}
    d.panel()
    assert any("layer 11 of 0 to 11, norm: final" in text for text, *_ in drawn)


@pytest.mark.parametrize("low, high", [(0.3, 1), (-1, 1), (0.985, 1), (0.5, 0.9)])
def test_ticks_are_few_and_inside(low, high):
    values = ticks(low, high, logarithmic=False)
    assert 1 <= len(values) <= 8 and all(low <= v <= high for v in values)
