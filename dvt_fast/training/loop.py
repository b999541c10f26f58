"""The training loop that `train` and `distill` share: steps, averaging, scoring, checkpoints, and when to stop.

The loss is the reference's, MSE + (1 - cos), means over tokens and channels in float32. Nothing in a step depends on
what came before but the weights, their average and Adam's moments: a run that goes on from a checkpoint takes the
same steps as one that never stopped, on the CPU to the last bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional

from ..errors import NonFiniteError
from ..progress import Progress, report
from .checkpoint import Store, gather, scatter, trained
from .data import Batch, Item, Reader
from .devices import everywhere, total
from .monitor import Monitor
from .options import TrainingOptions
from .order import Order
from .schedule import ema_decay, learning_rate, scaled_rate

BETAS = (0.9, 0.999)
SCORED = 1000  # held-out images at most, those of the lowest hash: more would tell no more
NAMED = 3  # images in a message
PICTURED = 4  # held-out images in the picture panel


class Task(Protocol):
    """What is trained: `module`, from inputs to predictions."""

    module: nn.Module

    def tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a batch, on the device: inputs of the module, targets [B, h, w, C] float32 and, to compare predictions
        with, the features as they were, of the targets' shape."""


@dataclass(frozen=True)
class Score:
    """Mean cosine of the held-out images' tokens to their targets: of the features as they were, and of what the
    averaged weights make of them."""

    before: float
    after: float


@dataclass(frozen=True)
class Outcome:
    """How a run went. step: how many were taken; score: the last one; best: the step and score of the best."""

    step: int
    score: Score | None
    best: tuple[int, Score] | None
    stopped_early: bool
    resumed_from: int | None
    seconds: float
    images_per_second: float


