"""Views of an image on a device: the bits of what Pillow and `ViT.to_input` make of the same boxes."""

import numpy as np
import PIL
import pytest
from PIL import Image

from cuda_samples import rounded, run_op
from dvt_fast.errors import InputError
from dvt_fast.views import plan_boxes
from test_pixels import MEAN, STD, noise, padded

SCALE = [np.float32(1 / (255 * std)) for std in STD]
SHIFT = [-np.float32(mean / std) for mean, std in zip(MEAN, STD, strict=True)]
COLUMNS_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def edges_of(boxes, size):
    """Boxes (x, y, w, h, flip) in units of the image -> left, top, right, bottom in pixels of it."""
    height, width = size
    x, y, w, h = np.asarray(boxes)[:, :4].T
    return np.stack(
        [x * width, y * height, np.minimum((x + w) * width, width), np.minimum((y + h) * height, height)], 1
    )


def on_device(image, edges, mirrored, size, dtype="float32", columns_first=COLUMNS_FIRST):
    memory = image
    while memory.base is not None and isinstance(memory.base, np.ndarray):
        memory = memory.base
    numbers = {"offset": image.ctypes.data - memory.ctypes.data, "height": image.shape[0], "width": image.shape[1]}
    numbers |= {f"stride{i}": stride for i, stride in enumerate(image.strides)}
    numbers |= {f"box{i}_{k}": float(edge) for i, box in enumerate(edges) for k, edge in enumerate(box)}
    numbers |= {f"mirror{i}": float(flip) for i, flip in enumerate(mirrored)}
    numbers |= {f"scale{c}": float(SCALE[c]) for c in range(3)} | {f"shift{c}": float(SHIFT[c]) for c in range(3)}
    numbers["columns_first"] = columns_first
    shape = (len(edges), 3, *size)
    return run_op("views", {"pixels": memory}, {"y": (shape, dtype)}, numbers, {"type": dtype})["y"]


def by_pillow(image, edges, mirrored, size):
    """As dvt_fast/views.py and `ViT.to_input` make them on the CPU."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    out = np.empty((len(edges), 3, *size), np.float32)
    for view, box, flip in zip(out, edges, mirrored, strict=True):
        pixels = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC, box=tuple(map(float, box))))
        pixels = pixels[:, ::-1] if flip else pixels
        for c in range(3):
            np.multiply(pixels[..., c], 1 / (255 * STD[c]), out=view[c], dtype=np.float32)
            view[c] -= np.float32(MEAN[c] / STD[c])
    return out


@pytest.mark.sanitizer
@pytest.mark.parametrize("source", [(48, 64), (75, 50), (120, 31)])
@pytest.mark.parametrize("size", [(28, 28), (42, 70)])
def test_every_bit_is_pillows(cuda, source, size):
    image = noise(source)
    boxes = plan_boxes(3, seed=1)
    boxes[0, 4], boxes[1, 4] = 0, 1
    edges = edges_of(boxes, source)
    np.testing.assert_array_equal(
        on_device(image, edges, boxes[:, 4], size), by_pillow(image, edges, boxes[:, 4], size)
    )


def test_boxes_of_all_kinds(cuda):
    """Small and large, at the edges, of whole and of broken pixels; columns first and not."""
    rng = np.random.default_rng(2)
    for seed in range(12 if cuda.emulated else 100):
        height, width, *size = (int(side) for side in np.exp(rng.uniform(0.5, 4.4 if cuda.emulated else 6, 4)))
        image = noise((height, width), seed)
        x, y = np.sort(rng.random((2, 3, 2)) * [[[width]], [[height]]], axis=-1)
        edges = np.stack([x[:, 0], y[:, 0], x[:, 1] + 1e-3, y[:, 1] + 1e-3], 1).clip(0, (width, height, width, height))
        edges[0] = (0, 0, width, height)
        edges[1] = (np.floor(edges[1, 0]), 0, np.ceil(edges[1, 2]), height)
        flips = rng.integers(0, 2, 3)
        np.testing.assert_array_equal(
            on_device(image, edges, flips, size), by_pillow(image, edges, flips, size), f"{image.shape} {size} {edges}"
        )


def test_the_order_of_an_older_pillow(cuda):
    """Before version 13 rows always came first: two calls of any version, one along each axis, do that."""
    image, size = noise((200, 40)), (30, 34)
    edges = edges_of(plan_boxes(2, seed=4), image.shape[:2])
    found = on_device(image, edges, [0, 0, 0], size, columns_first=False)
    for view, (left, top, right, bottom) in zip(found, edges, strict=True):
        wide = Image.fromarray(image).resize((size[1], 200), Image.Resampling.BICUBIC, box=(left, 0, right, 200))
        expected = by_pillow(np.asarray(wide), [(0, top, size[1], bottom)], [0], size)[0]
        np.testing.assert_array_equal(view, expected)
    assert (found != on_device(image, edges, [0, 0, 0], size, columns_first=True)).any()


def test_a_plan_of_more_views_than_a_launch_takes(cuda):
    image = noise((31, 40))
    boxes = plan_boxes(70, seed=3)
    edges = edges_of(boxes, image.shape[:2])
    np.testing.assert_array_equal(
        on_device(image, edges, boxes[:, 4], (14, 14)), by_pillow(image, edges, boxes[:, 4], (14, 14))
    )


def test_layouts(cuda):
    image = noise((40, 52))
    boxes = plan_boxes("realtime")
    edges, flips = edges_of(boxes, image.shape[:2]), boxes[:, 4]
    expected = by_pillow(image, edges, flips, (28, 35))
    whole = np.full((40, 52, 4), 77, np.uint8)
    whole[..., :3] = image
    for view in (
        padded(image),
        whole[..., :3],
        np.ascontiguousarray(image[..., ::-1])[..., ::-1],
        np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1],
        np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0),
    ):
        np.testing.assert_array_equal(on_device(view, edges, flips, (28, 35)), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits(cuda, dtype):
    image = noise((40, 52))
    boxes = plan_boxes("realtime")
    edges, flips = edges_of(boxes, image.shape[:2]), boxes[:, 4]
    found = on_device(image, edges, flips, (28, 35), dtype)
    np.testing.assert_array_equal(found, rounded(by_pillow(image, edges, flips, (28, 35)), dtype))


@pytest.mark.parametrize(
    "box", [(-0.1, 0, 4, 4), (0, 0, 4.1, 4), (0, 0, 4, 5.1), (2, 0, 2, 4), (0, 3, 4, 2), (0, 0, np.nan, 4)]
)
def test_a_box_outside_the_image_is_refused(cuda, box):
    with pytest.raises(InputError, match=r"the box of view 1 must lie within the image of 5 x 4 pixels"):
        on_device(np.zeros((5, 4, 3), np.uint8), [(0, 0, 4, 5), box], [0, 0], (8, 8))


def picture_on(cuda, picture, vit):
    """As `cuda_views.upload` puts it on a device; torch's main memory where that is emulated."""
    torch = pytest.importorskip("torch")
    from dvt_fast.cuda_views import DevicePicture

    return DevicePicture(picture, torch.device("cpu" if cuda.emulated else "cuda"), 0, vit.mean, vit.std)


