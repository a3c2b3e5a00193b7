"""``wm-gym evaluate``: drive in the simulator, on held-out seeds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wm_gym.cli.options import (
    STOPPED_WITHOUT_A_FILE,
    Joined,
    Subparsers,
    add_carla,
    add_command,
    add_common,
    add_simulator,
    carla_connections,
    option_value,
    simulator_kwargs,
)
from wm_gym.errors import ConfigError

if TYPE_CHECKING:
    from wm_gym.agents.evaluation.evaluation import EvaluationResult
    from wm_gym.agents.evaluation.reality_gap import RealityGap
    from wm_gym.agents.evaluation.suites import Condition
    from wm_gym.envs.carla.route_files import FileRoute

_EPISODES = 20


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
        help="an agent's folder, owner/name on the Hub, bundled, random, 'held(STEERING ACCELERATION)', autopilot, or "
        "(noisy-)traffic-manager of CARLA",
    )
    add_simulator(parser, required=False)
    parser.add_argument(
        "--episodes",
        type=int,
        metavar="N",
        help=f"episodes (default: {_EPISODES}; with --suite 25 of each kind; with --routes one for each route)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="K", help="processes (default: 1, or one a server)")
    parser.add_argument("--max-episode-steps", type=int, metavar="N", help="cut episodes after N steps")
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; a stopped evaluation then goes on where it was"
    )
    parser.add_argument("--video", metavar="FILE", help="write the first episode as .mp4 or .gif")
    parser.add_argument(
        "--gap",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare an agent's dreams with its episodes: returns, calibration of rewards and ends (default: yes)",
    )
    parser.add_argument(
        "--gap-horizon",
        type=int,
        metavar="N",
        help="steps of these dreams (default: the horizon that the agent was trained with)",
    )
    group = parser.add_argument_group("benchmarks", "in CARLA; docs/carla.md tells what they measure")
    group.add_argument(
        "--routes",
        metavar="FILE.xml",
        help="drive each route of a file of the leaderboard, longest6, Bench2Drive or their like once",
    )
    group.add_argument("--route-ids", metavar="IDS", help="only these routes, as in 0,3,8-12")
    group.add_argument(
        "--towns", action=Joined, metavar="TOWN[,...]", help="only routes, or episodes of a suite, in these"
    )
    group.add_argument(
        "--leaderboard-json",
        metavar="FILE",
        help="with --routes: write the results in the layout of the leaderboard's own file",
    )
    group.add_argument("--suite", metavar="NAME", help="nocrash, or nocrash:empty, nocrash:regular, nocrash:dense")
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Drive, and print the result."""
    from wm_gym.agents.evaluation.evaluation import evaluate
    from wm_gym.data_collection.recording.plan import HELD_OUT_FROM

    _check_benchmark_options(arguments)
    if arguments.json is None and arguments.leaderboard_json is None:
        arguments.when_stopped = STOPPED_WITHOUT_A_FILE
    settings: dict[str, Any] = {
        "seed": HELD_OUT_FROM if arguments.seed is None else arguments.seed,
        "workers": arguments.workers,
        "max_episode_steps": arguments.max_episode_steps,
        "json_path": arguments.json,
        "video_path": arguments.video,
        "simulator_kwargs": simulator_kwargs(arguments),
        "gap": arguments.gap,
        "gap_horizon": arguments.gap_horizon,
        "worker_connections": carla_connections(arguments),
        "device": arguments.device,
        "progress": not arguments.quiet,
    }
    if arguments.suite is not None:
        _run_suite(arguments, settings)
    elif arguments.routes is not None:
        _run_routes(arguments, settings)
    else:
        episodes = _EPISODES if arguments.episodes is None else arguments.episodes
        evaluate(arguments.agent, arguments.env, episodes=episodes, notify=_print_result, **settings)
    return 0


def _check_benchmark_options(arguments: argparse.Namespace) -> None:
    """Refuse options that need others, or exclude them, each in one sentence."""
    if arguments.suite is not None and arguments.leaderboard_json is not None:
        raise ConfigError("--leaderboard-json does not go with --suite, which has other results; use --json.")
    for option in ("--route-ids", "--leaderboard-json"):
        if option_value(arguments, option) is not None and arguments.routes is None:
            raise ConfigError(f"{option} belongs to --routes FILE.xml; give that as well, or leave it out.")
    if arguments.towns is not None and arguments.routes is None and arguments.suite is None:
        raise ConfigError(
            "--towns belongs to --routes or --suite; give one of them, or a town by --env-set town=Town02."
        )
    if arguments.suite is None and arguments.routes is not None and arguments.episodes is not None:
        raise ConfigError("--routes drives each route once; choose some by --route-ids instead of --episodes.")


