"""``wm-gym train-agent``: train an agent in imagination, or one of its baselines in the simulator or from data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from wm_gym.cli.options import (
    CARLA_OPTIONS,
    Subparsers,
    add_carla,
    add_changes,
    add_command,
    add_common,
    add_simulator,
    add_track,
    carla_connections,
    given_values,
    option_value,
    simulator_kwargs,
)
from wm_gym.errors import ConfigError

_OF_A_SIMULATOR = ("--env", "--frame-size", "--action-repeat", "--env-set")

PLACES = ("dream", "simulator", "data")
"""Where an agent can be trained."""

# Options that belong to some places only: those where each may be given.
_BELONGS_TO = {
    "--model": ("dream", "data"),
    "--algo": ("dream", "simulator"),
    "--select-drives": ("dream",),
    **dict.fromkeys(_OF_A_SIMULATOR, ("simulator",)),
    "--workers": ("simulator", "dream"),
    "--data": ("data", "dream"),
    "--initial": ("dream",),
    "--rounds": ("dream",),
    "--frames": ("dream",),
    "--set-rounds": ("dream",),
    "--no-privileged": ("dream",),
    "--top-fraction": ("data",),
    **dict.fromkeys(CARLA_OPTIONS, ("simulator", "dream")),
}
_NEEDED = {
    "dream": {"--model": "the world model to dream in"},
    "simulator": {"--env": "the simulator"},
    "data": {"--data": "the recorded episodes", "--model": "the world model that the policy sees through"},
}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "train-agent",
        "Train an agent in a world model's dreams, where it never touches the simulator; or, to compare, from pixels "
        "in the simulator itself, or by cloning recorded episodes. Run it again to resume.",
        "wm-gym train-agent --model runs/model --algo ppo --steps 2000000 --out runs/agent\n"
        "  wm-gym train-agent --model runs/model --data runs/data --rounds 3 --frames 12000 --out runs/rounds\n"
        "  wm-gym train-agent --env car-racing --rounds 5 --frames 22500 --no-privileged --out runs/alone\n"
        "  wm-gym train-agent --in simulator --env car-racing --steps 25000 --out runs/pixels\n"
        "  wm-gym train-agent --in data --data runs/data --model runs/model --out runs/clone",
    )
    parser.add_argument(
        "--in",
        dest="place",
        choices=PLACES,
        default=PLACES[0],
        help="dream (default): imagination only; simulator: PPO from pixels; data: clone recorded episodes",
    )
    parser.add_argument("--model", metavar="PATH", help="a world model's folder, 'bundled', or owner/name on the Hub")
    parser.add_argument("--algo", help="ppo (default), a2c, sac, td3 or ddpg; in the simulator ppo only")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="in all: dream steps, decisions in the simulator, updates"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the run's folder; at the end it is the agent")
    parser.add_argument(
        "--select-drives",
        type=int,
        metavar="N",
        help="keep the checkpoint that drives best over N training tracks of the simulator (default: 0, keep the last)",
    )
    add_changes(parser)
    add_simulator(parser, required=False)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="K",
        help="processes for the simulators: with --rounds or --select-drives any number, else 1 (default) or num_envs",
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="DIR",
        help="the dataset whose episodes are cloned, with --rounds the one --model was trained on; may be repeated",
    )
    parser.add_argument(
        "--initial",
        metavar="AGENT",
        help="in the dream: the folder of an agent, such as a clone, whose policy training goes on from",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="K",
        help="after the first agent, K times: record it in the simulator, train the model further, train it anew; with "
        "--env instead of --model they begin with recordings of random driving",
    )
    parser.add_argument("--frames", type=int, metavar="N", help="simulator steps to record in all rounds together")
    parser.add_argument(
        "--set-rounds",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the rounds (see wm_gym.agents.training.rounds.RoundsConfig); may be repeated",
    )
    parser.add_argument(
        "--no-privileged",
        action="store_true",
        default=None,
        help="with --rounds: refuse recordings, given or to be made, of drivers that read the simulator's state",
    )
    parser.add_argument(
        "--top-fraction", type=float, metavar="F", help="clone only the best F of the episodes, by return"
    )
    add_carla(parser)
    add_track(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print how it went."""
    _check_options(arguments)
    if arguments.place == "simulator":
        return _run_in_simulator(arguments)
    if arguments.place == "data":
        return _run_on_data(arguments)
    if arguments.rounds is not None:
        return _run_in_rounds(arguments)
    return _run_in_dream(arguments)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options of another place, and name those that are missing."""
    place: str = arguments.place
    begins_with_nothing = _begins_with_nothing(arguments)
    for option, places in _BELONGS_TO.items():
        if begins_with_nothing and option in _OF_A_SIMULATOR:
            continue
        if option_value(arguments, option) not in (None, []) and place not in places:
            raise ConfigError(f"{option} belongs to --in {' and '.join(places)}, not to --in {place}; leave it out.")
    for option, meaning in ({} if begins_with_nothing else _NEEDED[place]).items():
        if option_value(arguments, option) is None:
            raise ConfigError(f"--in {place} needs {option}, {meaning}; give it as well.")
    if place == "dream":
        _check_rounds(arguments)


def _begins_with_nothing(arguments: argparse.Namespace) -> bool:
    """Whether the rounds begin with a simulator alone."""
    in_rounds = arguments.place == "dream" and arguments.rounds is not None
    return in_rounds and arguments.env is not None and arguments.model is None and arguments.data is None


def _check_rounds(arguments: argparse.Namespace) -> None:
    """Refuse what does not go with rounds, or not without them."""
    if arguments.rounds is not None:
        if arguments.data is None and arguments.env is None:
            raise ConfigError(
                "--rounds needs --data, the dataset that the world model was trained on; give it as well, or --env "
                "instead of both to begin with nothing."
            )
        return
    for option in ("--data", "--frames", "--set-rounds", "--no-privileged"):
        if option_value(arguments, option) not in (None, []):
            raise ConfigError(f"{option} belongs to --rounds; give that as well, or leave it out.")
    for option in ("--workers", *CARLA_OPTIONS):
        if option_value(arguments, option) is not None and not arguments.select_drives:
            raise ConfigError(
                f"{option} belongs to --rounds or --select-drives; give one of them as well, or leave it out."
            )


def _run_in_rounds(arguments: argparse.Namespace) -> int:
    from wm_gym.agents.policies.config import make_agent_config
    from wm_gym.agents.training.rounds import make_rounds_config, train_agent_in_rounds

    given = {
        "rounds": arguments.rounds,
        "steps": arguments.frames,
        "select_drives": arguments.select_drives,
        "workers": arguments.workers,
        "seed": arguments.seed,
    }
    overrides = {"algo": arguments.algo, "steps": arguments.steps, "seed": arguments.seed}
    config = make_rounds_config(given_values(given), arguments.set_rounds)
    data = arguments.data or []
    if arguments.no_privileged:
        _refuse_privileged([config.behaviour] if data else [config.first_behaviour, config.behaviour], data)
    summary = train_agent_in_rounds(
        arguments.model,
        data,
        out=arguments.out,
        config=config,
        agent_config=make_agent_config(given_values(overrides), arguments.changes),
        simulator=arguments.env,
        simulator_kwargs=simulator_kwargs(arguments),
        initial=arguments.initial,
        device=arguments.device,
        worker_connections=carla_connections(arguments),
        progress=not arguments.quiet,
        track=arguments.track,
    )
    for entry in summary.rounds:
        recorded = "" if entry.data_return is None else f", mean return {entry.data_return:.1f} while recording"
        score = "" if entry.score is None else f", best mean return of its selection drives {entry.score:.1f}"
        print(f"round {entry.number}: {entry.recorded_steps:,} steps recorded{recorded}{score}")
    print(f"{summary.path}: agent of the last round; {summary.simulator_steps:,} simulator steps in all rounds")
    return 0


def _refuse_privileged(mixes: Sequence[str], data: Sequence[str]) -> None:
    """Refuse drivers that read the simulator's state, in recordings to be made and in those that are there."""
    from wm_gym.agents.behaviours import refuse_privileged
    from wm_gym.data_collection.datasets.dataset import Dataset
    from wm_gym.data_collection.recording.plan import parse_behaviours

    for mix in mixes:
        refuse_privileged(parse_behaviours(mix))
    for folder in data:
        refuse_privileged(header.behaviour for header in Dataset.open(folder).episodes)


