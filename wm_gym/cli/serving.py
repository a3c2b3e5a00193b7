"""What the commands that serve a page have in common: where it listens, and serving it until Ctrl-C."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wm_gym.agents.web.page_server import PageServer


def add_serving(parser: argparse.ArgumentParser, port: int) -> None:
    """``--host`` and ``--port`` of a command that serves a page."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, which only this machine reaches)",
    )
    parser.add_argument("--port", type=int, default=port, help=f"port, 0 for any that is free (default: {port})")


def say(sentence: str) -> None:
    """Print a sentence at once, though the command goes on."""
    print(sentence, flush=True)


def serve(server: PageServer, host: str, what: str) -> None:
    """Say where the page is, and serve it until Ctrl-C.

    Args:
        server: The page's server.
        host: Where it listens.
        what: What those can do who have its address, as in ``"drive"``.
    """
    from wm_gym.agents.web.listening import warning_of

    warning = warning_of(host, what)
    if warning is not None:
        say(warning)
    say(f"Open {server.url} in a browser; Ctrl-C ends.")
    server.run()
    say("ended.")
