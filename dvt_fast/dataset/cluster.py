"""Workers as actors on a Ray cluster, which places them, starts them again and moves them to other nodes.

One image at a time goes to each actor, and the driver waits for whichever is done first. An image whose actor dies goes
to the next free one: Ray's own retries are of the same actor, and that may have to wait for a node that never returns.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import DvtError, InputError
from ..extras import require

if TYPE_CHECKING:
    from .worker import Job, Outcome, Task

PATIENCE = 60.0  # seconds without an answer, and without an actor that is at work, until something is said
MAX_RESTARTS = 16  # of one actor: an actor that dies more often than that is left out


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected: to the cluster at `address` ("auto" finds one on this machine), or to a new one of this machine.
    Where this program is connected already, that stays as it is."""
    ray = require("ray", "train")
    if ray.is_initialized():
        yield ray
        return
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would try a wrong address for ten minutes
            socket.create_connection((host, int(port)), 10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster at {address or 'this machine'}: {' '.join(str(error).split())}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def check_request(workers: int | None, device: str) -> None:
    """Raise `InputError` for what actors cannot be."""
    if workers == 0:
        raise InputError("workers 0 computes in this process, and engine 'ray' in actors: expected 1 or more, or None")
    if device.startswith("cuda:"):
        raise InputError(f"device {device!r}: Ray gives each actor its GPU, expected 'cuda'")


def count_workers(ray: Any, workers: int | None, threads: int, device: str) -> tuple[int, float]:
    """How many actors, and how much of a GPU each: one a GPU, or one for each `threads` cores, where none is given."""
    resources = ray.cluster_resources()
    gpus, cores = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
    if device.startswith("cuda"):
        if not gpus:
            raise InputError(f"device {device!r}: no node of the Ray cluster has a GPU")
        workers = workers or int(gpus)
        return workers, min(1.0, gpus / workers)
    if cores < threads:
        raise InputError(f"{threads} threads a worker, and the Ray cluster has {cores:g} cores")
    return workers or int(cores // threads), 0.0


def run_actors(
    ray: Any, job: Job, tasks: Iterable[Task], workers: int, gpus: float, device: str, retries: int
) -> Iterator[tuple[Task, Outcome]]:
    """Every task on one of `workers` actors, in the order in which they are done.

    gpus: what each actor takes of one. retries: how often an image is tried again whose actor died. Closing the
    iterator ends the actors. Raises `DvtError` where no actor can start, or the cluster is lost. Waits where others
    have taken all of it, and says so on stderr.
    """
    from .worker import gave_up

    ray.method(max_task_retries=-1)(_Actor.ready)  # asked of an actor that is to start, or to start again
    actor_class = ray.remote(
        num_cpus=0 if gpus else job.threads,
        num_gpus=gpus,
        max_restarts=MAX_RESTARTS,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(job.threads), "OPENBLAS_NUM_THREADS": str(job.threads)}},
    )(_Actor)
    actors = [actor_class.remote(job, device) for _ in range(workers)]
    waiting, deaths = iter(tasks), dict[int, int]()
    again: deque[Task] = deque()
    free: list[Any] = []
    told = False
    # What is under way: a task of an actor, or (None) its being ready.
    under_way: dict[Any, tuple[Any, Task | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
    try:
        while True:
            while free and (task := again.popleft() if again else next(waiting, None)) is not None:
                actor = free.pop()
                under_way[actor.process.remote(task)] = (actor, task)
            if free and all(task is None for _, task in under_way.values()):
                return
            if not under_way:
                raise DvtError("every Ray actor died, again and again: `ray logs` has the reason")
            done, _ = ray.wait(list(under_way), num_returns=1, timeout=PATIENCE)
            if not done:
                if all(task is None for _, task in under_way.values()):
                    told = _wait_on(ray, job.threads, gpus, told)
                continue
            actor, task = under_way.pop(done[0])
            try:
                answer = ray.get(done[0])
            except ray.exceptions.RayError as error:  # of the actor, its process or its node
                if task is None:  # gone for good
                    continue
                under_way[actor.ready.remote()] = (actor, None)
                deaths[task.index] = deaths.get(task.index, 0) + 1
                if deaths[task.index] <= retries:
                    again.append(task)
                    continue
                yield task, gave_up(task, deaths[task.index], type(error).__name__)
                continue
            if isinstance(answer, DvtError):
                raise answer
            free.append(actor)
            if task is not None:
                yield task, answer
    except ray.exceptions.RayError as error:
        raise DvtError(f"Ray: {' '.join(str(error).split())}") from None
    finally:
        for actor in actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)


def _wait_on(ray: Any, threads: int, gpus: float, told: bool) -> bool:
    """Say what is waited for while no actor runs; `DvtError` where no node that lives could hold one."""
    name, amount = ("GPU", gpus) if gpus else ("CPU", threads)
    if not any(node["Alive"] and node["Resources"].get(name, 0.0) >= amount for node in ray.nodes()):
        raise DvtError(f"the Ray cluster has no node left with {amount:g} {name} for a worker: add one, and run again")
    if not told:
        print(
            f"no worker runs yet: waiting for {amount:g} free {name} on the Ray cluster, or for its ViT",
            file=sys.stderr,
        )
    return True


class _Actor:
    """A worker as a Ray actor."""

    def __init__(self, job: Job, device: str):
        from .worker import Worker

        self._failure: DvtError | None = None
        try:
            self._worker = Worker(job, device, own_process=True)
        except DvtError as error:
            self._failure = error
        except Exception as error:
            text = " ".join(str(error).split())
            self._failure = DvtError(f"a worker could not start: {type(error).__name__}: {text}")

    def ready(self) -> DvtError | None:
        return self._failure

    def process(self, task: Task) -> Outcome:
        return self._worker.process(task)
