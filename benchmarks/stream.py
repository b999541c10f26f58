"""Live streams through the engine: how old are features when they arrive, and what is lost?

Open loop: the clips of ../shared/data/video are replayed at 10 and at 30 frames a second, whether the engine keeps up
or not, and the age of features counts from the moment at which their frame was due, so that one that had to wait is not
forgiven. The policy is `latest`, the deadline one period, the ViT is ViT-Ti/16 at 224 with a denoiser; decoding, engine
and reader share the machine. Every frame must have been delivered or dropped.

`alone` is the same with a session that computes nothing: what decoding, two threads and Python add. `colors` is by how
many of 255 levels the colours of the same features change from frame to frame, in the basis that follows the video and
in one fitted to each frame.

    python benchmarks/stream.py [live] [alone] [colors] [--denoiser file] [--threads 2] [--json results.json]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import save
from real_vit import DATA, NAME, WEIGHTS

import dvt_fast
from dvt_fast.stream import Paced, Source
from dvt_fast.video import ImageSequence, VideoFile
from dvt_fast.video.colors import StableColors
from dvt_fast.visual import ColorBasis

WHAT = ["live", "alone", "colors"]
RATES = (10, 30)
CLIPS = ("driving_solidWhiteRight.mp4", "handheld_sam2_bedroom.mp4", "davis-mallard-water")


class Idle:
    """A session that computes nothing."""

    input, batch = "image", 1

    def __init__(self, grid: tuple[int, int], dim: int):
        self.grid, self.dim = grid, dim

    def run(self, x: np.ndarray, out: np.ndarray, raw: np.ndarray | None = None) -> np.ndarray:
        return out


def clip(name: str) -> Source:
    path = DATA / "video" / name
    return ImageSequence(path) if path.is_dir() else VideoFile(path)


def make_session(denoiser: Path | None, threads: int) -> dvt_fast.Session:
    vit = dvt_fast.ViT(NAME, weights=WEIGHTS)
    if denoiser is None:
        model = dvt_fast.Denoiser(vit.dim, vit.grid)  # not trained: it takes the same time
    else:
        model = dvt_fast.Denoiser.from_checkpoint(denoiser)
        model.check(vit)
    return dvt_fast.Engine.from_vit(vit, model).session(threads=threads)


def replay(name: str, session: object, rate: int) -> dict:
    """The statistics of one clip at one rate."""
    source = Paced(clip(name), rate)
    with dvt_fast.Stream(session, source, "latest", deadline_ms=1e3 / rate) as stream:
        seen = sum(1 for _ in stream)
    numbers = stream.stats.as_dict()
    balanced = numbers["in"] == numbers["delivered"] + numbers["dropped"] and numbers["pending"] == 0
    if not balanced or numbers["in"] != source.frames or numbers["delivered"] != seen:
        sys.exit(f"{name} at {rate}/s: frames went missing: {numbers}, {source.frames} in the clip")
    return {"clip": name, "asked": rate, **numbers}


def live(session: object, what: str) -> list[dict]:
    """Every clip at every rate, after one that warms up; prints a table."""
    replay(CLIPS[-1], session, 30)
    print(f"\n{what}: ages in ms from the moment a frame was due; deadline: one period")
    columns = "clip", "asked", "in", "got", "rate", "p50", "p99", "p99.9", "max", "late", "dropped"
    print(f"{columns[0]:30}" + "".join(f"{column:>8}" for column in columns[1:]))
    rows = []
    for rate in RATES:
        for name in CLIPS:
            row = replay(name, session, rate)
            rows.append(row)
            age = [f"{value:8.1f}" for value in row["age_ms"].values()]
            counts = f"{rate:8}{row['in']:8}{row['delivered']:8}{row['rate']:8.2f}"
            print(f"{name:30}{counts}{''.join(age)}{row['missed']:8}{row['dropped']:8}", flush=True)
    return rows


def colors(session: dvt_fast.Session) -> list[dict]:
    """By how much the basis alone changes the colours of the same features from frame to frame."""
    print("\nchange of colour a frame by the basis alone, of 255 levels: mean, worst frame")
    rows = []
    for name in CLIPS:
        stable = StableColors()
        ways = {"each frame": ColorBasis.fit, "stable": stable.update}
        changes: dict[str, list[float]] = {way: [] for way in ways}
        before: dict[str, ColorBasis] = {}
        with dvt_fast.Stream(session, clip(name), raw=True) as stream:
            for result in stream:
                for way, fit in ways.items():
                    basis = fit(result.raw, result.features)
                    if way in before:
                        old, new = (b.colors(result.features).astype(float) for b in (before[way], basis))
                        changes[way].append(float(np.abs(new - old).mean()))
                    before[way] = basis
        row = {"clip": name}
        for way, values in changes.items():
            row[way] = {"mean": float(np.mean(values)), "max": max(values)}
        print(f"{name:30}" + "".join(f"  {way}: {row[way]['mean']:.2f}, {row[way]['max']:.2f}" for way in ways))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=WHAT, help="all by default")
    parser.add_argument("--denoiser", type=Path, help="trained for this ViT; one that is not trained by default")
    parser.add_argument("--threads", type=int, default=dvt_fast.get_num_threads())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"stream.py needs the clips and weights at {DATA}")
    if unknown := set(arguments.what) - set(WHAT):
        parser.error(f"expected {', '.join(WHAT)}, got {min(unknown)}")
    session = make_session(arguments.denoiser, arguments.threads)
    out: dict = {"vit": NAME, "size": session.size, "threads": session.threads}
    out["denoiser"] = "trained" if arguments.denoiser else "not trained"
    if "live" in arguments.what:
        out["live"] = live(session, f"{NAME} with a denoiser, {session.threads} threads")
    if "alone" in arguments.what:
        out["alone"] = live(Idle(session.grid, session.dim), "without the engine")
    if "colors" in arguments.what:
        out["colors"] = colors(session)
    save(arguments.json, out)


if __name__ == "__main__":
    main()
