"""What a dataset of stage-1 pairs costs: time, space and requests an image, and for a million of them.

The ViT (ViT-Ti/16 AugReg at 224, last block) and the images are those of ../shared/data; `balanced`, `direct`, one
thread a worker. Measurements:

`rate`: images a second with one worker and with two, in turns, after the first quarter of the images, when
both surely have their ViT. `parts`: seconds an image in reading and cutting views, the ViT, the solve, packing
and writing. `space`: bytes of a file for each dtype and for one part or both, against raw and semantics in float32; at
this setting from the files, at the official one (ViT-B, 37 x 37 x 768) from features of that shape. `requests`: of an
image, with images and pairs on S3, as a server counts them. `official`: seconds of one thread for the views, the solve
and the file of one image at the official setting, where the ViT would be a GPU's work.

`million`: what 1,000,000 images cost. With one and two cores that is the measured rate, times a million; everything
else is arithmetic, with the assumptions that stand in the result.

    python benchmarks/dataset.py [rate] [space] [requests] [official] [parts] [million] [--json results.json]
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import save

from dvt_fast import ViT, build_dataset, set_num_threads, solve
from dvt_fast.dataset.pairs import DTYPES, KEPT, pack_pair
from dvt_fast.dataset.store import Store
from dvt_fast.dataset.worker import Job, Task, Worker
from dvt_fast.images import load_image, resize
from dvt_fast.views import plan_boxes, view_coords

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
VIT = {
    "name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "weights": str(DATA / "weights" / "vit_tiny_patch16_224_augreg.safetensors"),
}
VIEWS = "balanced"
OFFICIAL = {"patches": 37, "channels": 768, "pixels": 518}

# For what cannot be measured here. ViT-B/14 at 518: 2 FLOPs a weight and token, and attention.
ASSUMED: dict[str, Any] = {
    "gpu_tflops": 30.0,  # sustained, float32: half of what a current data-centre GPU has at its best
    "cores_a_gpu": 8,  # as clouds rent them; each as fast as the one measured here
    "vit_gflops_a_view": 2e-9 * (1370 * 85.8e6 + 12 * 2 * 1370**2 * 768),
    "dollars_a_1000_put": 0.005,
    "dollars_a_1000_get": 0.0004,
}


def images(count: int) -> list[Path]:
    """The first photos, and CamVid's where those do not suffice."""
    found = sorted((DATA / "images").glob("*.jpg")) + sorted(
        (DATA / "seg" / "camvid" / "images" / "train").glob("*.jpg")
    )
    return found[:count]


def rate(count: int, rounds: int) -> dict:
    """Images a second with 1 and 2 workers, in turns."""
    steady: dict[int, list[float]] = {1: [], 2: []}
    whole: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers in steady:
            seconds, times = timed_build(images(count), workers)
            first, last = count // 4, count - 2  # after the last but one, a worker may be idle
            steady[workers].append((last - first) / (times[last] - times[first]))
            whole[workers].append(count / seconds)
    out = {
        f"{workers} worker{'s' * (workers > 1)}": {
            "images_a_second": statistics.median(values),
            "each_round": values,
            "with_start_and_end": statistics.median(whole[workers]),
        }
        for workers, values in steady.items()
    }
    one, two = (statistics.median(values) for values in steady.values())
    print(f"rate: one worker {one:.2f} images/s, two {two:.2f}: {two / one:.2f} times as fast")
    return out | {"images": count, "two_to_one": two / one}


def timed_build(files: list[Path], workers: int) -> tuple[float, list[float]]:
    """Seconds of a run, and the time at which each image was done."""
    times: list[float] = []
    with scratch() as out:
        start = time.perf_counter()
        summary = build_dataset(
            files, out, VIT, views=VIEWS, workers=workers, progress=lambda *_: times.append(time.perf_counter())
        )
        seconds = time.perf_counter() - start
    assert summary.made == len(files) and not summary.failed, summary
    return seconds, times


