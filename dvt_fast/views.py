"""Views of one image: which crops (boxes), where their patches lie (coords), and their pixels, batch by batch.

A box is (x, y, w, h, flip) in units of the image, [0, 1] from the left and top edge; flip 1 mirrors the crop left to
right. Boxes are float64 [V, 5], and the last is always the whole image, unflipped. A view sees a patch of content at
another place in the frame than the other views do, which is what lets a solver tell content from position; tiles
planned for even coverage do that with far fewer views than random crops, and flips double the places for free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import cuda_views
from . import images as _images
from .errors import InputError
from .extras import require
from .options import seed as read_seed

if TYPE_CHECKING:
    import torch
    from PIL import Image as PILImage

    from .vit import ViT

    Plan = str | int | Sequence[tuple[int, float] | tuple[int, int, float, float]]

WHOLE = (0.0, 0.0, 1.0, 1.0, 0.0)

# A plan is a number of random crops, or levels of tiles: (tiles a side, side) or (columns, rows, width, height).
# On a real ViT a few even tiles serve dense prediction better than many random crops (benchmarks/real_vit.py).
PLANS: dict[str, int | tuple[tuple[int, float] | tuple[int, int, float, float], ...]] = {
    "realtime": ((2, 0.6),),
    "fast": ((2, 0.6), (3, 0.45)),
    "balanced": ((4, 3, 0.35, 0.45), (2, 0.6)),
    "quality": ((2, 0.6), (3, 0.45), (4, 0.35)),
    "paper": 768,
}
DEFAULT_PLAN = "balanced"


def plan_boxes(plan: Plan, seed: int = 0) -> np.ndarray:
    """Boxes of a plan: float64 [V, 5], the whole image last.

    plan: a name in `PLANS`, a number of random crops (the paper's: area 0.1-0.5, log-uniform aspect 3/4-4/3, half of
    them flipped), or levels of tiles as in `PLANS`. seed: for random crops; the same seed gives the same boxes, and
    more of them begin with the fewer. Raises `InputError` for a plan that is none of these.
    """
    seed = read_seed("seed", seed)
    if isinstance(plan, str):
        if plan not in PLANS:
            raise InputError(f"unknown view plan {plan!r}; expected a number or one of {', '.join(PLANS)}")
        plan = PLANS[plan]
    if isinstance(plan, bool):
        raise InputError(f"a view plan must be a name, a number or levels of tiles, got {plan}")
    if isinstance(plan, (int, np.integer)):
        if plan < 1:
            raise InputError(f"a view plan needs at least 1 crop beside the whole image, got {plan}")
        boxes = _random_boxes(int(plan), seed)
    else:
        boxes = _tiled_boxes(plan)
    return np.concatenate([boxes, [WHOLE]])


def view_coords(boxes: np.ndarray, grid: int | tuple[int, int] | ViT, mode: str = "center") -> np.ndarray:
    """Where the patches of each view lie in the image: float32 [V, h, w, 2], (x, y) in [0, 1].

    grid: a ViT, or the patches (h, w) of a view, side by side. mode: "center", the true centres of the patches, which
    for overlapping patches (only a ViT tells their size and stride) are not those of h equal cells; or "official",
    evenly spaced from edge to edge of the crop, as the reference implementation has them.
    """
    boxes = check_boxes(boxes)
    if mode not in ("center", "official"):
        raise InputError(f"coords must be 'center' or 'official', got {mode!r}")
    along_y, along_x = _patch_places(grid, mode)
    x, y, w, h, flip = (column[:, None] for column in boxes.T)
    xs = x + w * np.where(flip > 0, along_x[::-1], along_x)  # [V, w]; a flipped crop's patches run from the right
    ys = y + h * along_y  # [V, h]
    coords = np.empty((len(boxes), len(along_y), len(along_x), 2), np.float32)
    coords[..., 0] = xs[:, None, :]
    coords[..., 1] = ys[:, :, None]
    return coords.clip(0, 1, out=coords)  # rounding may leave [0, 1] by an ulp


def iter_views(
    image: _images.ImageSource, boxes: np.ndarray, vit: ViT, batch_size: int = 16, coords: str = "center"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The views of `boxes`, cropped, flipped, resized to the ViT's size and normalised, a batch at a time.

    image: anything that `load_image` takes. Crops come from its full resolution, exact to fractions of a pixel
    (bicubic with antialias); only where even the smallest crop has several times the network's pixels is the image
    shrunk first. Yields (images float32 [b, 3, height, width], coords float32 [b, h, w, 2]) on the ViT's device. Where
    that is a CUDA device the picture is uploaded once and the crops are made there, with the same bits.
    """
    torch = require("torch", "vit")
    boxes = check_boxes(boxes)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    places = torch.from_numpy(view_coords(boxes, vit, coords))
    picture = _images.load_image(image)
    picture, extent = _images.reduce_for(picture, vit.size, (boxes[:, 2].min(), boxes[:, 3].min()))
    crop = _cropper(picture, extent, vit)
    for start in range(0, len(boxes), batch_size):
        stop = min(start + batch_size, len(boxes))
        yield crop(boxes[start:stop]), places[start:stop].to(vit.device)


