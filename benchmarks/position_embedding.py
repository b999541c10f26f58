"""Which position embedding makes artifacts: learned, sinusoidal, rotary, ALiBi-like or none, all else alike.

The ablation that the paper of DVT names as future work, at a size that a CPU can train: the small ViTs and the recipe
of position_vit.py, on the real images of ../shared/data (ImageNet, COCO, raccoons, CamVid's training drive, a kitchen),
each scheme with the same seeds. Of the last block, without and with the final norm, on photos that were not trained on:

`position_share`: the share of the variance that position explains; `share_within`: the same once the mean of each image
is off, for which 1 / maps (the floor) is what unrelated maps show, and of that the part in the corners and in the
middle (the inner half of rows and columns); `same_place`: the mean cosine of tokens of two
images at the same place, and `same_place_excess`, how much that is above tokens at different places;
`mic`: the maximal information coefficient between features and x or y, the best channel, mean over images, and
`mic_null` the same with the patches' places shuffled, which is what the best of so many channels shows by chance;
`max_over_median` and `outliers`: the largest norm of an image over its median, and the share of tokens of twice the
median. Photos have their subject in the middle and their sky on top, so each is measured on three sorts of picture:
`whole` ones; random flipped `crops`; and `shuffled` ones, whose patches were put in random order before the ViT sees
them, so that nothing but the scheme can tell the place. `stage 1` is what `dvt_fast.solve` (plan "fast") makes of whole
images.

What the features are worth: `retrieval`, how often the nearest mean token of a random crop is that of the other crop of
the same photo; `knn`, 20 nearest patches by cosine on CamVid (bank: train, queries: val), mean IoU; the same with
random crops, where knowing the place does not help. Rows "untrained" are the controls.

    python benchmarks/position_embedding.py [--schemes ...] [--seeds 0 1] [--quick] [--work folder] [--json out.json]

Rows that the JSON holds and ViTs that --work holds are not made again, so a run that stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import save
from position_measures import artifacts, knn, majority, retrieval, shuffled
from position_vit import SCHEMES, PositionViT, Recipe, Size, crop, random_boxes, train
from real_vit import DATA

import dvt_fast
from dvt_fast.images import load_image, resize
from dvt_fast.views import plan_boxes, view_coords

STORED = 160  # pixels a side of the images in memory
DRAWS = 4  # crops and shuffles of each photo
PLAN = "fast"
NORMS = {"norm=False": False, "norm=True": True}


def split() -> tuple[list[Path], list[Path]]:
    """Images to train on, and photos to measure on."""
    imagenet = sorted((DATA / "images").glob("n*.jpg"))
    coco = sorted((DATA / "boxes/coco128/images").glob("*.jpg"))
    others = sorted((DATA / "boxes/raccoon/images").glob("*.jpg"))
    others += sorted((DATA / "seg/camvid/images/train").glob("*.jpg"))[::3]
    others += sorted((DATA / "depth/7scenes_redkitchen/rgb").glob("*.jpg"))
    photos = imagenet[::4] + coco[::5]
    return [path for path in imagenet + coco if path not in photos] + others, photos


def load(files: list[Path]) -> Tensor:
    """uint8 [n, 3, STORED, STORED], each image squeezed into the square."""
    found = [resize(load_image(file), (STORED, STORED)) for file in files]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def load_labels(files: list[Path]) -> Tensor:
    """uint8 [n, 1, STORED, STORED] of CamVid's images."""
    from PIL import Image

    paths = [Path(str(file).replace("/images/", "/labels/")).with_suffix(".png") for file in files]
    found = [np.asarray(Image.open(p).resize((STORED, STORED), Image.Resampling.NEAREST)) for p in paths]
    return torch.from_numpy(np.stack(found))[:, None]


def stage1(vit: PositionViT, images: Tensor, norm: bool) -> np.ndarray:
    """F of each image uint8 [n, 3, S, S]: float32 [n, h, w, C]."""
    boxes = plan_boxes(PLAN)
    coords = view_coords(boxes, vit.size.grid)
    found = []
    for image in images:
        views = crop(image.expand(len(boxes), -1, -1, -1), boxes, vit.size.pixels) / 255
        found.append(dvt_fast.solve(vit.maps(views, norm), coords).semantics)
    return np.stack(found)


