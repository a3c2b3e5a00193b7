"""``wm-gym bench``: steps a second of the dream beside the simulator's, or of CarlaDriving beside a bare client."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wm_gym.cli.options import Subparsers, add_command, add_common


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "bench",
        "Measure steps a second of the dream and of CarRacing in one run.",
        "wm-gym bench --num-envs 1,16,256 --json bench.json",
    )
    parser.add_argument("--model", default="bundled", metavar="PATH", help="a world model's folder (default: bundled)")
    parser.add_argument("--num-envs", default="1,16,256", metavar="N,N", help="numbers of dreams (default: 1,16,256)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each measurement (default: 5)")
    parser.add_argument("--json", default=None, metavar="FILE", help="also write the table as JSON")
    parser.add_argument(
        "--carla",
        default=None,
        metavar="HOST:PORT",
        help="measure CarlaDriving-v0 on this server instead, beside a bare client loop with the same tick and camera",
    )
    parser.add_argument("--frame-size", type=int, default=256, metavar="PIXELS", help="with --carla (default: 256)")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    from wm_gym.errors import ConfigError
    from wm_gym.files import write_json_atomically

    if arguments.seconds <= 0:
        raise ConfigError("--seconds must be above 0.")
    result, table = _measure_carla(arguments) if arguments.carla is not None else _measure_dream(arguments)
    print(table)
    if arguments.json is not None:
        write_json_atomically(Path(arguments.json), result)
    return 0


def _measure_carla(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from wm_gym.envs.carla.benchmark import measure_carla, render_markdown
    from wm_gym.envs.carla.client import has_carla, missing_carla_message
    from wm_gym.envs.carla.config import ConnectionConfig
    from wm_gym.envs.carla.env import parse_address
    from wm_gym.errors import SimulatorError

    if not has_carla():
        raise SimulatorError(missing_carla_message() + ".")
    connection = ConnectionConfig(**parse_address(arguments.carla))
    result = measure_carla(connection, arguments.seconds, frame_size=arguments.frame_size)
    return result, render_markdown(result)


def _measure_dream(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from wm_gym.agents.device import resolve_device
    from wm_gym.benchmark import measure_dream_and_simulator, render_markdown
    from wm_gym.errors import ConfigError

    try:
        sizes = [int(text) for text in arguments.num_envs.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--num-envs {arguments.num_envs!r} is no list of numbers, as in --num-envs 1,16,256."
        ) from error
    if min(sizes) < 1:
        raise ConfigError("--num-envs must be above 0.")
    result = measure_dream_and_simulator(
        arguments.model,
        sizes,
        arguments.seconds,
        seed=arguments.seed or 0,
        device=str(resolve_device(arguments.device)),
    )
    return result, render_markdown(result)
