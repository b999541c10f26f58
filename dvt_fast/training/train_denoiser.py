"""Stage 2's training: a denoiser from pairs of raw features and their stage-1 semantics."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric

from ..artifact_map import ArtifactMap
from ..dataset.reader import PairDataset
from ..dataset.settings import make_settings, refuse_others
from ..denoiser import Denoiser
from ..errors import DvtError, InputError
from ..options import choice
from ..progress import Progress
from ..views import DEFAULT_PLAN
from ..vit import ViT
from .data import Batch, Reader, Source, share_of_memory
from .devices import same_device, total
from .monitor import Watch
from .run import WORKERS, Summary, read_options, run, session
from .sources import FreshPairs, ImageFiles, StoredPairs, examine

if TYPE_CHECKING:
    from ..views import Plan

FILE = "denoiser.safetensors"
RATE = 2.0  # learning rate for a batch of 256, by the width: Adam's steps on C x C weights should be as 1 / C
START_PAIRS = 256  # whose mean artifacts the position embedding starts from


class DenoiserTask:
    """raw -> semantics."""

    def __init__(self, denoiser: Denoiser, device: torch.device):
        self.module, self.device = denoiser, device

    def tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        raw = batch["raw"].to(self.device, non_blocking=True).float()
        return raw, batch["target"].to(self.device, non_blocking=True).float(), raw


def train(
    data: Any,
    out: str | os.PathLike[str],
    *,
    kind: str = "block",
    num_blocks: int = 1,
    num_heads: int | None = None,
    start: str = "artifacts",
    on_the_fly: bool = False,
    vit: ViT | Mapping[str, Any] | None = None,
    images: str | os.PathLike[str] | None = None,
    views: Plan = DEFAULT_PLAN,
    solver: str = "direct",
    solver_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    workers: int = WORKERS,
    memory: int | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> Summary:
    """Train a denoiser; write `denoiser.safetensors`, checkpoints and a log to the folder `out`.

    data: a `PairDataset`, or its folder or URL. With on_the_fly: files, folders, patterns or URLs of images; pairs are
    then made with `vit` (a `ViT` or its keyword arguments), `views`, `solver` and `solver_options` when they are
    needed, and nothing of them is stored on a disk.

    Trained on are also crops of the images, whose raw features the ViT computes (see `crops`). Where the images of a
    dataset are no longer where they were, images is the folder or URL to find them in, and vit has keyword arguments,
    such as weights, in place of those in the dataset. With variants=1, whole images alone, a dataset that keeps raw
    features needs neither.

    kind, num_blocks, num_heads: of the `Denoiser`. start: "artifacts" sets its position embedding, before training, to
    minus the mean of raw - semantics over up to 256 images, as Adam's steps are too short to get from zero to what some
    ViTs add to their tokens; "random" is the reference's. device: "cpu", "cuda" or "cuda:1". workers: threads that read
    samples ahead. memory: bytes of samples to keep on this machine, a quarter of what there is by default. options: see
    `TrainingOptions`.

    With resume, a training that `out` holds goes on from its newest checkpoint, and one of other settings is refused;
    without it, its checkpoints are deleted. Under torchrun every process calls this alike; the first one
    alone reads and writes `out`, so that other nodes need not see that folder.

    progress: called as progress(done, total, "images" or "steps"); returning False stops with `Cancelled`. watch:
    called with each line of the log, a dict. Raises `InputError`, `NonFiniteError`, `WeightsError` and `OutputError`;
    whatever ends a training, its last checkpoint stays.
    """
    parsed = read_options(options, device)
    start, room = choice("artifacts", "random")("start", start), share_of_memory(memory)
    with session(parsed, device, out) as fabric:
        if on_the_fly:
            if vit is None:
                raise InputError("on_the_fly needs vit, a dvt_fast.ViT or its keyword arguments")
            stage1 = {"views": views, "solver": solver, "seed": parsed.seed, "options": solver_options or {}}
            pairs = _fresh(data, vit, stage1, room // 2, fabric, workers, progress)
        else:
            dataset = PairDataset(data, images) if isinstance(data, (str, os.PathLike)) else data
            pairs = _stored(dataset, vit, parsed.variants, fabric, workers, progress)
        parsed = replace(parsed, blr=parsed.blr or RATE / pairs.dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parsed.seed)
            denoiser = Denoiser(pairs.dim, pairs.grid, num_blocks, kind=kind, num_heads=num_heads)
        start = start if denoiser.pos_embed is not None else "random"  # without one there is nothing to set

        def begin(reader: Reader, items: Sequence[int]) -> None:
            if start == "artifacts":
                shape = (*denoiser.grid, denoiser.dim)
                denoiser.start_from(mean_artifacts(reader, items[:START_PAIRS], shape, fabric))

        vit_settings = {name: value for name, value in pairs.vit.items() if name != "weights"}  # their hash says more
        dataset_settings = {name: value for name, value in pairs.settings.items() if name != "vit"}
        model = {"kind": kind, "num_blocks": num_blocks, "num_heads": denoiser.num_heads, "start": start}
        trained = run(
            DenoiserTask(denoiser, fabric.device), pairs.source, parsed, fabric, out,
            {"task": "train", "vit": vit_settings, "dataset": dataset_settings, "denoiser": model},
            workers=workers, memory=room - pairs.kept, resume=resume, progress=progress, watch=watch, begin=begin,
            failed=pairs.failed,
        )  # fmt: skip
        file = Path(out) / FILE
        if fabric.is_global_zero:
            result: Any = trained.module
            result.meta = {"vit": pairs.vit, "training": {**trained.how, "start": start, "dataset": dataset_settings}}
            result.save(file)
        return trained.summary(file, pairs.failed)


@torch.no_grad()
def mean_artifacts(reader: Reader, items: Sequence[int], shape: tuple[int, ...], fabric: Fabric) -> torch.Tensor:
    """The mean of raw - semantics over `items`, of `shape` [h, w, C]; each process reads its share of them."""
    mine = torch.zeros(shape, dtype=torch.float64)
    for batch in reader.stream([(item, 0)] for item in items[fabric.global_rank :: fabric.world_size]):
        mine += batch["raw"][0].double() - batch["target"][0].double()
    return total(fabric, mine).cpu() / len(items)


@dataclass
class _Pairs:
    """What to train on. vit: its description; settings: what the pairs depend on; failed: a line an unusable image;
    kept: bytes of memory that the source uses."""

    source: Source
    grid: tuple[int, int]
    dim: int
    vit: dict[str, Any]
    settings: dict[str, Any]
    failed: list[str]
    kept: int = 0


def _stored(
    dataset: PairDataset,
    vit: ViT | Mapping[str, Any] | None,
    variants: int,
    fabric: Fabric,
    workers: int,
    progress: Progress | None,
) -> _Pairs:
    """The pairs of a dataset; where raw features are to be computed, those of images that are still there unchanged."""
    made, grid, dim = dataset.settings, dataset.grid, dataset.dim
    if dataset.keep == "both" and variants == 1:
        return _Pairs(StoredPairs(dataset, None), grid, dim, made["vit"], made, [])
    model = _on_device(
        {**dataset.vit_options, **vit} if isinstance(vit, Mapping) else vit or dataset.vit_options, fabric
    )
    refuse_others("the ViT of this dataset", {"vit": made["vit"]}, {"vit": model.describe()})
    found: list[str | None] = []
    if fabric.is_global_zero:

        def check(item: int) -> None:
            dataset.open_image(item)  # and let go of it: all of them would fill the memory

        results = examine(check, range(len(dataset)), workers, progress)
        found = [str(result) if isinstance(result, DvtError) else None for result in results]
    found = fabric.broadcast(found)
    failed = [fault for fault in found if fault is not None]
    if len(failed) == len(found):
        how = "; variants=1 does without the images" if dataset.keep == "both" else ""
        raise InputError(f"none of the dataset's {len(found)} source images can be used{how}; the first: {failed[0]}")
    usable = [item for item, fault in enumerate(found) if fault is None]
    return _Pairs(StoredPairs(dataset, model, usable), grid, dim, made["vit"], made, failed)


def _fresh(
    images: Any,
    vit: ViT | Mapping[str, Any],
    stage1: Mapping[str, Any],
    memory: int,
    fabric: Fabric,
    workers: int,
    progress: Progress | None,
) -> _Pairs:
    """Pairs to be made of images. stage1: views, solver, seed, and options of the solver. memory: for semantics."""
    model, options = _on_device(vit, fabric), dict(stage1["options"])
    if isinstance(options.get("artifacts"), (str, os.PathLike)):
        options["artifacts"] = ArtifactMap.load(options["artifacts"])  # once, not for each image
    how = {**stage1, "options": options}
    made = make_settings(model, **how, coords="center", keep="semantics", dtype="float16")
    files, failed = ImageFiles.find(images, fabric, workers, progress)
    how.update(how.pop("options"))
    memory = min(memory, len(files.files) * math.prod(model.grid) * model.dim * np.dtype(np.float16).itemsize)
    source = FreshPairs(files, model, how, memory)
    return _Pairs(source, model.grid, model.dim, made["vit"], made, failed, memory)


def _on_device(vit: ViT | Mapping[str, Any], fabric: Fabric) -> ViT:
    """The ViT that is to run beside the training; `InputError` for one that is on another device."""
    model = vit if isinstance(vit, ViT) else ViT(**{**vit, "device": str(fabric.device)})
    if not same_device(model.device, fabric.device):
        raise InputError(f"vit is on {model.device}, and training on {fabric.device}: move one of them")
    return model
