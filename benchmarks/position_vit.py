"""Small ViTs that differ in how they are told where a patch lies, and the one recipe that trains them all.

Everything but the position is the same to the bit: weights at the start, batches, crops and masks depend on the seed
alone. There is no class token and no zero padding, so a patch can know its place only through the scheme.

The recipe has an image and a patch level, and no teacher, which would hand its own artifacts on: of two random crops of
each image the second has half its patches masked; their mean tokens must find each other among the batch (InfoNCE), and
the masked patches' pixels are predicted (squared error).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCHEMES = {
    "learned": "a learned vector for each place, added to the patches; as timm starts it (sd 0.02)",
    "learned x20": "the same at 20 times the learning rate: what many more steps would make of a start so small",
    "sinusoidal": "fixed waves over x and y, added to the patches; of amplitude 1, as in MAE",
    "rotary": "queries and keys of each block turned by angles that grow with x and y; base 100",
    "alibi": "a bias of each block's attention, minus a slope of each head times the distance of two patches",
    "none": "no position at all",
}
RATES = {"learned": 1, "learned x20": 20}
MEAN, SD = 0.45, 0.25  # of pixels in [0, 1]
MASKED, TEMPERATURE = 0.5, 0.2


@dataclass(frozen=True)
class Size:
    """dim must divide by heads, and dim / heads by 4 (rotary: pairs for each of x and y)."""

    dim: int = 96
    depth: int = 6
    heads: int = 3
    patch: int = 16
    grid: tuple[int, int] = (8, 8)

    @property
    def pixels(self) -> tuple[int, int]:
        return self.grid[0] * self.patch, self.grid[1] * self.patch


@dataclass(frozen=True)
class Recipe:
    steps: int = 600
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    area: tuple[float, float] = (0.3, 1.0)  # of a crop, in units of the image


class PositionViT(nn.Module):
    """A pre-norm ViT with one of `SCHEMES`. `places` float32 [N, 2] are the (y, x) of its patches, in patches."""

    def __init__(self, scheme: str, size: Size = Size(), seed: int = 0):
        super().__init__()
        self.scheme, self.size = scheme, size
        dim, inputs = size.dim, 3 * size.patch**2
        # Built alike for all schemes before anything of a scheme is drawn.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = nn.Linear(inputs, dim)
            self.blocks = nn.ModuleList(Block(dim, size.heads) for _ in range(size.depth))
            self.norm = nn.LayerNorm(dim)
            self.mask = nn.Parameter(0.02 * torch.randn(dim))
            self.pixels = nn.Linear(dim, inputs)
            self.project = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, 64))
            table = 0.02 * torch.randn(math.prod(size.grid), dim)
        h, w = size.grid
        self.places: Tensor
        self.register_buffer("places", torch.cartesian_prod(torch.arange(h), torch.arange(w)).float(), persistent=False)
        self.table = nn.Parameter(table) if scheme in RATES else None

    def forward(self, images: Tensor, masked: Tensor | None = None, norm: bool = True) -> Tensor:
        """Tokens [n, N, C] of images [n, 3, H, W] in [0, 1]. masked: bool [n, N], patches to hide."""
        return self.tokens(self.patches(images), masked, norm)

    def tokens(self, patches: Tensor, masked: Tensor | None = None, norm: bool = True) -> Tensor:
        """The same from `patches`."""
        x = self.embed(patches)
        if masked is not None:
            x = torch.where(masked[..., None], self.mask.to(x.dtype), x)
        if self.table is not None:
            x = x + self.table
        elif self.scheme == "sinusoidal":
            angles = _angles(self.places, self.size.dim // 2, 10_000.0)
            x = x + torch.cat([angles.sin(), angles.cos()], -1)
        turn = bias = None
        if self.scheme == "rotary":
            angles = _angles(self.places, self.size.dim // self.size.heads // 2, 100.0)
            turn = angles.cos(), angles.sin()
        elif self.scheme == "alibi":  # the slopes of text, 2^(-8 i / heads), over the distance in the plane
            slopes = 2.0 ** (-8.0 * torch.arange(1, self.size.heads + 1) / self.size.heads)
            bias = -slopes[:, None, None] * torch.cdist(self.places, self.places)
        for block in self.blocks:
            x = block(x, turn, bias)
        return self.norm(x) if norm else x

    def patches(self, images: Tensor) -> Tensor:
        """Normalised pixels of each patch: [n, N, 3 patch^2]."""
        (h, w), side = self.size.grid, self.size.patch
        pixels = ((images - MEAN) / SD).view(len(images), 3, h, side, w, side)
        return pixels.permute(0, 2, 4, 1, 3, 5).reshape(len(images), h * w, -1)

    @torch.no_grad()
    def maps(self, images: Tensor, norm: bool, batch: int = 64) -> np.ndarray:
        """Features float32 [n, h, w, C] of images [n, 3, H, W] in [0, 1]."""
        found = torch.cat([self(part, norm=norm) for part in images.split(batch)])
        return found.view(len(images), *self.size.grid, -1).numpy()


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, bias: Tensor | None) -> Tensor:
        n, tokens, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        with torch.autocast("cpu", enabled=False):  # attention in bfloat16 is slow on a CPU, and less exact
            q, k, v = q.float(), k.float(), v.float()
            if turn is not None:
                q, k = rotate(q, *turn), rotate(k, *turn)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, tokens, dim))
        return x + self.mlp(self.norm2(x))


def _angles(places: Tensor, count: int, base: float) -> Tensor:
    """[N, count]: the first half for y, the second for x, frequencies from 1 down to nearly 1 / base."""
    frequencies = base ** (-torch.arange(count // 2) / (count // 2))
    return (places[:, :, None] * frequencies).flatten(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., N, D] with the pairs (i, i + D / 2) turned by angles whose cosines and sines are [N, D / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def crop(images: Tensor, boxes: np.ndarray | Tensor, pixels: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Parts of images uint8 or float [n, c, S, S], resized: float32 [n, c, *pixels]; boxes [n, 5] as `plan_boxes`."""
    x, y, w, h, flip = torch.as_tensor(boxes, dtype=torch.float32).T
    zero, sign = torch.zeros_like(x), 1 - 2 * flip
    theta = torch.stack(
        [torch.stack([sign * w, zero, 2 * x + w - 1], -1), torch.stack([zero, h, 2 * y + h - 1], -1)], 1
    )
    grid = F.affine_grid(theta, [len(x), images.shape[1], *pixels], align_corners=False)
    return F.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False)


