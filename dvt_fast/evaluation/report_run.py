"""The part of the report for one run: its data and ViT, the table, the bars, the pictures, and the rest folded."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .charts import Bar, bars, short
from .compare import best
from .html import Html, folded, join, table, tag

SHOWN_CHARTS = 4  # further ones are folded
MAX_PICTURE = 4 << 20  # bytes; a larger one is not put into the page
DIRECTIONS = {
    True: ("↑", "more is better"),
    False: ("↓", "less is better"),
    None: ("", "neither more nor less is better"),
}


def anchor(document: Mapping[str, Any]) -> str:
    """The id of the run on the page."""
    return f"{document['task']}-{document['name']}"


def run_part(document: Mapping[str, Any], folder: Path, beside: Html | None = None) -> Html:
    """All of one run. folder: where its pictures are. beside: what other folders have of it."""
    rows = document["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    charts = [_chart(name, rows) for name in names]
    return tag(
        "article",
        tag("h3", document["name"]),
        _facts(document),
        _problems(document["problems"]),
        _scores(names, rows) if rows else tag("p", "No variant is measured yet."),
        tag("div", *charts[:SHOWN_CHARTS], class_="charts") if charts else None,
        folded("More bars", tag("div", *charts[SHOWN_CHARTS:], class_="charts")) if charts[SHOWN_CHARTS:] else None,
        beside,
        _pictures(rows, folder),
        *_details(rows),
        _how(document),
        id=anchor(document),
    )


def cell(score: Mapping[str, Any] | None, is_best: bool, interval: bool = True) -> Html:
    """A number, its interval under it, and the mark of the best."""
    if not score or score.get("value") is None:
        return tag("td", "–" if score else "", class_="number")
    low, high = score.get("low"), score.get("high")
    mark = tag("span", "★ ", title="best: see the rule at the top") if is_best else None
    under = (
        tag("small", f"[{short(low)}, {short(high)}]") if interval and low is not None and high is not None else None
    )
    value = tag("strong", short(score["value"])) if is_best else short(score["value"])
    return tag("td", mark, value, under, class_="number")


def heading(name: str, scores: Sequence[Mapping[str, Any] | None]) -> Html:
    """The name of a score, with an arrow to where it is better."""
    arrow, told = _direction(scores)
    return join([name, *([" ", tag("span", arrow, title=told, role="img", aria_label=told)] if arrow else [])])


def _facts(document: Mapping[str, Any]) -> Html:
    data, vit = document["data"], document["vit"]
    counts = [f"{data['train']} training images" if data.get("train") else "", f"{data.get('val', 0)} test images"]
    used = next((row["details"]["images"] for row in document["rows"] if "images" in row["details"]), None)
    if isinstance(used, int) and used < data.get("val", 0):
        counts.append(f"{used} of them measured")
    known = len(data.get("classes") or ())
    classes = f"{known} class{'es' if known > 1 else ''}" if known else ""
    size, grid = (" × ".join(map(str, vit.get(key) or ())) for key in ("size", "grid"))
    shown = {
        "Data": ", ".join(part for part in (data.get("name"), *counts, classes) if part),
        "ViT": f"{vit.get('name')}, {size} pixels, {grid} patches of {vit.get('dim')} channels, "
        f"block {vit.get('layer')} of 0 to {(vit.get('depth') or 0) - 1}, norm: {vit.get('norm')}",
    }
    return tag("dl", *(part for name, value in shown.items() for part in (tag("dt", name), tag("dd", value))))


def _problems(lines: Sequence[str]) -> Html | None:
    if not lines:
        return None
    what = f"{len(lines)} image{'s' if len(lines) > 1 else ''} or labels left out"
    return folded(what, tag("ul", *(tag("li", line) for line in lines)))


def _scores(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Html:
    head: list[Any] = ["Variant"]
    columns = []
    for name in names:
        scores = [row["scores"].get(name) for row in rows]
        head.append(heading(name, scores))
        top = best(scores, [row["variant"] for row in rows])
        columns.append([cell(score, index == top) for index, score in enumerate(scores)])
    body = [[row["variant"]["name"], *cells] for row, *cells in zip(rows, *columns)]
    return table("Scores of the variants", head, body)


def _chart(name: str, rows: Sequence[Mapping[str, Any]]) -> Html:
    found = []
    for row in rows:
        score, variant = row["scores"].get(name) or {}, row["variant"]
        kind = {"coordinates": "control", "raw": "base"}.get(variant.get("kind"), "")
        found.append(Bar(variant["name"], score.get("value"), score.get("low"), score.get("high"), kind))
    _, told = _direction([row["scores"].get(name) for row in rows])
    title = f"{name}: {told}"
    return tag("figure", tag("figcaption", tag("b", name), f", {told}"), Html(bars(title, found)))


def _direction(scores: Sequence[Mapping[str, Any] | None]) -> tuple[str, str]:
    higher = next((score.get("higher") for score in scores if score), None)
    return DIRECTIONS[higher if isinstance(higher, bool) else None]


def _pictures(rows: Sequence[Mapping[str, Any]], folder: Path) -> Html | None:
    """Pictures of one name beside each other, one a variant."""
    groups: dict[str, list[Html]] = {}
    for row in rows:
        for name in row["pictures"]:
            stem = PurePosixPath(name).stem
            groups.setdefault(stem, []).append(_picture(folder / name, stem, row["variant"]["name"]))
    shown = [
        tag("div", tag("h5", name), tag("div", *figures, class_="pictures")) for name, figures in groups.items()
    ]  # fmt: skip
    return tag("div", tag("h4", "To look at"), *shown) if shown else None


def _picture(path: Path, name: str, variant: str) -> Html:
    caption = tag("figcaption", variant)
    if not path.is_file() or path.stat().st_size > MAX_PICTURE:
        why = "too large for the page" if path.is_file() else "missing"
        return tag("figure", tag("p", f"{path.name}: {why}", class_="faint"), caption)
    content = base64.b64encode(path.read_bytes()).decode()
    picture = tag("img", src=f"data:image/{path.suffix[1:]};base64,{content}", alt=f"{name}, {variant}")
    return tag("figure", picture, caption, tabindex="0", title="click to enlarge")


def _details(rows: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Details by their names: numbers by name (of classes, say) as one table, single values as another."""
    names = list(dict.fromkeys(name for row in rows for name in row["details"]))
    variants = [row["variant"]["name"] for row in rows]
    found, single = [], []
    for name in names:
        values = [row["details"].get(name) for row in rows]
        if all(value is None or _is_flat(value) for value in values):
            keys = dict.fromkeys(key for value in values for key in value or ())
            body = [[key, *(_shown((value or {}).get(key)) for value in values)] for key in keys]
            found.append(folded(name, table(name, ["", *variants], body)))
        elif any(isinstance(value, (dict, list)) for value in values):
            text = {variant: value for variant, value in zip(variants, values) if value is not None}
            found.append(folded(name, tag("pre", "\n".join(f"{key}: {json.dumps(v)}" for key, v in text.items()))))
        else:
            single.append([name, *map(_shown, values)])
    return ([folded("More numbers", table("More numbers", ["", *variants], single))] if single else []) + found


