"""``wm-gym demo``: the whole loop on CarRacing or in CARLA."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import (
    CARLA_OPTIONS,
    Subparsers,
    add_carla,
    add_command,
    add_common,
    add_track,
    carla_connections,
    option_value,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "demo",
        "Collect, train a world model, train PPO in its dreams, evaluate in the simulator. Run it again to resume.",
        "wm-gym demo --out runs/demo",
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder of the run (default: runs/demo)")
    parser.add_argument(
        "--env",
        default="car-racing",
        choices=("car-racing", "carla"),
        help="car-racing (default), or carla: by bird's-eye view, trained in Town01 and driven in Town02",
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: every step works, but nothing is learnt")
    parser.add_argument("--episodes", type=int, metavar="N", help="episodes to collect")
    parser.add_argument("--evaluation-episodes", type=int, metavar="N", help="held-out episodes for each driver")
    parser.add_argument("--workers", type=int, metavar="K", help="processes (default: 2)")
    add_carla(parser)
    add_track(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; it prints the returns."""
    from wm_gym.agents.demo import CARLA, DemoSettings, quick, run_demo

    is_carla = arguments.env == "carla"
    if is_carla and all(option_value(arguments, option) is None for option in CARLA_OPTIONS):
        arguments.carla_launch, arguments.carla_servers = "light", arguments.workers or DemoSettings().workers
    connections = carla_connections(arguments)
    if connections is not None:
        arguments.workers = len(connections)
    values = dict(CARLA if is_carla else {})
    if arguments.quick:
        values = quick(values)
    for name in ("episodes", "evaluation_episodes", "workers", "seed"):
        if getattr(arguments, name) is not None:
            values[name] = getattr(arguments, name)
    run_demo(
        arguments.out,
        DemoSettings.model_validate(values),
        worker_connections=connections,
        device=arguments.device,
        progress=not arguments.quiet,
        track=arguments.track,
    )
    return 0
