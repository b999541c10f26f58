"""Make docs/results.md of the committed results, so that every number on the page is one that was measured.

The text is tools/results_page.md. In it, between double braces:

    {{table raw; direct | CamVid mIoU = segment-camvid-before mIoU | ...}}   a table: a row a variant, a column a score
    {{score segment-camvid-before direct mIoU}}                              one score with its interval
    {{value planted.json pairs/0/cosine .3f}}                                one number of any file of results
    {{made mic-photos-before segment-camvid-before ...}}                     machine, versions and commits of files

Scores are those of benchmarks/results/evaluation, values of benchmarks/results. A value's path has "/" between keys. A
"*" in the name of a file stands for several, folds say: the score is their mean, and its interval that of a mean of
independent ones. What is not there, or is not a number, is an error.

    python tools/results_page.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEMPLATE, PAGE = ROOT / "tools" / "results_page.md", ROOT / "docs" / "results.md"
NOTE = (
    "<!-- Made by `python tools/results_page.py` from tools/results_page.md and benchmarks/results: edit those. -->\n\n"
)


def make_page(template: str) -> str:
    """The page. Raises `ValueError` for a marker that cannot be filled."""
    return NOTE + re.sub(r"\{\{(\w+) (.*?)\}\}", _fill, template, flags=re.S)


def _fill(marker: re.Match[str]) -> str:
    kind, text = marker.group(1), " ".join(marker.group(2).split())
    kinds = {"table": _table, "score": _score, "value": _value, "made": _made}
    if kind not in kinds:
        raise ValueError(f"{{{{{kind} ...}}}}: expected one of {', '.join(kinds)}")
    try:
        return kinds[kind](text)
    except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{{{{{kind} {text}}}}}: {type(error).__name__}: {error}") from None


def _table(text: str) -> str:
    names, *columns = (part.strip() for part in text.split("|"))
    variants = [name.strip() for name in names.split(";")]
    heads, cells = [], []
    for column in columns:
        head, _, what = column.partition("=")
        heads.append(head.strip())
        file, metric = what.strip().split(" ", 1)
        cells.append([_shown(_scores(file).get(variant, {}).get(metric)) for variant in variants])
        if not any(cell != "-" for cell in cells[-1]):
            raise KeyError(f"{file} has no {metric}")
    rows = [f"| {' | '.join([variant, *(cell[i] for cell in cells)])} |" for i, variant in enumerate(variants)]
    return "\n".join([f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}", *rows])


def _score(text: str) -> str:
    file, rest = text.split(" ", 1)
    scores = _scores(file)
    variant = max((name for name in scores if rest.startswith(f"{name} ")), key=len)  # names may hold spaces
    return _shown(scores[variant][rest[len(variant) + 1 :]])


def _value(text: str) -> str:
    file, path, form = re.fullmatch(r"(\S+) (.+) (\S+)", text).groups()  # type: ignore[union-attr]
    found: Any = _read(RESULTS / file)
    for key in path.split("/"):
        found = found[int(key)] if isinstance(found, list) else found[key]
    return format(found, form)


def _made(text: str) -> str:
    documents = [_document(file) for file in text.split()]
    # A row that was made before the file's last run says so itself.
    made = [row.get("made") or document for document in documents for row in document["rows"]]
    machines = {_machine(one["machine"]) for one in made}
    commits = sorted({str(one["commit"]) for one in made})
    return f"{'; '.join(sorted(machines))}; commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numpy") if machine.get(name))
    return f"{machine['processor']}, {machine['cores']} cores, {versions}"


def _shown(score: dict[str, Any] | None) -> str:
    """A score with its interval: three digits, or one behind the point where it is large."""
    if score is None or score["value"] is None:
        return "-"
    digits = 3 if abs(score["value"]) < 10 else 1
    value = f"{score['value']:.{digits}f}"
    return value if score["low"] is None else f"{value} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def _scores(name: str) -> dict[str, dict[str, Any]]:
    """The scores of a file by variant; the means where the name stands for several files."""
    files = [path.stem for path in sorted((RESULTS / "evaluation").glob(f"{name}.json"))] if "*" in name else [name]
    found = [{row["variant"]["name"]: row["scores"] for row in _document(file)["rows"]} for file in files]
    if len(found) == 1:
        return found[0]
    variants = [variant for variant in found[0] if all(variant in one for one in found)]
    return {v: {m: _mean([one[v][m] for one in found]) for m in found[0][v]} for v in variants}


def _mean(scores: list[dict[str, Any]]) -> dict[str, Any]:
    value = sum(score["value"] for score in scores) / len(scores)
    if any(score["low"] is None for score in scores):
        return {"value": value, "low": None, "high": None}
    below, above = (
        sum((score["value"] - score[side]) ** 2 for score in scores) ** 0.5 / len(scores) for side in ("low", "high")
    )
    return {"value": value, "low": value - below, "high": value + above}


def _document(file: str) -> dict[str, Any]:
    return _read(RESULTS / "evaluation" / f"{file}.json")


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def main() -> None:
    """Write the page, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is another")
    arguments = parser.parse_args()
    try:
        page = make_page(TEMPLATE.read_text())
    except ValueError as error:
        sys.exit(f"results_page.py: {error}")
    if arguments.check and (not PAGE.is_file() or PAGE.read_text() != page):
        sys.exit(f"{PAGE.relative_to(ROOT)} is not what its text and the results give: python tools/results_page.py")
    if not arguments.check:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
