"""Train `dvt_mini`, the small ViT that ships inside the package, by distilling a real one from random weights.

    python tools/train_mini.py --data ../shared/data --out dvt_fast/assets/dvt_mini.safetensors
    python tools/train_mini.py --data ../shared/data --out dvt_fast/assets/dvt_mini.safetensors --score

The student learns the teacher's last-block tokens *before* the final norm, artifacts included: the teacher's four
corner tokens have 25 times the norm of the others, and showing and removing them is what the demo is for. A bank of
random crops with the teacher's tokens is computed once (a training step costs twice a teacher pass, so a few epochs
over a bank are cheaper than a new crop each time); `--score` measures a file on images that training never sees.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from timm.models.vision_transformer import VisionTransformer

from dvt_fast.artifact_map import position_share
from dvt_fast.files import write_whole

SIZE, PATCH, SIDE = 224, 16, 14  # input, patch, patches a side
CONFIG: dict[str, float] = {"img_size": SIZE, "patch_size": PATCH, "class_token": True}
CONFIG |= {"embed_dim": 192, "depth": 6, "num_heads": 3, "mlp_ratio": 4.0}
MEAN = STD = [0.5, 0.5, 0.5]  # the teacher's own
TAUGHT = (0, 2, 4, 6, 8, 11)  # the teacher's block whose output each block of the student learns
SOURCES = {  # glob -> share of the crops: photographs of many things count for more than frames of one scene
    "images/*.jpg": 0.30,
    "boxes/coco128/images/*.jpg": 0.32,
    "boxes/raccoon/images/*.jpg": 0.12,
    "seg/camvid/images/train/*.jpg": 0.16,
    "depth/7scenes_redkitchen/rgb/*.jpg": 0.05,
    "video/davis-mallard-water/*.jpg": 0.05,
}
HELD_OUT = ("images/n*.jpg", "boxes/coco128/images/*.jpg")  # every 10th of these is for scoring only


def held_out(data: Path) -> list[Path]:
    """The photographs kept for scoring; CamVid's validation images are kept apart too (no source names them)."""
    return [path for pattern in HELD_OUT for path in sorted(data.glob(pattern))[::10]]


def training_images(data: Path) -> list[list[Image.Image]]:
    """The images of every source, decoded once and shrunk to what crops need."""
    kept, sources = set(held_out(data)), []
    for pattern in SOURCES:
        images = []
        for path in sorted(data.glob(pattern)):
            if path not in kept:
                image = Image.open(path).convert("RGB")
                scale = min(1.0, 512 / min(image.size))
                images.append(image.resize([round(s * scale) for s in image.size], Image.Resampling.BICUBIC))
        if not images:
            sys.exit(f"train_mini: no image matches {data / pattern}")
        sources.append(images)
    return sources


