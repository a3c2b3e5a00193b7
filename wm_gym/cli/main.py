"""Entry point of ``wm-gym``: parses, runs one command, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from wm_gym._version import __version__
from wm_gym.cli import bench, collect, dataset, demo, doctor, evaluate, export, report, train_agent, train_model
from wm_gym.errors import WMGymError

COMMANDS = (demo, collect, dataset, train_model, train_agent, evaluate, report, export, bench, doctor)
"""Modules with ``add_parser(subparsers)``; a new command is one file and one entry."""

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``wm-gym`` with all its commands."""
    parser = argparse.ArgumentParser(
        prog="wm-gym", description="World models for driving: collect, model, dream, train, evaluate."
    )
    parser.add_argument("--version", action="version", version=f"wm_gym {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; ``None`` takes the process's own.

    Returns:
        0 on success, 1 where a check found something wrong, 2 for an error that the user can mend, 130 when stopped.
    """
    parsed = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        exit_code: int = parsed.run(parsed)
    except WMGymError as error:
        print(f"wm-gym {parsed.command}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"wm-gym {parsed.command}: stopped; run the same command again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return exit_code


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that long commands save before they end."""
    raise KeyboardInterrupt
