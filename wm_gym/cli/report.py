"""``wm-gym report``: a run as an HTML page."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_carla, add_command, add_common, first_carla_connection


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "report",
        "Write a run as one HTML page: returns, the dream beside reality, curves, data, versions.",
        "wm-gym report runs/demo",
    )
    parser.add_argument("folder", metavar="DIR", help="the run's folder, as wm-gym demo makes it")
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and print where it is."""
    from wm_gym.agents.reports.report import write_report

    seeded = {} if arguments.seed is None else {"seed": arguments.seed}
    connection = first_carla_connection(arguments)
    print(write_report(arguments.folder, **seeded, connection=connection, device=arguments.device))
    return 0
