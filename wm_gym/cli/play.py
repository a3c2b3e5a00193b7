"""``wm-gym play``: drive in the dream or the simulator by hand, in a browser."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_carla, add_command, add_common, first_carla_connection
from wm_gym.cli.serving import add_serving, say, serve

DEFAULT_PORT = 8765


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "play",
        "Drive in the dream, in the simulator, or in both side by side, by hand or by the agent, in a browser.",
        "wm-gym play --agent bundled --record data/by-hand",
    )
    parser.add_argument(
        "--agent",
        default="bundled",
        metavar="PATH",
        help="an agent's folder, bundled (default) or none: the hand alone",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="the world model's folder or bundled (default: the one that the agent sees through, or else bundled)",
    )
    parser.add_argument(
        "--mode", choices=("dream", "simulator", "both"), default="dream", help="where to begin (default: dream)"
    )
    parser.add_argument(
        "--horizon",
        type=int,
        default=500,
        metavar="N",
        help="steps until a dream is cut (default: 500, and 25 at most beside the simulator)",
    )
    parser.add_argument(
        "--termination",
        choices=("sample", "threshold", "never"),
        default="sample",
        help="how the model ends a dream: as often as it predicts (default), where an end is likelier than not, never",
    )
    parser.add_argument(
        "--record", metavar="DIR", help="keep episodes as datasets DIR/simulator and DIR/dream when asked"
    )
    add_serving(parser, DEFAULT_PORT)
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from wm_gym.agents.web.listening import check_requirements, listen

    check_requirements("wm-gym play")
    connection = first_carla_connection(arguments)
    listening = listen(arguments.host, arguments.port)  # a port that is taken shows before a model is read
    with listening:
        from wm_gym.agents.play.loading import load_setup
        from wm_gym.agents.play.server import PlayServer

        setup = load_setup(
            arguments.agent,
            arguments.model,
            mode=arguments.mode,
            record=arguments.record,
            connection=connection,
            horizon=arguments.horizon,
            termination=arguments.termination,
            seed=arguments.seed or 0,
            device=arguments.device,
        )
        server = PlayServer(setup, listening, say, arguments.host)
        serve(server, arguments.host, "drive")
    return 0
