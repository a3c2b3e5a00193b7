"""``wm-gym evaluate``: drive in the simulator, on held-out seeds."""

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
        "evaluate",
        "Drive in the simulator and report returns with a bootstrap interval.",
        "wm-gym evaluate --agent bundled --episodes 20 --workers 2 --json result.json --video drive.mp4",
    )
    parser.add_argument(
        "--agent",
        required=True,
        metavar="NAME",
        help="an agent's folder, bundled, random, autopilot, or (noisy-)traffic-manager of CARLA",
    )
    add_simulator(parser, required=False)
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="drives (default: 20)")
    parser.add_argument("--workers", type=int, default=1, metavar="K", help="processes (default: 1, or one a server)")
    parser.add_argument("--max-episode-steps", type=int, default=None, metavar="N", help="cut drives after N steps")
    parser.add_argument("--json", default=None, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--video", default=None, metavar="FILE", help="write the first drive as .mp4 or .gif")
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Drive, and print the result."""
    from wm_gym.agents.evaluation import evaluate
    from wm_gym.data_collection.plan import HELD_OUT_FROM

    result = evaluate(
        arguments.agent,
        arguments.env,
        episodes=arguments.episodes,
        seed=HELD_OUT_FROM if arguments.seed is None else arguments.seed,
        workers=arguments.workers,
        max_episode_steps=arguments.max_episode_steps,
        json_path=arguments.json,
        video_path=arguments.video,
        simulator_kwargs=simulator_kwargs(arguments),
        worker_connections=carla_connections(arguments),
        device=arguments.device,
        progress=not arguments.quiet,
    )
    interval = "" if result.ci95 is None else f", 95 % interval {result.ci95[0]:.1f} to {result.ci95[1]:.1f}"
    print(
        f"{result.driver} in {result.simulator.id}: mean return {result.mean_return:.1f}{interval}, over "
        f"{result.episodes} episodes with seeds {result.seeds[0]} to {result.seeds[-1]}"
    )
    for name, value in result.driving.items():
        print(f"  {name}: {value:.3f}")
    return 0
