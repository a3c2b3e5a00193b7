"""What CARLA's leaderboard makes of drives, as a section of the report: scores, infractions, ends."""

from __future__ import annotations

from collections.abc import Mapping

from wm_gym.agents.evaluation.ends import count_ends
from wm_gym.agents.evaluation.evaluation import PER_KM
from wm_gym.agents.evaluation.results_file import SavedEvaluation
from wm_gym.agents.reports.page import NOTHING, Html, heading, paragraph, section, table

_MARK = "driving_score"  # only drives in CARLA have one
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
    scores = [name for name in _SCORES if any(name in e.driving for e in shown.values())]
    kinds = _infractions(shown)
    ends = _ends(shown)
    parts = [
        table(
            ("driver", *(_SCORES[name][0] for name in scores)),
            [[name, *(_score(e, score) for score in scores)] for name, e in shown.items()],
            chief=place,
        ),
        paragraph(
            "In the sense of the CARLA leaderboard, 2.0 and 2.1: success is the share of drives that came to the end "
            "of their route; a drive's score is its route completion times its infraction penalty. Scores are means "
            "over drives, kilometres their sum."
        ),
    ]
    if kinds:
        parts += [
            heading("Infractions for each kilometre"),
            table(
                ("driver", *(_INFRACTIONS.get(kind, kind.replace("_", " ")) for kind in kinds)),
                [[name, *(_rate(e, kind) for kind in kinds)] for name, e in shown.items()],
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


def _score(evaluation: SavedEvaluation, name: str) -> str:
    _, factor, form = _SCORES[name]
    return form.format(factor * evaluation.driving[name]) if name in evaluation.driving else NOTHING


def _rate(evaluation: SavedEvaluation, kind: str) -> str:
    rate = evaluation.driving.get(f"{kind}{PER_KM}")
    return NOTHING if rate is None else f"{rate:.2f}"


def _infractions(evaluations: Mapping[str, SavedEvaluation]) -> list[str]:
    """Kinds of infractions that are told, in a fixed order; unknown ones last."""
    told = {name.removesuffix(PER_KM) for e in evaluations.values() for name in e.driving if name.endswith(PER_KM)}
    return [kind for kind in _INFRACTIONS if kind in told] + sorted(told - set(_INFRACTIONS))


def _ends(evaluations: Mapping[str, SavedEvaluation]) -> list[str]:
    """In which ways drives ended, the most frequent of all drivers first."""
    return list(count_ends([end for e in evaluations.values() for end in e.texts.get("end", ())]))
