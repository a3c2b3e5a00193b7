"""Options that several commands share."""

from __future__ import annotations

import argparse
import itertools
from typing import TYPE_CHECKING, Any

from wm_gym.errors import ConfigError
from wm_gym.training import TRACKERS

if TYPE_CHECKING:
    from wm_gym.data_collection.datasets.download_cache import DownloadCache

Subparsers = Any  # argparse's own type of add_subparsers() is private

CARLA_PORT_STEP = 4
"""Between servers on one machine: each uses three ports in a row."""


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


BEGINS_ANEW = "stopped."
"""What a command says that keeps nothing for the next call, as ``when_stopped``."""
STOPPED_WITHOUT_A_FILE = "stopped; with --json FILE the same command goes on from its finished episodes."
"""What a command says that keeps its episodes beside the file of its results alone."""


def add_common(parser: argparse.ArgumentParser) -> None:
    """``--seed``, ``--device`` and ``--quiet``."""
    parser.add_argument("--seed", type=int, help="seed of everything random (default: the command's own)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto (default)")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def add_changes(parser: argparse.ArgumentParser, what: str = "a setting") -> None:
    """``--set``, as ``changes``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help=f"change {what}; may be repeated",
    )


def given_values(values: dict[str, Any]) -> dict[str, Any]:
    """Without those that the user left to the command."""
    return {name: value for name, value in values.items() if value is not None}


def add_track(parser: argparse.ArgumentParser) -> None:
    """``--track``."""
    parser.add_argument(
        "--track",
        choices=TRACKERS,
        default="tensorboard",
        help="where the curves can be watched (default: tensorboard); the others have extras, as wm_gym[wandb]",
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """``--cache``; see :func:`download_cache`."""
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="where downloaded episodes are kept (default: WM_GYM_CACHE, or a folder of the user's cache)",
    )


def download_cache(arguments: argparse.Namespace) -> DownloadCache:
    """The cache that ``--cache`` and the environment name."""
    from wm_gym.data_collection.datasets.download_cache import DownloadCache

    return DownloadCache.default(arguments.cache)


def add_simulator(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """``--env`` and the settings of the simulator."""
    parser.add_argument(
        "--env",
        required=required,
        metavar="NAME",
        help="car-racing, carla, or any Gymnasium id with image observations and a Box of actions (module:Id-v0 too)",
    )
    parser.add_argument("--frame-size", type=int, metavar="PIXELS", help="side of the square frames")
    parser.add_argument("--action-repeat", type=int, metavar="N", help="simulator frames for each action")
    parser.add_argument(
        "--env-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further keyword argument for gym.make; may be repeated",
    )


def add_carla(parser: argparse.ArgumentParser) -> None:
    """Where CARLA's servers are; see :func:`carla_connections`."""
    group = parser.add_argument_group(
        "CARLA", "with CARLA as the simulator; lost servers are waited for or started again"
    )
    group.add_argument(
        "--carla",
        action=Joined,
        metavar="HOST:PORT[,...]",
        help="running servers, one for each worker; may be repeated (default: localhost:2000)",
    )
    group.add_argument(
        "--carla-launch",
        metavar="PATH",
        help="start servers: the path of CarlaUE4.sh, docker, docker:IMAGE, light or light:TOWN (wm-gym carla-light)",
    )
    group.add_argument(
        "--carla-servers",
        type=int,
        metavar="N",
        help="how many to start, on every fourth port from the one of --carla on; without it, on free ones from 2000 "
        "on (default: 1)",
    )
    group.add_argument(
        "--carla-recycle",
        type=int,
        metavar="K",
        help="start a server afresh after every K episodes, as it leaks memory",
    )


class Joined(argparse.Action):
    """A list separated by commas, given at once or by repeating the option."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Add what is given to what was given before."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


CARLA_OPTIONS = ("--carla", "--carla-launch", "--carla-servers", "--carla-recycle")


def first_carla_connection(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """How what drives in one simulator alone reaches its CARLA server; see :func:`carla_connections`."""
    return next(iter(carla_connections(arguments) or ()), None)


def carla_connections(arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """How each worker reaches its CARLA server, as ``worker_kwargs`` of ``collect``; ``None`` where nothing was said.

    Raises:
        ConfigError: The options do not fit each other, or the simulator.
    """
    used = [option for option in CARLA_OPTIONS if option_value(arguments, option) is not None]
    if not used:
        return None
    env = getattr(arguments, "env", None)  # without the option, the simulator is that of an agent or a world model
    if env is not None and not _is_carla(env):
        raise ConfigError(f"{used[0]} belongs to --env carla, not to --env {env}; leave it out.")
    from wm_gym.envs.carla.env import parse_address
    from wm_gym.envs.carla.server import can_listen

    addresses = [parse_address(text) for text in (arguments.carla or "localhost").split(",")]
    if len({(address["host"], address["port"]) for address in addresses}) < len(addresses):
        raise ConfigError(f"--carla {arguments.carla} names a server twice, but each worker needs one of its own.")
    if arguments.carla_launch is None:
        needs_launch = [option for option in used if option in ("--carla-servers", "--carla-recycle")]
        if needs_launch:
            raise ConfigError(f"{needs_launch[0]} is for servers that are started here; give --carla-launch as well.")
        return [{**address, "restart": True} for address in addresses]
    if len(addresses) > 1 or addresses[0]["host"] not in ("localhost", "127.0.0.1"):
        raise ConfigError(
            f"--carla {arguments.carla} names servers elsewhere, but --carla-launch starts them on this machine; give "
            "--carla localhost:PORT with the first port, or leave it out."
        )
    servers = 1 if arguments.carla_servers is None else arguments.carla_servers
    if servers < 1:
        raise ConfigError(f"--carla-servers {servers} must be a whole number of at least 1.")
    ports = range(addresses[0]["port"], 2**16 - CARLA_PORT_STEP, CARLA_PORT_STEP)
    free = ports if arguments.carla else filter(can_listen, ports)
    return [
        {
            "host": addresses[0]["host"],
            "port": port,
            "launch": arguments.carla_launch,
            "restart": True,
            "recycle_episodes": arguments.carla_recycle or 0,
        }
        for port in itertools.islice(free, servers)
    ]


def option_value(arguments: argparse.Namespace, option: str) -> Any:
    """What was given for an option such as ``"--carla-launch"``."""
    return getattr(arguments, option.removeprefix("--").replace("-", "_"))


def _is_carla(env: str) -> bool:
    from wm_gym.envs.simulators import SIMULATORS, kind_of

    return kind_of(env, [SIMULATORS["carla"]]) is not None


def simulator_kwargs(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for ``make_simulator`` that the options name."""
    from wm_gym.config import parse_value

    kwargs: dict[str, Any] = {}
    if arguments.frame_size is not None:
        kwargs["frame_size"] = arguments.frame_size
    if arguments.action_repeat is not None:
        kwargs["action_repeat"] = arguments.action_repeat
    for setting in arguments.env_set:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--env-set {setting!r} is not of the form KEY=VALUE, as in --env-set max_frames=500.")
        kwargs[key] = parse_value(text, f"the value of --env-set {setting!r}")
    return kwargs
