"""A labelled street in miniature, for what runs whole tasks: walls left and right, ground below, 60 x 80 pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

from dvt_fast.evaluation.outcome import Outcome, Score

CLASSES = ("left", "right", "ground <b>")
KNN = ["--size", "64", "-v", "raw", "-v", "coordinates"]  # with `eval knn`: the quickest run of all
VIT = {
    "name": "vit_x",
    "weights": "pretrained",
    "fingerprint": "ab",
    "size": [64, 64],
    "grid": [4, 4],
    "layer": 5,
    "depth": 6,
    "norm": "final",
    "dim": 192,
}
DATA = {"name": "street", "train": 4, "val": 3, "classes": list(CLASSES), "read": {}, "digest": "d"}


def make_street(folder: Path, train: int = 4, val: int = 3) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            labels = np.zeros((60, 80), np.uint8)
            labels[:, 20 + 8 * i :] = 1
            labels[40 + i :] = 2
            pixels = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[labels]
            pixels = (pixels + random.integers(-30, 30, pixels.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{split}{i}.png")
            Image.fromarray(labels).save(folder / "labels" / split / f"{split}{i}.png")
    (folder / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES)))
    return folder


def an_outcome(value: float = 0.5, half: float | None = 0.01, **more) -> Outcome:
    """An outcome with one score, "mIoU", and a picture."""
    ends = (None, None) if half is None else (value - half, value + half)
    details = {"IoU": {"road": value, "sky & <i>": None}, "heads": 3, "curve": [1, 0.5]}
    return Outcome({"mIoU": Score(value, *ends)}, details, {"examples": Image.new("RGB", (6, 4), "red")}, **more)
