"""``wm-gym evaluate``: drive in the simulator, on held-out seeds."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wm_gym.cli.options import (
    Subparsers,
    add_carla,
    add_command,
    add_common,
    add_simulator,
    carla_connections,
    simulator_kwargs,
)

if TYPE_CHECKING:
    from wm_gym.agents.evaluation.evaluation import EvaluationResult
    from wm_gym.agents.evaluation.reality_gap import RealityGap


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
    parser.add_argument(
        "--gap",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare an agent's dreams with its drives: returns, calibration of rewards and ends (default: yes)",
    )
    parser.add_argument(
        "--gap-horizon",
        type=int,
        default=None,
        metavar="N",
        help="steps of these dreams (default: the horizon that the agent was trained with)",
    )
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Drive, and print the result."""
    from wm_gym.agents.evaluation.evaluation import evaluate
    from wm_gym.data_collection.recording.plan import HELD_OUT_FROM

    evaluate(
        arguments.agent,
        arguments.env,
        episodes=arguments.episodes,
        seed=HELD_OUT_FROM if arguments.seed is None else arguments.seed,
        workers=arguments.workers,
        max_episode_steps=arguments.max_episode_steps,
        json_path=arguments.json,
        video_path=arguments.video,
        simulator_kwargs=simulator_kwargs(arguments),
        gap=arguments.gap,
        gap_horizon=arguments.gap_horizon,
        worker_connections=carla_connections(arguments),
        device=arguments.device,
        progress=not arguments.quiet,
        notify=_print_result,
    )
    return 0


def _print_result(result: EvaluationResult) -> None:
    interval = "" if result.ci95 is None else f", 95 % interval {result.ci95[0]:.1f} to {result.ci95[1]:.1f}"
    print(
        f"{result.driver} in {result.simulator.id}: mean return {result.mean_return:.1f}{interval}, over "
        f"{result.episodes} episodes with seeds {result.seeds[0]} to {result.seeds[-1]}"
    )
    for name, value in result.driving.items():
        print(f"  {name}: {value:.3f}")
    ends = Counter(end or "the limit on its steps" for end in result.texts.get("end", ()))
    if ends:
        print("  ended by: " + ", ".join(f"{end} {count}" for end, count in ends.most_common()))
    if result.reality_gap is not None:
        for line in _gap_lines(result.reality_gap):
            print(f"  {line}")


def _gap_lines(gap: RealityGap) -> Iterator[str]:
    """The reality gap in a few lines."""
    if gap.by_horizon:
        longest = gap.by_horizon[-1]
        yield (
            f"dream against simulator over {longest.steps} steps: {longest.mean_dream:.1f} against "
            f"{longest.mean_real:.1f}{_ratio(longest.ratio)}, {gap.windows} windows"
        )
        yield (
            f"the same over as many of these steps as were driven before the task ended: "
            f"{longest.mean_dream_as_driven:.1f} against {longest.mean_real:.1f}{_ratio(longest.ratio_as_driven)}"
        )
        yield (
            f"predicted along the recorded actions over {longest.steps} steps: {longest.mean_predicted:.1f}, mean "
            f"absolute error {longest.predicted_error:.1f}, correlation {_number(longest.predicted_correlation)}"
        )
    else:
        yield f"no drive has {gap.horizon} steps after its first {gap.first_start}; give a smaller --gap-horizon"
    if gap.whole_drive is not None:
        whole = gap.whole_drive
        yield (
            f"dream against simulator over whole drives ({whole.mean_steps:.0f} steps): {whole.mean_dream:.1f} against "
            f"{whole.mean_real:.1f}{_ratio(whole.ratio)}"
        )
    if gap.reward is not None:
        yield (
            f"predicted reward of the next step: mean absolute error {gap.reward.absolute_error:.2f}, calibration "
            f"error {gap.reward.expected_calibration_error:.2f}"
        )
    if gap.termination is not None:
        ends = gap.termination
        yield (
            f"ends: {ends.num_real} real, {ends.num_predicted} predicted, precision {_number(ends.precision)}, recall "
            f"{_number(ends.recall)}, Brier score {ends.brier:.4f}"
        )


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f" (ratio {ratio:.2f})"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
