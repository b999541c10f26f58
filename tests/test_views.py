"""View plans, where the patches of views lie, and that the pixels agree with it."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dvt_fast.errors import InputError
from dvt_fast.views import PLANS, WHOLE, check_boxes, iter_views, plan_boxes, sample_views, view_coords

torch = pytest.importorskip("torch")


class Pixels:
    """Stands for a ViT: its geometry, and pixels in [0, 1] instead of normalised ones."""

    device = torch.device("cpu")

    def __init__(self, size, patch, stride):
        self.size, self.patch_size, self.stride = size, (patch, patch), (stride, stride)
        self.grid = tuple((n - patch) // stride + 1 for n in size)

    def to_input(self, pixels):
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    def patch_means(self, images):
        """[V, 3, H, W] -> [V, h, w, 3], the mean colour of each patch."""
        return torch.nn.functional.avg_pool2d(images, self.patch_size, self.stride).permute(0, 2, 3, 1)


def coordinate_image(width: int, height: int) -> Image.Image:
    """Red is x and green is y, dithered, so that means over pixels are finer than the 8 bits of one."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    dither = np.random.default_rng(0).random((height, width, 1))
    return Image.fromarray((np.stack([x, y, 0 * x], -1) * 255 + dither).astype(np.uint8))


# The last size is shrunk first; its crops are so smooth that rounding to 8 bits no longer averages out.
@pytest.mark.parametrize(
    "size, plan, tolerance",
    [((500, 375), "fast", 0.05), ((500, 375), 24, 0.05), ((1023, 767), 24, 0.05), ((4001, 3001), "fast", 0.15)],
)
@pytest.mark.parametrize(
    "vit",
    [Pixels((224, 224), 16, 16), Pixels((224, 224), 16, 8), Pixels((112, 168), 14, 7)],
    ids=["patches", "overlapping", "wide"],
)
def test_patches_show_what_their_coordinates_say(vit, size, plan, tolerance):
    """Colours that are coordinates come back from crops, flipped or not, as the coordinates of the patches."""
    views = sample_views(coordinate_image(*size), vit, plan, seed=1)
    error = (vit.patch_means(views.images)[..., :2] - views.coords).numpy()
    assert np.abs(error).max() < 0.5 / 255, "half a step of colour"
    pixel = views.boxes[:, 2:4] / vit.size[::-1]  # of the network's input, in units of the image
    assert np.abs(error.mean((1, 2)) / pixel).max() < tolerance, "a fraction of a pixel"


def test_presets():
    assert [len(plan_boxes(name)) for name in ("realtime", "fast", "paper")] == [5, 14, 769]
    for name in PLANS:
        boxes = check_boxes(plan_boxes(name))
        assert boxes.dtype == np.float64 and tuple(boxes[-1]) == WHOLE


def test_tiles_reach_the_edges_and_alternate():
    boxes = plan_boxes("fast")
    assert np.allclose(boxes[:4, :4], [[0, 0, 0.6, 0.6], [0, 0.4, 0.6, 0.6], [0.4, 0, 0.6, 0.6], [0.4, 0.4, 0.6, 0.6]])
    assert boxes[:13, 4].tolist() == [0, 1] * 6 + [0]
    assert np.allclose(boxes[4:13, :2].max(0), 0.55)
    assert plan_boxes(((1, 0.5),))[0].tolist() == [0.25, 0.25, 0.5, 0.5, 0]


def test_random_boxes_are_the_papers():
    boxes = plan_boxes(4000, seed=3)[:-1]
    area, aspect = boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3]
    assert 0.1 <= area.min() < 0.105 and 0.495 < area.max() <= 0.5 and abs(area.mean() - 0.3) < 0.01
    assert aspect.min() >= 0.75 and aspect.max() <= 4 / 3 and abs(np.log(aspect).mean()) < 0.01
    assert abs(boxes[:, 4].mean() - 0.5) < 0.03
    start = boxes[:, :2] / (1 - boxes[:, 2:4])
    assert np.allclose(start.mean(0), 0.5, atol=0.02) and start.min() >= 0 and start.max() <= 1


