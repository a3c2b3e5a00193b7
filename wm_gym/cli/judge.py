"""``wm-gym judge``: does a world model rank policies as the simulator does?"""

from __future__ import annotations

import argparse

from wm_gym.cli.options import (
    STOPPED_WITHOUT_A_FILE,
    Subparsers,
    add_carla,
    add_command,
    add_common,
    carla_connections,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "judge",
        "Let a world model predict the returns of policies from dreams of whole episodes, and compare them with the "
        "simulator's: correlation, rank correlation, rank violation, a scatter plot; "
        "and what it knows of wheel, pedals and pictures.",
        'wm-gym judge --model bundled --policies "bundled,random,held(0 0.2)" --counterfactuals 20 --out runs/judge',
    )
    parser.add_argument("--model", required=True, metavar="PATH", help="a world model's folder, or 'bundled'")
    parser.add_argument(
        "--policies",
        required=True,
        metavar="A,B,...",
        help="two or more: folders of agents, bundled, random, or actions that are held: 'held(STEERING ACCELERATION)'",
    )
    parser.add_argument(
        "--real",
        nargs="+",
        action="extend",
        default=[],
        metavar="RESULTS.json",
        help="what some of them earned, as evaluate --json wrote it; the others are driven now",
    )
    parser.add_argument(
        "--episodes", type=int, default=20, metavar="N", help="start states, and episodes of each policy (default: 20)"
    )
    parser.add_argument("--steps", type=int, default=250, metavar="N", help="length of the dreams (default: 250)")
    parser.add_argument(
        "--draws", type=int, default=4, metavar="N", help="dreams from each start state, whose mean counts (default: 4)"
    )
    parser.add_argument(
        "--starts",
        choices=("simulator", "model"),
        default="simulator",
        help="dreams begin where the simulator's episodes begin (default), or at the model's own start states",
    )
    parser.add_argument(
        "--choices",
        type=int,
        default=0,
        metavar="N",
        help="at N moments of episodes, let the dream choose among five action sequences that the simulator runs "
        "(default: 0)",
    )
    parser.add_argument(
        "--counterfactuals",
        type=int,
        default=0,
        metavar="N",
        help="at N moments of episodes, hold wheel and pedals at several values in the simulator and in the dream, and "
        "compare the returns, and the pictures (default: 0)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="K", help="processes (default: 1, or one a server)")
    parser.add_argument("--out", metavar="DIR", help="write tables, scatter plot and JSON into a folder")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    add_carla(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Judge, print the tables, and write what was asked for."""
    from wm_gym.agents.evaluation.finished_episodes import FinishedEpisodes
    from wm_gym.agents.evaluation.judge import judge
    from wm_gym.agents.reports.judgement import JSON_NAME, check_scorecard_folder, write_scorecard
    from wm_gym.files import check_writable, write_json_result

    out = None if arguments.out is None else check_scorecard_folder(arguments.out)
    json_file = None if arguments.json is None else check_writable(arguments.json)
    if out is None and json_file is None:
        arguments.when_stopped = STOPPED_WITHOUT_A_FILE
    seeded = {} if arguments.seed is None else {"seed": arguments.seed}
    finished = FinishedEpisodes(json_file if out is None else out / JSON_NAME)
    card = judge(
        arguments.model,
        [name.strip() for name in arguments.policies.split(",")],
        results=arguments.real,
        episodes=arguments.episodes,
        steps=arguments.steps,
        draws=arguments.draws,
        starts=arguments.starts,
        choices=arguments.choices,
        counterfactuals=arguments.counterfactuals,
        workers=arguments.workers,
        worker_connections=carla_connections(arguments),
        device=arguments.device,
        progress=not arguments.quiet,
        finished=finished,
        **seeded,
    )
    print(card.to_markdown())
    if out is not None:
        write_scorecard(card, out)
    if json_file is not None:
        write_json_result(json_file, card.to_json())
    finished.remove()
    return 0
