"""``wm-gym bench``: frames a second of the dream beside those of the simulator, measured in one run."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    from wm_gym.agents.device import resolve_device
    from wm_gym.benchmark import measure_dream_and_simulator, render_markdown
    from wm_gym.errors import ConfigError
    from wm_gym.files import write_json_atomically

    try:
        sizes = [int(text) for text in arguments.num_envs.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--num-envs {arguments.num_envs!r} is no list of numbers, as in --num-envs 1,16,256."
        ) from error
    if min(sizes) < 1 or arguments.seconds <= 0:
        raise ConfigError("--num-envs and --seconds must be above 0.")
    result = measure_dream_and_simulator(
        arguments.model,
        sizes,
        arguments.seconds,
        seed=arguments.seed or 0,
        device=str(resolve_device(arguments.device)),
    )
    print(render_markdown(result))
    if arguments.json is not None:
        write_json_atomically(Path(arguments.json), result)
    return 0
