"""Workers as processes of this machine, each with its own ViT and a pipe to the driver.

One image at a time goes to each worker, so that the images not yet handed out wait in the driver, and a worker that
dies (a crash, the kernel's out-of-memory killer) takes one known image with it: that one is tried again, and the others
go on. concurrent.futures would not do: its pool ends all of its workers where one dies, and does not say on what.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING

from ..errors import DvtError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from .worker import Job, Outcome, Task

# Spawned, not forked: a fork would copy the locks of threads (torch's, fsspec's) and not the threads.
_CONTEXT = multiprocessing.get_context("spawn")
# What NumPy's and torch's libraries read when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(eq=False)
class _Process:
    """A worker as the driver sees it. task: what it is at. ready: its ViT is loaded."""

    process: SpawnProcess
    pipe: connection.Connection
    device: str
    task: Task | None = None
    ready: bool = False


def place_workers(device: str, workers: int | None, threads: int) -> list[str]:
    """The device of each worker. workers: how many; None is one a GPU for "cuda", else one for each `threads` cores."""
    import torch

    gpus = torch.cuda.device_count() if device == "cuda" else 0
    workers = workers or gpus or max(1, len(os.sched_getaffinity(0)) // threads)
    return [f"cuda:{i % gpus}" if gpus else device for i in range(workers)]


def run_here(job: Job, tasks: Iterable[Task], device: str) -> Iterator[tuple[Task, Outcome]]:
    """Every task in this process, one after the other."""
    import torch

    from ..runtime import get_num_threads, set_num_threads
    from .worker import Worker

    before = torch.get_num_threads(), get_num_threads()
    try:
        worker = Worker(job, device)
        for task in tasks:
            yield task, worker.process(task)
    finally:
        torch.set_num_threads(before[0])
        set_num_threads(before[1])


def run_processes(job: Job, tasks: Iterable[Task], devices: list[str], retries: int) -> Iterator[tuple[Task, Outcome]]:
    """Every task in one of as many processes as there are devices, in the order in which they are done.

    retries: how often an image is tried again whose worker died. Closing the iterator ends the processes; so does the
    end of this one, however it comes. Raises `DvtError` where a worker cannot start.
    """
    from .worker import gave_up

    waiting, deaths = iter(tasks), dict[int, int]()
    again: deque[Task] = deque()
    early = 0  # deaths before the ViT was loaded, one after the other
    workers: list[_Process] = []
    try:
        workers += [_start(job, device) for device in devices]
        while True:
            for worker in workers:
                if worker.ready and worker.task is None:
                    worker.task = again.popleft() if again else next(waiting, None)
                    if worker.task is not None:
                        with contextlib.suppress(OSError):  # it has died, which is seen below
                            worker.pipe.send(worker.task)
            if all(worker.task is None for worker in workers if worker.ready) and any(w.ready for w in workers):
                return
            for pipe in connection.wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):
                    _end([worker])
                    workers[workers.index(worker)] = _start(job, worker.device)
                    early = 0 if worker.ready else early + 1
                    if early > retries:
                        raise DvtError(_no_start(worker.process.exitcode)) from None
                    task = worker.task
                    if task is None:
                        continue
                    deaths[task.index] = deaths.get(task.index, 0) + 1
                    if deaths[task.index] <= retries:
                        again.append(task)
                        continue
                    yield task, gave_up(task, deaths[task.index], _cause(worker.process.exitcode))
                    continue
                if isinstance(answer, DvtError):
                    raise answer
                if worker.task is None:
                    worker.ready, early = True, 0
                    continue
                task, worker.task = worker.task, None
                yield task, answer
    finally:
        _end(workers)


def _start(job: Job, device: str) -> _Process:
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_serve, args=(theirs, job, device), daemon=True)
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    resource_tracker.ensure_running()  # its start would unblock the signal
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(job.threads)))
    # Ctrl-C reaches every process of the terminal. It is the driver's to answer: a worker never sees it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        theirs.close()  # so that the end of the process is the end of the pipe
    return _Process(process, ours, device)


def _end(workers: list[_Process]) -> None:
    """End processes at once; what they were writing is not there, or whole."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.pipe.close()


def _serve(pipe: connection.Connection, job: Job, device: str) -> None:
    """What a worker's process does: says that it is ready, or why it is not, then answers tasks."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from .worker import Worker

    try:
        worker = Worker(job, device, own_process=True)
    except DvtError as error:
        pipe.send(error)
        return
    except Exception as error:
        text = " ".join(str(error).split())
        pipe.send(DvtError(f"a worker could not start: {type(error).__name__}: {text}"))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):  # the driver is gone
        while True:
            pipe.send(worker.process(pipe.recv()))


def _die_with_parent() -> None:
    """End this process when the driver ends, even where that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


def _no_start(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        hint = "is there memory for so many?"
    else:
        hint = "a script that calls build_dataset needs `if __name__ == '__main__':` around it, as they import it"
    return f"the workers die as they start ({_cause(exit_code)}): {hint}"
