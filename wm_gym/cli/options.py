"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from wm_gym.errors import ConfigError

Subparsers = Any  # argparse's own type of add_subparsers() is private


def add_command(subparsers: Subparsers, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a command's parser with its summary and an example below the options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """``--seed``, ``--device`` and ``--quiet``."""
    parser.add_argument("--seed", type=int, default=None, help="seed of everything random (default: the command's own)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto (default)")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def add_simulator(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """``--env`` and the settings of the simulator."""
    parser.add_argument(
        "--env",
        required=required,
        default=None,
        metavar="NAME",
        help="car-racing, or any Gymnasium id with image observations and a Box of actions (module:Id-v0 too)",
    )
    parser.add_argument("--frame-size", type=int, default=None, metavar="PIXELS", help="side of the square frames")
    parser.add_argument("--action-repeat", type=int, default=None, metavar="N", help="simulator frames for each action")
    parser.add_argument(
        "--env-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further keyword argument for gym.make; may be repeated",
    )


def simulator_kwargs(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for ``make_simulator`` that the options name."""
    kwargs: dict[str, Any] = {}
    if arguments.frame_size is not None:
        kwargs["frame_size"] = arguments.frame_size
    if arguments.action_repeat is not None:
        kwargs["action_repeat"] = arguments.action_repeat
    for setting in arguments.env_set:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--env-set {setting!r} is not of the form KEY=VALUE, as in --env-set max_frames=500.")
        try:
            kwargs[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of --env-set {setting!r} is no valid YAML.") from error
    return kwargs
