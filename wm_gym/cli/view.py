"""``wm-gym view``: look at a dataset in a browser."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_cache, add_command, download_cache
from wm_gym.cli.serving import add_serving, say, serve

DEFAULT_PORT = 8766


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "view",
        "Look at a dataset in a browser: episodes, frames, plots, and what a world model makes of them.",
        "wm-gym view data/car --model runs/model",
    )
    parser.add_argument("path", metavar="DATASET", help="the dataset's folder, or its URL")
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="the world model's folder, bundled or none (default: bundled, where it is of the dataset's simulator)",
    )
    parser.add_argument("--device", default="auto", help="where the model computes: cpu, cuda, mps or auto (default)")
    add_cache(parser)
    add_serving(parser, DEFAULT_PORT)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from wm_gym.agents.web.listening import check_requirements, listen

    check_requirements("wm-gym view")
    listening = listen(arguments.host, arguments.port)  # a port that is taken shows before anything is read
    with listening:
        from wm_gym.agents.view.loading import load_view
        from wm_gym.agents.view.server import ViewServer

        setup = load_view(arguments.path, arguments.model, downloads=download_cache(arguments), device=arguments.device)
        server = ViewServer(setup, listening, say, arguments.host)
        for problem in setup.shelf.survey.problems.values():
            say(problem)
        if setup.imagination is None:
            say(f"Without a world model: {setup.model_name}.")
        serve(server, arguments.host, "see the dataset")
    return 0
