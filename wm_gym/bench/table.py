"""A measured table: rows of numbers, and how to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """What one part of the benchmark found.

    Attributes:
        name: Key of the part.
        title: Heading.
        columns: Key, heading and number format of each column; the format of a text is empty.
        rows: One mapping a row; ``None`` or a missing key is shown as a dash.
        notes: Sentences below the table.
    """

    name: str
    title: str
    columns: tuple[tuple[str, str, str], ...]
    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = field(default=())

    @property
    def headings(self) -> list[str]:
        """Heading of each column."""
        return [heading for _, heading, _ in self.columns]

    def cells(self) -> list[list[str]]:
        """Every row as texts."""
        return [[_cell(row.get(key), kind) for key, _, kind in self.columns] for row in self.rows]


def render_markdown(tables: Sequence[Table], settings: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """All tables as Markdown, with settings, machine and versions below."""
    lines: list[str] = []
    for table in tables:
        lines += [f"## {table.title}", ""]
        lines.append("| " + " | ".join(table.headings) + " |")
        lines.append("| " + " | ".join("---:" if kind else "---" for _, _, kind in table.columns) + " |")
        lines += ["| " + " | ".join(cells) + " |" for cells in table.cells()]
        lines.append("")
        if table.notes:
            lines += [" ".join(table.notes), ""]
    versions = ", ".join(f"{name} {version}" for name, version in machine["provenance"]["packages"].items())
    described = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "provenance")
    lines += [
        f"Settings: {', '.join(f'{name} {value}' for name, value in settings.items())}.",
        f"Machine: {described}, {machine['provenance']['machine']}.",
        f"Versions: wm_gym {machine['provenance']['wm_gym']}, Python {machine['provenance']['python']}, {versions}.",
    ]
    return "\n".join(lines)


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return _NOTHING
    return format(value, kind) if kind and not isinstance(value, str) else str(value)
