"""The sections of a report that are made of a run's record alone: no model computes, and nothing drives."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from PIL import Image

from wm_gym.agents.bundles.folder import MANIFEST
from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.reports import carla_scores, figures
from wm_gym.agents.reports.page import NOTHING, Html, bullets, details, heading, image, paragraph, section, table
from wm_gym.agents.reports.run_files import HeldWheel, Run, read_json_file, read_yaml_file
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.model_check import model_faults
from wm_gym.provenance import provenance

_LABELS = {
    "agent": "agent, trained in the dream",
    "random": "random actions",
    "autopilot": "autopilot, reads the simulator's state",
    "noisy": "autopilot with disturbances",
}
# Driving metrics of an evaluation: column head, factor and format.
_DRIVING_COLUMNS: dict[str, tuple[str, float, str]] = {
    "progress": ("track covered", 100.0, "{:.0f} %"),
    "off_road_fraction": ("off road", 100.0, "{:.0f} %"),
    "mean_speed": ("mean speed", 1.0, "{:.1f}"),
    "lap_finished_rate": ("laps finished", 100.0, "{:.0f} %"),
}


def returns_section(run: Run) -> Html | None:
    """Returns of every driver that was evaluated and of the data, and how they drove."""
    evaluations = run.evaluations.values()
    labels = [_LABELS.get(name, name) for name in run.evaluations]
    heads, driving = carla_scores.metric_columns(_DRIVING_COLUMNS, evaluations)
    driving_rows = [
        [label, f"{np.mean(evaluation.lengths):.0f}", *cells]
        for label, evaluation, cells in zip(labels, evaluations, driving, strict=True)
    ]
    measured = [
        (label, e.mean_return, e.ci95, len(e.returns), e.seeds) for label, e in zip(labels, evaluations, strict=True)
    ]
    if run.data is not None:
        returns = [header.return_ for header in run.data.episodes]
        seeds = [header.seed for header in run.data.episodes]
        mean = float(np.mean(returns))
        measured.append(("the collected data", mean, bootstrap_interval(returns), len(returns), seeds))
    if not measured:
        return None
    rows = [
        [label, f"{mean:.1f}", _interval(interval), str(count), _seeds(seeds)]
        for label, mean, interval, count, seeds in measured
    ]
    bars = [
        figures.ReturnBar(label, mean, interval, is_chief=label == _LABELS["agent"])
        for label, mean, interval, *_ in measured
    ]
    chief = list(run.evaluations).index("agent") if "agent" in run.evaluations else None
    comparison = _comparison(run)
    return section(
        "Returns in the simulator",
        table(("driver", "mean return", "95 % interval", "episodes", "seeds"), rows, words=(0, 4), chief=chief),
        figure(figures.draw_returns(bars), "Mean return of each driver with its 95 % interval"),
        paragraph(comparison) if comparison else None,
        paragraph(
            "Intervals are percentile bootstraps over episodes: they cover the choice of tracks, not the chance of "
            f"training. Tracks with seeds from {HELD_OUT_FROM:,} up are held out: neither data nor training nor any "
            "choice saw them."
        ),
        *(
            [heading("How they drove"), table(("driver", "mean steps", *heads), driving_rows, chief=chief)]
            if driving_rows
            else []
        ),
    )


def carla_section(run: Run) -> Html | None:
    """CARLA's scores, where episodes were CARLA's."""
    named = {_LABELS.get(name, name): evaluation for name, evaluation in run.evaluations.items()}
    return carla_scores.carla_section(named, _LABELS["agent"])


def _comparison(run: Run) -> str | None:
    """The agent against random actions on the same tracks."""
    agent, random = run.evaluations.get("agent"), run.evaluations.get("random")
    if agent is None or random is None or agent.seeds != random.seeds or len(agent.returns) != len(random.returns):
        return None
    differences = [ours - theirs for ours, theirs in zip(agent.returns, random.returns, strict=True)]
    interval = bootstrap_interval(differences)
    mean = float(np.mean(differences))
    return (
        f"Track by track, the agent's return is {abs(mean):.1f} {'above' if mean >= 0 else 'below'} that of random "
        "actions" + ("." if interval is None else f" (95 % interval of the difference: {_interval(interval)}).")
    )


def judge_section(run: Run) -> Html | None:
    """A scorecard of ``wm-gym judge``."""
    if run.scorecard is None:
        return None
    first, *others = run.scorecard.tables()
    parts = [
        (heading(one.title), table(one.headings, one.cells()), *(paragraph(note) for note in one.notes))
        for one in others
    ]
    is_doubted = any(one.doubt is not None for score in run.scorecard.policies for one in score.by_horizon)
    doubt = " Bars with ends are one standard deviation of the dream's error, as the model tells it." * is_doubted
    return section(
        "The dream as a judge",
        paragraph(first.title),
        table(first.headings, first.cells(), words=(1,)),
        *(paragraph(note) for note in first.notes),
        figure(
            figures.draw_agreement(run.scorecard),
            "Return of every policy in the dream against its return in the simulator",
            "A point is a policy; the lines are 95 % intervals over start states and over drives." + doubt,
        ),
        *(piece for part in parts for piece in part),
    )


def curves_section(run: Run) -> Html | None:
    """How the trainings went."""
    parts: list[Html | None] = []
    model_figure = figures.draw_model_curves(run.model_rows, run.model_metrics.update, run.keep)
    if model_figure is not None:
        parts += [
            heading("World model"),
            figure(
                model_figure,
                "Losses and open-loop predictions of the world model",
                "Validation is on episodes that training never saw. By horizon: the model sees a few frames and "
                "predicts on without any; repeating the last frame seen is what it has to beat.",
            ),
        ]
    if run.model_metrics.held_wheel is not None:
        parts += _held_wheel(run.model_metrics.held_wheel)
    faults = model_faults(run.model_metrics.model_dump())
    if faults:
        parts += [heading("Warnings"), bullets(faults)]
    agent_figure = figures.draw_agent_curves(run.agent_rows)
    if agent_figure is not None:
        parts += [
            heading("Agent"),
            figure(
                agent_figure,
                "Returns and losses of the agent in the dream",
                "Dream returns are those of the world model's imagination, over dreams of limited length: what it "
                "promises, not what the simulator gives.",
            ),
        ]
    return section("Training", *parts)


def _held_wheel(measured: HeldWheel) -> list[Html]:
    """What dreams pay with the wheel held, by its angle."""
    lost = measured.lost
    return [
        heading("The wheel held"),
        table(
            ("steering", *(f"{angle:+g}" for angle in measured.returns)),
            [(f"return of {measured.steps} dreamt steps", *(f"{value:.1f}" for value in measured.returns.values()))],
        ),
        paragraph(
            "From held-out moments, with the wheel held at one angle. Far to one side it leads off the road in the "
            "simulator; a dream that pays as much there has a road that follows the wheel, and teaches nothing."
            + (f" The outermost angles pay {100 * lost:.0f} % less than the best one." if lost is not None else "")
        ),
    ]


def time_section(run: Run) -> Html | None:
    """What each step took."""
    stages = run.summary.get("stages")
    if not isinstance(stages, list):
        return None
    rows = []
    for stage in stages:
        if isinstance(stage, Mapping) and isinstance(stage.get("seconds"), (int, float)):
            rows.append((str(stage.get("name", "")), _duration(stage["seconds"])))
    return section("Time", table(("step", "took"), rows)) if rows else None


def provenance_section(run: Run) -> Html | None:
    """Versions, machines, seeds and settings."""
    rows, folded = [], []
    if run.data is not None:
        metadata = run.data.metadata
        collection_seed = metadata.collection.seed if metadata.collection else None
        rows.append(_provenance_row("data", metadata.created_with, collection_seed))
        folded.append(details("Data: dataset.json", metadata.model_dump_json(indent=2)))
    for part, name in (("model", "World model"), ("agent", "Agent")):
        record_file, config_file = run.folder / part / "run.json", run.folder / part / "run_config.yaml"
        # A folder without a run's files may be a copied model or agent, which tells in one file what it is.
        bundle_file = run.folder / part / (MANIFEST if part == "agent" else "config.yaml")
        if record_file.exists() and config_file.exists():
            record, config = read_json_file(record_file), read_yaml_file(config_file)
        elif bundle_file.exists():
            record = config = read_yaml_file(bundle_file)
        else:
            continue
        rows.append(_provenance_row(name.lower(), record.get("provenance"), _seed_of(config)))
        folded.append(details(f"{name}: configuration", yaml.safe_dump(config, sort_keys=False)))
        if record is not config:
            folded.append(details(f"{name}: run.json", json.dumps(record, indent=2)))
    for name, evaluation in run.evaluations.items():
        rows.append(_provenance_row(f"evaluation: {name}", evaluation.provenance, None))
    rows.append(_provenance_row("this report", provenance(), None))
    columns = ("part", "wm_gym", "git revision", "Python", "torch", "gymnasium", "SB3", "machine", "seed")
    return section("Made by", table(columns, rows, words=range(len(columns) - 1)), *folded)


def _provenance_row(name: str, record: Any, seed: int | None) -> list[str]:
    """Versions out of a provenance record, nested or (in datasets) flat."""
    record = record if isinstance(record, Mapping) else {}
    packages = record.get("packages")
    packages = packages if isinstance(packages, Mapping) else record
    revision = str(record.get("git_revision") or record.get("git") or "")
    commit, dash, dirty = revision.partition("-")
    cells = [
        record.get("wm_gym"),
        commit[:10] + dash + dirty,
        record.get("python"),
        packages.get("torch"),
        packages.get("gymnasium"),
        packages.get("stable-baselines3"),
        record.get("machine"),
        seed,
    ]
    return [name, *(NOTHING if cell in (None, "") else str(cell) for cell in cells)]


def _seed_of(config: Mapping[str, Any]) -> int | None:
    """The seed in a configuration: of a world model's run, of an agent's run, or of an agent."""
    for settings in (config.get("training"), config, config.get("config")):
        if isinstance(settings, Mapping) and isinstance(settings.get("seed"), int):
            return int(settings["seed"])
    return None


def figure(png: bytes, alt: str, caption: str = "") -> Html:
    """A figure at its width on the page."""
    with Image.open(io.BytesIO(png)) as picture:
        width = round(picture.width * figures.PAGE_SCALE)
    return image(png, alt, caption, width=width)


def _interval(interval: tuple[float, float] | None) -> str:
    return NOTHING if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _seeds(seeds: Sequence[int]) -> str:
    low, high = min(seeds), max(seeds)
    kind = "held out" if low >= HELD_OUT_FROM else "training range" if high < HELD_OUT_FROM else "mixed"
    return f"{low} ({kind})" if low == high else f"{low} to {high} ({kind})"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