def _run_in_dream(arguments: argparse.Namespace) -> int:
    from wm_gym.agents.policies.config import make_agent_config
    from wm_gym.agents.training.dream_training import train_agent
    from wm_gym.agents.training.selection import selection_for

    drives = arguments.select_drives or 0
    if drives < 0:
        raise ConfigError(f"--select-drives {drives} must be a whole number of at least 0.")
    with selection_for(
        arguments.model,
        drives,
        workers=1 if arguments.workers is None else arguments.workers,
        worker_connections=carla_connections(arguments),
    ) as selection:
        summary = train_agent(
            arguments.model,
            out=arguments.out,
            algo=arguments.algo,
            steps=arguments.steps,
            seed=arguments.seed,
            config=make_agent_config(changes=arguments.changes),
            device=arguments.device,
            initial=arguments.initial,
            progress=not arguments.quiet,
            on_checkpoint=selection,
            track=arguments.track,
        )
    outcome = _outcome(summary)
    dream_return = "none ended" if summary.dream_return is None else f"{summary.dream_return:.1f}"
    score = "" if summary.score is None else f", best mean return of its selection drives {summary.score:.1f}"
    print(
        f"{summary.path}: agent {outcome}; {summary.dream_steps:,} dream steps, mean dream return {dream_return}{score}"
    )
    return 0


