"""``python -m tests.carla_server --port 2000``: serve until the process is ended."""

from __future__ import annotations

import argparse
import sys
import threading

from wm_gym.envs.carla_light.server import LightServer
from wm_gym.envs.carla_light.towns import Towns

from .faults import Faults


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2000, help="RPC port; streams use the next one (default: 2000)")
    parser.add_argument("--town", default="Town01")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=VALUE", help="see faults.py")
    parser.add_argument("--navigation", action="store_true", help="towns have a navigation mesh for pedestrians")
    parser.add_argument("--follow-stdin", action="store_true", help="end when standard input does: with the parent")
    arguments = parser.parse_args()
    faults = Faults()
    for setting in arguments.fault:
        name, _, text = setting.partition("=")
        faults.set({name: type(getattr(faults, name))(text)})
    server = LightServer(
        arguments.host, arguments.port, Towns([arguments.town]), faults, has_navigation=arguments.navigation
    )
    server.add_calls(
        {
            "stand_in_summary": server.world.summary,
            "stand_in_faults": faults.set,
            "stand_in_unknown_calls": lambda: server.unknown_calls,
        }
    )
    server.start()
    print(f"stand-in CARLA server on {arguments.host}:{server.port}", flush=True)
    if arguments.follow_stdin:
        sys.stdin.read()
    else:
        threading.Event().wait()


if __name__ == "__main__":
    main()
