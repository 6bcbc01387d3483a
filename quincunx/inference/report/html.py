"""Pieces of a page: escaped text, tables, figures, and the page around them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

from quincunx.inference.comparison.result import rounded
from quincunx.inference.diagnostics.verdict import Verdict


class Cell(NamedTuple):
    """An entry of a table.

    Attributes:
        shown: its text.
        value: what it is sorted by; the text by default.
        style: CSS class of the entry.
    """

    shown: str
    value: float | str | None = None
    style: str = ""


class Drawing(NamedTuple):
    """A plot.

    Attributes:
        svg: the drawing.
        title: what it is of, also for those who cannot see it.
        caption: how to read it.
    """

    svg: bytes
    title: str
    caption: str


def number(value: float | int) -> Cell:
    """A figure; `n/a`, sorted last, where there is none."""
    value = float(value)
    return Cell(rounded(value), "" if math.isnan(value) else str(value).replace("inf", "Infinity"))


def word(text: str) -> Cell:
    """A verdict or result in its colour."""
    return Cell(text, None, f"word {text.replace(' ', '-')}")


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    text: Sequence[int] = (0,),
    meanings: Mapping[str, str] | None = None,
) -> str:
    """A table that can be sorted by its headings, where there are scripts.

    Args:
        headings: of the columns.
        rows: entries, the first of which heads its row.
        text: columns of words rather than figures.
        meanings: by heading, what is shown where a pointer rests on it.
    """
    hints = {name: f' title="{escape(said)}"' for name, said in (meanings or {}).items()}
    left = {index: ' class="text"' for index in text}
    head = "".join(
        f'<th scope="col"{left.get(index, "")}{hints.get(name, "")}>{escape(name)}</th>'
        for index, name in enumerate(headings)
    )
    lines = []
    for row in rows:
        cells = []
        for index, cell in enumerate(row):
            classes = f"{cell.style} text".strip() if index in left else cell.style
            style = f' class="{classes}"' if classes else ""
            value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
            tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
            cells.append(f"<{tag}{scope}{style}{value}>{escape(cell.shown)}</{tag}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def plain(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, one below the other."""
    lines = [
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(value)}</td></tr>'
        for name, value in rows
    ]
    return f'<div class="wide"><table class="plain"><tbody>{"".join(lines)}</tbody></table></div>'


def figure(drawing: Drawing) -> str:
    """A plot that is part of the page."""
    data = base64.b64encode(drawing.svg).decode()
    title = escape(drawing.title)
    return (
        f'<figure><div class="wide"><img alt="{title}" '
        f'src="data:image/svg+xml;base64,{data}"></div>'
        f"<figcaption><b>{title}.</b> {escape(drawing.caption)}</figcaption></figure>"
    )


def paragraph(text: str, *, soft: bool = False) -> str:
    """Text."""
    style = ' class="soft"' if soft else ""
    return f"<p{style}>{escape(text)}</p>"


def listed(lines: Iterable[str]) -> str:
    """Sentences one below the other."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def verdict(found: Verdict) -> str:
    """A verdict with its reasons and what to do."""
    parts = [f'<span class="word">{escape(found.status)}</span>']
    if found.outcome:
        parts.append(paragraph(f"The run stopped early: {found.outcome}."))
    if not found.reasons:
        parts.append(paragraph("Nothing speaks against the draws."))
    parts.append(listed(found.reasons))
    if found.advice:
        parts += [paragraph("What to do:"), listed(found.advice)]
    return f'<div class="verdict {found.status}">{"".join(parts)}</div>'


def section(title: str, *parts: str, level: int = 2) -> str:
    """A part of the page under a heading; nothing where it is empty."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h{level}>{escape(title)}</h{level}>\n{body}</section>" if body else ""


def page(title: str, *sections: str) -> str:
    """The whole page, with nothing to be fetched."""
    here = resources.files("quincunx.inference.report")
    style = (here / "style.css").read_text("utf-8")
    script = (here / "sort.js").read_text("utf-8")
    body = "\n".join(part for part in sections if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style></head>\n<body><main>\n<h1>{escape(title)}</h1>\n{body}\n"
        f"</main>\n<script>\n{script}</script></body></html>\n"
    )
