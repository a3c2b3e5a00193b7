"""Errors meant for the user: each message is one sentence that says what is wrong and what to do.

The command line prints such a message without a traceback and exits with code 2; any other exception is a defect of
this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class WMGymError(Exception):
    """Base class of every error that the user can mend.

    A message may name what stands in a file; a terminal must not act on it, so what cannot be printed is escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(WMGymError, ValueError):
    """A configuration file or ``--set`` value is unknown, of the wrong type or out of range."""


class DatasetError(WMGymError):
    """A dataset or one of its files is missing, damaged, foreign or does not fit the request."""


class BundleError(WMGymError):
    """A saved world model or agent is missing, damaged or does not fit the request."""


class SimulatorError(WMGymError):
    """A simulator is missing, or its spaces cannot be used here."""


class SimulatorLostError(SimulatorError):
    """A simulator died, hung or went away in the middle of its work; what it was doing can be done again."""


class ExportError(WMGymError):
    """A model or agent cannot be exported, or an exported file does not compute what the model computes."""


class OutputError(WMGymError):
    """A file or folder cannot be written, or another process is writing to it."""


class TrainingError(WMGymError):
    """Training cannot start or go on."""


class DivergedError(TrainingError):
    """A training's numbers are no longer finite; other settings may do better."""


def printable(text: str) -> str:
    """The text with everything that cannot be printed, such as a terminal's commands, spelt out as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def reason_of(error: Exception) -> str:
    """What went wrong, in the system's words where it has some."""
    return str(getattr(error, "strerror", None) or error)


def first_invalid(error: ValidationError) -> tuple[str, str]:
    """The place, as ``"episodes.3.length"``, and pydantic's message of the first thing that is wrong in some values."""
    problem = error.errors()[0]
    return ".".join(map(str, problem["loc"])), problem["msg"]


def error_by_name(name: str, message: str) -> WMGymError | None:
    """The error of this package with this class name, as another process reported it; ``None`` for any other name."""
    known = globals().get(name)
    return known(message) if isinstance(known, type) and issubclass(known, WMGymError) else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string where none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
