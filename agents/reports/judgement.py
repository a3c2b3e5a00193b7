"""A scorecard as files: numbers, tables and a scatter plot."""

from __future__ import annotations

from pathlib import Path

from wm_gym.agents.evaluation.results_file import read_result
from wm_gym.agents.evaluation.scorecard import Scorecard
from wm_gym.agents.reports.figures import draw_agreement
from wm_gym.errors import OutputError
from wm_gym.files import (
    check_writable,
    describe_os_error,
    write_bytes_atomically,
    write_json_result,
    write_text_atomically,
)

JSON_NAME, MARKDOWN_NAME, FIGURE_NAME = "scorecard.json", "scorecard.md", "scatter.png"


def read_scorecard(file: Path) -> Scorecard:
    """Read ``scorecard.json`` again.

    Raises:
        BundleError: It is missing, damaged, or no scorecard.
    """
    return read_result(file, Scorecard, "scorecard", "judge again")


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
