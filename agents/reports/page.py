"""The pieces of a self-contained HTML page: everything inlined, every text escaped, no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import NewType

Html = NewType("Html", str)
"""Markup that is ready to be put into a page; plain ``str`` is text that has yet to be escaped."""

_STYLE = """
:root { --ink: #1d232b; --soft: #5c6672; --line: #dde2e8; --tint: #f5f7f9; --accent: #0b63a5; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { font-size: 1.08rem; color: var(--soft); }
.note { padding: .5rem .8rem; background: #fff8e5; border-left: 3px solid #d99a00; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { white-space: nowrap;
  padding: .35rem 1.4rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { white-space: normal; font-weight: 600; color: var(--soft); border-bottom-color: #b9c1ca; vertical-align: bottom; }
th.words, td.words { text-align: left; }
tr.chief td { font-weight: 600; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .35rem; max-width: 46rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--tint); padding: .8rem; overflow-x: auto; font-size: .82rem; line-height: 1.4; }
ul { padding-left: 1.2rem; max-width: 46rem; }
@media print { details { display: none; } h2 { break-after: avoid; } figure, table { break-inside: avoid; } }
""".strip()


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph of text; ``kind`` is ``"lead"``, ``"note"`` or nothing."""
    attribute = f' class="{html.escape(kind)}"' if kind else ""
    return Html(f"<p{attribute}>{html.escape(text)}</p>")


def heading(text: str) -> Html:
    """A heading within a section."""
    return Html(f"<h3>{html.escape(text)}</h3>")


def bullets(items: Iterable[str]) -> Html:
    """A list of texts."""
    return Html("<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[int] = (0,), chief: int | None = None
) -> Html:
    """A table of texts.

    Args:
        columns: Heads of the columns; a table whose heads are all empty has none.
        rows: Cells, as many in each row as there are columns.
        words: Columns that hold words, set to the left; numbers are set to the right.
        chief: Number of the row to set off, or ``None``.
    """

    def cell(tag: str, column: int, text: str) -> str:
        attribute = ' class="words"' if column in words else ""
        return f"<{tag}{attribute}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(columns))
    above = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    body = []
    for number, row in enumerate(rows):
        attribute = ' class="chief"' if number == chief else ""
        cells = "".join(cell("td", column, text) for column, text in enumerate(row))
        body.append(f"<tr{attribute}>{cells}</tr>")
    return Html(f'<div class="scroll"><table>{above}<tbody>{"".join(body)}</tbody></table></div>')


def image(
    data: bytes,
    alt: str,
    caption: str = "",
    *,
    width: int | None = None,
    mime: str = "image/png",
    is_pixel_art: bool = False,
) -> Html:
    """A picture, inlined, with a caption below it.

    Args:
        data: The file's bytes.
        alt: What it shows, in words.
        caption: Below it.
        width: Width on the page, in pixels, where there is room; ``None`` for its own.
        mime: Its type.
        is_pixel_art: Whether to enlarge it without smoothing.
    """
    source = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    pixels = ' class="pixels"' if is_pixel_art else ""
    size = "" if width is None else f' width="{width}"'
    return Html(f'<figure><img{pixels}{size} src="{source}" alt="{html.escape(alt)}">{below}</figure>')


def details(summary: str, text: str) -> Html:
    """Text that is folded away until it is asked for."""
    return Html(f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>")


def section(title: str, *parts: Html | None) -> Html | None:
    """A titled section; nothing where all its parts are ``None``."""
    shown = [part for part in parts if part is not None]
    return Html(f"<section><h2>{html.escape(title)}</h2>\n" + "\n".join(shown) + "\n</section>") if shown else None


def page(title: str, *parts: Html | None) -> str:
    """A whole document."""
    body = "\n".join(part for part in parts if part is not None)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
