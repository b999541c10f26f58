"""Stage 3: a plain ViT that gives by itself what a ViT and its denoiser give together.

The student starts as the teacher, and learns denoiser(teacher(image)) at the same layer and norm. Only the weights that
these features depend on are trained; the others are saved as they came.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.nn.utils import parametrize

from .. import vit_weights
from ..denoiser import Denoiser
from ..denoiser.checkpoint import load_denoiser
from ..errors import InputError, NonFiniteError
from ..files import write_whole
from ..progress import Progress
from ..vit import MINI, ViT
from .data import Batch, share_of_memory
from .devices import same_device
from .monitor import Watch
from .run import WORKERS, Summary, read_options, run, session
from .sources import ImageFiles, Pictures

FILE = "distilled.safetensors"
FORMAT, VERSION = "dvt_fast.distilled", 1
RATE = 2e-4  # learning rate for a batch of 256: the student starts as a good network, which long steps would spoil


class Resampled(nn.Module):
    """A position embedding [1, prefix + N, C] made for the grid `own`, at `grid`, as timm resamples it."""

    def __init__(self, own: tuple[int, int], grid: tuple[int, int], prefix: int):
        super().__init__()
        self.own, self.grid, self.prefix = own, grid, prefix

    def forward(self, pos_embed: torch.Tensor) -> torch.Tensor:
        return resample_abs_pos_embed(pos_embed, list(self.grid), list(self.own), self.prefix)


class Student(nn.Module):
    """The features of a ViT with gradients: images [B, 3, height, width] -> [B, h, w, C].

    At a size that is not the model's own, timm has resampled the position embedding on loading. What is trained is the
    embedding from before that, resampled in each forward pass: so the file fits the model at any size, and at this one
    gives what was trained. Other weights that depend on the size (relative positions) are not trained.
    """

    def __init__(self, vit: ViT):
        super().__init__()
        self.vit, self.model = vit, vit.model
        self.own = dict(vit._as_loaded)  # what timm has resampled, as it came
        self.model.requires_grad_(True)
        self._train_own_positions()
        self._freeze_what_is_not_used()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens, _ = self.vit._tokens(images)
        return tokens.reshape(len(images), *self.vit.grid, self.vit.dim)

    def state(self) -> dict[str, torch.Tensor]:
        """The ViT's weights under timm's names, float32, in the shapes of the model's own size."""
        state = {**self.model.state_dict(), **self.own}
        trained = state.pop("parametrizations.pos_embed.original", None)
        if trained is not None:
            state["pos_embed"] = trained
        return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}

    def _train_own_positions(self) -> None:
        own = self.own.get("pos_embed")
        if own is None:
            return
        prefix = 0 if getattr(self.model, "no_embed_class", False) else self.vit.n_prefix
        side = math.isqrt(own.shape[1] - prefix)
        resampled = Resampled((side, side), self.vit.grid, prefix)
        own = own.to(self.vit.device)
        if side * side + prefix == own.shape[1] and torch.allclose(resampled(own), self.model.pos_embed, atol=1e-6):
            self.model.pos_embed = nn.Parameter(own.clone())
            parametrize.register_parametrization(self.model, "pos_embed", resampled, unsafe=True)  # another shape

    def _freeze_what_is_not_used(self) -> None:
        self(torch.zeros(1, 3, *self.vit.size, device=self.vit.device)).sum().backward()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parameter.grad is not None and name not in self.own)
            parameter.grad = None


class DistillTask:
    """Images -> denoiser(teacher(images))."""

    def __init__(self, student: Student, teacher: ViT, denoiser: Denoiser, fabric: Fabric):
        self.module, self.teacher, self.fabric = student, teacher, fabric
        self.denoiser = denoiser.to(fabric.device).eval().requires_grad_(False)
        mean, std = (torch.tensor(v, device=fabric.device).reshape(3, 1, 1) for v in (teacher.mean, teacher.std))
        self.scale, self.shift = 1 / (255 * std), mean / std

    @torch.no_grad()
    def tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pixels = batch["pixels"].to(self.fabric.device, non_blocking=True).permute(0, 3, 1, 2)
        images = pixels.float() * self.scale - self.shift
        with self.fabric.autocast():
            raw = self.teacher.features(images).float()
            target = self.denoiser(raw).float()
        return images, target, raw


