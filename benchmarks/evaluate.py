"""Does denoising clean the features of a real ViT, and by how much? Every task of `dvt-fast eval`, on real labels.

The ViT (ViT-Ti/16 AugReg, last block, before and after its final norm) and the data are those of ../shared/data. First
what the variants need is made, once: an artifact map of 20 images, and a denoiser trained on stage 1 of 300 images,
without labels (see denoiser.py). None of these is among the photos of `mic` and the test images of CamVid and the
kitchen; but 102 of COCO's 128 images and 62 of the 92 raccoons are, so there stage 2 (and, by ten images, the map) has
seen part of what it is tested on. Then each configuration under benchmarks/evaluations runs as `dvt-fast eval run`
would run it, goes on where it was stopped, and its numbers are copied to benchmarks/results/evaluation.
tools/results_page.py makes docs/results.md of those.

    python benchmarks/evaluate.py [main coco ...] [--work folder]
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from denoiser import NORMS, VARIANTS, pairs, split
from real_vit import DATA, load_vit

import dvt_fast
from dvt_fast.cli.evaluate.config import read_config
from dvt_fast.files import write_whole
from dvt_fast.training import train

HERE = Path(__file__).resolve().parent
CONFIGURATIONS = HERE / "evaluations"
RESULTS = HERE / "results" / "evaluation"
STEPS, BATCH = 1000, 16


def prepare(work: Path) -> None:
    """The artifact map and the denoiser of both norms: map-before.safetensors, denoiser-before.safetensors, ..."""
    images, _ = split()
    for name, norm in NORMS.items():
        file = work / f"map-{name}.safetensors"
        if not file.is_file():
            dvt_fast.ArtifactMap.calibrate(load_vit(norm), images[:: len(images) // 20][:20]).save(file)
            print(f"made {file.name}", flush=True)
        file = work / f"denoiser-{name}.safetensors"
        if not file.is_file():
            dataset = pairs(work, "train", images, norm, keep="semantics")
            start = time.perf_counter()
            made = train(
                dataset, work / f"run-{name}", kind="block", steps=STEPS, batch=BATCH, variants=VARIANTS, every=STEPS
            )
            shutil.copy(made.file, file)
            print(f"made {file.name}: {time.perf_counter() - start:.0f} s of training", flush=True)


def run(name: str, work: Path) -> bool:
    """Run one configuration and keep its numbers, and in runs.jsonl how long it took; whether each variant of each of
    its runs has some."""
    out, roots = work / name, [DATA, work]
    command = [sys.executable, "-m", "dvt_fast.cli", "eval", "run", str(CONFIGURATIONS / f"{name}.toml"), "--quick"]
    command += [
        "--data-root",
        str(DATA),
        "--data-root",
        str(work),
        "--out",
        str(out),
        "--cache",
        str(work / "features"),
    ]
    start, when = time.perf_counter(), datetime.datetime.now(datetime.timezone.utc)
    try:
        subprocess.run(command)  # its exit code also tells of images without labels, of which coco128 has some
    finally:  # of a run that was interrupted, too
        seconds = time.perf_counter() - start
        with open(work / "runs.jsonl", "a") as log:
            print(json.dumps({"configuration": name, "start": f"{when:%F %T}", "seconds": round(seconds)}), file=log)
    print(f"{name}: {seconds:.0f} s", flush=True)
    complete = True
    jobs, _ = read_config(CONFIGURATIONS / f"{name}.toml", roots, quick=True)
    for job in jobs:
        file = f"{job.task.name}-{job.name}{job.suffix}.json"
        if not (out / file).is_file():
            complete = False
            continue
        document = json.loads((out / file).read_text())
        for row in document["rows"]:
            row["pictures"] = []  # of images that may be looked at here, not given away
        complete &= {v.name for v in job.variants or ()} <= {row["variant"]["name"] for row in document["rows"]}
        write_whole(RESULTS / file, (json.dumps(document, indent=1) + "\n").encode())
    return complete


def main() -> None:
    names = sorted(path.stem for path in CONFIGURATIONS.glob("*.toml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configurations", nargs="*", default=names, help=f"of {', '.join(names)}")
    parser.add_argument(
        "--work", type=Path, default=HERE.parent / "build" / "evaluate", help="what was made is kept here"
    )
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"evaluate.py needs the images and weights at {DATA}")
    prepare(arguments.work)
    failed = [name for name in arguments.configurations if not run(name, arguments.work)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
