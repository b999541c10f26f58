"""Artifact maps at other resolutions and strides: is there one for each, and does one serve another?

For each input size and stride of the ViT of ../shared/data (ViT-Ti/16 AugReg, before and after its final norm): a map
of 10 photos, how far those agree on it, and over 20 others the position share of raw features, of features without that
map, without the map of the ViT's own resolution resampled to the grid (bicubic), and of `direct`. The floor of a share
over n photos is 1 / n. Corner tokens are where this ViT's artifacts are giant: the share without them (what is within
two patches of 16 pixels of two edges) is beside it.

    python benchmarks/artifact_maps.py [--quick] [--json results.json]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import save
from real_vit import DATA, NAME, WEIGHTS

import dvt_fast
from dvt_fast.arrays import to_numpy
from dvt_fast.artifact_map import position_share

OWN = (224, 16)  # size and stride that the ViT was trained with
OTHERS = ((160, 16), (320, 16), (448, 16), (224, 8))
MAP_IMAGES, TEST_IMAGES = 10, 20


def resampled(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A map [H, W, C] at another grid, bicubic, as position embeddings are."""
    import torch

    x = torch.from_numpy(values).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(x, grid, mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def share_inside(maps: np.ndarray, margin: int) -> float:
    """The position share of the patches that are not within `margin` of two edges at once."""
    h, w = maps.shape[1:3]
    near_y, near_x = (np.minimum(np.arange(n), np.arange(n)[::-1]) < margin for n in (h, w))
    inside = ~(near_y[:, None] & near_x[None])
    return position_share(maps[:, inside][:, None])


def measure(size: int, stride: int, norm: bool, own: np.ndarray | None, photos: list[Path]) -> tuple[dict, np.ndarray]:
    vit = dvt_fast.ViT(NAME, weights=WEIGHTS, norm=norm, size=size, stride=stride)
    known = dvt_fast.ArtifactMap.calibrate(vit, photos[:MAP_IMAGES])
    tests = photos[MAP_IMAGES:]
    raw = np.concatenate([to_numpy(vit.features(vit.transform(photo)[None])) for photo in tests])
    features = {"raw": raw, "its own map": raw - known.values}
    if own is not None:
        features["the map of 224, resampled"] = raw - resampled(own, vit.grid)
    features["direct"] = np.stack([dvt_fast.decompose(photo, vit).semantics for photo in tests])
    margin = 2 * OWN[1] // stride
    row: dict = {"grid": list(vit.grid), "agreement": known.meta["agreement"]}
    for name, maps in features.items():
        row[name] = {"position_share": position_share(maps), "without_corners": share_inside(maps, margin)}
    return row, known.values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two resolutions, fewer photos")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"artifact_maps.py needs the images and weights at {DATA}")
    photos = sorted((DATA / "images").glob("n*.jpg"))
    photos = photos[1::2][:MAP_IMAGES] + photos[::2][: 5 if arguments.quick else TEST_IMAGES]
    out: dict = {"map_images": MAP_IMAGES, "test_images": len(photos) - MAP_IMAGES}
    for norm in (False, True):
        own = None
        for size, stride in (OWN, *(OTHERS[:1] if arguments.quick else OTHERS)):
            row, values = measure(size, stride, norm, own, photos)
            own = values if own is None else own
            out[f"norm={norm} size={size} stride={stride}"] = row
            shares = ", ".join(f"{k} {v['position_share']:.3f}" for k, v in row.items() if isinstance(v, dict))
            print(
                f"norm={norm!s:5} size={size} stride={stride}: agreement {row['agreement']:.3f}; shares: {shares}",
                flush=True,
            )
            save(arguments.json, out)


if __name__ == "__main__":
    main()
