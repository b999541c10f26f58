"""Does the quick suite take less than an hour on two cores, and give the same numbers twice, also where it was stopped?

Compares what `evaluate.py` left in two folders (`--work`): each score of each variant of each run, its interval and the
seeds behind it, bit by bit, but for those of `speed`, which are of the machine; and tells how long every start in these
folders took. A folder that was stopped has several starts of a configuration. Both need the same map and denoisers (the
.safetensors files), whose training is not counted, and each a features cache of its own.

    python benchmarks/evaluate.py main coco parts --work build/evaluate
    python benchmarks/evaluate.py main coco parts --work build/again  # or some of them
    python benchmarks/evaluation_repeat.py build/evaluate build/again --json results/evaluation_repeat.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import save

SUITE = ("main", "coco", "parts")


def scores(work: Path) -> dict[str, dict[str, dict]]:
    """ "configuration/run" -> "variant/score" -> the score."""
    found: dict[str, dict[str, dict]] = {}
    for name in SUITE:
        for file in sorted((work / name).glob("*.json")):
            document = json.loads(file.read_text())
            if document["task"] != "speed":
                run = found.setdefault(f"{name}/{file.stem}", {})
                for row in document["rows"]:
                    run |= {f"{row['variant']['name']}/{score}": value for score, value in row["scores"].items()}
    return found


def runs(work: Path) -> dict:
    """How long each configuration took, by start, and the sum of all in minutes."""
    starts = [json.loads(line) for line in (work / "runs.jsonl").read_text().splitlines()]
    taken = {name: [start["seconds"] for start in starts if start["configuration"] == name] for name in SUITE}
    return {"seconds by start": taken, "minutes": round(sum(map(sum, taken.values())) / 60, 1)}


def numbers(value: dict) -> list[float]:
    parts = [value.get("value"), value.get("low"), value.get("high"), *(value.get("seeds") or ())]
    return [part for part in parts if part is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    first, second = scores(arguments.first), scores(arguments.second)
    compared = [run for run in first if run in second and first[run].keys() == second[run].keys()]
    if not compared:
        sys.exit("no run has the same variants and scores in both folders")
    count, others = 0, {}
    for run in compared:
        for name, value in first[run].items():
            other = second[run][name]
            count += 1
            if value != other:
                pairs = zip(numbers(value), numbers(other), strict=True)
                others[f"{run}/{name}"] = max(abs(a - b) for a, b in pairs)
    result = {
        "first": runs(arguments.first),
        "second": runs(arguments.second),
        "compared": compared,
        "runs": len(compared),
        "scores": count,
        "equal": count - len(others),
        "largest difference": max(others.values(), default=0.0),
        "different": others,
    }
    print(json.dumps(result, indent=1))
    save(arguments.json, result)


if __name__ == "__main__":
    main()
