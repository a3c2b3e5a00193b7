"""``wm-gym train-agent``: train an agent in imagination only."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import Subparsers, add_command, add_common
from wm_gym.errors import ConfigError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "train-agent",
        "Train an agent in a world model's dreams; it never touches the simulator. Run it again to resume.",
        "wm-gym train-agent --model runs/model --algo ppo --steps 2000000 --out runs/agent",
    )
    parser.add_argument("--model", required=True, metavar="PATH", help="a world model's folder, or 'bundled'")
    parser.add_argument("--algo", default=None, help="ppo (default), a2c, sac, td3 or ddpg")
    parser.add_argument("--steps", type=int, default=None, metavar="N", help="dream steps in all")
    parser.add_argument("--out", required=True, metavar="DIR", help="the run's folder; at the end it is the agent")
    parser.add_argument(
        "--select-drives",
        type=int,
        default=0,
        metavar="N",
        help="keep the checkpoint that drives best over N training tracks of the simulator (default: 0, keep the last)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="change a setting; may be repeated",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print how the dreams went."""
    from wm_gym.agents.config import make_agent_config
    from wm_gym.agents.selection import selection_for
    from wm_gym.agents.training import train_agent

    if arguments.select_drives < 0:
        raise ConfigError(f"--select-drives {arguments.select_drives} must be a whole number of at least 0.")
    with selection_for(arguments.model, arguments.select_drives) as selection:
        summary = train_agent(
            arguments.model,
            out=arguments.out,
            algo=arguments.algo,
            steps=arguments.steps,
            seed=arguments.seed,
            config=make_agent_config(changes=arguments.changes),
            device=arguments.device,
            progress=not arguments.quiet,
            on_checkpoint=selection,
        )
    outcome = "was finished already" if summary.was_finished else f"trained in {summary.wall_s:.0f} s"
    dream_return = "none ended" if summary.dream_return is None else f"{summary.dream_return:.1f}"
    score = "" if summary.score is None else f", best mean return of its selection drives {summary.score:.1f}"
    print(
        f"{summary.path}: agent {outcome}; {summary.dream_steps:,} dream steps, mean dream return {dream_return}{score}"
    )
    return 0
