"""A model card for the Hub: the one that a bundle has, with the fields that the Hub sorts by, scores and a video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from wm_gym.errors import BundleError
from wm_gym.plain_files import read_json

_PLACEHOLDERS = ("model=PATH)", "from_pretrained(PATH)", "load(PATH)")
JUDGEMENT_FILE = "judge/scorecard.json"
"""Where a judgement of a world model is in its folder: that of ``wm-gym judge --out FOLDER/judge``."""
_JUDGEMENT_REMEDY = "give the file that `wm-gym judge --out` wrote, or remove it"
_EVALUATION_REMEDY = "give the file that `wm-gym evaluate --json` wrote"


class Score(NamedTuple):
    """One figure of a card.

    Attributes:
        name: What it is, with its unit where it has one.
        metric: The Hub's name of the metric, for example ``"mean_reward"``.
        value: The figure.
        remark: What else the table says of it, for example an interval.
    """

    name: str
    metric: str
    value: float
    remark: str = ""


def hub_card(
    card: str,
    repository: str,
    *,
    tags: Sequence[str],
    simulator: str,
    scores: Sequence[Score] = (),
    video_address: str | None = None,
) -> str:
    """The text of ``README.md`` in a repository.

    Args:
        card: The bundle's own card; ``PATH`` in its examples becomes the repository's name.
        repository: ``"owner/name"``.
        tags: What the Hub finds it by.
        simulator: Gymnasium id of the simulator that the scores belong to.
        scores: Figures for the table, and for the Hub's own list of results.
        video_address: Where the video will be, ``.mp4`` or ``.gif``.
    """
    head: dict[str, Any] = {
        "library_name": "wm_gym",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["wm_gym", *tags, simulator],
    }
    if scores:
        head["model-index"] = [
            {
                "name": repository.rpartition("/")[2],
                "results": [
                    {
                        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
                        "dataset": {"type": simulator, "name": simulator},
                        "metrics": [
                            {"type": score.metric, "name": score.name, "value": score.value} for score in scores
                        ],
                    }
                ],
            }
        ]
    for placeholder in _PLACEHOLDERS:
        card = card.replace(placeholder, placeholder.replace("PATH", f'"{repository}"'))
    start, separator, rest = card.partition("\n## ")
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{start.rstrip()}\n"]
    if video_address is not None:
        is_picture = video_address.endswith(".gif")
        shown = f"![A drive]({video_address})" if is_picture else f'<video controls src="{video_address}"></video>'
        parts.append(f"\n{shown}\n")
    if scores:
        parts += ["\n## Scores\n", f"\n| in `{simulator}` | | |\n| --- | ---: | --- |\n"]
        parts += [f"| {score.name} | {score.value:.5g} | {score.remark} |\n" for score in scores]
    return "".join(parts) + separator + rest


def model_scores(metrics: Mapping[str, Any]) -> list[Score]:
    """The figures of a world model's ``metrics.json`` that stand in the table: frames predicted from actions alone."""
    scores = []
    for metric, name in (("psnr", "PSNR of predicted frames (dB)"), ("ssim", "SSIM of predicted frames")):
        by_steps = metrics.get(metric)
        for steps, value in by_steps.items() if isinstance(by_steps, dict) else ():
            if _is_number(value):
                scores.append(Score(f"{name}, {steps} steps ahead", metric, float(value), "held-out episodes"))
    return scores


def judgement_scores(judgement: Mapping[str, Any]) -> list[Score]:
    """The figures of a world model as a judge of policies that stand in the table.

    Args:
        judgement: What :func:`read_judgement` read.
    """
    agreement = judgement["agreement"][-1]
    remark = f"dream against simulator, {len(judgement['policies'])} policies over {agreement.get('steps')} steps"
    found = [
        ("Pearson correlation of returns", "pearsonr", agreement.get("pearson"), remark),
        ("Spearman correlation of returns", "spearmanr", agreement.get("spearman"), remark),
        ("MMRV of returns", "mmrv", agreement.get("mmrv"), remark),
    ]
    held = _part(judgement, "counterfactuals")
    for control in ("wheel", "pedals"):
        figures, remark = _part(held, control), f"held for {held.get('steps')} steps at {held.get('points')} moments"
        found += [
            (f"Pearson correlation with the {control} held", "pearsonr", figures.get("pearson"), remark),
            (f"Error of return with the {control} held", "mae", figures.get("mean_absolute_error"), remark),
        ]
    pictures = _part(judgement, "pictures")
    by_horizon = pictures.get("by_horizon")
    for one in by_horizon if isinstance(by_horizon, list) else ():
        remark = f"{one.get('frames')} frames at decision points"
        for metric, name in (("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("lpips", "LPIPS")):
            found.append((f"{name} of dreamt frames, {one.get('steps')} steps ahead", metric, one.get(metric), remark))
    remark = f"not FVD; {pictures.get('frechet_sequences')} sequences"
    found.append(("Frechet distance in the bundled encoder's latents", "frechet", pictures.get("frechet"), remark))
    return [Score(name, metric, float(value), remark) for name, metric, value, remark in found if _is_number(value)]


def agent_scores(metrics: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> list[Score]:
    """The figures of an agent that stand in the table.

    Args:
        metrics: Its ``metrics.json``.
        evaluation: What :func:`read_evaluation` read.
    """
    scores = []
    if evaluation is not None:
        interval = evaluation.get("ci95")
        remark = f"{evaluation['episodes']} episodes"
        if isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval)):
            remark = f"95 % interval {interval[0]:.1f} to {interval[1]:.1f}, {remark}"
        scores.append(Score("mean return", "mean_reward", float(evaluation["mean_return"]), remark))
    if _is_number(metrics.get("score")):
        remark = "mean return of the episodes that chose the checkpoint, on training tracks"
        scores.append(Score("score in training", "mean_reward", float(metrics["score"]), remark))
    return scores


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """The result of ``wm-gym evaluate --json``.

    Raises:
        BundleError: There is none, or it is something else.
    """
    values = read_json(Path(path), error=BundleError, remedy=_EVALUATION_REMEDY)
    if (
        not _is_number(values.get("mean_return"))
        or type(values.get("episodes")) is not int
        or not isinstance(values.get("simulator"), dict)
        or not isinstance(values["simulator"].get("id"), str)
    ):
        raise BundleError(f"{str(path)!r} is no evaluation of a driver; {_EVALUATION_REMEDY}.")
    return values


def read_judgement(path: str | Path) -> dict[str, Any]:
    """The ``scorecard.json`` of ``wm-gym judge --out``.

    Raises:
        BundleError: There is none, or it is something else.
    """
    values = read_json(Path(path), error=BundleError, remedy=_JUDGEMENT_REMEDY)
    agreement = values.get("agreement")
    if (
        not isinstance(agreement, list)
        or not agreement
        or not isinstance(agreement[-1], dict)
        or not isinstance(values.get("policies"), list)
    ):
        raise BundleError(f"{str(path)!r} is no scorecard; {_JUDGEMENT_REMEDY}.")
    return values


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
