"""Stage 2 on a real ViT: does one forward pass give an unseen image the features that stage 1 would?

The ViT (ViT-Ti/16 AugReg, last block) and the images are those of ../shared/data: 300 to train on (ImageNet, COCO,
CamVid's training drive, raccoons) and 87 others to test on. Two measurements, both through `build_dataset` and `train`:

`compare`: every kind of denoiser, before and after the final norm. Cosine to stage 1's F of the test images, with a
90 % bootstrap interval over images; the same of the four corner tokens; over the 21 test photos of ImageNet, the share
of the variance that position explains and the similarity of same-corner tokens of different images. What each costs:
weights, multiplications, and the time of one frame, all kinds interleaved.

`storage`: the block trained on what each way of storing leaves: bytes an image against float32 raw + denoised, and the
cosine it leads to, with and without crops of the images beside the whole ones. (Raw features that are computed again
instead of stored give the same weights to the bit, so that is no row of its own.)

Runs that --work holds already, finished, are not made again.

    python benchmarks/denoiser.py [compare] [storage] [--steps 1000] [--work folder] [--json results.json]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import interleaved, save
from real_vit import DATA, NAME, WEIGHTS, corner_similarity, load_vit

import dvt_fast
from dvt_fast.artifact_map import position_share
from dvt_fast.dataset import PairDataset, build_dataset
from dvt_fast.denoiser import KINDS, Denoiser
from dvt_fast.training import train

CORNERS = (slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
VARIANTS = 8
BATCH = 16
NORMS = {"before": False, "after": True}


def split() -> tuple[list[Path], list[Path]]:
    """300 images to train on and 87 to test on; no file is in both, and CamVid's two splits stay apart."""
    imagenet = sorted((DATA / "images").glob("n*.jpg"))
    coco = sorted((DATA / "boxes/coco128/images").glob("*.jpg"))
    raccoon = sorted((DATA / "boxes/raccoon/images").glob("*.jpg"))
    camvid = [sorted((DATA / "seg/camvid/images" / part).glob("*.jpg")) for part in ("train", "val")]
    test = imagenet[::4] + coco[::5] + raccoon[::5] + camvid[1][::5]
    train = [path for path in imagenet + coco if path not in test] + camvid[0][::5]
    return (train + [path for path in raccoon if path not in test])[:300], test


def pairs(work: Path, name: str, images: list[Path], norm: bool, **options: object) -> PairDataset:
    """A dataset of `images`, made where it is not there yet."""
    vit = {"name": NAME, "weights": str(WEIGHTS), "norm": norm}
    done = build_dataset(images, work / f"{name}-norm={norm}", vit, **options)
    if done.failed:
        sys.exit(f"failed: {done.failed}")
    if done.made:
        print(f"{name}, norm={norm}: {done.made} pairs, {done.seconds:.0f} s, {done.rate:.1f} a second", flush=True)
    return PairDataset(work / f"{name}-norm={norm}")


class Test:
    """The test pairs of one norm setting, and the scores of features against them."""

    def __init__(self, dataset: PairDataset):
        both = [dataset.read(i) for i in range(len(dataset))]
        self.raw, self.semantics = (np.stack(part) for part in zip(*both))
        self.photos = np.array(["/images/n" in f"/{record.place}" for record in dataset.records])

    def score(self, features: np.ndarray) -> dict:
        cosine = _cosine(features, self.semantics)  # [n, H, W]
        each = cosine.mean((1, 2))
        draws = np.random.default_rng(0).integers(0, len(each), (1000, len(each)))
        photos = features[self.photos]
        norms = np.linalg.norm(photos, axis=-1)
        return {
            "cosine": float(each.mean()),
            "cosine_interval": [float(q) for q in np.quantile(each[draws].mean(1), (0.05, 0.95))],
            "cosine_corners": float(cosine[CORNERS].mean()),
            "mse": float(((features - self.semantics) ** 2).mean()),
            "position_share": position_share(photos),
            "corner_similarity": corner_similarity(photos),
            "median_norm": float(np.median(norms)),
            "corner_norm": float(norms[CORNERS].mean()),
            "each": each,
        }


def denoised(denoiser: Denoiser, raw: np.ndarray) -> np.ndarray:
    return np.concatenate([denoiser.denoise(raw[i : i + 16]) for i in range(0, len(raw), 16)])


