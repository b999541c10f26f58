"""What the features of one image cost, from the decoded picture to the result, by the roads that users take.

Stage 1 is timed within `decompose`, stage 2 as `denoise` does it and, on the same pictures, through the engine, whole
and in one call. Reading files is not counted. Numbers of variants are for one machine under one load: they compare
where they were made in one run on a machine that does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import to_numpy
from ..artifact_map import ArtifactMap
from ..devices import device_of_tensors
from ..errors import InputError, UnsupportedError
from ..extras import require
from ..progress import report
from ..runtime import get_num_threads
from ..stage1 import decompose
from .features import coordinate_waves
from .memory import peak_growth
from .outcome import Outcome, Score, bootstrap

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from ..progress import Progress
    from ..vit import ViT
    from .features import Features
    from .frames import Frame
    from .variants import Variant

    # Makes the features of a picture and says the seconds of each part; the rest of the time is that of "views".
    Road = Callable[[PILImage.Image], dict[str, float]]


@dataclass(frozen=True)
class SpeedSettings:
    """runs: timed ones, over the frames in turn, after `warmup` others. seconds: after so many no further run begins;
    where not even the warm-up was through by then, the last run is what is reported. engine: whether the engine is
    timed, too, for variants that it can compute. draws: of the bootstrap over the runs."""

    runs: int = 50
    warmup: int = 3
    seconds: float = 120.0
    engine: bool = True
    draws: int = 1000

    def __post_init__(self) -> None:
        if self.runs < 1 or self.warmup < 0 or self.draws < 1 or not self.seconds >= 0:
            raise InputError(f"runs and draws must be at least 1, warmup and seconds at least 0: {self}")

    @classmethod
    def quick(cls) -> SpeedSettings:
        """A few runs in some seconds."""
        return cls(runs=10, warmup=1, seconds=10.0)


def speed(
    features: Features,
    variant: Variant,
    data: Sequence[Frame],
    settings: SpeedSettings,
    progress: Progress | None = None,
) -> Outcome:
    """Scores: "ms", the median time of a frame, "frames/s", its inverse, and for raw and stage 2 "engine ms", the same
    through the engine; intervals are over resampled runs.

    features: its ViT is timed, its cache is not used. data: the frames to take in turn. Details: "parts", the median
    milliseconds of "views" (cropping, resizing and what else is done around the rest), "vit", and "solve", "subtract",
    "denoiser" or "copy" (to main memory); "best ms"; "runs"; "views", forward passes a frame; "threads" of torch and of
    the native code; "device"; "memory MB", how far one frame, after the warm-up, raises the resident memory of this
    process, None where the system does not tell it; "device memory MB", the same of torch on CUDA; "engine", its best
    and runs, or why it was not timed. progress: progress(done, total, "runs").

    Raises `InputError` where there is no frame or a file of the variant does not fit the ViT.
    """
    torch = require("torch", "eval")
    if not data:
        raise InputError("speed needs at least one image")
    pictures = [frame.picture() for frame in data]
    vit = features.vit
    engine = _engine(variant, vit) if settings.engine else "not asked for"
    roads: list[Road] = [_road(variant, vit)]
    if not isinstance(engine, str):
        roads.append(engine)
    total = len(roads) * (settings.warmup + settings.runs)

    timed = []
    for before, road in enumerate(roads):

        def told(done: int, before: int = before * (settings.warmup + settings.runs)) -> None:
            report(progress, before + done, total, "runs")

        timed.append(_time(road, pictures, settings, told))
    runs = timed[0]
    seconds = np.array([run["total"] for run in runs])
    scores = {"ms": _median(1e3 * seconds, settings)}
    scores["frames/s"] = _inverse(scores["ms"])
    memory, on_device = peak_growth(lambda: roads[0](pictures[0]), vit.device)
    details: dict[str, Any] = {
        "parts": {part: 1e3 * float(np.median([run[part] for run in runs])) for part in runs[0] if part != "total"},
        "best ms": 1e3 * float(seconds.min()),
        "runs": len(runs),
        "views": _views(variant),
        "threads": {"torch": torch.get_num_threads(), "native": get_num_threads()},
        "device": str(vit.device),
        "memory MB": memory,
    }
    if on_device is not None:
        details["device memory MB"] = on_device
    if isinstance(engine, str):
        details["engine"] = engine
    else:
        seconds = np.array([run["total"] for run in timed[1]])
        scores["engine ms"] = _median(1e3 * seconds, settings)
        details["engine"] = {"best ms": 1e3 * float(seconds.min()), "runs": len(seconds)}
    return Outcome(scores, details)


def _time(
    road: Road, pictures: Sequence[PILImage.Image], settings: SpeedSettings, told: Callable[[int], None]
) -> list[dict[str, float]]:
    """The seconds of each run, "total" and by part, without those of the warm-up."""
    found: list[dict[str, float]] = []
    begun = time.perf_counter()
    wanted = settings.warmup + settings.runs
    while len(found) < wanted and (not found or time.perf_counter() - begun < settings.seconds):
        start = time.perf_counter()
        parts = road(pictures[len(found) % len(pictures)])
        total = time.perf_counter() - start
        found.append({"views": total - sum(parts.values())} | parts | {"total": total})
        told(len(found))
    if len(found) < wanted:
        told(wanted)
    return found[settings.warmup :] or found[-1:]


class _TimedViT:
    """A ViT that keeps the time of its forward passes."""

    def __init__(self, vit: ViT):
        self._vit = vit
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vit, name)

    def features(self, images: Any) -> Any:
        _wait(self._vit)  # for the views
        start = time.perf_counter()
        found = self._vit.features(images)
        _wait(self._vit)
        self.seconds += time.perf_counter() - start
        return found


def _road(variant: Variant, vit: ViT) -> Road:
    if variant.kind == "coordinates":
        return lambda picture: {"waves": _timed(lambda: coordinate_waves(vit.grid))[1]}
    if variant.is_stage1:

        def stage1(picture: PILImage.Image) -> dict[str, float]:
            timed: Any = _TimedViT(vit)
            options = dict(variant.options)
            found = decompose(picture, timed, variant.views, variant.kind, seed=variant.seed, **options)
            return {"vit": timed.seconds, "solve": found.meta["seconds"]["solve"]}

        return stage1
    name, after = _after(variant, vit)

    def one_pass(picture: PILImage.Image) -> dict[str, float]:
        timed = _TimedViT(vit)
        found = timed.features(vit.transform(picture)[None])[0]
        clean, seconds = _timed(lambda: to_numpy(after(found)))  # the result is wanted in main memory
        return {"vit": timed.seconds, name: seconds}

    return one_pass


def _after(variant: Variant, vit: ViT) -> tuple[str, Callable[[Any], Any]]:
    """What is done with the ViT's features of one pass, and what that part is called."""
    if variant.kind == "map":
        known = ArtifactMap.load(str(variant.file))
        known.check(vit)
        return "subtract", known.subtract
    if variant.kind == "stage2":
        from ..denoiser.checkpoint import load_denoiser

        return "denoiser", load_denoiser(variant.file, vit).denoise
    return "copy", lambda found: found


