"""A planted problem for the tests of training: pairs whose clean features, artifacts and noise are known."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Record:
    """What training asks of a record of the manifest."""

    place: str
    hash: str


class PlantedPairs:
    """raw = F + G + R(F) + noise, as `PairDataset` gives pairs.

    F: smooth in the frame. G: one map for all images, large in a corner. R(F): depends on the content, as the
    reference's residual does, so that subtracting one map cannot remove it.
    """

    keep = "both"

    def __init__(self, n=40, grid=(4, 5), dim=16, seed=0):
        rng = np.random.default_rng(seed)
        self.grid, self.dim = grid, dim
        basis = rng.standard_normal((4, dim))
        y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in grid), indexing="ij")
        waves = np.stack([np.ones_like(x), x, y, x * y], -1)  # [h, w, 4]
        weights = rng.standard_normal((n, 4, 4))
        self.clean = (waves @ weights[:, None] @ basis).astype(np.float32)
        self.artifacts = rng.standard_normal((*grid, dim)).astype(np.float32)
        self.artifacts[0, 0] *= 20
        twist = rng.standard_normal((dim, dim)) / dim**0.5
        content = np.tanh(self.clean @ twist)
        noise = 0.1 * rng.standard_normal(self.clean.shape)
        self.raw = (self.clean + self.artifacts + content + noise).astype(np.float32)
        self.records = [Record(f"image-{i}.png", rng.bytes(32).hex()) for i in range(n)]
        vit = {"name": "planted", "weights": "none", "size": [64, 80], "stride": [16, 16], "layer": 11, "norm": "final"}
        vit |= {"mean": [0.5] * 3, "std": [0.5] * 3, "grid": list(grid), "dim": dim}
        self.settings = {"vit": vit, "keep": "both", "dtype": "float16"}

    def __len__(self):
        return len(self.records)

    def read(self, i):
        return self.raw[i], self.clean[i]
