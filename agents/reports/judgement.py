"""A scorecard as files: numbers, tables and a scatter plot."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from wm_gym.agents.evaluation.scorecard import Scorecard
from wm_gym.agents.reports.figures import draw_agreement
from wm_gym.errors import BundleError, OutputError, first_invalid
from wm_gym.files import (
    check_writable,
    describe_os_error,
    write_bytes_atomically,
    write_json_result,
    write_text_atomically,
)
from wm_gym.plain_files import read_json

JSON_NAME, MARKDOWN_NAME, FIGURE_NAME = "scorecard.json", "scorecard.md", "scatter.png"


def read_scorecard(file: Path) -> Scorecard:
    """Read ``scorecard.json`` again.

    Raises:
        BundleError: It is missing, damaged, or no scorecard.
    """
    values = read_json(file, error=BundleError, remedy="judge again, or remove it")
    try:
        return TypeAdapter(Scorecard).validate_python(values)
    except ValidationError as error:
        where, message = first_invalid(error)
        raise BundleError(f"{str(file)!r} is no scorecard: {where}: {message}; judge again, or remove it.") from error


def check_scorecard_folder(folder: str | Path) -> Path:
    """Check before any work that a scorecard's files can be written into a folder; returns it.

    Raises:
        OutputError: They cannot.
    """
    path = check_writable(folder, is_folder=True)
    for name in (JSON_NAME, MARKDOWN_NAME, FIGURE_NAME):
        check_writable(path / name)
    return path


def write_scorecard(card: Scorecard, folder: str | Path) -> Path:
    """Write ``scorecard.json``, ``scorecard.md`` and ``scatter.png`` into a folder, each in one move; returns it.

    Raises:
        OutputError: They cannot be written.
    """
    path = Path(folder)
    write_json_result(path / JSON_NAME, card.to_json())
    try:
        write_text_atomically(path / MARKDOWN_NAME, card.to_markdown() + "\n")
        write_bytes_atomically(path / FIGURE_NAME, draw_agreement(card))
    except OSError as error:
        raise OutputError(describe_os_error(error)) from error
    return path
