"""Does `direct` find what the paper's recipe finds? Both on the same views, the recipe with three seeds.

The seeds of the recipe differ in the initial values and the batches. Of each pair of results, over the patches of the
whole image: the cosine of F after its mean over the patches is taken off, and the agreement of k-means clusters
(adjusted Rand index, k = 6, on directions). `direct` is as good as another run of the recipe where its distance to the
three seeds is at most their distance among themselves. A run differs from another by the noise of both; so the same is
asked of the mean of two runs, which has less: how near is the third, and how near is `direct`? Raw features and
`average` are the scale beside it, and `direct` with other options, which say what a difference is due to.

F is compared averaged over each patch (3 x 3 points), which is what `direct` returns; the recipe returns it at the
patches' centres, where a field is finer than what any token can tell.

Images and ViT are those of ../shared/data. `--paper` runs the recipe as published (768 views, 25,000 steps, the
official hash grid) on one image; else 96 views, 2,000 steps and a grid that fits so few.

    python benchmarks/stage1_agreement.py [--images 8] [--paper] [--quick] [--json results.json]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import save
from real_vit import DATA, load_vit, view_features

import dvt_fast
from dvt_fast.solvers.patches import patch_means
from dvt_fast.views import plan_boxes, view_coords

SEEDS = (0, 1, 2)
CLUSTERS = 6
DIRECT: dict[str, dict] = {
    "direct": {},
    "direct, one pass": {"passes": 1},
    "direct, one pass, cosine": {"passes": 1, "cosine": True},
    "direct, residual": {"residual": 2},
    "direct, smoothness 0.05": {"smoothness": 0.05},
    "direct, smoothness 0.01": {"smoothness": 0.01},
}
# Few patches want a small grid: see `HashgridOptions`.
SMALL = {"steps": 2000, "n_levels": 8, "max_resolution": 64, "log2_hashmap_size": 14}


def centred_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the patches of the cosine of two maps [H, W, C] whose means over the patches are taken off."""
    a, b = (x - x.mean((0, 1)) for x in (a, b))
    return float(np.mean((a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)))


def clusters(map_: np.ndarray) -> np.ndarray:
    from sklearn.cluster import KMeans

    rows = map_.reshape(-1, map_.shape[-1])
    rows = rows - rows.mean(0)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return KMeans(CLUSTERS, n_init=10, random_state=0).fit_predict(unit)


def compare(maps: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Cosine and cluster agreement of each pair of maps, by "one | other"."""
    from sklearn.metrics import adjusted_rand_score

    labels = {name: clusters(map_) for name, map_ in maps.items()}
    return {
        f"{a} | {b}": {
            "cosine": centred_cosine(maps[a], maps[b]),
            "clusters": float(adjusted_rand_score(labels[a], labels[b])),
        }
        for a, b in itertools.combinations(maps, 2)
    }


def one_image(vit: dvt_fast.ViT, file: Path, views: int, options: dict) -> dict:
    boxes = plan_boxes(views, seed=0)
    features, coords = view_features(vit, file, boxes), view_coords(boxes, vit)
    maps, seconds = {"raw": features[-1]}, {}
    solves = {"average": ("average", {})} | {name: ("direct", how) for name, how in DIRECT.items()}
    solves |= {f"recipe {seed}": ("hashgrid", {"seed": seed, **options}) for seed in SEEDS}
    for name, (solver, how) in solves.items():
        start = time.perf_counter()
        found = dvt_fast.solve(features, coords, solver, **how)
        seconds[name] = time.perf_counter() - start
        maps[name] = patch_means(found.query, coords[-1])
    for seed in SEEDS:
        maps[f"without {seed}"] = np.mean([maps[f"recipe {other}"] for other in SEEDS if other != seed], 0)
    return {"image": file.name, "pairs": compare(maps), "seconds": seconds}


def summary(images: list[dict]) -> dict:
    """Mean and range over images of what stands between the seeds, and between them and each other map; and the same
    for the means of two seeds."""
    among = [f"recipe {a} | recipe {b}" for a, b in itertools.combinations(SEEDS, 2)]
    groups = {"among seeds": among} | {
        name: [f"{name} | recipe {seed}" for seed in SEEDS] for name in (*DIRECT, "average", "raw")
    }
    groups |= {
        f"{name}, to the mean of two": [f"{name} | without {seed}" for seed in SEEDS]
        for name in (*DIRECT, "average", "raw")
    }
    groups["a seed, to the mean of two"] = [f"recipe {seed} | without {seed}" for seed in SEEDS]
    out: dict = {}
    for group, pairs in groups.items():
        for measure in ("cosine", "clusters"):
            values = [float(np.mean([image["pairs"][pair][measure] for pair in pairs])) for image in images]
            out.setdefault(group, {})[measure] = {"mean": float(np.mean(values)), "each image": values}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--paper", action="store_true", help="the recipe as published, on one image")
    parser.add_argument("--quick", action="store_true", help="two images, 300 steps")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"stage1_agreement.py needs the images and weights at {DATA}")
    files = sorted((DATA / "images").glob("n*.jpg"))[::9]
    files = files[: 1 if arguments.paper else 2 if arguments.quick else arguments.images]
    views, options = (768, {}) if arguments.paper else (96, SMALL | ({"steps": 300} if arguments.quick else {}))
    out: dict = {"views": views, "options": options}
    for norm in (True,) if arguments.paper else (False, True):
        vit = load_vit(norm)
        rows = []
        for file in files:
            rows.append(one_image(vit, file, views, options))
            print(
                f"norm={norm} {file.name}: {', '.join(f'{k} {v:.1f} s' for k, v in rows[-1]['seconds'].items())}",
                flush=True,
            )
        found = summary(rows)
        out[f"norm={norm}"] = {"summary": found, "images": rows}
        for group, row in found.items():
            print(f"norm={norm} {group:42} cosine {row['cosine']['mean']:.4f}  clusters {row['clusters']['mean']:.3f}")
        save(arguments.json, out)


if __name__ == "__main__":
    main()