class Test:
    """The pictures to measure on, the same for every ViT."""

    def __init__(self, photos: list[Path], camvid: tuple[list[Path], list[Path]], size: Size, informed: int):
        self.size, self.informed, self.photos = size, informed, load(photos)
        whole = np.tile([0.0, 0.0, 1.0, 1.0, 0.0], (len(photos), 1))
        boxes = random_boxes(np.random.default_rng(2), DRAWS * len(photos), (0.25, 0.6))
        many = self.photos.repeat(DRAWS, 1, 1, 1)
        full = crop(many, np.tile(whole, (DRAWS, 1)), size.pixels) / 255
        self.pictures = {
            "whole": full[: len(photos)],
            "crops": crop(many, boxes, size.pixels) / 255,
            "shuffled": shuffled(full, size.patch),
        }
        self.camvid = {}
        for name, files, seed in (("bank", camvid[0], 3), ("query", camvid[1], 4)):
            images, labels = load(files), load_labels(files)
            boxes = random_boxes(np.random.default_rng(seed), len(files), (0.25, 0.6))
            ways = {"whole": np.tile([0.0, 0.0, 1.0, 1.0, 0.0], (len(files), 1)), "crops": boxes}
            self.camvid[name] = (
                images,
                {
                    way: (
                        crop(images, b, size.pixels) / 255,
                        majority(crop(labels, b, size.pixels, "nearest"), size.patch),
                    )
                    for way, b in ways.items()
                },
            )

    def measure(self, vit: PositionViT, solve: bool) -> dict:
        """Everything of one ViT, without and with the final norm; solve: stage 1 too."""
        out: dict = {}
        for name, norm in NORMS.items():
            maps = {way: vit.maps(pictures, norm) for way, pictures in self.pictures.items()}
            out[name] = {way: artifacts(found, self.informed) for way, found in maps.items()}
            quality = {"retrieval": retrieval(maps["crops"][: 2 * len(self.photos)])}
            (bank_images, bank), (query_images, query) = self.camvid["bank"], self.camvid["query"]
            for way in bank:
                features = [vit.maps(part[way][0], norm) for part in (bank, query)]
                quality[f"knn {way}"] = knn(features[0], bank[way][1], features[1], query[way][1])
            if solve:
                out[name]["stage 1"] = artifacts(stage1(vit, self.photos, norm), self.informed)
                cleaned = stage1(vit, bank_images, norm), stage1(vit, query_images, norm)
                quality["knn stage 1"] = knn(cleaned[0], bank["whole"][1], cleaned[1], query["whole"][1])
            out[name]["quality"] = quality
        return out


def show(name: str, row: dict) -> None:
    for norm in NORMS:
        found = row[norm]
        parts = [
            f"{way}: share {v['position_share']:.3f}, within {v['share_within']:.3f} (floor {v['floor']:.3f}),"
            f" same-place {v['same_place_excess']:+.3f}"
            + (f" MIC {v['mic']:.3f} (null {v['mic_null']:.3f})" if "mic" in v else "")
            for way, v in found.items()
            if way != "quality"
        ]
        quality = ", ".join(f"{key} {value:.3f}" for key, value in found["quality"].items())
        print(f"{name:22} {norm:10} " + " | ".join(parts) + f" | {quality}", flush=True)


def trained(name: str, scheme: str, size: Size, recipe: Recipe, seed: int, images: Tensor, work: Path | None) -> tuple:
    """(the ViT, what its training said); from --work where it holds both."""
    vit = PositionViT(scheme, size, seed)
    file = work / f"{name.replace(' ', '-')}.pt" if work else None
    if file and file.exists():
        kept = torch.load(file, weights_only=True)
        if kept["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe))):
            vit.load_state_dict(kept["weights"])
            return vit.eval(), kept["said"]

    def step(at: int, image: float, patch: float) -> None:
        if at % 100 == 0:
            print(f"{name}: step {at}, image {image:.3f}, patch {patch:.3f}, {time.strftime('%X')}", flush=True)

    said = train(vit, images, recipe, seed, step)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"weights": vit.state_dict(), "said": said, "recipe": json.loads(json.dumps(dataclasses.asdict(recipe)))}
        torch.save(kept, file)
    return vit, said


def run(
    schemes: list[str], seeds: list[int], recipe: Recipe, quick: bool, work: Path | None, path: Path | None
) -> dict:
    size, (files, photos) = Size(), split()
    camvid = [sorted((DATA / "seg/camvid/images" / part).glob("*.jpg")) for part in ("train", "val")]
    every = (60, 30) if quick else (8, 3)
    camvid_files = camvid[0][:: every[0]], camvid[1][:: every[1]]
    files, photos = (files[::24], photos[::12]) if quick else (files, photos)
    head = {"size": dataclasses.asdict(size), "recipe": dataclasses.asdict(recipe), "train_images": len(files)}
    head |= {"photos": len(photos), "knn_images": [len(part) for part in camvid_files], "plan": PLAN}
    head = json.loads(json.dumps(head))
    out: dict = head | {"rows": {}}
    if path and path.exists():
        before = json.loads(path.read_text())
        if {key: before.get(key) for key in head} == head:
            out["rows"] = before["rows"]
    images, test = load(files), Test(photos, camvid_files, size, 2 if quick else 24)

    vits = [(f"{scheme} untrained", scheme, None) for scheme in schemes]
    vits += [(f"{scheme} seed {seed}", scheme, seed) for seed in seeds for scheme in schemes]
    for name, scheme, seed in vits:
        if name not in out["rows"]:
            vit, said = PositionViT(scheme, size).eval(), None
            if seed is not None:
                vit, said = trained(name, scheme, size, recipe, seed, images, work)
            out["rows"][name] = {"training": said} | test.measure(vit, solve=seed is not None)
            save(path, out)
        show(name, out["rows"][name])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--quick", action="store_true", help="a few images and steps, to see that all runs")
    parser.add_argument("--work", type=Path, help="where trained ViTs are kept")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"position_embedding.py needs the images at {DATA}")
    recipe = Recipe(steps=4, batch=8) if arguments.quick else Recipe(steps=arguments.steps)
    run(arguments.schemes, arguments.seeds, recipe, arguments.quick, arguments.work, arguments.json)


if __name__ == "__main__":
    main()