class Loop:
    """One training of `task` on samples from `reader`. items: those to train on; scored: those to score on, best first.

    After `run`, `ema` holds the weights to keep.
    """

    def __init__(
        self,
        task: Task,
        reader: Reader,
        items: Sequence[int],
        scored: Sequence[int],
        options: TrainingOptions,
        fabric: Fabric,
        store: Store,
    ):
        self.task, self.reader, self.options, self.fabric, self.store = task, reader, options, fabric, store
        self.items, self.scored = items, scored[:SCORED]
        self.order = Order(len(items), options.seed, options.variants)
        assert options.blr is not None
        self.peak = scaled_rate(options.blr, options.batch)
        task.module.to(fabric.device)
        self.ema = copy.deepcopy(task.module).requires_grad_(False)
        self.weights = list(trained(task.module).values())
        self.averages = list(trained(self.ema, like=task.module).values())
        self.optimizer = torch.optim.AdamW(self.weights, lr=0.0, betas=BETAS, weight_decay=options.weight_decay)
        self.wrapped, self.stepper = fabric.setup(task.module, self.optimizer)
        self.step = self.stale = 0  # stale: scorings since the best one
        self.score: Score | None = None
        self.best: tuple[int, Score] | None = None
        self._unread: list[torch.Tensor] = []  # losses and gradient norms that nobody has looked at yet

    def restore(self, step: int) -> None:
        """Go back to the checkpoint of a step, which the first process reads: others may not have the folder."""
        header, found = self.store.read(step) if self.fabric.is_global_zero else ({}, {})
        header, names = self.fabric.broadcast((header, list(found)))
        arrays = {name: self.fabric.broadcast(found.get(name)) for name in names}  # one by one: to copy all takes room
        scatter(arrays, header["adam_step"], self.task.module, self.ema, self.optimizer)
        if header["scaler"]:
            self.fabric.strategy.precision.load_state_dict(header["scaler"])
        self.step, self.stale = header["step"], header["stale"]
        self.score = Score(**header["score"]) if header["score"] else None
        self.best = (header["best"]["step"], Score(**header["best"]["score"])) if header["best"] else None

    def run(self, monitor: Monitor, progress: Progress | None = None) -> Outcome:
        """Take the steps that are left. Whatever ends it (a loss that is not finite, a full disk, Ctrl-C), the last
        checkpoint stays."""
        options, first, began = self.options, self.step, time.perf_counter()
        looked, idle = (first, began), 0.0  # when the log was last written, and time since then that was not training
        steps = iter(()) if self._hopeless() else iter(range(first, options.steps))
        with closing(self.reader.stream(map(self._items_of, steps))) as batches:
            for batch in batches:
                self._take(batch)
                due = self.step % options.every == 0 or self.step == options.steps
                if due or self.step % options.log_every == 0:
                    record, now = self._look(), time.perf_counter()
                    rate = options.batch * (self.step - looked[0]) / (now - looked[1] - idle)
                    monitor.log(self.step, record | {"images_per_second": rate})
                    looked, idle = (self.step, now), 0.0
                report(progress, self.step, options.steps, "steps")
                if due:
                    before = time.perf_counter()
                    self._evaluate(monitor)
                    self._save()
                    idle = time.perf_counter() - before
                    if self._hopeless():
                        break
        stopped = self.step < options.steps
        if options.patience and self.best and self.fabric.is_global_zero:
            _, arrays = self.store.read(self.best[0])
            scatter(arrays, 0, self.task.module, self.ema, self.optimizer)
        seconds = time.perf_counter() - began
        rate = options.batch * (self.step - first) / seconds
        return Outcome(self.step, self.score, self.best, stopped, first or None, seconds, rate)

    def _items_of(self, step: int) -> list[Item]:
        """This process's part of a step's batch."""
        part = self.order.batch(step, self.options.batch, self.fabric.global_rank, self.fabric.world_size)
        return [(self.items[place], variant) for place, variant in part]

    def _take(self, batch: Batch) -> None:
        """One step."""
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, options.steps, self.peak, options.final_lr, options.warmup)
        inputs, targets, _ = self.task.tensors(batch)
        mse, cosine = loss_terms(self.wrapped(inputs), targets)
        self.fabric.backward((mse + 1 - cosine).mean())
        norm: Any = self.fabric.clip_gradients(
            self.wrapped, self.stepper, max_norm=options.clip or math.inf, error_if_nonfinite=False
        )
        self.stepper.step()
        self.stepper.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - ema_decay(self.step, options.ema))
        self._unread.append(torch.cat([mse.detach(), cosine.detach(), norm.reshape(1)]))
        self.step += 1

    def _look(self) -> dict[str, float]:
        """The mean losses of the steps since the last look, over all processes.

        Looked at together, so that a CUDA device need not stop for each; before each checkpoint, so that none is
        written from a loss that is not finite. All processes see the same numbers and stop at the same step.
        """
        steps, part = len(self._unread), (len(self._unread[0]) - 1) // 2
        seen = everywhere(self.fabric, torch.stack(self._unread)).cpu()  # [processes, steps, 2 * part + 1]
        self._unread.clear()
        mse, cosine, norms = seen[..., :part], seen[..., part : 2 * part], seen[..., -1]
        bad_images = ~(mse + cosine).isfinite()
        finite_norms = norms.isfinite()
        bad_steps = bad_images.any(2).any(0)
        if self.options.precision != "fp16":  # whose scaler skips steps of too large gradients, and scales less
            bad_steps |= ~finite_norms.all(0)
        if bad_steps.any():
            place = int(bad_steps.int().argmax())
            rows = bad_images[:, place].flatten()  # by process, then by place: the order of the batch
            what = "loss" if rows.any() else "gradient"
            rows = rows if rows.any() else torch.ones_like(rows)
            step, names = self.step - steps + place, self._names(self.step - steps + place, rows)
            self._stop_as_not_finite(f"the {what} is not finite at step {step}, with {names}")
        mean_mse, mean_cosine = mse.mean().item(), cosine.mean().item()
        return {
            "loss": mean_mse + 1 - mean_cosine,
            "mse": mean_mse,
            "cosine": mean_cosine,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norms[finite_norms].mean().item() if finite_norms.any() else math.inf,
        }

    def _names(self, step: int, rows: torch.Tensor) -> str:
        """Of the images of a step's batch for which `rows` is true."""
        batch = self.order.batch(step, self.options.batch)
        names = [self.reader.source.names[self.items[item]] for (item, _), row in zip(batch, rows.tolist()) if row]
        return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

    def _stop_as_not_finite(self, what: str) -> None:
        saved = self.fabric.broadcast(self.store.steps() if self.fabric.is_global_zero else [])
        kept = f"the last good checkpoint is {self.store.path(saved[-1])}" if saved else "there is no checkpoint yet"
        raise NonFiniteError(f"{what}: stopped, {kept}; a lower blr or precision fp32 may help")

    @torch.no_grad()
    def _evaluate(self, monitor: Monitor) -> None:
        """Score the averaged weights on the held-out images, each process its share of them."""
        if not self.scored:
            return
        fabric, size = self.fabric, max(1, self.options.batch // self.fabric.world_size)
        mine = [(item, 0) for item in self.scored[fabric.global_rank :: fabric.world_size]]
        sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
        pictures: list[torch.Tensor] = []
        with closing(self.reader.stream(mine[i : i + size] for i in range(0, len(mine), size))) as batches:
            for batch in batches:
                inputs, targets, before = self.task.tensors(batch)
                with fabric.autocast():
                    after = self.ema(inputs).float()
                for place, features in enumerate((before, after)):
                    sums[place] += loss_terms(features, targets)[1].double().sum()
                pictures = pictures or [part[:PICTURED].cpu() for part in (before, targets, after)]
        before_mean, after_mean = (total(fabric, sums) / len(self.scored)).tolist()
        if not math.isfinite(after_mean):
            self._stop_as_not_finite(f"the averaged weights of step {self.step} give features that are not finite")
        self.score = Score(before_mean, after_mean)
        if self.best is None or after_mean > self.best[1].after:
            self.best, self.stale = (self.step, self.score), 0
        else:
            self.stale += 1
        monitor.log(self.step, {"held_out_before": before_mean, "held_out_cosine": after_mean})
        if pictures:
            monitor.panel(self.step, *(part.numpy() for part in pictures))

    def _save(self) -> None:
        if not self.fabric.is_global_zero:
            return
        arrays, taken = gather(self.task.module, self.ema, self.optimizer)
        self.store.write(
            self.step,
            arrays,
            keep=[self.best[0]] if self.best else [],
            adam_step=taken,
            position=self.step * self.options.batch,
            scaler=self.fabric.strategy.precision.state_dict(),
            score=asdict(self.score) if self.score else None,
            best={"step": self.best[0], "score": asdict(self.best[1])} if self.best else None,
            stale=self.stale,
        )

    def _hopeless(self) -> bool:
        """Whether the held-out score has not risen for as long as `patience` allows."""
        return bool(self.options.patience) and self.stale >= self.options.patience


def loss_terms(prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error and cosine of each image, means over its tokens (and channels): float32 [B] each."""
    prediction, target = prediction.float(), target.float()
    mse = (prediction - target).square().flatten(1).mean(1)
    return mse, functional.cosine_similarity(prediction, target, dim=-1).flatten(1).mean(1)
