"""The report of a run: one HTML page with returns, a dream beside its real episode, curves, data and versions."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import MANIFEST
from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.evaluation.reality_gap import RealityGap, Windows
from wm_gym.agents.evaluation.results_file import SavedEvaluation, read_evaluation
from wm_gym.agents.evaluation.scorecard import Scorecard
from wm_gym.agents.reports import figures
from wm_gym.agents.reports.carla_scores import carla_section
from wm_gym.agents.reports.drives import Drive, Film, make_film, measure_gap, record_drives
from wm_gym.agents.reports.judgement import JSON_NAME as SCORECARD_NAME
from wm_gym.agents.reports.judgement import read_scorecard
from wm_gym.agents.reports.page import Html, bullets, details, heading, image, page, paragraph, section, table
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.statistics import DatasetStatistics, describe
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.errors import BundleError, ConfigError, SimulatorError
from wm_gym.files import check_writable, write_text_atomically
from wm_gym.plain_files import read_json, read_yaml
from wm_gym.provenance import provenance
from wm_gym.training.log import read_metrics

GIF_NAME = "dream_beside_reality.gif"
PAGE_NAME = "index.html"
_NUM_DRIVES = 3
_STRIP_WIDTH = 940
_NOTHING = "\N{EN DASH}"
_LABELS = {
    "agent": "agent, trained in the dream",
    "random": "random actions",
    "autopilot": "autopilot, reads the simulator's state",
    "noisy": "autopilot with disturbances",
}
_ORDER = ("agent", "random", "autopilot", "noisy")
# Driving metrics of an evaluation: column head, factor and format.
_DRIVING_COLUMNS: dict[str, tuple[str, float, str]] = {
    "progress": ("track covered", 100.0, "{:.0f} %"),
    "off_road_fraction": ("off road", 100.0, "{:.0f} %"),
    "mean_speed": ("mean speed", 1.0, "{:.1f}"),
    "lap_finished_rate": ("laps finished", 100.0, "{:.0f} %"),
}


@dataclass
class _Run:
    """What a run's folder holds; whatever is not there is ``None`` or empty.

    ``saved_update`` and ``keep`` say of which update the world model is, and which one its training keeps.
    """

    folder: Path
    evaluations: dict[str, SavedEvaluation] = field(default_factory=dict)
    data: Dataset | None = None
    model_rows: list[dict[str, Any]] = field(default_factory=list)
    saved_update: int | None = None
    keep: str = "best"
    agent_rows: list[dict[str, Any]] = field(default_factory=list)
    driver: Driver | None = None
    scorecard: Scorecard | None = None
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def data_returns(self) -> list[float]:
        """Return of every recorded episode."""
        return [] if self.data is None else [header.return_ for header in self.data.episodes]


def write_report(
    folder: str | Path,
    *,
    seed: int = 900_000,
    connection: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Path:
    """Write ``report/index.html`` into a run's folder, a page that needs no other file, and the GIF in it beside it.

    The page shows what the folder holds, and leaves out what it lacks. The agent drives a few tracks anew, for the film
    and for the comparison of real and predicted rewards. Equal folders give equal pages on one machine.

    Args:
        folder: As ``wm-gym demo`` leaves it: ``data/``, ``model/``, ``agent/``, ``evaluation/*.json``,
            ``summary.json``; with ``judge/``, where ``wm-gym judge --out`` wrote there.
        seed: Of the first of the three episodes; below 1,000,000, so that no held-out track is looked at.
        connection: Where the agent's simulator runs, where it needs to be told.
        device: Where model and agent compute.

    Returns:
        The page.

    Raises:
        ConfigError: ``seed`` is out of range, or there is no such device.
        BundleError: The folder holds neither a world model nor an agent, or a file of it is damaged.
        DatasetError: The dataset is damaged.
    """
    if not 0 <= seed <= HELD_OUT_FROM - _NUM_DRIVES:
        raise ConfigError(
            f"seed={seed} must be 0 to {HELD_OUT_FROM - _NUM_DRIVES}; larger ones are held out for evaluation."
        )
    run = _read_run(Path(folder), device)
    out = run.folder / "report"
    check_writable(out, is_folder=True)
    out.mkdir(exist_ok=True)
    check_writable(out / PAGE_NAME)
    text = page(
        "From recorded drives to an agent trained in a dream",
        *_introduction(run),
        _returns_section(run),
        _carla_section(run),
        *_drive_sections(run, seed, out / GIF_NAME, connection),
        _judge_section(run),
        _curves_section(run),
        _data_section(run),
        _time_section(run),
        _provenance_section(run),
    )
    write_text_atomically(out / PAGE_NAME, text)
    return out / PAGE_NAME


def _read_run(folder: Path, device: str) -> _Run:
    model, agent, data = folder / "model", folder / "agent", folder / "data"
    if not any((part / name).exists() for part in (model, agent) for name in ("run.json", "config.yaml", MANIFEST)):
        raise BundleError(
            f"{str(folder)!r} holds neither a world model (model/) nor an agent (agent/); give the folder of a run, as "
            "`wm-gym demo` makes it."
        )
    summary_file, scorecard_file = folder / "summary.json", folder / "judge" / SCORECARD_NAME
    names = [file.stem for file in (folder / "evaluation").glob("*.json")]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return _Run(
        folder=folder,
        evaluations={name: read_evaluation(folder / "evaluation" / f"{name}.json") for name in names},
        data=Dataset.open(data) if data.exists() else None,
        model_rows=read_metrics(model / "metrics.jsonl"),
        saved_update=_saved_update(model),
        keep=_keep_of(model),
        agent_rows=read_metrics(agent / "metrics.jsonl"),
        driver=Driver.load(agent, device) if (agent / MANIFEST).exists() else None,
        scorecard=read_scorecard(scorecard_file) if scorecard_file.exists() else None,
        summary=_read_json(summary_file) if summary_file.exists() else {},
    )


def _saved_update(model: Path) -> int | None:
    """The update that a saved world model says to be of."""
    file = model / "metrics.json"
    update = _read_json(file).get("update") if file.exists() else None
    return update if isinstance(update, int) else None


def _keep_of(model: Path) -> str:
    """``training.keep`` of a world model's run."""
    file = model / "run_config.yaml"
    training = _read_yaml(file).get("training") if file.exists() else None
    return str(training.get("keep", "best")) if isinstance(training, Mapping) else "best"


def _introduction(run: _Run) -> list[Html]:
    data = (
        f"{run.data.num_episodes:,} recorded episodes ({run.data.num_steps:,} steps)"
        if run.data
        else "recorded episodes"
    )
    simulator = (
        run.data.metadata.simulator.id if run.data else (run.driver.simulator.id if run.driver else "a simulator")
    )
    parts = [
        paragraph(
            f"A world model learnt {simulator} from {data}; an agent learnt to drive in that model's dreams alone, and "
            "was then put back into the simulator.",
            "lead",
        )
    ]
    if run.driver is None:
        parts.append(
            paragraph("There is no finished agent in this run yet, so the parts that need one are left out.", "note")
        )
    return parts


def _returns_section(run: _Run) -> Html | None:
    driving = [name for name in _DRIVING_COLUMNS if any(name in e.driving for e in run.evaluations.values())]
    rows, bars, driving_rows = [], [], []
    for name, evaluation in run.evaluations.items():
        label = _LABELS.get(name, name)
        row = [
            label,
            f"{evaluation.mean_return:.1f}",
            _interval(evaluation.ci95),
            str(len(evaluation.returns)),
            _seeds(evaluation.seeds),
        ]
        rows.append(row)
        steps = f"{np.mean(evaluation.lengths):.0f}"
        driving_rows.append([label, steps, *(_driving_cell(evaluation, metric) for metric in driving)])
        bars.append(figures.ReturnBar(label, evaluation.mean_return, evaluation.ci95, is_chief=name == "agent"))
    if run.data is not None:
        returns = run.data_returns
        interval = bootstrap_interval(returns)
        mean = float(np.mean(returns))
        label = "the collected data"
        seeds = [header.seed for header in run.data.episodes]
        rows.append([label, f"{mean:.1f}", _interval(interval), str(len(returns)), _seeds(seeds)])
        bars.append(figures.ReturnBar(label, mean, interval, is_chief=False))
    if not rows:
        return None
    columns = ("driver", "mean steps", *(_DRIVING_COLUMNS[name][0] for name in driving))
    chief = list(run.evaluations).index("agent") if "agent" in run.evaluations else None
    comparison = _comparison(run)
    return section(
        "Returns in the simulator",
        table(("driver", "mean return", "95 % interval", "episodes", "seeds"), rows, words=(0, 4), chief=chief),
        _figure(figures.draw_returns(bars), "Mean return of each driver with its 95 % interval"),
        paragraph(comparison) if comparison else None,
        paragraph(
            "Intervals are percentile bootstraps over episodes: they cover the choice of tracks, not the chance of "
            f"training. Tracks with seeds from {HELD_OUT_FROM:,} up are held out: neither data nor training nor any "
            "choice saw them."
        ),
        *([heading("How they drove"), table(columns, driving_rows, chief=chief)] if driving_rows else []),
    )


def _carla_section(run: _Run) -> Html | None:
    named = {_LABELS.get(name, name): evaluation for name, evaluation in run.evaluations.items()}
    return carla_section(named, _LABELS["agent"])


def _comparison(run: _Run) -> str | None:
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


def _drive_sections(run: _Run, seed: int, gif_file: Path, connection: Mapping[str, Any] | None) -> list[Html | None]:
    if run.driver is None:
        return []
    title = "A drive and the dream of it"
    try:
        drives = record_drives(run.driver, range(seed, seed + _NUM_DRIVES), connection=connection)
    except SimulatorError as error:
        return [section(title, paragraph(f"The agent could not drive for this report: {error}", "note"))]
    film = make_film(run.driver.model, drives[0], gif_file)
    gap = measure_gap(run.driver, drives)
    return [
        section(title, *_film_parts(film, run.driver.simulator.step_s)) if film is not None else None,
        _gap_section(*gap, drives) if gap is not None else None,
    ]


def _film_parts(film: Film, step_s: float) -> list[Html]:
    seen = f"{film.context} frame{'' if film.context == 1 else 's'}"
    lasting = f" ({film.steps * step_s:.1f} s of driving)" if step_s > 0 else ""
    return [
        image(
            film.gif,
            "Film: the simulator on the left, the world model's picture of it on the right",
            f"Left: the agent drives the track with seed {film.seed}, from step {film.first_frame} on. Right: the "
            f"world model sees {seen}, and from then on dreams for {film.steps} steps{lasting} under the same "
            "actions, with no further look at the simulator.",
            mime="image/gif",
        ),
        image(
            _strip_png(film),
            "Moments of the film: the simulator above, the dream below",
            f"The same after {_listed(film.strip_steps)} dreamt steps: the simulator above, the dream below.",
            width=min(_STRIP_WIDTH, 4 * film.strip.shape[1]),
            is_pixel_art=True,
        ),
    ]


def _gap_section(windows: Windows, gap: RealityGap, drives: Sequence[Drive]) -> Html | None:
    rows = [
        [
            str(by.steps),
            f"{by.mean_real:.2f}",
            f"{by.mean_predicted:.2f}",
            f"{by.predicted_error:.2f}",
            _NOTHING if by.predicted_correlation is None else f"{by.predicted_correlation:.2f}",
            f"{by.mean_dream:.2f}",
            f"{by.mean_dream - by.mean_real:+.2f}",
        ]
        for by in gap.by_horizon
    ]
    longest = gap.by_horizon[-1]
    return section(
        "Reality gap",
        paragraph(
            f"Over {longest.steps} step{'' if longest.steps == 1 else 's'} from the same moments, the agent earns "
            f"{longest.mean_real:.1f} in the simulator and {longest.mean_dream:.1f} in the dream; "
            f"{longest.mean_dream_as_driven:.1f} in as many of its steps as the simulator had before the task ended."
        ),
        table(
            (
                "steps ahead",
                "real",
                "predicted, same actions",
                "mean absolute error",
                "correlation",
                "agent in the dream",
                "dream gap",
            ),
            rows,
            words=(),
        ),
        _figure(figures.draw_reward_gap(windows, gap.reward), "Predicted against real reward"),
        paragraph(
            f"Summed rewards of {len(windows)} windows from {len(drives)} drives of the agent on the tracks with "
            f"seeds {drives[0].seed} to {drives[-1].seed}; the windows overlap. Predicted: the dream under the actions "
            "really taken, which tests the model alone. Agent in the dream: from the same states, with the agent "
            "choosing its actions there, each reward times the probability that the dream has come that far; the "
            "dream gap is what it promises beyond the real sum."
        ),
        paragraph(calibration) if (calibration := _calibration(gap)) else None,
    )


def _calibration(gap: RealityGap) -> str:
    """The calibration of single steps in words; empty where nothing is known."""
    parts = []
    if gap.reward is not None:
        parts.append(
            f"Predicted one step ahead, the reward of {gap.reward.steps:,} steps is off by "
            f"{gap.reward.absolute_error:.2f} on average; the mean of steps with alike predictions, in "
            f"{len(gap.reward.bins)} bins, by {gap.reward.expected_calibration_error:.2f} (calibration error)."
        )
    if gap.termination is not None:
        ends = gap.termination
        hits = _NOTHING if ends.recall is None else f"{100 * ends.recall:.0f} %"
        parts.append(
            f"The simulator ended {ends.num_real} of these drives, the model predicted {ends.num_predicted} ends "
            f"(recall {hits}, Brier score {ends.brier:.4f})."
        )
    return " ".join(parts)


def _judge_section(run: _Run) -> Html | None:
    if run.scorecard is None:
        return None
    first, *others = run.scorecard.tables()
    parts = [
        (heading(one.title), table(one.headings, one.cells()), *(paragraph(note) for note in one.notes))
        for one in others
    ]
    return section(
        "The dream as a judge",
        paragraph(first.title),
        table(first.headings, first.cells(), words=(1,)),
        *(paragraph(note) for note in first.notes),
        _figure(
            figures.draw_agreement(run.scorecard),
            "Return of every policy in the dream against its return in the simulator",
            "A point is a policy; the lines are 95 % intervals over start states and over drives.",
        ),
        *(piece for part in parts for piece in part),
    )


def _curves_section(run: _Run) -> Html | None:
    parts: list[Html | None] = []
    model_figure = figures.draw_model_curves(run.model_rows, run.saved_update, run.keep)
    if model_figure is not None:
        parts += [
            heading("World model"),
            _figure(
                model_figure,
                "Losses and open-loop predictions of the world model",
                "Validation is on episodes that training never saw. By horizon: the model sees a few frames and "
                "predicts on without any; repeating the last frame seen is what it has to beat.",
            ),
        ]
    agent_figure = figures.draw_agent_curves(run.agent_rows)
    if agent_figure is not None:
        parts += [
            heading("Agent"),
            _figure(
                agent_figure,
                "Returns and losses of the agent in the dream",
                "Dream returns are those of the world model's imagination, over dreams of limited length: what it "
                "promises, not what the simulator gives.",
            ),
        ]
    return section("Training", *parts)


def _data_section(run: _Run) -> Html | None:
    if run.data is None:
        return None
    statistics = describe(run.data)
    names = ("behaviour", "episodes", "steps", "mean return", "terminated")
    behaviours = [
        (name, f"{b.episodes:,}", f"{b.steps:,}", f"{b.mean_return:.1f}", str(b.terminated))
        for name, b in statistics.behaviours.items()
    ]
    return section(
        "Data",
        table(("", ""), _data_rows(statistics), words=(0, 1)),
        table(names, behaviours),
        _figure(figures.draw_histograms(statistics), "Histograms of rewards and actions"),
        *([heading("Warnings"), bullets(statistics.warnings)] if statistics.warnings else []),
    )


def _data_rows(s: DatasetStatistics) -> list[tuple[str, str]]:
    driven = f" ({s.hours:.2f} h of driving)" if s.hours else ""
    return [
        ("simulator", s.simulator),
        ("frames", f"{s.frame_size[0]} x {s.frame_size[1]}, stored as {s.codec}"),
        ("content", f"{s.episodes:,} episodes, {s.steps:,} steps{driven}, {s.file_bytes / 1e6:.1f} MB"),
        ("lengths", f"{s.length_min} to {s.length_max} steps, mean {s.length_mean:.1f}"),
        ("returns", f"{s.return_min:.1f} to {s.return_max:.1f}, mean {s.return_mean:.1f}"),
        ("ends", ", ".join(f"{count} {end}" for end, count in sorted(s.ends.items()))),
        ("fingerprint", s.fingerprint),
    ]


def _time_section(run: _Run) -> Html | None:
    stages = run.summary.get("stages")
    if not isinstance(stages, list):
        return None
    rows = []
    for stage in stages:
        if isinstance(stage, Mapping) and isinstance(stage.get("seconds"), (int, float)):
            rows.append((str(stage.get("name", "")), _duration(stage["seconds"])))
    return section("Time", table(("step", "took"), rows)) if rows else None


def _provenance_section(run: _Run) -> Html | None:
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
            record, config = _read_json(record_file), _read_yaml(config_file)
        elif bundle_file.exists():
            record = config = _read_yaml(bundle_file)
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
    return [name, *(_NOTHING if cell in (None, "") else str(cell) for cell in cells)]


def _seed_of(config: Mapping[str, Any]) -> int | None:
    """The seed in a configuration: of a world model's run, of an agent's run, or of an agent."""
    for settings in (config.get("training"), config, config.get("config")):
        if isinstance(settings, Mapping) and isinstance(settings.get("seed"), int):
            return int(settings["seed"])
    return None


def _read_json(file: Path) -> dict[str, Any]:
    return read_json(file, error=BundleError, remedy="make it again, or remove it")


def _read_yaml(file: Path) -> dict[str, Any]:
    return read_yaml(file, error=BundleError, remedy="restore it from a copy")


def _figure(png: bytes, alt: str, caption: str = "") -> Html:
    with Image.open(io.BytesIO(png)) as picture:
        width = round(picture.width * figures.PAGE_SCALE)
    return image(png, alt, caption, width=width)


def _strip_png(film: Film) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(film.strip).save(buffer, "PNG")
    return buffer.getvalue()


def _driving_cell(evaluation: SavedEvaluation, metric: str) -> str:
    _, factor, form = _DRIVING_COLUMNS[metric]
    return form.format(factor * evaluation.driving[metric]) if metric in evaluation.driving else _NOTHING


def _interval(interval: tuple[float, float] | None) -> str:
    return _NOTHING if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def _seeds(seeds: Sequence[int]) -> str:
    low, high = min(seeds), max(seeds)
    kind = "held out" if low >= HELD_OUT_FROM else "training range" if high < HELD_OUT_FROM else "mixed"
    return f"{low} ({kind})" if low == high else f"{low} to {high} ({kind})"


def _listed(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
