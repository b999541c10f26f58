"""Small labelled images and made-up features for the tests of segmentation and depth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dvt_fast.evaluation.data.labelled import DepthData, Labelled, SegmentationData
from dvt_fast.evaluation.features import coordinate_waves
from dvt_fast.evaluation.frames import Frame
from dvt_fast.evaluation.variants import Variant

GRID, PATCH = (6, 6), 4
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
CLASSES = ("sky", "road", "car")
RAW = Variant("raw", "raw")


class FakeSource:
    """Features that a function makes of a frame, [h, w, C]."""

    grid, size = GRID, SIZE

    def __init__(self, make: Callable[[Frame], np.ndarray]):
        self.make, self.asked = make, []

    def load(self, variant, frames, progress=None):
        self.asked += frames
        return np.stack([self.make(frame) for frame in frames]).astype(np.float32)


def labelled(folder: Path, maps) -> tuple[Labelled, ...]:
    """An image a map, of its size."""
    items = []
    for i, labels in enumerate(maps):
        path = folder / f"{len(list(folder.iterdir())):03}.png"
        Image.new("RGB", labels.shape[::-1], (20 * i % 256, 90, 120)).save(path)
        items.append(Labelled(path, path, lambda labels=labels: labels))
    return tuple(items)


def segmentation_data(folder: Path, train, val) -> SegmentationData:
    return SegmentationData("planted", CLASSES, labelled(folder, train), labelled(folder, val))


def depth_data(folder: Path, train, val) -> DepthData:
    return DepthData("planted", labelled(folder, train), labelled(folder, val))


def random_maps(count: int, values: int, seed: int = 0) -> list[np.ndarray]:
    """Maps [24, 24] of int16, of blocks of two by two patches."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, values, (count, GRID[0] // 2, GRID[1] // 2)).astype(np.int16)
    return list(blocks.repeat(2 * PATCH, 1).repeat(2 * PATCH, 2))


def by_place() -> np.ndarray:
    """Labels [24, 24] that the place alone tells, the same in every image."""
    labels = np.zeros(SIZE, np.int16)
    labels[8:, :12], labels[16:, 12:] = 1, 2
    return labels


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Features [h, w, 8] from which a linear map reads classes [h, w], with a little noise."""
    random = np.random.default_rng(int(labels.sum()))
    code = np.random.default_rng(0).standard_normal((len(CLASSES), 8))
    return code[labels] + 0.1 * random.standard_normal((*labels.shape, 8))


def telling(data, code: Callable[[np.ndarray], np.ndarray]) -> FakeSource:
    """Features that tell the label under the middle of each patch: code makes [h, w, C] of [h, w]."""
    maps = {item.image: item.read() for item in (*data.train, *data.val)}

    def make(frame):
        cut = frame.cut(maps[frame.image])
        rows, columns = ((np.arange(n) * 2 + 1) * size // (2 * n) for n, size in zip(GRID, cut.shape))
        return code(cut[rows[:, None], columns])

    return FakeSource(make)


def noise() -> FakeSource:
    random = np.random.default_rng(5)
    return FakeSource(lambda frame: random.standard_normal((*GRID, 8)))


def places() -> FakeSource:
    """The control that knows nothing but the place."""
    return FakeSource(lambda frame: coordinate_waves(GRID))
