"""Views of an image made on a CUDA device: its pixels are uploaded once, and crops are taken, resized and normalised
there.

For ViTs that are on such a device. The arithmetic is Pillow's own (csrc/engine/resize.cu), so the pixels are those of
the CPU's path (`images.resize`, then `ViT.to_input`) to the bit: where they are made changes only the time.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .devices import Device, current_stream
from .errors import DvtError
from .extras import require

if TYPE_CHECKING:
    import torch
    from PIL import Image as PILImage

    from .vit import ViT

PIXEL_BYTES = 3


def upload(picture: PILImage.Image, vit: ViT) -> DevicePicture | None:
    """A picture in mode RGB on the device of a ViT; None where that is no CUDA device, or one that this package has no
    kernels for: then views are made on the CPU."""
    if vit.device.type != "cuda":
        return None
    torch = require("torch", "vit")
    index = torch.cuda.current_device() if vit.device.index is None else vit.device.index
    if not can_be_used(index):
        return None
    return DevicePicture(picture, torch.device("cuda", index), index, vit.mean, vit.std)


@cache
def can_be_used(index: int) -> bool:
    """Whether this build has kernels for CUDA device `index`, and the driver shows it."""
    try:
        _native.cuda_check_device(index)
    except DvtError:
        return False
    return True


class DevicePicture:
    """An RGB picture in the memory of a device.

    picture: a PIL image in mode RGB. device: where torch has that memory. index: which of the CUDA devices it is. mean,
    std: three numbers each, that views are normalised with, for pixels in [0, 1].
    """

    def __init__(
        self,
        picture: PILImage.Image,
        device: torch.device,
        index: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ):
        torch = require("torch", "vit")
        self.device = device
        self.index = index
        # Rows start at multiples of 4 bytes: the kernel then reads four pixels at a time.
        used = picture.width * PIXEL_BYTES
        rows = np.zeros((picture.height, -(-used // 4) * 4), np.uint8)
        rows[:, :used] = np.asarray(picture).reshape(picture.height, used)
        shape, strides = (picture.height, picture.width, PIXEL_BYTES), (rows.shape[1], PIXEL_BYTES, 1)
        self._pixels = torch.from_numpy(rows).to(device).as_strided(shape, strides)
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)
        self._plan = {
            "scale": [np.float32(1 / (255 * s)) for s in std],
            "shift": [-np.float32(m / s) for m, s in zip(mean, std, strict=True)],
            "columns_first": pillow_has_columns_first(),
            "device": index,
        }

    def views(self, edges: np.ndarray, mirrored: np.ndarray, size: tuple[int, int], dtype: Any = None) -> torch.Tensor:
        """Crops, resized (bicubic with antialias) and normalised: [V, 3, height, width] on the picture's device.

        edges: float64 [V, 4], left, top, right and bottom of each, in pixels of the picture. mirrored: [V], not 0 where
        the crop is turned left to right. dtype: torch.float32 (also None), float16 or bfloat16; 16 bits are those of
        float32, rounded.
        """
        torch = require("torch", "vit")
        out = torch.empty((len(edges), 3, *size), dtype=dtype or torch.float32, device=self.device)
        boxes = np.ascontiguousarray(edges, np.float64)
        flips = np.ascontiguousarray(np.asarray(mirrored) != 0, np.uint8)
        needed = _native.cuda_views(self._pixels, out, boxes, flips, **self._plan)
        if len(self._workspace) < needed:
            self._workspace = torch.empty(needed, dtype=torch.uint8, device=self.device)
        stream = current_stream(Device("cuda", self.index))
        _native.cuda_views(self._pixels, out, boxes, flips, workspace=self._workspace, stream=stream, **self._plan)
        return out


def pillow_has_columns_first() -> bool:
    """Whether the installed Pillow resizes along columns first where an image shrinks much more in height (from 13)."""
    PIL = require("PIL", "cli")
    return int(PIL.__version__.split(".")[0]) >= 13