def _engine(variant: Variant, vit: ViT) -> Road | str:
    """The engine's road to the same features, or why there is none."""
    from ..engine import Engine

    if variant.kind not in ("raw", "stage2"):
        return f"does not compute {variant.kind}"
    denoiser = None
    if variant.kind == "stage2":
        from ..denoiser.checkpoint import load_denoiser

        denoiser = load_denoiser(variant.file, vit)
    try:
        session = Engine.from_vit(vit, denoiser, device=str(device_of_tensors(vit.device))).session(input="image")
    except (InputError, UnsupportedError) as error:
        return str(error)

    def run(picture: PILImage.Image) -> dict[str, float]:
        session.run(np.asarray(picture))
        return {}

    return run


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _wait(vit: ViT) -> None:
    """Until what was enqueued on the device of `vit` is done."""
    if vit.device.type == "cuda":
        require("torch", "eval").cuda.synchronize(vit.device)


def _views(variant: Variant) -> int:
    from ..views import plan_boxes

    return len(plan_boxes(variant.views, variant.seed)) if variant.is_stage1 else int(variant.kind != "coordinates")


def _median(milliseconds: np.ndarray, settings: SpeedSettings) -> Score:
    if len(milliseconds) < 2:
        return Score(float(milliseconds[0]), higher=False)
    return bootstrap(
        lambda drawn: float(np.median(milliseconds[drawn])), len(milliseconds), draws=settings.draws, higher=False
    )


def _inverse(milliseconds: Score) -> Score:
    low, high = (None if end is None else 1e3 / end for end in (milliseconds.high, milliseconds.low))
    return replace(milliseconds, value=1e3 / milliseconds.value, low=low, high=high, higher=True)