def distill(
    images: Any,
    out: str | os.PathLike[str],
    vit: ViT | Mapping[str, Any],
    denoiser: Denoiser | str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    workers: int = WORKERS,
    memory: int | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Summary:
    """Distil a ViT and its denoiser into a plain ViT; write `distilled.safetensors`, checkpoints and a log to `out`.

    images: files, folders, patterns and URLs; those that cannot be used are named in the summary. vit: a `ViT` or its
    keyword arguments. denoiser: a `Denoiser` trained for it, its file, or what else `load_denoiser` knows. The result
    is for `ViT(name, weights=path)` with the same size, layer, stride and norm. device, workers, memory, resume,
    progress, watch, options: as for `train`, but blr is 2e-4 by default, and the samples are images.

    Raises `InputError` (a denoiser of another ViT among others), `NonFiniteError`, `WeightsError` and `OutputError`.
    """
    parsed = read_options(options, device, blr=RATE)
    with session(parsed, device, out) as fabric:
        teacher = vit if isinstance(vit, ViT) else ViT(**{**vit, "device": str(fabric.device)})
        if not same_device(teacher.device, fabric.device):
            raise InputError(f"vit is on {teacher.device}, and training on {fabric.device}: move one of them")
        if isinstance(denoiser, Denoiser):
            denoiser.check(teacher)
            denoiser = copy.deepcopy(denoiser)  # the caller's own keeps its device and its gradients
        else:
            denoiser = load_denoiser(denoiser, teacher)
        files, failed = ImageFiles.find(images, fabric, workers, progress)
        student = Student(copy.deepcopy(teacher))
        settings = {
            "task": "distill",
            "vit": {name: value for name, value in teacher.describe().items() if name != "weights"},
            "denoiser": {"kind": denoiser.kind, "fingerprint": vit_weights.fingerprint(denoiser.state_dict())},
        }
        trained = run(
            DistillTask(student, teacher, denoiser, fabric), Pictures(files, teacher.size), parsed,
            fabric, out, settings,
            workers=workers, memory=share_of_memory(memory), resume=resume, progress=progress, watch=watch,
            failed=failed,
        )  # fmt: skip
        file = Path(out) / FILE
        if fabric.is_global_zero:
            write_whole(file, pack(trained.module, teacher, trained.how | settings))
        return trained.summary(file, failed)


def pack(student: Student, teacher: ViT, training: dict[str, Any]) -> bytes:
    """The bytes of the result: timm's names; for `dvt_mini` a file of that model's format."""
    state = student.state()
    for name, value in state.items():
        if not value.isfinite().all():
            raise NonFiniteError(f"{name} of the student holds NaN or infinity: not saved")
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "training": training}
    if teacher.name == MINI:
        model = student.model
        side = math.isqrt(state["pos_embed"].shape[1] - teacher.n_prefix)
        config = {
            "img_size": side * teacher.patch_size[0],
            "patch_size": teacher.patch_size[0],
            "embed_dim": model.embed_dim,
            "depth": teacher.depth,
            "num_heads": model.blocks[0].attn.num_heads,
            "mlp_ratio": model.blocks[0].mlp.fc1.out_features / model.embed_dim,
            "class_token": model.cls_token is not None,
        }
        header |= {"format": vit_weights.FORMAT, "version": vit_weights.VERSION, "config": config}
        header |= {"mean": list(teacher.mean), "std": list(teacher.std)}
    return save(state, metadata={"dvt_fast": json.dumps(header)})
