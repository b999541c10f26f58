"""Stage 1 on a real ViT: does position leave the features, and do they serve dense prediction better?

The ViT (ViT-Ti/16 AugReg) and the images are those of ../shared/data. Three measurements:

`share`: over 20 ImageNet photos, how much of the variance of the features the patch position explains (1 / 20 for
unrelated maps), for raw, F and G, and how alike the corner tokens of different images are (cosine).

`camvid`: 48 train and 32 val images, evenly spaced, 224 x 224; a patch's label is the majority of its 16 x 16 pixels,
unlabelled ones ignored; standardised features; logistic regression (C = 0.01) and 20 nearest neighbours by cosine; mean
IoU over classes with more than 20 val patches, with a bootstrap interval over val images.

`realtime`: five views of one image with a calibrated artifact map: the forward passes, and the solve.

    python benchmarks/real_vit.py [share] [camvid] [realtime] [--quick] [--json results.json]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import save

import dvt_fast
from dvt_fast.arrays import to_numpy
from dvt_fast.artifact_map import position_share
from dvt_fast.views import iter_views, plan_boxes, view_coords

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAME, WEIGHTS = (
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    DATA / "weights" / "vit_tiny_patch16_224_augreg.safetensors",
)
CLASSES, UNLABELLED = 11, 11
PLANS = {
    "realtime": "realtime",
    "9 + 1": ((3, 0.45),),
    "fast": "fast",
    "balanced": "balanced",
    "quality": "quality",
    "random 13": 13,
    "random 64": 64,
}


def load_vit(norm: bool) -> dvt_fast.ViT:
    return dvt_fast.ViT(NAME, weights=WEIGHTS, norm=norm)


def view_features(vit: dvt_fast.ViT, image: Path, boxes: np.ndarray) -> np.ndarray:
    """[V, H, W, C], the whole image last."""
    return np.concatenate([to_numpy(vit.features(batch)) for batch, _ in iter_views(image, boxes, vit, 32)])


def corner_similarity(maps: np.ndarray) -> float:
    """Mean cosine of same-corner tokens between images, of maps [n, H, W, C]."""
    corners = maps[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    unit = corners / np.linalg.norm(corners, axis=-1, keepdims=True)
    n = len(maps)
    gram = np.einsum("ikc,jkc->kij", unit, unit)
    return float((gram.sum() - 4 * n) / (4 * n * (n - 1)))


def share(images: int = 20, views: int | str = 96, norms: tuple[bool, ...] = (False, True)) -> dict:
    """Position share and corner similarity over images, default options."""
    files = sorted((DATA / "images").glob("n*.jpg"))[::4][:images]
    out = {}
    for norm in norms:
        vit, boxes = load_vit(norm), plan_boxes(views, seed=0)
        coords = view_coords(boxes, vit)
        maps: dict[str, list] = {"raw": [], "average": [], "direct": [], "G": []}
        for file in files:
            features = view_features(vit, file, boxes)
            found = dvt_fast.solve(features, coords)
            maps["raw"].append(found.raw)
            maps["direct"].append(found.semantics)
            maps["G"].append(found.artifacts)
            maps["average"].append(dvt_fast.solve(features, coords, solver="average").semantics)
        for name, values in maps.items():
            stack = np.stack(values)
            norms_ = np.linalg.norm(stack, axis=-1)
            row = {"position_share": position_share(stack), "corner_similarity": corner_similarity(stack)}
            row |= {
                "median_norm": float(np.median(norms_)),
                "corner_norm": float(norms_[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()),
            }
            out[f"norm={norm} {name}"] = row
            print(
                f"norm={norm!s:5} views={views!s:9} {name:8} position share {row['position_share']:.3f}"
                f" (floor {1 / len(files):.3f})"
                f"  corner similarity {row['corner_similarity']:.3f}  norm: corners {row['corner_norm']:.1f},"
                f" median {row['median_norm']:.1f}",
                flush=True,
            )
    return out


def camvid_files() -> tuple[list[Path], list[Path]]:
    folder = DATA / "seg" / "camvid" / "images"
    train, val = (sorted((folder / split).glob("*.jpg")) for split in ("train", "val"))
    return train[:: max(1, len(train) // 48)][:48], val[:: max(1, len(val) // 32)][:32]


def patch_labels(file: Path, size: int = 224, patch: int = 16) -> np.ndarray:
    """Majority label of each patch: [size / patch, size / patch]."""
    from PIL import Image

    path = Path(str(file).replace("/images/", "/labels/")).with_suffix(".png")
    pixels = np.asarray(Image.open(path).resize((size, size), Image.Resampling.NEAREST))
    n = size // patch
    blocks = pixels.reshape(n, patch, n, patch).transpose(0, 2, 1, 3).reshape(n, n, -1)
    return np.array([[np.bincount(b, minlength=CLASSES + 1).argmax() for b in row] for row in blocks])


def mean_iou(found: np.ndarray, truth: np.ndarray, classes: list[int]) -> float:
    return float(np.mean([((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in classes]))


def probe(train: np.ndarray, val: np.ndarray, train_labels: np.ndarray, val_labels: np.ndarray) -> dict:
    """Linear and nearest-neighbour mIoU of maps [n, H, W, C], with 90 % bootstrap intervals over val images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    x, y = train.reshape(-1, train.shape[-1]), train_labels.ravel()
    scale = StandardScaler().fit(x[y < UNLABELLED])
    truth = np.where(val_labels < UNLABELLED, val_labels, -1)
    classes = [c for c in range(CLASSES) if (truth == c).sum() > 20]
    rng, out = np.random.default_rng(0), {}
    heads = {"linear": LogisticRegression(max_iter=200, C=0.01), "knn": KNeighborsClassifier(20, metric="cosine")}
    for name, head in heads.items():
        head.fit(scale.transform(x[y < UNLABELLED]), y[y < UNLABELLED])
        found = head.predict(scale.transform(val.reshape(-1, val.shape[-1]))).reshape(truth.shape)
        found = np.where(truth >= 0, found, -2)
        draws = []
        for _ in range(200):
            pick = rng.integers(0, len(val), len(val))
            present = [c for c in classes if (truth[pick] == c).any()]
            draws.append(mean_iou(found[pick], truth[pick], present))
        out[name] = mean_iou(found, truth, classes)
        out[f"{name}_interval"] = [float(q) for q in np.quantile(draws, (0.05, 0.95))]
    return out


