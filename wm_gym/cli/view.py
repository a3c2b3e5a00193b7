"""``wm-gym view``: look at a dataset in a browser."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_cache, add_command, add_serving, download_cache

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
        default=None,
        metavar="PATH",
        help="the world model's folder, bundled or none (default: bundled, where it is of the dataset's simulator)",
    )
    parser.add_argument("--device", default="auto", help="where the model computes: cpu, cuda, mps or auto (default)")
    add_cache(parser)
    add_serving(parser, DEFAULT_PORT)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from wm_gym.agents.web.listening import check_requirements, listen, warning_of

    check_requirements("wm-gym view")
    listening = listen(arguments.host, arguments.port)  # a port that is taken shows before anything is read
    with listening:
        from wm_gym.agents.view.loading import load_view
        from wm_gym.agents.view.server import ViewServer

        setup = load_view(arguments.path, arguments.model, downloads=download_cache(arguments), device=arguments.device)
        server = ViewServer(setup, listening, lambda line: print(line, flush=True), arguments.host)
        for problem in setup.shelf.survey.problems.values():
            print(problem, flush=True)
        if setup.imagination is None:
            print(f"Without a world model: {setup.model_name}.", flush=True)
        warning = warning_of(arguments.host, "see the dataset")
        if warning is not None:
            print(warning, flush=True)
        print(f"Open {server.url} in a browser; Ctrl-C ends.", flush=True)
        server.run()
    print("ended.", flush=True)
    return 0