def random_boxes(random: np.random.Generator, count: int, area: tuple[float, float]) -> np.ndarray:
    """Boxes [count, 5] of random area, place and aspect (3/4 to 4/3), every second one flipped by chance."""
    size, aspect = random.uniform(*area, count), np.exp(random.uniform(-math.log(4 / 3), math.log(4 / 3), count))
    w, h = np.sqrt(size * aspect).clip(max=1), np.sqrt(size / aspect).clip(max=1)
    x, y = random.random((2, count)) * (1 - np.stack([w, h]))
    return np.stack([x, y, w, h, random.integers(0, 2, count)], 1)


def batches(images: Tensor, size: Size, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views [2 batch, 3, H, W], first the one and then the other of each image, and masks of the patches of all."""
    random = np.random.default_rng([seed, 1])
    patches, order = math.prod(size.grid), np.empty(0, int)
    for _ in range(recipe.steps):
        while len(order) < recipe.batch:
            order = np.concatenate([order, random.permutation(len(images))])
        pick, order = order[: recipe.batch], order[recipe.batch :]
        boxes = random_boxes(random, 2 * recipe.batch, recipe.area)
        views = crop(images[np.tile(pick, 2)], boxes, size.pixels) / 255
        gain, bias = random.uniform(0.6, 1.4, (2 * recipe.batch, 1)), random.uniform(-0.1, 0.1, (2 * recipe.batch, 1))
        colour = gain * random.uniform(0.85, 1.15, (2 * recipe.batch, 3))
        views = (views - 0.5) * torch.tensor(colour, dtype=torch.float32)[..., None, None]
        views = (views + torch.tensor(0.5 + bias, dtype=torch.float32)[..., None, None]).clamp_(0, 1)
        masks = random.random((2 * recipe.batch, patches)).argsort(1) < round(MASKED * patches)
        masks[: recipe.batch] = False
        yield views, torch.from_numpy(masks)


def loss(vit: PositionViT, views: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """(image level, patch level): InfoNCE between the two views, squared error of the masked patches."""
    patches = vit.patches(views)
    tokens = vit.tokens(patches, masks)
    z = F.normalize(vit.project(tokens.float().mean(1)).float(), dim=-1)
    one, other = z.chunk(2)
    logits, own = one @ other.T / TEMPERATURE, torch.arange(len(one))
    image = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return image, F.mse_loss(vit.pixels(tokens[masks]).float(), patches[masks])


def train(
    vit: PositionViT,
    images: Tensor,
    recipe: Recipe,
    seed: int,
    show: Callable[[int, float, float], None] = lambda step, image, patch: None,
) -> dict:
    """Train in place on images uint8 [n, 3, S, S]: the losses over the first and last tenth, and seconds of CPU."""
    groups = [{"params": [value for name, value in vit.named_parameters() if name != "table"]}]
    if vit.table is not None:
        rate = RATES[vit.scheme]  # the decay of a step is the rate times weight_decay: alike for both
        groups.append({"params": [vit.table], "lr": recipe.lr * rate, "weight_decay": recipe.weight_decay / rate})
    optimizer = torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay)
    warm = max(1, recipe.steps // 10)

    def warm_cosine(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_cosine)
    start, losses = time.process_time(), []
    for step, (views, masks) in enumerate(batches(images, vit.size, recipe, seed)):
        with torch.autocast("cpu", torch.bfloat16):
            image, patch = loss(vit, views, masks)
        optimizer.zero_grad()
        (image + patch).backward()
        nn.utils.clip_grad_norm_(vit.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append((image.item(), patch.item()))
        show(step, *losses[-1])
    vit.eval()
    first, last = np.mean(losses[:warm], 0), np.mean(losses[-warm:], 0)
    found = {"first": first, "last": last}
    return {
        f"{level}_loss_{when}": float(found[when][i]) for i, level in enumerate(("image", "patch")) for when in found
    } | {"cpu_seconds": time.process_time() - start}