def read_image(path: Path) -> np.ndarray:
    """The whole image, squeezed to the input size: uint8 [SIZE, SIZE, 3]."""
    return np.array(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def random_crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A crop of 8-100 % of the image, aspect 3/4-4/3, flipped half the time: uint8 [SIZE, SIZE, 3]."""
    width, height = image.size
    area, aspect = width * height * rng.uniform(0.08, 1.0), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    crop = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h)))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def to_input(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [B, SIZE, SIZE, 3] -> the models' input (both want mean and std 0.5)."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_teacher(data: Path) -> VisionTransformer:
    teacher = VisionTransformer(SIZE, PATCH, embed_dim=192, depth=12, num_heads=3, num_classes=0)
    weights = load_file(data / "weights/vit_tiny_patch16_224_augreg.safetensors")
    teacher.load_state_dict({key: value for key, value in weights.items() if not key.startswith("head.")})
    return teacher.eval().requires_grad_(False)


def load_student(path: Path) -> VisionTransformer:
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["dvt_fast"])["config"]
    student = VisionTransformer(**config, num_classes=0)
    student.load_state_dict(load_file(path))
    return student.eval().requires_grad_(False)


def save_student(student: VisionTransformer, path: Path) -> None:
    """Writes float16 weights, the whole file or nothing."""
    header = {"format": "dvt_fast.vit", "version": 1, "config": CONFIG, "mean": MEAN, "std": STD}
    weights = {key: value.detach().half().contiguous() for key, value in student.state_dict().items()}
    if not all(value.isfinite().all() for value in weights.values()):
        sys.exit("train_mini: the weights are not finite in float16; nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(weights, {"dvt_fast": json.dumps(header)}))


def tokens(vit: VisionTransformer, x: torch.Tensor, replaced: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """What leaves each block, [B, 1 + SIDE^2, C], class token first, before the final norm.

    `replaced` gives, block by block, tokens that the next block receives instead (NaN: keep the model's own)."""
    x, out = vit._pos_embed(vit.patch_embed(x)), []
    for index, block in enumerate(vit.blocks):
        x = block(x)
        out.append(x.float())
        if replaced is not None:
            x = torch.where(replaced[index].isnan(), x, replaced[index])
    return out


class Progress:
    """Prints a line now and then: what, how far, how long still."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.begun = self.shown = time.monotonic()

    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def show(self, part: float, text: str) -> None:
        if time.monotonic() - self.shown >= 15 or part >= 1:
            self.shown = time.monotonic()
            left = self.minutes() * (1 / max(part, 1e-6) - 1)
            print(f"{self.what} {100 * part:5.1f} %, {left:.1f} min left; {text}", flush=True)


class Bank:
    """Random crops and what the teacher makes of them, block by block."""

    def __init__(self, teacher: VisionTransformer, options: argparse.Namespace) -> None:
        rng, sources, size = np.random.default_rng(options.seed), training_images(options.data), options.bank
        self.pixels = np.empty((size, SIZE, SIZE, 3), np.uint8)
        self.tokens = torch.empty(size, len(TAUGHT), 1 + SIDE**2, teacher.embed_dim, dtype=torch.float16)
        progress = Progress("bank")
        for start in range(0, size, 32):
            stop = min(size, start + 32)
            for k in range(start, stop):
                images = sources[rng.choice(len(sources), p=list(SOURCES.values()))]
                self.pixels[k] = random_crop(images[rng.integers(len(images))], rng)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                made = tokens(teacher, to_input(self.pixels[start:stop]))
            self.tokens[start:stop] = torch.stack([made[k] for k in TAUGHT], 1)
            progress.show(stop / size, f"{stop} crops")

    def batches(self, size: int, seed: int) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Batches (input, tokens of each taught block) without end, each epoch in its own order."""
        rng, order = np.random.default_rng(seed), np.empty(0, int)
        while True:
            if len(order) < size:
                order = rng.permutation(len(self.pixels))
            picked, order = order[:size], order[size:]
            yield to_input(self.pixels[picked]), list(self.tokens[picked].float().unbind(1))


def token_error(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error over |target| times the median |target|, plus 1 - cosine, averaged over the tokens.

    Plain squares would see only the giant corner tokens; squares relative to each token would pull the corners
    to their norm 25 times less than the others to theirs. This lies between: every token is pulled alike."""
    size = target.norm(dim=-1)
    squared = (y - target).square().sum(-1) / (size * size.median())
    return (squared + 1 - F.cosine_similarity(y, target, dim=-1)).mean()


def train(options: argparse.Namespace) -> None:
    """Blocks first learn side by side, each from the teacher's own tokens, then more and more as one network.

    A block that is given the right input learns its part in minutes, while end to end, from random weights, the late
    blocks wait for the early ones. So the input of each block is the teacher's with a probability that falls from 1
    to 0 over the first quarter, and the inner blocks' errors fade out of the loss by the end."""
    torch.manual_seed(options.seed)
    teacher = load_teacher(options.data)
    student = VisionTransformer(**CONFIG, num_classes=0)
    for block in student.blocks:
        block.attn.fused_attn = False  # on a CPU the backward pass of the fused one is several times slower
    bank = Bank(teacher, options)
    matrices, others = ([p for p in student.parameters() if (p.ndim == 2) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
    progress, saved, part = Progress("training"), 0.0, 0.0  # part: how much of the training is done
    for step, (x, targets) in enumerate(bank.batches(options.batch, options.seed), start=1):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * part))
        given = torch.rand(len(targets), len(x), 1, 1) < 1 - 4 * part
        replaced = [torch.where(mask, target, torch.nan) for mask, target in zip(given, targets, strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            made = tokens(student, x, replaced)
        *inner, last = (token_error(y, target) for y, target in zip(made, targets, strict=True))
        normed, wanted = student.norm(made[-1]), teacher.norm(targets[-1])
        norm = (normed - wanted).square().mean() / wanted.square().mean()
        loss = last + norm + (1 - part) * sum(inner)
        if not loss.isfinite():
            sys.exit(f"train_mini: the loss is not finite at step {step}; {options.out} is as last saved")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        part = max(step / options.steps, progress.minutes() / options.minutes)
        errors = " ".join(f"{error:.3f}" for error in (*inner, last, norm))
        progress.show(part, f"step {step}, errors of the blocks and the norm {errors}")
        if part >= 1 or progress.minutes() - saved > 4:
            save_student(student, options.out)
            saved = progress.minutes()
        if part >= 1:
            break


@torch.inference_mode()
def patch_tokens(vit: VisionTransformer, paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, SIDE^2, C] patch tokens of the last block of whole images, without and with the final norm."""
    raw = torch.cat([tokens(vit, to_input(read_image(path)[None]))[-1][:, 1:] for path in paths])
    return raw, vit.norm(raw)


def score(student: VisionTransformer, teacher: VisionTransformer, data: Path) -> dict[str, float]:
    """How near the student is to the teacher on photographs that it never saw."""
    paths, corners = held_out(data), [0, SIDE - 1, -SIDE, -1]
    (raw, normed), (raw_teacher, normed_teacher) = patch_tokens(student, paths), patch_tokens(teacher, paths)
    scores = {"cosine": float(F.cosine_similarity(raw, raw_teacher, dim=-1).mean())}
    scores["cosine, normed"] = float(F.cosine_similarity(normed, normed_teacher, dim=-1).mean())
    for name, maps in (("student", raw), ("teacher", raw_teacher)):
        scores[f"position share, {name}"] = position_share(maps.unflatten(1, (SIDE, SIDE)).numpy())
        scores[f"corner norm, {name}"] = float(maps[:, corners].norm(dim=-1).mean())
        scores[f"median norm, {name}"] = float(maps.norm(dim=-1).median())
    return scores


def camvid_miou(vit: VisionTransformer, data: Path) -> float:
    """Mean IoU on CamVid of a linear probe on single normed patch tokens (48 training and 32 validation images)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    folder, classes = data / "seg/camvid", 11
    train, val = (sorted((folder / "images" / part).glob("*.jpg")) for part in ("train", "val"))
    paths = train[:: len(train) // 48][:48] + val[:: len(val) // 32][:32]
    labels = []
    for path in paths:
        image = Image.open(folder / "labels" / path.parent.name / f"{path.stem}.png")
        pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST))
        patches = pixels.reshape(SIDE, PATCH, SIDE, PATCH).swapaxes(1, 2).reshape(SIDE**2, -1)
        labels.append([np.bincount(patch, minlength=classes + 1).argmax() for patch in patches])
    y, x = np.array(labels), patch_tokens(vit, paths)[1].numpy()
    known, known_val = y[:48] < classes, y[48:] < classes  # the last index is "unlabelled"
    scale = StandardScaler().fit(x[:48][known])
    probe = LogisticRegression(max_iter=200, C=0.01).fit(scale.transform(x[:48][known]), y[:48][known])
    found, true = probe.predict(scale.transform(x[48:][known_val])), y[48:][known_val]
    common = [c for c in range(classes) if (true == c).sum() > 20]
    return float(np.mean([((found == c) & (true == c)).sum() / ((found == c) | (true == c)).sum() for c in common]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("dvt_fast/assets/dvt_mini.safetensors"))
    parser.add_argument("--score", action="store_true", help="print the scores of the file --out and train nothing")
    parser.add_argument("--bank", type=int, default=10000, help="crops in the bank (0.6 MB each)")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end by then, with the schedule shortened")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="slow without AMX")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.score:
        return train(options)
    student, teacher = load_student(options.out), load_teacher(options.data)
    scores = score(student, teacher, options.data)
    scores["CamVid mIoU, student"] = camvid_miou(student, options.data)
    scores["CamVid mIoU, teacher"] = camvid_miou(teacher, options.data)
    for name, value in scores.items():
        print(f"{name:24s} {value:.3f}")


if __name__ == "__main__":
    main()
