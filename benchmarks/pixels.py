"""Preparing a frame for a ViT: the engine's resize and normalisation against those of the package, Pillow and NumPy.

Both make float32 [3, size, size] of a uint8 frame, one thread each, and the results are compared, bit by bit, before
anything is timed. "Pillow" is its resize alone, without normalisation; the ratio is of both steps.

    python benchmarks/pixels.py [--repeats 200] [--json results.json]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import interleaved, save

from dvt_fast import _native
from dvt_fast.images import resize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = tuple(np.float32(1 / (255 * std)) for std in STD)
SHIFT = tuple(-np.float32(mean / std) for mean, std in zip(MEAN, STD, strict=True))
# (height, width) of the frame, side of the ViT's input
CASES = [
    ((480, 640), 224),
    ((720, 1280), 224),
    ((1080, 1920), 224),
    ((2160, 3840), 224),
    ((1280, 720), 224),
    ((720, 1280), 518),
    ((224, 224), 224),
]


def by_pillow(frame: np.ndarray, size: int) -> np.ndarray:
    """As `ViT.transform` does it."""
    pixels = resize(Image.fromarray(frame), (size, size))
    out = np.empty((3, size, size), np.float32)
    for c in range(3):
        np.multiply(pixels[..., c], SCALE[c], out=out[c])
        out[c] += SHIFT[c]
    return out


def smooth_noise(shape: tuple[int, int]) -> np.ndarray:
    """A frame with large and small structures."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (shape[0] // 16, shape[1] // 16, 3), np.uint8)
    fine = rng.integers(-20, 21, (*shape, 3))
    return np.clip(resize(Image.fromarray(coarse), shape) + fine, 0, 255).astype(np.uint8)


def measure(shape: tuple[int, int], size: int, repeats: int) -> dict[str, float]:
    """The fastest milliseconds of each way."""
    frame = smooth_noise(shape)
    pixels = _native.Pixels((size, size), shape, SCALE, SHIFT)
    expected = by_pillow(frame, size)
    mirrored = np.ascontiguousarray(frame[:, ::-1])[:, ::-1]
    calls: dict[str, Callable[[], object]] = {
        "Pillow": lambda: resize(Image.fromarray(frame), (size, size)),
        "Pillow + NumPy": lambda: by_pillow(frame, size),
        "mirrored": lambda: pixels.prepare(mirrored),
    }
    isas = [isa for isa in _native.built_isas() if not _native.isa_problem(isa)]
    for isa in isas:
        calls[isa] = lambda isa=isa: (_native.set_isa(isa), pixels.prepare(frame))
        calls[isa]()
        if not np.array_equal(pixels.prepare(frame), expected):
            raise SystemExit(f"{shape} to {size}: {isa} differs from Pillow {Image.__version__}")
    times = interleaved(calls, repeats)
    return {name: 1e3 * min(seconds) for name, seconds in times.items()} | {
        "ratio": min(times["Pillow + NumPy"]) / min(times[isas[-1]])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for shape, size in CASES:
        row = measure(shape, size, options.repeats)
        if not rows:
            print("frame, input", *(f"{name:>14}" for name in row))
        rows.append({"frame": shape, "size": size, **row})
        print(f"{shape[1]}x{shape[0]}, {size}", *(f"{value:14.3f}" for value in row.values()), flush=True)
    save(options.json, {"milliseconds": rows, "pillow": Image.__version__})


if __name__ == "__main__":
    main()