def parts(count: int) -> dict:
    """Seconds an image, by what they go into; medians."""
    spent: dict[str, list[float]] = {}
    files = images(count)
    with scratch() as out:
        worker = make_worker(out)
        now: dict[str, float] = {}
        worker.vit.features = timed(worker.vit.features, now, "ViT")
        worker.job.store.write = timed(worker.job.store.write, now, "write")
        for module, name, what in (
            ("dvt_fast.solvers.direct", "DirectStream.add", "solve"),
            ("dvt_fast.solvers.direct", "DirectStream.finish", "solve"),
            ("dvt_fast.dataset.pairs", "pack_pair", "pack"),
        ):
            instrument(module, name, now, what)
        for file in files:
            now.clear()
            start = time.perf_counter()
            outcome = worker.process(Task(0, str(file.parent), file.name))
            now["all"] = time.perf_counter() - start
            assert outcome.made, outcome
            now["read, views and the rest"] = now["all"] - sum(now[k] for k in ("ViT", "write", "solve", "pack"))
            for what, seconds in now.items():
                spent.setdefault(what, []).append(seconds)
    result = {what: statistics.median(values[1:]) for what, values in spent.items()}
    print("parts, ms an image: " + ", ".join(f"{what} {1e3 * value:.1f}" for what, value in result.items()))
    return result


def space(count: int) -> dict:
    """Bytes of a file, and how many times less that is than raw and semantics in float32."""
    out: dict[str, Any] = {}
    files = images(count)
    rng = np.random.default_rng(0)
    official = rng.standard_normal((2, OFFICIAL["patches"], OFFICIAL["patches"], OFFICIAL["channels"]), np.float32)
    for dtype in DTYPES:
        for keep in KEPT:
            with scratch() as folder:
                summary = build_dataset(files, folder, VIT, views=VIEWS, workers=0, dtype=dtype, keep=keep)
            here = {"bytes": summary.pair_bytes, "times_less": summary.reference_bytes / summary.pair_bytes}
            size = len(pack_pair(official[0] if keep == "both" else None, official[1], dtype, {"hash": "0" * 64}))
            there = {"bytes": size, "times_less": official.nbytes / size}
            out[f"{dtype}, {keep}"] = {"this setting": here, "official setting": there}
            print(
                f"space: {dtype}, {keep}: {here['bytes']:,.0f} bytes, {here['times_less']:.2f} times less than float32"
                f"; official {size:,}, {there['times_less']:.2f}"
            )
    return out