def _cropper(picture: PILImage.Image, extent: tuple[float, float], vit: ViT) -> Callable[[np.ndarray], torch.Tensor]:
    """What makes normalised inputs of `vit` from boxes of `picture`, on the ViT's device."""
    if on_device := cuda_views.upload(picture, vit):
        return lambda boxes: on_device.views(
            np.array([_images.box_edges(tuple(box[:4]), extent) for box in boxes]), boxes[:, 4], vit.size
        )

    def crop(boxes: np.ndarray) -> torch.Tensor:
        pixels = np.empty((len(boxes), *vit.size, 3), np.uint8)
        for out, (x, y, w, h, flip) in zip(pixels, boxes, strict=True):
            view = _images.resize(picture, vit.size, (x, y, w, h), extent)
            out[:] = view[:, ::-1] if flip else view
        return vit.to_input(pixels)

    return crop


@dataclass(frozen=True)
class Views:
    """All views of one image: images [V, 3, height, width], coords [V, h, w, 2] and boxes [V, 5]."""

    images: torch.Tensor
    coords: torch.Tensor
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def sample_views(
    image: _images.ImageSource, vit: ViT, plan: Plan = DEFAULT_PLAN, seed: int = 0, coords: str = "center"
) -> Views:
    """All views of a plan at once; `iter_views` gives the same without holding them all (1.8 GB for "paper" at 448)."""
    torch = require("torch", "vit")
    boxes = plan_boxes(plan, seed)
    batches = list(iter_views(image, boxes, vit, coords=coords))
    return Views(torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches]), boxes)


def check_boxes(boxes: np.ndarray) -> np.ndarray:
    """`boxes` as float64 [V, 5], or `InputError`: another shape, outside the image, empty, or no whole image last."""
    try:
        boxes = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        raise InputError("boxes must be numbers in an array of shape [V, 5]") from None
    if boxes.ndim != 2 or boxes.shape[1] != 5 or not len(boxes):
        raise InputError(f"boxes must have shape [V, 5], (x, y, w, h, flip) of V > 0 views, got {list(boxes.shape)}")
    start, sides, flip = boxes[:, :2], boxes[:, 2:4], boxes[:, 4]
    good = (start >= 0).all(1) & (sides > 0).all(1) & (start + sides <= 1 + 1e-9).all(1) & np.isin(flip, (0, 1))
    if not good.all():
        first = int(np.argmin(good))
        raise InputError(f"box {first} is not inside the image or its flip is not 0 or 1: {boxes[first].tolist()}")
    if tuple(boxes[-1]) != WHOLE:
        raise InputError(f"the last box must be the whole image {list(WHOLE)}, got {boxes[-1].tolist()}")
    return boxes


def _patch_places(grid: int | tuple[int, int] | ViT, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Places of the patches along y and along x, in units of the view: float64 [h] and [w]."""
    patches = grid if isinstance(grid, tuple) else (grid, grid) if isinstance(grid, int) else grid.grid
    if min(patches) < 1:
        raise InputError(f"a grid needs at least 1 patch a side, got {patches}")
    if mode == "official":
        return np.linspace(0, 1, patches[0]), np.linspace(0, 1, patches[1])
    if isinstance(grid, (int, tuple)):
        return (np.arange(patches[0]) + 0.5) / patches[0], (np.arange(patches[1]) + 0.5) / patches[1]
    along_y, along_x = (
        (np.arange(n) * stride + patch / 2) / size
        for n, stride, patch, size in zip(grid.grid, grid.stride, grid.patch_size, grid.size, strict=True)
    )
    return along_y, along_x


def _random_boxes(n: int, seed: int) -> np.ndarray:
    area, aspect, x, y, flip = np.random.default_rng(seed).random((n, 5)).T
    area = 0.1 + 0.4 * area
    aspect = np.exp(math.log(3 / 4) + math.log(16 / 9) * aspect)
    w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)  # at most sqrt(0.5 * 4/3) = 0.82
    return np.stack([x * (1 - w), y * (1 - h), w, h, flip < 0.5], axis=1)


def _tiled_boxes(levels: Sequence[tuple[int, float] | tuple[int, int, float, float]]) -> np.ndarray:
    """Overlapping tiles from edge to edge, column by column, alternately flipped."""
    boxes: list[tuple[float, ...]] = []
    try:
        for level in levels:
            columns, rows, width, height = level if len(level) == 4 else (level[0], level[0], level[1], level[1])
            if min(columns, rows) < 1 or not (0 < width <= 1 and 0 < height <= 1):
                raise InputError(
                    "a level of tiles must be (tiles a side >= 1, side in (0, 1]) or (columns, rows, width, height), "
                    f"got {level}"
                )
            corners = [(x, y) for x in _starts(columns, width) for y in _starts(rows, height)]
            before = len(boxes)
            boxes += [(x, y, width, height, (before + k) % 2) for k, (x, y) in enumerate(corners)]
    except InputError:
        raise
    except (TypeError, ValueError, IndexError):
        raise InputError(f"a view plan must be a name, a number or levels of tiles, got {levels!r}") from None
    if not boxes:
        raise InputError("a view plan needs at least one crop beside the whole image")
    return np.array(boxes)


def _starts(tiles: int, side: float) -> np.ndarray:
    """Where tiles of one axis begin: evenly from edge to edge; a single one in the middle."""
    return np.linspace(0, 1 - side, tiles) if tiles > 1 else np.array([(1 - side) / 2])
