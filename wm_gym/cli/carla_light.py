"""``wm-gym carla-light``: a CARLA server for laptops, without Unreal Engine and without a GPU."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "carla-light",
        "Serve a light stand-in for CARLA, which needs no GPU; Ctrl-C ends it.",
        "wm-gym carla-light --port 2000 --town maps/Town04.xodr",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument(
        "--port", type=int, default=2000, help="port for the client; sensors use the next one (default: 2000)"
    )
    parser.add_argument(
        "--town",
        action="append",
        default=[],
        metavar="NAME|FILE.xodr|FOLDER",
        help="the town to begin in: Town01 (default) or Town02, small ones of its own; an OpenDRIVE map; or a folder "
        "of them; may be repeated, and the client then loads one by its name",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from wm_gym.envs.carla_light.serve import serve

    serve(arguments.host, arguments.port, arguments.town, lambda line: print(line, flush=True))
    return 0
