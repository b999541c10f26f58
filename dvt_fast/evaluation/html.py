"""HTML whose text is always escaped: `tag` makes an element, and only what `tag` made goes into one as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_VOID = ("img", "meta", "br")


class Html(str):
    """Text that is HTML already."""


def tag(_name: str, *parts: Any, **attributes: Any) -> Html:
    """An element; its parts one after the other, text escaped, None left out.

    Attributes: of "class_" and "for_" the underscore goes, and other underscores are hyphens; None and False are left
    out, and True stands alone.
    """
    shown = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown += f" {key}" if value is True else f' {key}="{escape(str(value))}"'
    if _name in _VOID:
        return Html(f"<{_name}{shown}>")
    return Html(f"<{_name}{shown}>{join(parts)}</{_name}>")


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Parts as `tag` takes them."""
    shown = [part if isinstance(part, Html) else escape(str(part)) for part in parts if part is not None]
    return Html(escape(between).join(shown))


def table(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: bool = True) -> Html:
    """A table that scrolls sideways where it is too wide. The first cell of each row is its heading; a cell that is a
    `th` or `td` already stays one. numbers: cells but the first are aligned right."""
    side = "number" if numbers else None
    top = tag("tr", *(_cell("th", cell, scope="col", class_=side if i else None) for i, cell in enumerate(head)))
    body = []
    for first, *rest in rows:
        cells = (_cell("td", cell, class_=side) for cell in rest)
        body.append(tag("tr", tag("th", first, scope="row"), *cells))
    whole = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body))
    return tag("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def folded(title: str, *parts: Any) -> Html:
    """Shown when asked for."""
    return tag("details", tag("summary", title), *parts)


def _cell(name: str, content: Any, **attributes: Any) -> Html:
    return content if isinstance(content, Html) and content.startswith(f"<{name}") else tag(name, content, **attributes)
