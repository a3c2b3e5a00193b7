"""What CARLA's leaderboard makes of episodes, as a section of the report: scores, infractions, ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from wm_gym.agents.evaluation.ends import count_ends
from wm_gym.agents.evaluation.evaluation import PER_KM
from wm_gym.agents.evaluation.results_file import SavedEvaluation
from wm_gym.agents.reports.page import NOTHING, Html, heading, paragraph, section, table

_MARK = "driving_score"  # only episodes in CARLA have one
# Scores of an evaluation: column head, factor and format.
_SCORES: dict[str, tuple[str, float, str]] = {
    "success": ("success", 100.0, "{:.0f} %"),
    "route_completion": ("route completion", 1.0, "{:.1f} %"),
    "infraction_penalty": ("infraction penalty", 1.0, "{:.2f}"),
    "driving_score": ("driving score", 1.0, "{:.1f}"),
    "infraction_penalty_2_1": ("penalty, 2.1", 1.0, "{:.2f}"),
    "driving_score_2_1": ("driving score, 2.1", 1.0, "{:.1f}"),
    "km": ("km driven", 1.0, "{:.2f}"),
}
_INFRACTIONS = {
    "collisions_pedestrian": "collisions with pedestrians",
    "collisions_vehicle": "collisions with vehicles",
    "collisions_static": "collisions with static objects",
    "red_lights": "red lights run",
    "off_road": "times off the road",
    "route_deviations": "deviations from the route",
    "blocked": "blocked",
}


def carla_section(evaluations: Mapping[str, SavedEvaluation], chief: str = "agent") -> Html | None:
    """The scores of every driver whose drives were CARLA's; ``None`` where none were.

    Args:
        evaluations: By the name that the driver has in the report.
        chief: Which of them to set off.
    """
    shown = {name: evaluation for name, evaluation in evaluations.items() if _MARK in evaluation.driving}
    if not shown:
        return None
    place = list(shown).index(chief) if chief in shown else None
    scores, score_rows = metric_columns(_SCORES, shown.values())
    told = {name.removesuffix(PER_KM) for e in shown.values() for name in e.driving if name.endswith(PER_KM)}
    kinds = {**_INFRACTIONS, **{kind: kind.replace("_", " ") for kind in sorted(told - set(_INFRACTIONS))}}
    rates = {f"{kind}{PER_KM}": (title, 1.0, "{:.2f}") for kind, title in kinds.items()}
    infractions, infraction_rows = metric_columns(rates, shown.values())
    ends = count_ends([end for e in shown.values() for end in e.texts.get("end", ())])
    parts = [
        table(
            ("driver", *scores), [[name, *cells] for name, cells in zip(shown, score_rows, strict=True)], chief=place
        ),
        paragraph(
            "In the sense of the CARLA leaderboard, 2.0 and 2.1: success is the share of drives that came to the end "
            "of their route; a drive's score is its route completion times its infraction penalty. Scores are means "
            "over drives, kilometres their sum."
        ),
    ]
    if infractions:
        parts += [
            heading("Infractions for each kilometre"),
            table(
                ("driver", *infractions),
                [[name, *cells] for name, cells in zip(shown, infraction_rows, strict=True)],
                chief=place,
            ),
        ]
    if ends:
        counts = {name: count_ends(e.texts.get("end", ())) for name, e in shown.items()}
        parts += [
            heading("Drives ended by"),
            table(
                ("driver", *(end.replace("_", " ") for end in ends)),
                [
                    [name, *(str(found.get(end, 0)) if found else NOTHING for end in ends)]
                    for name, found in counts.items()
                ],
                chief=place,
            ),
        ]
    return section("CARLA's scores", *parts)


def metric_columns(
    metrics: Mapping[str, tuple[str, float, str]], evaluations: Collection[SavedEvaluation]
) -> tuple[list[str], list[list[str]]]:
    """The driving metrics that any evaluation tells, as columns of a table.

    Args:
        metrics: Head, factor and format of each metric.
        evaluations: A row for each.

    Returns:
        The heads, and the cells of every row.
    """
    told = [name for name in metrics if any(name in e.driving for e in evaluations)]
    cells = [
        [metrics[name][2].format(metrics[name][1] * e.driving[name]) if name in e.driving else NOTHING for name in told]
        for e in evaluations
    ]
    return [metrics[name][0] for name in told], cells