def compare(work: Path, steps: int, kinds: list[str], seeds: int, norms: list[bool]) -> dict:
    """Every kind of denoiser, on features before or after the final norm."""
    train_images, test_images = split()
    out: dict = {"train_images": len(train_images), "test_images": len(test_images), "steps": steps, "batch": BATCH}
    made: dict[str, Denoiser] = {}
    for norm in norms:
        dataset = pairs(work, "train", train_images, norm, keep="semantics")
        test = Test(pairs(work, "test", test_images, norm, keep="both"))
        known = dvt_fast.ArtifactMap.calibrate(load_vit(norm), train_images[:: len(train_images) // 20][:20])
        rows = {"raw": test.score(test.raw), "stage 1": test.score(test.semantics)}
        rows["ArtifactMap, 20 images"] = test.score(known.subtract(test.raw))
        for kind in kinds:
            for seed in range(seeds if kind == "block" else 1):
                run = work / f"run-{kind}-norm={norm}-{seed}"
                result = train(
                    dataset, run, kind=kind, steps=steps, batch=BATCH, variants=VARIANTS, seed=seed, every=steps
                )
                made[kind] = Denoiser.from_checkpoint(result.file)
                name = kind if seed == 0 else f"{kind}, seed {seed}"
                rows[name] = test.score(denoised(made[kind], test.raw))
                _show(norm, name, rows[name])
        for name, row in rows.items():
            if name in ("raw", "stage 1", "ArtifactMap, 20 images"):
                _show(norm, name, row)
            if "block" not in rows:
                continue
            gain = rows["block"]["each"] - row["each"]
            draws = np.random.default_rng(1).integers(0, len(gain), (1000, len(gain)))
            row["block_leads_by"] = float(gain.mean())
            row["block_leads_interval"] = [float(q) for q in np.quantile(gain[draws].mean(1), (0.05, 0.95))]
        for row in rows.values():
            del row["each"]
        out[f"norm={norm}"] = rows
    out["cost"] = cost(made)
    return out


def cost(made: dict[str, Denoiser]) -> dict:
    """Weights, multiplications and milliseconds of one frame, beside the ViT's own forward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    vit = load_vit(True)
    x, image = torch.randn(1, *vit.grid, vit.dim), torch.randn(1, 3, *vit.size)
    calls: dict[str, Callable[[], object]] = {"ViT-Ti": lambda: vit.features(image)}
    calls |= {kind: (lambda d=denoiser: d.denoise(x)) for kind, denoiser in made.items()}
    times = interleaved(calls, 60)
    out: dict = {}
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        module = vit.model if name == "ViT-Ti" else made[name]
        out[name] = {
            "parameters": sum(p.numel() for p in module.parameters()),
            "gflop": counter.get_total_flops() / 1e9,
            "ms": {"median": 1e3 * float(np.median(times[name])), "best": 1e3 * min(times[name])},
        }
        print(f"{name:12} {out[name]['parameters'] / 1e6:5.2f} M weights, {out[name]['gflop']:.3f} GFLOP,"
              f" {out[name]['ms']['median']:.2f} ms a frame")  # fmt: skip
    return out


def storage(work: Path, steps: int) -> dict:
    """The block, after each way of storing its pairs; before the final norm, where tokens differ most in size."""
    train_images, test_images = split()
    test = Test(pairs(work, "test", test_images, False, keep="both"))
    out: dict = {}
    reference = 2 * 4 * test.raw[0].size
    whole = {"variants": 1, "every": max(1, steps // 5), "patience": steps}  # the best of five: it is overfitted later
    crops = {"variants": VARIANTS, "every": steps}
    for dtype, how in (("float16", whole), ("float16", crops), ("int8", crops)):
        name = "train" if dtype == "float16" else "train-semantics-int8"  # the first is that of `compare`
        dataset = pairs(work, name, train_images, False, keep="semantics", dtype=dtype)
        size = float(np.mean([record.file_bytes for record in dataset.records]))
        shared = dtype == "float16" and how is crops  # so is this training
        run = work / ("run-block-norm=False-0" if shared else f"run-semantics-{dtype}-{how['variants']}")
        result = train(dataset, run, steps=steps, batch=BATCH, **how)
        row = test.score(denoised(Denoiser.from_checkpoint(result.file), test.raw))
        row |= {"bytes": size, "times_smaller": reference / size}
        del row["each"]
        name = f"semantics, {dtype}, " + ("whole images" if how is whole else f"{VARIANTS} views of each image")
        out[name] = row
        print(f"{name:42} {size / 1e3:6.1f} kB an image, {reference / size:.2f} times smaller, "
              f"cosine {row['cosine']:.4f}", flush=True)  # fmt: skip
    return out


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)


def _show(norm: bool, name: str, row: dict) -> None:
    low, high = row["cosine_interval"]
    print(f"norm={norm!s:5} {name:24} cosine {row['cosine']:.4f} [{low:.4f}, {high:.4f}], corners "
          f"{row['cosine_corners']:.3f}  position share {row['position_share']:.4f}  corner similarity "
          f"{row['corner_similarity']:.3f}  norm {row['median_norm']:.1f}, corners {row['corner_norm']:.1f}",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["compare", "storage"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--norms", nargs="*", default=list(NORMS), choices=list(NORMS))
    parser.add_argument("--seeds", type=int, default=2, help="runs of the block, to see what chance does")
    parser.add_argument("--work", type=Path, help="where data sets and runs are kept; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"denoiser.py needs the images and weights at {DATA}")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        out: dict = {}
        if "compare" in arguments.what:
            out["compare"] = compare(
                work, arguments.steps, arguments.kinds, arguments.seeds, [NORMS[name] for name in arguments.norms]
            )
        if "storage" in arguments.what:
            out["storage"] = storage(work, arguments.steps)
    save(arguments.json, out)


if __name__ == "__main__":
    main()