@pytest.mark.parametrize("size", [(61, 83), (1021, 767)])
def test_the_python_paths_give_the_same_bits(cuda, monkeypatch, size):
    """`iter_views` and `ViT.transform` with crops on the device and on the CPU, where the image is shrunk first too."""
    torch = pytest.importorskip("torch")
    from dvt_fast import ViT, cuda_views, sample_views

    vit = ViT("dvt_mini", size=64)
    picture = Image.fromarray(noise(size))
    expected, whole = sample_views(picture, vit, 7, seed=2).images, vit.transform(picture)
    monkeypatch.setattr(cuda_views, "upload", lambda picture, vit: picture_on(cuda, picture, vit))
    monkeypatch.setattr(vit, "to_input", None)  # what crops made on the CPU need
    assert torch.equal(sample_views(picture, vit, 7, seed=2).images.cpu(), expected)
    assert torch.equal(vit.transform(picture).cpu(), whole)


def test_views_in_16_bits_and_batches_of_any_size(cuda):
    torch = pytest.importorskip("torch")
    from dvt_fast import ViT

    picture = Image.fromarray(noise((40, 52)))
    boxes = plan_boxes(5)
    edges, flips = edges_of(boxes, (40, 52)), boxes[:, 4]
    on_device = picture_on(cuda, picture, ViT("dvt_mini"))
    views = on_device.views(edges, flips, (28, 28))
    assert torch.equal(
        torch.cat([on_device.views(edges[i : i + 4], flips[i : i + 4], (28, 28)) for i in (0, 4)]), views
    )
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(on_device.views(edges, flips, (28, 28), dtype), views.to(dtype))


def test_without_kernels_for_the_device_views_are_made_on_the_cpu(monkeypatch):
    from types import SimpleNamespace

    from dvt_fast import cuda_views
    from dvt_fast.errors import UnsupportedError

    def refuse(index):
        raise UnsupportedError("this build computes on the CPU only")

    monkeypatch.setattr(cuda_views._native, "cuda_check_device", refuse)
    cuda_views.can_be_used.cache_clear()
    for kind in ("cpu", "cuda"):
        vit = SimpleNamespace(device=SimpleNamespace(type=kind, index=0))
        assert cuda_views.upload(Image.new("RGB", (4, 4)), vit) is None
    cuda_views.can_be_used.cache_clear()