def _run_in_simulator(arguments: argparse.Namespace) -> int:
    from wm_gym.agents.baselines.simulator_training import train_in_simulator
    from wm_gym.agents.policies.pixel_config import make_pixel_config

    if arguments.algo is not None and arguments.algo.lower() != "ppo":
        raise ConfigError(f"--in simulator trains ppo only, not --algo {arguments.algo}; leave it out.")
    summary = train_in_simulator(
        arguments.env,
        out=arguments.out,
        steps=arguments.steps,
        seed=arguments.seed,
        config=make_pixel_config(changes=arguments.changes),
        workers=1 if arguments.workers is None else arguments.workers,
        simulator_kwargs=simulator_kwargs(arguments),
        connections=carla_connections(arguments),
        device=arguments.device,
        progress=not arguments.quiet,
        track=arguments.track,
    )
    mean_return = "none ended" if summary.mean_return is None else f"{summary.mean_return:.1f}"
    print(
        f"{summary.path}: agent {_outcome(summary)}; {summary.steps:,} decisions, {summary.frames:,} simulator frames, "
        f"mean return of its last episodes {mean_return}"
    )
    return 0


def _run_on_data(arguments: argparse.Namespace) -> int:
    from wm_gym.agents.baselines.behaviour_cloning import clone_behaviour, make_cloning_config

    summary = clone_behaviour(
        arguments.data,
        arguments.model,
        out=arguments.out,
        steps=arguments.steps,
        seed=arguments.seed,
        top_fraction=arguments.top_fraction,
        config=make_cloning_config(changes=arguments.changes),
        device=arguments.device,
        progress=not arguments.quiet,
        track=arguments.track,
    )
    print(
        f"{summary.path}: agent {_outcome(summary)}; cloned from {summary.episodes} episodes, mean square error of its "
        f"actions on held-out ones {summary.validation_loss:.4f}"
    )
    return 0


def _outcome(summary: Any) -> str:
    return "was finished already" if summary.was_finished else f"trained in {summary.wall_s:.0f} s"