def _chosen_routes(arguments: argparse.Namespace) -> list[FileRoute]:
    from wm_gym.envs.carla.route_files import choose_routes, read_routes

    return choose_routes(read_routes(arguments.routes), ids=arguments.route_ids, towns=_towns(arguments))


def _towns(arguments: argparse.Namespace) -> list[str] | None:
    return None if arguments.towns is None else [town.strip() for town in arguments.towns.split(",")]


def _run_routes(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from wm_gym.agents.evaluation.route_drives import evaluate_routes

    routes = _chosen_routes(arguments)
    for line in _left_out(routes):
        print(line)
    evaluate_routes(
        arguments.agent,
        arguments.env,
        routes,
        leaderboard_path=arguments.leaderboard_json,
        notify=lambda result: _print_routes(result, routes),
        **settings,
    )


def _left_out(routes: list[FileRoute]) -> Iterator[str]:
    """What the leaderboard would do on these routes and this package does not."""
    scenarios = sum(route.num_scenarios for route in routes)
    if scenarios:
        yield f"left out: {scenarios} scenarios of {sum(route.num_scenarios > 0 for route in routes)} routes"
    changing = sum(route.num_weathers > 1 for route in routes)
    if changing:
        yield f"left out: the change of weather along {changing} routes; each keeps the first that it names"


def _run_suite(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    from wm_gym.agents.evaluation.suites import parse_suite, run_suite

    traffic = parse_suite(arguments.suite)
    routes = None if arguments.routes is None else _chosen_routes(arguments)
    run_suite(
        arguments.agent,
        arguments.env,
        traffic=traffic,
        towns=_towns(arguments),
        episodes=arguments.episodes,
        routes=routes,
        notify=_print_condition,
        **settings,
    )
    if routes is None:
        print(
            "The routes were drawn by seeds: the original's starts and goals are numbers of CARLA 0.8's spawn points."
        )


def _print_condition(condition: Condition) -> None:
    """A line of the suite's table."""
    result = condition.result
    print(
        f"{condition.town} ({condition.role}), {condition.traffic}: success {condition.success_rate:.2f} of "
        f"{result.episodes} drives, route completion {result.driving['route_completion']:.1f} %, "
        f"ended by: {_ends(result)}"
    )


def _print_routes(result: EvaluationResult, routes: list[FileRoute]) -> None:
    """The result as a whole, and a line for each route."""
    from wm_gym.agents.evaluation.ends import CUT

    _print_result(result)
    for route, numbers, end in zip(routes, result.last_infos, result.texts["end"], strict=True):
        print(
            f"  route {route.route_id} ({route.town}, {numbers['route_length']:.0f} m): completion "
            f"{numbers['route_completion']:.1f} %, driving score {numbers['driving_score']:.1f} (2.1: "
            f"{numbers['driving_score_2_1']:.1f}), {end or CUT}"
        )


def _print_result(result: EvaluationResult) -> None:
    interval = "" if result.ci95 is None else f", 95 % interval {result.ci95[0]:.1f} to {result.ci95[1]:.1f}"
    print(
        f"{result.driver} in {result.simulator.id}: mean return {result.mean_return:.1f}{interval}, over "
        f"{result.episodes} episodes with seeds {result.seeds[0]} to {result.seeds[-1]}"
    )
    for name, value in result.driving.items():
        print(f"  {name}: {value:.3f}")
    if result.texts.get("end"):
        print(f"  ended by: {_ends(result)}")
    if result.reality_gap is not None:
        for line in _gap_lines(result.reality_gap):
            print(f"  {line}")


def _ends(result: EvaluationResult) -> str:
    """How often episodes ended in which way."""
    from wm_gym.agents.evaluation.ends import ends_in_words

    return ends_in_words(result.texts["end"])


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
    if gap.uncertainty:
        at = gap.uncertainty[-1]
        yield (
            f"uncertainty over {at.steps} steps: {100 * at.coverage:.0f} % of the errors within one deviation (mean "
            f"{at.mean_deviation:.1f}), AUROC of the largest quarter {_number(at.auroc)}"
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
