"""``wm-gym report``: a run as an HTML page."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_carla, add_command, add_common, first_carla_connection
from wm_gym.cli.serving import add_serving, say, serve

DEFAULT_PORT = 8767


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "report",
        "Write a run as one HTML page: returns, the dream beside reality, curves, data, versions; or watch it go on.",
        "wm-gym report runs/demo",
    )
    parser.add_argument("folder", metavar="DIR", help="the run's folder, as wm-gym demo makes it")
    parser.add_argument(
        "--serve",
        action="store_true",
        help="write nothing, but serve a page that renews itself while the run goes on (curves, evaluations)",
    )
    add_serving(parser, DEFAULT_PORT)
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, and print where it is; with ``--serve`` serve one until Ctrl-C."""
    if arguments.serve:
        return _serve(arguments)
    from wm_gym.agents.reports.report import write_report

    seeded = {} if arguments.seed is None else {"seed": arguments.seed}
    connection = first_carla_connection(arguments)
    print(write_report(arguments.folder, **seeded, connection=connection, device=arguments.device))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from wm_gym.agents.web.listening import check_requirements, listen

    check_requirements("wm-gym report --serve")
    with listen(arguments.host, arguments.port) as listening:
        from wm_gym.agents.reports.live import LiveReport
        from wm_gym.agents.reports.server import ReportServer

        report = LiveReport(arguments.folder)
        server = ReportServer(report, listening, say, arguments.host)
        serve(server, arguments.host, "see the run")
    return 0
