"""Results as tables on stdout: plain text where that is no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...evaluation.charts import short
from ...evaluation.compare import apart, compare
from ...evaluation.store import read_all


def scores(document: Mapping[str, Any], kept: Iterable[str] = ()) -> None:
    """The scores of a run, a variant a line; arrows say which way is better. kept: variants measured before."""
    names = list(dict.fromkeys(name for row in document["rows"] for name in row["scores"]))
    rows = [
        [row["variant"]["name"], *(_with_interval(row["scores"].get(name)) for name in names)]
        for row in document["rows"]
    ]
    before = ", ".join(kept)
    head = [f"{name} {_arrow(document['rows'], name)}".rstrip() for name in names]
    _table(f"{document['task']} {document['name']}", ["variant", *head], rows, turn=True)
    if before:
        typer.echo(f"measured before: {before}")


def comparison(here: Path, there: Path) -> None:
    """The differences between the results of two folders, for each task and name that is in both."""
    others = {(document["task"], document["name"]): document for document in read_all(there)[0]}
    for document in read_all(here)[0]:
        other = others.get((document["task"], document["name"]))
        title = f"{document['task']} {document['name']}, against {there}"
        if other is None:
            typer.echo(f"{title}: not there")
            continue
        rows = [
            [d.variant, d.score, *("-" if v is None else short(v) for v in (d.here, d.there, d.value)),
             f"[{short(d.low)}, {short(d.high)}]" if d.low is not None and d.high is not None else "", d.verdict]
            for d in compare(document, other)
        ]  # fmt: skip
        _table(title, ["variant", "score", "here", "there", "difference", "95 %", ""], rows)
        for line in apart(document, other):
            typer.echo(f"not the same: {line}")


def _arrow(rows: Iterable[Mapping[str, Any]], name: str) -> str:
    """Which way a score is better."""
    higher = next((row["scores"][name].get("higher") for row in rows if name in row["scores"]), None)
    return "" if higher is None else "↑" if higher else "↓"


def _with_interval(score: Mapping[str, Any] | None) -> str:
    if not score or score.get("value") is None:
        return "-" if score else ""
    low, high = score.get("low"), score.get("high")
    return short(score["value"]) + (f" [{short(low)}, {short(high)}]" if low is not None and high is not None else "")


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], turn: bool = False) -> None:
    """turn: where a terminal is too narrow, rows may become columns, if that is narrower."""
    rows = [list(row) for row in rows]
    typer.echo(title)
    console = Console()
    if not console.is_terminal:
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        for row in [head, *rows]:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        return
    if turn and _width([head, *rows]) > console.width:
        turned = [list(column) for column in zip(head, *rows)]
        if _width(turned) < _width([head, *rows]):
            head, *rows = turned
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in head:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _width(lines: Sequence[Sequence[str]]) -> int:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return sum(widths) + 2 * (len(widths) - 1)
