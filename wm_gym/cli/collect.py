"""``wm-gym collect``: record a dataset in a simulator."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import (
    Subparsers,
    add_carla,
    add_command,
    add_common,
    add_simulator,
    carla_connections,
    simulator_kwargs,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "collect",
        "Record driving episodes in a simulator. Run it again to resume or to add episodes.",
        "wm-gym collect --env car-racing --out data/car --episodes 100 --behaviour noisy:0.7,random:0.3 --workers 2",
    )
    add_simulator(parser, required=True)
    parser.add_argument("--out", required=True, metavar="DIR", help="the dataset's folder")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--episodes", type=int, metavar="N", help="episodes that the dataset shall have")
    amount.add_argument("--frames", type=int, metavar="N", help="steps that the dataset shall have at least")
    parser.add_argument(
        "--behaviour",
        default="noisy",
        metavar="MIX",
        help="autopilot, noisy, random, (noisy-)traffic-manager of CARLA, an agent's path, or a mix with weights: "
        "noisy:0.7,random:0.3 (default: noisy)",
    )
    parser.add_argument(
        "--no-privileged",
        action="store_true",
        help="refuse behaviours that read the simulator's state: leaves random, held actions, and agents",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="K", help="processes (default: 1, or one a server)")
    parser.add_argument(
        "--codec", help="how frames are stored: png (default), webp, raw, or jpeg[:QUALITY], which is lossy"
    )
    parser.add_argument("--max-episode-steps", type=int, metavar="N", help="truncate episodes after N steps")
    parser.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="truncate episodes after N steps in a row without a reward above 0, as of a car that is stuck",
    )
    parser.add_argument(
        "--engine",
        default="processes",
        choices=["processes", "ray"],
        help="where workers run: processes of this machine (default), or actors on the hosts of a Ray cluster",
    )
    parser.add_argument(
        "--ray-address",
        metavar="auto|HOST:PORT",
        help="with --engine ray: the cluster (default: RAY_ADDRESS, or else a Ray started on this machine)",
    )
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Record, and print what the dataset now has."""
    from wm_gym.agents.behaviours import make_behaviour, refuse_privileged
    from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC
    from wm_gym.data_collection.recording.collector import collect
    from wm_gym.data_collection.recording.plan import parse_behaviours

    if arguments.no_privileged:
        refuse_privileged(parse_behaviours(arguments.behaviour))
    summary = collect(
        arguments.out,
        arguments.env,
        make_behaviour=make_behaviour,
        episodes=arguments.episodes,
        frames=arguments.frames,
        behaviour=arguments.behaviour,
        workers=arguments.workers,
        seed=arguments.seed or 0,
        simulator_kwargs=simulator_kwargs(arguments),
        worker_kwargs=carla_connections(arguments),
        codec=arguments.codec or DEFAULT_CODEC,
        max_episode_steps=arguments.max_episode_steps,
        patience=arguments.patience,
        progress=not arguments.quiet,
        engine=arguments.engine,
        ray_address=arguments.ray_address,
    )
    lost = f", {summary.lost} lost with their server and recorded again" if summary.lost else ""
    print(
        f"{summary.path}: {summary.num_episodes} episodes, {summary.num_steps} steps, mean return "
        f"{summary.mean_return:.1f} ({summary.new_episodes} new episodes in {summary.seconds:.0f} s, "
        f"{summary.steps_per_s:.0f} steps/s{lost})"
    )
    return 0
