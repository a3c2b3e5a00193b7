"""Entry point of ``wm-gym``: parses, runs one command, and turns errors into one sentence and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from wm_gym._version import __version__
from wm_gym.cli import (
    bench,
    carla_light,
    collect,
    dataset,
    demo,
    doctor,
    evaluate,
    export,
    judge,
    play,
    push,
    report,
    train_agent,
    train_model,
    train_uncertainty,
    tune,
    view,
)
from wm_gym.errors import WMGymError
from wm_gym.files import describe_os_error

COMMANDS = (
    demo,
    collect,
    dataset,
    train_model,
    train_uncertainty,
    train_agent,
    tune,
    evaluate,
    play,
    view,
    judge,
    report,
    export,
    push,
    bench,
    doctor,
    carla_light,
)
"""Modules with ``add_parser(subparsers)``; a new command is one file and one entry."""

GOES_ON = "stopped; run the same command again to go on."
"""What a stopped command says where it has not put another sentence into its arguments, as ``when_stopped``."""
_HOME = re.compile(r"^(|--[\w-]+=(?:lerobot:)?|lerobot:)~(?=/)")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


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
        0 on success, 1 where a check found something wrong, 2 for an error that the user can mend, 130 when stopped,
        141 where nobody reads the output any more.
    """
    _print_in_any_encoding()
    command = "wm-gym"
    parsed = argparse.Namespace()
    try:
        with _sigterm_as_interrupt():
            given = sys.argv[1:] if arguments is None else arguments
            parsed = build_parser().parse_args([_with_home(argument) for argument in given])
            command = f"wm-gym {parsed.command}"
            exit_code: int = parsed.run(parsed)
            if sys.stdout is not None:
                sys.stdout.flush()
            return exit_code
    except WMGymError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_stdout_closed():
            return EXIT_BROKEN_PIPE
        if error.errno is None:
            raise  # of a library, not of the system
        print(f"{command}: {describe_os_error(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{command}: {getattr(parsed, 'when_stopped', GOES_ON)}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _with_home(argument: str) -> str:
    """``~/`` as the home folder where a shell leaves it: in ``--out=~/data``, ``lerobot:~/data`` and behind quotes."""
    return _HOME.sub(lambda found: found[1] + str(Path.home()), argument)


def _print_in_any_encoding() -> None:
    """Let characters that the locale's encoding lacks be printed as ``?``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _is_stdout_closed() -> bool:
    """Whether nobody reads what is printed any more, as with ``| head``; Python then does not complain at the end."""
    try:
        descriptor = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError):  # no file, or Windows
        return False
    poll.register(descriptor, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that long commands save before they end; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that long commands save before they end."""
    raise KeyboardInterrupt
