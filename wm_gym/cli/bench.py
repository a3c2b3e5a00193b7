"""``wm-gym bench``: what an imagined step and a training cost here; or CarlaDriving beside a bare client."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wm_gym.cli.options import BEGINS_ANEW, Subparsers, add_command, add_common

if TYPE_CHECKING:
    from collections.abc import Callable

    from wm_gym.bench import Table


class _Job(NamedTuple):
    """What is to be measured, and how."""

    model: str
    config: str
    configs: list[str]
    peak_configs: list[str]
    data: str | None
    num_envs: list[int]
    seconds: float
    limit_s: float
    seed: int
    device: str


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "bench",
        "Measure dream and simulator, the share of the machine's peak, components, training and its scaling.",
        "wm-gym bench --out runs/bench",
    )
    parser.add_argument(
        "--parts", default="all", metavar="PART,PART", help=f"what to measure: {', '.join(_PARTS)} or all (default)"
    )
    parser.add_argument(
        "--model",
        default="bundled",
        metavar="PATH",
        help="a world model's folder, or owner/name on the Hub (default: bundled)",
    )
    parser.add_argument(
        "--num-envs", default="1,16,256,4096", metavar="N,N", help="numbers of dreams (default: 1,16,256,4096)"
    )
    parser.add_argument(
        "--configs",
        metavar="CONFIG,CONFIG",
        help="configs of components and sequences (default: all) and of peak (default: tiny,tiny_gru)",
    )
    parser.add_argument("--data", metavar="DIR", help="a dataset, for the part loader: whether training waits for it")
    parser.add_argument(
        "--config", default="tiny", help="config of the parts loader and scaling, whose frames the dataset has"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each measurement (default: 3)")
    parser.add_argument(
        "--limit", type=float, default=20.0, metavar="S", help="leave out what takes longer in one call (default: 20)"
    )
    parser.add_argument("--out", metavar="DIR", help="also write bench.md and bench.json there")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON to this file")
    parser.add_argument(
        "--carla",
        metavar="HOST:PORT",
        help="measure CarlaDriving-v0 on this server instead, beside a bare client loop with the same tick and camera",
    )
    parser.add_argument("--frame-size", type=int, default=256, metavar="PIXELS", help="with --carla (default: 256)")
    add_common(parser)
    parser.set_defaults(run=run, when_stopped=BEGINS_ANEW)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print Markdown tables."""
    from wm_gym.errors import ConfigError
    from wm_gym.files import check_writable, write_json_atomically, write_text_atomically

    if arguments.seconds <= 0:
        raise ConfigError("--seconds must be above 0.")
    if arguments.json is not None:
        check_writable(arguments.json)
    if arguments.out is not None:
        check_writable(arguments.out, is_folder=True)
    result, table = _measure_carla(arguments) if arguments.carla is not None else _measure_parts(arguments)
    print(table)
    if arguments.json is not None:
        write_json_atomically(Path(arguments.json), result)
    if arguments.out is not None:
        folder = Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder / "bench.json", result)
        write_text_atomically(folder / "bench.md", table + "\n")
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


def _measure_parts(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from wm_gym.agents.web.listening import has_libraries
    from wm_gym.bench import measured_on, render_markdown
    from wm_gym.config import load_config, preset_names
    from wm_gym.device import resolve_device
    from wm_gym.errors import ConfigError, did_you_mean

    parts = tuple(arguments.parts.split(","))
    if arguments.parts == "all":
        left_out = {"loader"} if arguments.data is None else set()
        left_out |= set() if has_libraries() else {"play"}
        parts = tuple(part for part in _PARTS if part not in left_out)
    if "loader" in parts and arguments.data is None:
        raise ConfigError("the part loader needs --data, a dataset; give it, or leave the part out.")
    for part in parts:
        if part not in _PARTS:
            raise ConfigError(f"--parts knows no {part!r}{did_you_mean(part, _PARTS)}; use {', '.join(_PARTS)} or all.")
    # "debug" is for tests, and says nothing about a machine.
    configs, peak_configs = [name for name in preset_names() if name != "debug"], ["tiny", "tiny_gru"]
    if arguments.configs is not None:
        configs = peak_configs = arguments.configs.split(",")
    for name in (*configs, arguments.config):
        load_config(name)
    job = _Job(
        model=arguments.model,
        config=arguments.config,
        configs=configs,
        peak_configs=peak_configs,
        data=arguments.data,
        num_envs=_numbers("--num-envs", arguments.num_envs),
        seconds=arguments.seconds,
        limit_s=arguments.limit,
        seed=arguments.seed or 0,
        device=str(resolve_device(arguments.device)),
    )
    tables = []
    for part in parts:
        if not arguments.quiet:
            print(f"measuring {part} …", flush=True)
        tables.append(_PARTS[part](job))
    settings = {name: value for name, value in job._asdict().items() if value is not None}
    machine = measured_on(job.device)
    result = {**{table.name: table.rows for table in tables}, "settings": settings, "machine": machine}
    return result, render_markdown(tables, settings, machine)


def _environments(job: _Job) -> Table:
    from wm_gym.bench.environments import measure_environments

    return measure_environments(job.model, job.num_envs, job.seconds, seed=job.seed, device=job.device)


def _ppo(job: _Job) -> Table:
    from wm_gym.agents.training.benchmark import measure_ppo
    from wm_gym.world_model import WorldModel

    return measure_ppo(WorldModel.from_pretrained(job.model, job.device), job.seconds, seed=job.seed)


def _peak(job: _Job) -> Table:
    from wm_gym.bench.peak import measure_peak

    return measure_peak(job.peak_configs, job.num_envs, job.seconds, device=job.device)


def _components(job: _Job) -> Table:
    from wm_gym.bench.components import measure_components

    return measure_components(job.configs, job.seconds, device=job.device, limit_s=job.limit_s)


def _sequences(job: _Job) -> Table:
    from wm_gym.bench.components import measure_sequences

    return measure_sequences(job.configs, job.seconds, device=job.device, limit_s=job.limit_s)


def _loader(job: _Job) -> Table:
    from wm_gym.bench.loader import measure_loader
    from wm_gym.config import load_config
    from wm_gym.data_collection.datasets.training_data import open_training_data
    from wm_gym.envs.simulators import scene_settings

    config = load_config(job.config, ("loss.perceptual=0",))
    assert job.data is not None
    data = open_training_data(job.data, config.training.validation_fraction, scenes=scene_settings)
    return measure_loader(job.config, config, data.train, job.seconds, device=job.device)


def _scaling(job: _Job) -> Table:
    from wm_gym.bench.scaling import measure_scaling

    return measure_scaling(job.config, job.seconds, device=job.device)


def _play(job: _Job) -> Table:
    from wm_gym.agents.play.benchmark import measure_play

    return measure_play(job.seconds, model=job.model, device=job.device, seed=job.seed)


_PARTS: dict[str, Callable[[_Job], Table]] = {
    "environments": _environments,
    "ppo": _ppo,
    "peak": _peak,
    "components": _components,
    "sequences": _sequences,
    "loader": _loader,
    "scaling": _scaling,
    "play": _play,
}
"""What can be measured."""


def _numbers(option: str, text: str) -> list[int]:
    """Whole numbers above 0 between commas."""
    from wm_gym.errors import ConfigError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is no list of numbers, as in {option} 1,16,256.") from error
    if min(numbers) < 1:
        raise ConfigError(f"{option} must be above 0.")
    return numbers