def test_seed():
    assert np.array_equal(plan_boxes(64, seed=5), plan_boxes(64, seed=5))
    assert not np.array_equal(plan_boxes(64, seed=5), plan_boxes(64, seed=6))
    assert np.array_equal(plan_boxes(64, seed=5)[:20], plan_boxes(20, seed=5)[:-1])


def test_center_coordinates_by_hand():
    boxes = np.array([[0.2, 0.4, 0.4, 0.2, 1], WHOLE])
    coords = view_coords(boxes, (2, 4))
    assert coords.shape == (2, 2, 4, 2) and coords.dtype == np.float32
    assert np.allclose(coords[0, 0, :, 0], [0.55, 0.45, 0.35, 0.25])
    assert np.allclose(coords[0, :, 0, 1], [0.45, 0.55])
    assert np.allclose(coords[1, 1, :, 0], [0.125, 0.375, 0.625, 0.875])
    square = SimpleNamespace(grid=(3, 3), size=(32, 32), patch_size=(16, 16), stride=(8, 8))
    assert np.allclose(view_coords(boxes, square)[1, :, 0, 1], [0.25, 0.5, 0.75])


def test_official_coordinates_run_from_edge_to_edge():
    coords = view_coords(np.array([[0.2, 0.4, 0.4, 0.2, 1], WHOLE]), 3, "official")
    assert np.allclose(coords[0, 0, :, 0], [0.6, 0.4, 0.2])
    assert np.allclose(coords[1, :, 0, 1], [0, 0.5, 1])


def test_batches_are_the_views_in_order():
    vit, image = Pixels((64, 64), 16, 16), coordinate_image(100, 80)
    views = sample_views(image, vit, 9, seed=2)
    batches = list(iter_views(image, views.boxes, vit, batch_size=4))
    assert [len(batch) for batch, _ in batches] == [4, 4, 2] and len(views) == 10
    assert torch.equal(torch.cat([batch for batch, _ in batches]), views.images)
    assert torch.equal(torch.cat([coords for _, coords in batches]), views.coords)


def test_one_pixel_image():
    views = sample_views(Image.new("RGB", (1, 1), (255, 0, 0)), Pixels((32, 32), 16, 16), "realtime")
    assert torch.equal(views.images, torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand_as(views.images))


@pytest.mark.parametrize("plan", ["slow", 0, -3, True, 2.5, None, (), ((0, 0.5),), ((2, 1.5),), (0.5, 0.6)], ids=repr)
def test_bad_plan(plan):
    with pytest.raises(InputError, match=r"view plan|level of tiles"):
        plan_boxes(plan)


@pytest.mark.parametrize(
    "boxes, message",
    [
        ([[0, 0, 1, 1]], "shape"),
        (np.zeros((0, 5)), "shape"),
        ("crops", "numbers"),
        ([[0.5, 0, 0.6, 0.5, 0], WHOLE], "box 0 is not inside"),
        ([[0.5, 0, 0, 0.5, 0], WHOLE], "box 0 is not inside"),
        ([WHOLE, [0, 0, 1, 1, 0.5], WHOLE], "box 1"),
        ([[0, 0, np.nan, 1, 0], WHOLE], "box 0"),
        ([WHOLE, [0, 0, 0.5, 0.5, 0]], "whole image"),
    ],
)
def test_bad_boxes(boxes, message):
    with pytest.raises(InputError, match=message):
        view_coords(boxes, 14)


def test_bad_options():
    boxes = plan_boxes("realtime")
    with pytest.raises(InputError, match="'center' or 'official'"):
        view_coords(boxes, 14, "corner")
    with pytest.raises(InputError, match="at least 1 patch"):
        view_coords(boxes, (0, 4))
    with pytest.raises(InputError, match="batch_size"):
        next(iter_views(coordinate_image(8, 8), boxes, Pixels((32, 32), 16, 16), batch_size=0))