def requests(count: int) -> dict:
    """Requests an image and in a whole run, with images and pairs on S3."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from dataset_samples import S3

    with S3() as server:
        source, target = server.make_bucket(), server.make_bucket()
        for file in images(count):
            server.client().put_object(Bucket=source, Key=file.name, Body=file.read_bytes())
        runs = {}
        for what in ("first run", "second run"):
            with server.requests() as seen:
                build_dataset(f"s3://{source}", f"s3://{target}/x", VIT, views="realtime", workers=0)
            runs[what] = [line.split("?")[0] for line in seen]
    first = runs["first run"]
    kinds = {
        "GET of the image": sum(line.startswith(f"GET /{source}/") for line in first) / count,
        "GET of the pair, absent": sum(line.startswith(f"GET /{target}/x/pairs/") for line in first) / count,
        "PUT of the pair": sum(line.startswith(f"PUT /{target}/x/pairs/") for line in first) / count,
    }
    others = len(first) - round(count * sum(kinds.values()))
    print(f"requests an image: {kinds}; {others} more in the run; {len(runs['second run'])} in one with nothing to do")
    return kinds | {"others_in_the_run": others, "run_with_nothing_to_do": len(runs["second run"]), "images": count}


def official() -> dict:
    """Seconds of one thread for an image at the official setting, but for the ViT: median of 3."""
    n, c, pixels = OFFICIAL["patches"], OFFICIAL["channels"], OFFICIAL["pixels"]
    boxes = plan_boxes(VIEWS)
    coords = view_coords(boxes, n)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(boxes), n, n, c), np.float32)
    picture = load_image(images(1)[0])
    found: dict[str, list[float]] = {"views": [], "solve": [], "pack": []}
    for _ in range(3):
        with clock(found, "views"):
            for x, y, w, h, _ in boxes:
                resize(picture, (pixels, pixels), (x, y, w, h))
        with clock(found, "solve"):
            d = solve(features, coords)
        with clock(found, "pack"):
            pack_pair(d.raw, d.semantics, "float16", {})
    result = {what: statistics.median(values) for what, values in found.items()} | {"views_of_an_image": len(boxes)}
    print("official, one thread, seconds an image: " + ", ".join(f"{k} {v:.2f}" for k, v in result.items()))
    return result


def million(out: dict) -> dict:
    """What 1,000,000 images cost, from the other results."""
    n = 1_000_000
    sizes = out["space"]
    rows: dict[str, Any] = {}
    one = out["rate"]["1 worker"]["images_a_second"]
    for cores, a_second, basis in (
        (1, one, "measured"),
        (2, out["rate"]["2 workers"]["images_a_second"], "measured"),
        (8, 8 * one * out["rate"]["two_to_one"] / 2, "arithmetic: 8 cores, each as one of the two"),
        (64, 64 * one * out["rate"]["two_to_one"] / 2, "arithmetic: 64 cores, each as one of the two"),
    ):
        rows[f"this setting, {cores} cores"] = {"hours": n / a_second / 3600, "basis": basis}
    cpu = sum(out["official"][what] for what in ("views", "solve", "pack")) / ASSUMED["cores_a_gpu"]
    gpu = out["official"]["views_of_an_image"] * ASSUMED["vit_gflops_a_view"] / (1e3 * ASSUMED["gpu_tflops"])
    for gpus in (1, 8, 64):
        rows[f"official setting, {gpus} GPUs"] = {
            "hours": n * max(gpu, cpu) / gpus / 3600,
            "basis": f"arithmetic: {gpu:.3f} s of a GPU, {cpu:.3f} s of its {ASSUMED['cores_a_gpu']} cores",
        }
    put = out["requests"]["PUT of the pair"] * n
    get = (out["requests"]["GET of the image"] + out["requests"]["GET of the pair, absent"]) * n
    result = {
        "time": rows,
        "terabytes": {
            f"{kind}, {where}": n * sizes[kind][where]["bytes"] / 1e12
            for kind in sizes
            for where in ("this setting", "official setting")
        },
        "requests": {
            "put": put,
            "get": get,
            "list": 2 * n / 1000,
            "dollars": (put * ASSUMED["dollars_a_1000_put"] + get * ASSUMED["dollars_a_1000_get"]) / 1000,
        },
        "assumed": ASSUMED,
    }
    for what, row in rows.items():
        print(f"million: {what}: {row['hours']:,.1f} hours ({row['basis']})")
    return result


def make_worker(out: Path) -> Worker:
    """A worker of the settings measured."""
    from dvt_fast.dataset.settings import make_settings

    made = make_settings(
        ViT(**VIT), views=VIEWS, coords="center", solver="direct", options={}, seed=0, keep="semantics", dtype="float16"
    )
    return Worker(Job(Store(out), VIT, {}, made, threads=1), "cpu")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the time being."""
    folder = tempfile.mkdtemp()
    try:
        yield Path(folder) / "out"
    finally:
        shutil.rmtree(folder)


@contextmanager
def clock(found: dict[str, list[float]], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    found[what].append(time.perf_counter() - start)


def timed(call: Callable[..., Any], now: dict[str, float], what: str) -> Callable[..., Any]:
    """`call`, which adds its seconds to now[what]."""

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            now[what] = now.get(what, 0.0) + time.perf_counter() - start

    return measured


def instrument(module: str, name: str, now: dict[str, float], what: str) -> None:
    """Time a function or method of a module."""
    owner = importlib.import_module(module)
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, timed(getattr(owner, last), now, what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = ["rate", "space", "requests", "official", "parts", "million"]
    parser.add_argument("what", nargs="*", default=everything, help="; ".join(everything))
    parser.add_argument("--images", type=int, default=60, help="for rate and parts")
    parser.add_argument("--rounds", type=int, default=3, help="of rate")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"dataset.py needs the images and weights at {DATA}")
    torch.set_num_threads(1)  # as in a worker
    set_num_threads(1)
    out: dict = {}
    if "rate" in arguments.what:
        out["rate"] = rate(arguments.images, arguments.rounds)
    if "space" in arguments.what:
        out["space"] = space(3)
    if "requests" in arguments.what:
        out["requests"] = requests(10)
    if "official" in arguments.what:
        out["official"] = official()
    if "parts" in arguments.what:  # the last one, as it leaves its clocks behind
        out["parts"] = parts(arguments.images)
    if "million" in arguments.what:
        out["million"] = million(out)
    save(arguments.json, out)


if __name__ == "__main__":
    main()
