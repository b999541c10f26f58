"""One page of all results in a folder: a static file that needs no script and no network, and can be mailed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..files import write_whole
from .charts import short
from .compare import Difference, apart, best, compare
from .html import Html, folded, join, table, tag
from .report_run import anchor, cell, heading, run_part
from .store import read_all
from .tasks import TASKS

NAME = "report.html"
STYLE = Path(__file__).parents[1] / "assets" / "report.css"
RULE = (
    "Numbers in brackets are 95 % intervals, over test images drawn again or over seeds. A value is marked ★ where its "
    "whole interval is better than the intervals of all other variants; where they overlap, none is marked, and the "
    "control on coordinates, drawn hollow, never is."
)


def write_report(out: Path, others: Sequence[Path] = ()) -> Path:
    """Write `out/report.html` of all results in `out`, beside those of the folders `others`, and return its path.

    A file of results in `out` that cannot be read is told of on the page. Raises `InputError` where `out` or one of
    `others` holds no results, and `OutputError`.
    """
    documents, problems = read_results(out)
    sides = [(name, *read_results(other)) for name, other in zip(_told_apart(out, others), others)]
    path = out / NAME
    write_whole(path, page(documents, out, problems, sides).encode())
    return path


def read_results(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """As `store.read_all`; raises `InputError` also where there are none."""
    documents, problems = read_all(folder)
    if not documents:
        raise InputError(problems[0] if problems else f"{folder}: no results of dvt-fast eval in it")
    return documents, problems


def page(
    documents: Sequence[Mapping[str, Any]],
    folder: Path,
    problems: Sequence[str] = (),
    others: Sequence[tuple[str, Sequence[Mapping[str, Any]], Sequence[str]]] = (),
) -> str:
    """The page as text. folder: where the pictures are. others: of folders to compare with, their (name, results,
    problems)."""
    documents = sorted(documents, key=lambda d: (_order(d["task"]), d["name"]))
    problems = [*problems, *(line for _, _, lines in others for line in lines)]
    parts: list[Html | None] = [
        tag("h1", "Features before and after denoising"),
        tag("p", RULE, class_="lead"),
        _list("Files that could not be read", problems),
        _contents(documents),
        _glance(documents),
    ]
    for task in dict.fromkeys(document["task"] for document in documents):
        known = TASKS.get(task)
        runs = [document for document in documents if document["task"] == task]
        parts.append(
            tag(
                "section",
                tag("h2", known.title if known else task, id=f"task-{task}"),
                tag("p", known.about) if known else None,
                *(run_part(document, folder, _beside(document, others)) for document in runs),
            )
        )
    parts.append(tag("footer", tag("p", f"Written by dvt_fast {__version__}.")))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Evaluation: {', '.join(dict.fromkeys(document['name'] for document in documents))}"),
        tag("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *parts)), lang='en')}\n"


def _told_apart(out: Path, others: Sequence[Path]) -> list[str]:
    """The names of the folders to compare with; as they were given where one is not alone, or is that of `out`."""
    names = [folder.resolve().name for folder in (*others, out)]
    return [name if names.count(name) == 1 else str(other) for name, other in zip(names, others)]


def _order(task: str) -> int:
    return [*TASKS, task].index(task)


def _contents(documents: Sequence[Mapping[str, Any]]) -> Html | None:
    if len(documents) < 2:
        return None
    links = []
    for document in documents:
        known = TASKS.get(document["task"])
        text = f"{known.title if known else document['task']}: {document['name']}"
        links.append(tag("li", tag("a", text, href=f"#{anchor(document)}")))
    return tag("nav", tag("ul", *links), aria_label="Contents")


def _glance(documents: Sequence[Mapping[str, Any]]) -> Html | None:
    """The first score of each run."""
    shown = [document for document in documents if document["rows"] and document["rows"][0]["scores"]]
    if len(shown) < 2:
        return None
    head: list[Any] = ["Variant"]
    columns: list[dict[str, Html]] = []
    for document in shown:
        name = next(iter(document["rows"][0]["scores"]))
        scores = [row["scores"].get(name) for row in document["rows"]]
        names = [row["variant"]["name"] for row in document["rows"]]
        top = best(scores, [row["variant"] for row in document["rows"]])
        columns.append({n: cell(score, index == top, False) for index, (n, score) in enumerate(zip(names, scores))})
        link = tag("a", f"{document['task']} {document['name']}", href=f"#{anchor(document)}")
        head.append(join([link, tag("br"), heading(name, scores)]))
    variants = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "") for column in columns)] for name in variants]
    return tag("section", tag("h2", "At a glance"), table("The first score of each run", head, rows))


def _beside(
    document: Mapping[str, Any], others: Sequence[tuple[str, Sequence[Mapping[str, Any]], Sequence[str]]]
) -> Html | None:
    """The same run in other folders."""
    parts: list[Html | None] = []
    for name, documents, _ in others:
        same = [d for d in documents if (d["task"], d["name"]) == (document["task"], document["name"])]
        if not same:
            parts.append(tag("p", f"Not in {name}."))
            continue
        rows = [[d.variant, *_difference_cells(d)] for d in compare(document, same[0])]
        head = ["Variant", tag("th", "Score", scope="col"), "Here", "There", "Difference", "95 % interval", ""]
        parts.append(_list(f"Not the same as in {name}", apart(document, same[0])))
        parts.append(table(f"Here, and there: {name}", head, rows))
        parts.append(tag("p", "The interval of a difference takes the two runs as independent.", class_="faint"))
    return tag("div", tag("h4", "Compared"), *parts) if parts else None


def _difference_cells(d: Difference) -> list[Any]:
    numbers = [None if value is None else short(value) for value in (d.here, d.there)]
    interval = f"{short(d.low)} to {short(d.high)}" if d.low is not None and d.high is not None else None
    change = None if d.value is None else f"{'+' if d.value > 0 else ''}{short(d.value)}"
    return [tag("td", d.score), *numbers, change, interval, tag("td", d.verdict, class_=d.verdict or None)]


def _list(title: str, lines: Sequence[str]) -> Html | None:
    """Lines of what is to be known; folded where they are many."""
    if not lines:
        return None
    items = tag("ul", *(tag("li", line) for line in lines))
    if len(lines) > 5:
        return folded(f"{title} ({len(lines)})", items)
    return tag("div", tag("p", f"{title}:"), items, class_="note")
