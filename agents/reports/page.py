"""The pieces of a self-contained HTML page: everything inlined, every text escaped, no script.

The markup is in ``templates/``; here are the pieces by their names and types.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

Html: TypeAlias = Markup
"""Markup that is ready to be put into a page; plain ``str`` is text that has yet to be escaped."""

NOTHING = "\N{EN DASH}"
"""Stands in a table for what is not known."""
TEMPLATES = Path(__file__).parent / "templates"
"""Folder of the markup and of how pages look."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _piece(name: str, **values: Any) -> Html:
    """A piece as the macro of that name in ``parts.html`` writes it."""
    return Markup(getattr(_environment().get_template("parts.html").module, name)(**values))


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph of text; ``kind`` is ``"lead"``, ``"note"`` or nothing."""
    return _piece("paragraph", text=text, kind=kind)


def heading(text: str) -> Html:
    """A heading within a section."""
    return _piece("heading", text=text)


def bullets(items: Iterable[str]) -> Html:
    """A list of texts."""
    return _piece("bullets", items=list(items))


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
    return _piece("table", columns=columns, rows=list(rows), words=words, chief=chief)


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
    return _piece("image", source=source, alt=alt, caption=caption, width=width, is_pixel_art=is_pixel_art)


def details(summary: str, text: str) -> Html:
    """Text that is folded away until it is asked for."""
    return _piece("details", summary=summary, text=text)


def section(title: str, *parts: Html | None) -> Html | None:
    """A titled section; nothing where all its parts are ``None``."""
    shown = [part for part in parts if part is not None]
    return _piece("section", title=title, parts=shown) if shown else None


def page(title: str, *parts: Html | None) -> str:
    """A whole document."""
    shown = [part for part in parts if part is not None]
    return _environment().get_template("page.html").render(title=title, parts=shown)
