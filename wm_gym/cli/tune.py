"""``wm-gym tune``: search for an agent's settings."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter

from wm_gym.cli.options import (
    Subparsers,
    add_carla,
    add_changes,
    add_command,
    add_common,
    add_track,
    carla_connections,
    given_values,
)
from wm_gym.errors import ConfigError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "tune",
        "Search for settings of an agent by Optuna: trainings in dreams, judged by episodes on training tracks of the "
        "simulator, never by dreams. Run it again to resume.",
        "wm-gym tune --model runs/model --trials 20 --steps 400000 --search learning_rate=log:1e-5:1e-3 "
        "--search horizon=int:15:60 --out runs/tune",
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH", help="a world model's folder, 'bundled', or owner/name on the Hub"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the search's folder, with a run for each trial")
    parser.add_argument(
        "--search",
        action="append",
        required=True,
        metavar="KEY=KIND:VALUES",
        help="a setting to search: KEY=log:LOW:HIGH, float:LOW:HIGH, int:LOW:HIGH or choice:A,B,...; may be repeated",
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="trials in all (default: 20)")
    parser.add_argument(
        "--select-drives",
        type=int,
        default=8,
        metavar="K",
        help="episodes on training tracks of the simulator that score each checkpoint (default: 8)",
    )
    parser.add_argument("--algo", help="ppo (default), a2c, sac, td3 or ddpg")
    parser.add_argument("--steps", type=int, metavar="N", help="dream steps of each trial")
    add_changes(parser, "a setting that is not searched")
    parser.add_argument(
        "--initial", metavar="AGENT", help="the folder of an agent whose policy every trial goes on from"
    )
    parser.add_argument(
        "--spare", type=int, default=5, metavar="N", help="trials that end before one is stopped early (default: 5)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="K", help="processes that drive (default: 1)")
    add_carla(parser)
    add_track(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Search, and print the best settings."""
    from wm_gym.agents.policies.config import make_agent_config
    from wm_gym.agents.training.selection import selection_for
    from wm_gym.agents.training.tuning import BEST, check_search, tune

    if arguments.select_drives < 1:
        raise ConfigError(f"--select-drives {arguments.select_drives} cannot judge a trial; give at least 1.")
    given = {"algo": arguments.algo, "steps": arguments.steps, "seed": arguments.seed}
    config = make_agent_config(given_values(given), arguments.changes)
    check_search(arguments.model, arguments.search, config)  # before simulators are made
    with selection_for(
        arguments.model,
        arguments.select_drives,
        workers=arguments.workers,
        worker_connections=carla_connections(arguments),
    ) as selection:
        assert selection is not None
        summary = tune(
            arguments.model,
            out=arguments.out,
            trials=arguments.trials,
            searches=arguments.search,
            validation=selection,
            config=config,
            initial=arguments.initial,
            spared=arguments.spare,
            device=arguments.device,
            progress=not arguments.quiet,
            track=arguments.track,
        )
    counted = Counter(trial.outcome for trial in summary.trials)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counted.items())
    best = summary.best
    print(f"{summary.path}: {len(summary.trials)} trials ({told})")
    print(f"the best is {best.path}, an agent with a mean return of {best.score:.1f} over its selection drives:")
    print("  " + " ".join(f"--set {shlex.quote(change)}" for change in best.settings))
    print(f"all settings that are no defaults are in {summary.path / BEST}")
    return 0