def _is_flat(value: Any) -> bool:
    return isinstance(value, dict) and not any(isinstance(item, (dict, list)) for item in value.values())


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return short(value)
    return value if isinstance(value, str) else json.dumps(value)


def _how(document: Mapping[str, Any]) -> Html:
    """How it was made: settings, machine, and of each row what, when and how long."""
    pairs = [[f"{part}: {name}", _text(value)] for part in ("settings", "data", "vit", "machine")
             for name, value in document[part].items()]  # fmt: skip
    pairs += [["dvt_fast", document["dvt_fast"]], ["commit", document.get("commit") or "not from a checkout"]]
    rows = []
    for row in document["rows"]:
        made = row.get("made") or {}
        other = ", ".join(f"{name} {_text(value)}" for name, value in made.items() if value != document.get(name))
        how = {key: value for key, value in row["variant"].items() if key != "name"}
        seconds = row.get("seconds")
        rows.append([row["variant"]["name"], " ".join(f"{key}={_text(value)}" for key, value in how.items()),
                     "" if seconds is None else f"{seconds:,.1f}", row["date"], other])  # fmt: skip
    head = ["Variant", "Made of", "Seconds", "Date", "Otherwise than below"]
    return folded(
        "How it was made",
        table("Variants", head, rows, numbers=False),
        table("Settings, data, ViT and machine", ["What", "Value"], pairs, numbers=False),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