def camvid(plans: dict = PLANS, norm: bool = True) -> dict:
    """mIoU of raw, and of `direct` and `average` for each plan."""
    vit = load_vit(norm)
    train, val = camvid_files()
    labels = [np.array([patch_labels(f) for f in files]) for files in (train, val)]
    out = {}
    for plan_name, plan in plans.items():
        boxes = plan_boxes(plan, seed=1)
        coords = view_coords(boxes, vit)
        maps: dict[str, list] = {"raw": [], "direct": [], "average": []}
        seconds = {"direct": 0.0, "average": 0.0}
        for file in train + val:
            features = view_features(vit, file, boxes)
            maps["raw"].append(features[-1])
            for solver in seconds:
                start = time.perf_counter()
                maps[solver].append(dvt_fast.solve(features, coords, solver=solver).semantics)
                seconds[solver] += time.perf_counter() - start
        for solver, values in maps.items():
            if solver == "raw" and "raw" in out:
                continue
            stack = np.stack(values)
            row = probe(stack[: len(train)], stack[len(train) :], *labels)
            row["views"] = len(boxes)
            if solver in seconds:
                row["solve_ms"] = 1e3 * seconds[solver] / len(values)
            key = "raw" if solver == "raw" else f"{plan_name}: {solver}"
            out[key] = row
            low, high = row["linear_interval"]
            print(
                f"norm={norm!s:5} {key:26} {len(boxes):3} views  linear {row['linear']:.3f} [{low:.3f}, {high:.3f}]"
                f"  kNN {row['knn']:.3f}  {row.get('solve_ms', 0):.0f} ms a solve",
                flush=True,
            )
    return out


def realtime(repeats: int = 30) -> dict:
    """`realtime` with a calibrated artifact map: what the five forward passes and the solve cost."""
    vit, boxes = load_vit(True), plan_boxes("realtime")
    files = sorted((DATA / "images").glob("n*.jpg"))
    known = dvt_fast.ArtifactMap.calibrate(vit, files[:4])
    coords = view_coords(boxes, vit)
    (batch, _), *_ = iter_views(files[5], boxes, vit, len(boxes))
    times: dict[str, list[float]] = {"forward": [], "solve": []}
    for _ in range(repeats):
        start = time.perf_counter()
        features = to_numpy(vit.features(batch))
        middle = time.perf_counter()
        dvt_fast.solve(features, coords, artifacts=known)
        times["forward"].append(middle - start)
        times["solve"].append(time.perf_counter() - middle)
    out = {f"{k}_ms": {"median": 1e3 * float(np.median(v)), "best": 1e3 * min(v)} for k, v in times.items()}
    for name, row in out.items():
        print(f"realtime, calibrated: {name} median {row['median']:.2f}, best {row['best']:.2f}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["share", "camvid", "realtime"])
    parser.add_argument("--quick", action="store_true", help="5 images for share, one plan for camvid")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"real_vit.py needs the images and weights at {DATA}")
    out: dict = {}
    if "share" in arguments.what:
        out["share 96 random views"] = share(5 if arguments.quick else 20)
        for plan in ("fast", "balanced"):
            out[f"share {plan}"] = share(5 if arguments.quick else 20, plan)
    if "camvid" in arguments.what:
        out["camvid"] = camvid({"fast": "fast"} if arguments.quick else PLANS)
        if not arguments.quick:
            out["camvid before the norm"] = camvid({"fast": "fast", "balanced": "balanced"}, norm=False)
    if "realtime" in arguments.what:
        out["realtime"] = realtime()
    save(arguments.json, out)


if __name__ == "__main__":
    main()
