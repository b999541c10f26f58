"""The other half of `dvt-fast denoise`: a video, camera, bag or folder through the engine, frame by frame."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..devices import usable_device
from ..errors import InputError, OutputError
from ..extras import require
from ..files import check_folder, write_whole
from . import models
from .common import reason
from .progress import FrameBar

if TYPE_CHECKING:
    from ..engine import Engine, Session
    from ..stream import Sink, Source, Stream


class Policy(str, Enum):
    latest = "latest"
    drop_new = "drop_new"
    block = "block"


class Dtype(str, Enum):
    float32 = "float32"
    tf32 = "tf32"
    float16 = "float16"
    bfloat16 = "bfloat16"


_option = partial(typer.Option, rich_help_panel="Video, camera, bag")

EngineFile = Annotated[
    Path | None,
    _option("--engine", metavar="FILE", help="What dvt-fast export wrote, instead of a ViT and a denoiser."),
]
DtypeName = Annotated[
    Dtype,
    _option(
        "--dtype",
        metavar="NAME",
        help="What the engine multiplies on a GPU: float32, tf32, float16, bfloat16. On the CPU how it keeps weights.",
    ),
]
PolicyName = Annotated[
    Policy,
    _option(
        "--policy",
        metavar="NAME",
        help="What becomes of frames that come too fast: latest (the newest goes first), drop_new (what waits goes "
        "first) or block (none is dropped). Of a file that is not replayed none is dropped.",
    ),
]
Deadline = Annotated[float | None, _option(metavar="MS", help="Count the features that are older than this, in ms.")]
Rate = Annotated[
    float | None, _option(metavar="N", help="Frames a second: to ask of a camera, of images, and of a replay.")
]
Realtime = Annotated[bool, _option("--realtime", help="Replay a file at its own rate, as if it were a camera.")]
Frames = Annotated[int | None, _option(metavar="N", help="Stop after so many frames.", min=1)]
Seconds = Annotated[float | None, _option(metavar="S", help="Stop after so many seconds.")]
Topic = Annotated[str | None, _option(metavar="NAME", help="Which topic of a bag, where several hold images.")]
Features = Annotated[Path | None, _option(metavar="FOLDER", help="Keep the features, in parts of safetensors.")]
Raw = Annotated[bool, _option("--raw", help="With --features: the ViT's own ones, too.")]
Rerun = Annotated[
    str | None,
    _option(metavar="TARGET", help="Show it in Rerun: spawn, connect, a viewer's address, or a file ending in .rrd."),
]
Stats = Annotated[Path | None, _option(metavar="FILE", help="Write the statistics, as JSON.")]

# The parameters of the command that are of no use for images.
OPTIONS = (
    *("engine", "dtype", "policy", "deadline", "rate", "realtime", "frames", "seconds"),
    *("topic", "features", "raw", "rerun", "stats"),
)

LARGEST = (8192, 8192)  # pixels of a frame, upright or not: of a session it costs a few megabytes
TOLD = 10  # errors that are told one by one


@dataclass
class Job:
    """What the command line asks for.

    names: of the source; several are images. out: None where none was given. asked, chosen: the options of the ViT, and
    which of them were given, as for `models.load_models`.
    """

    names: Sequence[str]
    out: Path | None
    denoiser: str | None
    asked: dict[str, Any]
    chosen: set[str]
    threads: int
    as_json: bool
    debug: bool
    engine: Path | None
    dtype: Dtype
    policy: Policy
    deadline: float | None
    rate: float | None
    realtime: bool
    frames: int | None
    seconds: float | None
    topic: str | None
    features: Path | None
    raw: bool
    rerun: str | None
    stats: Path | None


@dataclass
class Run:
    """How a stream ended: how many errors there were, what the first of them say, and whether somebody stopped it."""

    errors: int = 0
    reasons: list[str] = field(default_factory=list)
    stopped: bool = False


def is_stream(names: Sequence[str], out: Path | None) -> bool:
    """Whether these make a stream: a video, a camera or a bag, or images with an output that is one.

    Raises `InputError` for an output of a kind that cannot be written.
    """
    from ..video.open import check_output, is_stream_output, kind_of

    if out is not None:
        check_output(out)
    moving = [name for name in names if kind_of(name) in ("camera", "bag", "video")]
    if moving and len(names) > 1:
        raise typer.BadParameter(
            f"{moving[0]} goes by itself: expected one video, camera or bag, or images", param_hint="PATHS"
        )
    return bool(moving) or (out is not None and is_stream_output(out))


def denoise_stream(job: Job, folder: Path) -> None:
    """Run the stream, write what was asked for and report it; exits with 1 where something failed, 130 on Ctrl-C.

    folder: where the output goes when the command line does not say.
    """
    from ..stream import Stream
    from ..video.camera import find_camera, is_camera

    camera = is_camera(job.names[0])
    with ExitStack() as stack:
        # What fails anyhow does so before torch takes its seconds to import; but a camera is opened last, because its
        # pictures would wait and age.
        if camera:
            find_camera(job.names[0])
        else:
            source = stack.enter_context(closing(_source(job)))
        if job.stats is not None:
            check_folder(job.stats.parent)
        engine = _engine(job)
        size = job.asked["size"] if job.engine is not None else None  # else it is that of the ViT
        session = engine.session(input="image", size=size, threads=job.threads or None, max_source=LARGEST)
        sinks = _sinks(job, folder, engine, stack)
        if camera or job.realtime:
            _warm_up(session)
        if camera:
            source = stack.enter_context(closing(_source(job)))
        stream = Stream(session, source, job.policy.value, job.deadline, raw=engine.has_denoiser)
        stack.callback(stream.close)
        try:
            run = _run(stream, list(sinks.values()), job)
        except BaseException:
            with suppress(OutputError):  # what went wrong first is what matters
                _write_stats(stream, job)
            raise
        _write_stats(stream, job)
    _report(stream, job, list(sinks), run)


def _source(job: Job) -> Source:
    from ..stream import Limited
    from ..video.open import kind_of, open_source

    kind = kind_of(job.names[0])
    if job.topic is not None and kind != "bag":
        raise typer.BadParameter("is an option of bags", param_hint="--topic")
    if job.rate is not None and not job.realtime and kind not in ("camera", "images"):
        raise typer.BadParameter(f"{job.names[0]} has a rate of its own: give --realtime, too", param_hint="--rate")
    if job.realtime and kind == "camera":
        raise typer.BadParameter("is for files: a camera is live by itself", param_hint="--realtime")
    names = job.names if len(job.names) > 1 else job.names[0]
    source = open_source(names, rate=job.rate, realtime=job.realtime, topic=job.topic)
    return Limited(source, job.frames, job.seconds) if job.frames or job.seconds is not None else source


def _engine(job: Job) -> Engine:
    """The engine of the file that is asked for, or one that is exported in memory."""
    from ..engine import Engine

    device = str(usable_device(job.asked["device"]))
    if job.engine is not None:
        for name in ("denoiser", "vit", "weights", "layer", "norm", "stride"):
            given = (
                job.denoiser is not None if name == "denoiser" else ("name" if name == "vit" else name) in job.chosen
            )
            if given:
                raise typer.BadParameter("is of no use with --engine, whose file holds it", param_hint=f"--{name}")
        engine = Engine.load(job.engine, device=device, dtype=job.dtype.value)
        if not engine.has_vit:
            raise InputError(f"{job.engine}: holds no ViT, and frames need one: export it together with its ViT")
        return engine
    require("torch", "vit")
    asked = job.asked | {"device": "cpu"}  # torch only hands the weights over
    chosen = job.chosen - {"device"}
    return Engine.from_vit(*models.load_models(job.denoiser, asked, chosen), device=device, dtype=job.dtype.value)


def _sinks(job: Job, folder: Path, engine: Engine, stack: ExitStack) -> dict[str, Sink]:
    """What is written, by what to call it in the report. Each is closed by `stack`, too, whatever happens."""
    from ..video import FeatureSink, open_sink

    sinks: dict[str, Sink] = {}

    def add(name: str, sink: Sink) -> None:
        sinks[name] = sink
        stack.callback(_close_quietly, sink)

    if job.features is not None:
        add(f"features in {job.features}", FeatureSink(job.features, raw=job.raw and engine.has_denoiser))
    elif job.raw:
        raise typer.BadParameter("needs --features", param_hint="--raw")
    if job.out is not None or not (job.features or job.rerun):
        path = _output(job, folder)
        check_folder(path.parent)
        if path.resolve() in {Path(name).resolve() for name in job.names}:
            raise InputError(f"{path}: is the input itself: give another name by --out")
        model = json.dumps({part: about for part, about in engine.source.items() if about})
        add(str(path), open_sink(path, model=model, camera=not _is_bag(job.names[0])))
    if job.rerun is not None:
        from ..rerun_sink import RerunSink

        add(f"Rerun ({job.rerun})", RerunSink(job.rerun))
    return sinks


def _warm_up(session: Session) -> None:
    """Make what the first frame would wait for, while the clock of a live source does not run yet."""
    from ..stream.result import Result
    from ..video import Painter

    assert session.size is not None  # as it takes images
    grey = np.full((*session.size, 3), 128, np.uint8)
    raw = np.zeros((*session.grid, session.dim), np.float32)
    features = session.run(grey, raw=raw if session.engine.has_denoiser else None)
    Painter().draw(Result(0, grey, features, 0.0, raw=raw))


def _output(job: Job, folder: Path) -> Path:
    """The file that --out means: itself, or in the folder that it is one named after the input."""
    from ..video.open import is_stream_output

    folder = job.out or folder
    if is_stream_output(folder):
        return folder
    stem = Path(job.names[0]).stem.replace(":", "")
    return folder / (f"{stem}-denoised" if _is_bag(job.names[0]) else f"{stem}-denoised.mp4")


def _is_bag(name: str) -> bool:
    from ..video.open import kind_of

    return kind_of(name) == "bag"


def _run(stream: Stream, sinks: Sequence[Sink], job: Job) -> Run:
    """Read the stream to its end, or until somebody stops it, and finish the files."""
    run = Run()
    name = job.names[0]
    with FrameBar(Path(name).name or name, stream.source.frames) as bar, _interrupts() as stop:
        while not stop.is_set():
            try:
                result = stream.read(timeout=0.2)
            except TimeoutError:  # a stop is noticed between reads, so that no sink is cut off within a frame
                continue
            except Exception as error:
                if job.debug or not bar.frames:
                    raise
                run.errors += 1
                if len(run.reasons) < TOLD:
                    run.reasons.append(reason(name, error))
                continue
            if result is None:
                break
            for sink in sinks:
                sink.write(result)
            bar.step(result.age if result.live else None, stream.stats.dropped)
        stream.close()
        for sink in sinks:
            sink.close()
        if not bar.frames and not stop.is_set():
            raise InputError(f"{name}: no frame of it could be read")
        run.stopped = stop.is_set()
        return run


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C or SIGTERM; the second one has its usual effect."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close_quietly(sink: Sink) -> None:
    with suppress(Exception):  # another error is on its way
        sink.close()


def _write_stats(stream: Stream, job: Job) -> None:
    stream.close()
    if job.stats is not None:
        write_whole(job.stats, (json.dumps(_numbers(stream, job), indent=1) + "\n").encode())


def _numbers(stream: Stream, job: Job) -> dict[str, Any]:
    session = stream.session
    about = {"source": list(job.names), "size": session.size, "grid": session.grid, "threads": session.threads}
    return about | stream.stats.as_dict()


def _report(stream: Stream, job: Job, files: list[str], run: Run) -> None:
    numbers = _numbers(stream, job)
    if job.as_json:
        typer.echo(json.dumps({"written": files, **numbers, "errors": run.reasons}))
    elif numbers["delivered"]:
        age, drops = numbers["age_ms"], numbers["drops"]
        parts = [f"{numbers['delivered']:,} frame{'s' if numbers['delivered'] > 1 else ''}"]
        parts += [f"computed at {numbers['rate']:.1f} a second"] if numbers["rate"] else []
        parts += [f"age {age['p50']:.0f} ms, 99 % under {age['p99']:.0f} ms"] if age else []
        parts += [f"{numbers['missed']:,} after the deadline"] if job.deadline else []
        parts += [f"{count:,} dropped: {cause}" for cause, count in drops.items() if cause != "closed"]
        source = job.names[0] if len(job.names) == 1 else f"{len(job.names)} images"
        typer.echo(f"{source}: {', '.join(files) or 'nothing written'} ({'; '.join(parts)})")
    if run.stopped:
        typer.echo("stopped; the files written so far are whole", err=True)
    if run.errors == 1:
        typer.echo(f"error: {run.reasons[0]}", err=True)
    elif run.errors:
        typer.echo("\n  ".join([f"{run.errors:,} errors, of which the first:", *run.reasons]), err=True)
    if run.stopped or run.errors:
        raise typer.Exit(130 if run.stopped else 1)
