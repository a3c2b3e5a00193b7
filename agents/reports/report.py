"""The report of a run: one HTML page with returns, a dream beside its real episode, curves, data and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import MANIFEST
from wm_gym.agents.evaluation.reality_gap import RealityGap, Windows
from wm_gym.agents.reports import figures
from wm_gym.agents.reports.drives import Drive, Film, make_film, measure_gap, record_drives
from wm_gym.agents.reports.page import NOTHING, Html, bullets, heading, image, page, paragraph, section, table
from wm_gym.agents.reports.run_files import Run, holds_a_run, read_record
from wm_gym.agents.reports.sections import (
    carla_section,
    curves_section,
    figure,
    judge_section,
    provenance_section,
    returns_section,
    time_section,
)
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.statistics import DatasetStatistics, describe
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.errors import BundleError, ConfigError, SimulatorError
from wm_gym.files import check_writable, write_text_atomically

GIF_NAME = "dream_beside_reality.gif"
PAGE_NAME = "index.html"
_NUM_DRIVES = 3
_STRIP_WIDTH = 940


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
        returns_section(run),
        carla_section(run),
        *_drive_sections(run, seed, out / GIF_NAME, connection),
        judge_section(run),
        curves_section(run),
        _data_section(run),
        time_section(run),
        provenance_section(run),
    )
    write_text_atomically(out / PAGE_NAME, text)
    return out / PAGE_NAME


def _read_run(folder: Path, device: str) -> Run:
    if not holds_a_run(folder):
        raise BundleError(
            f"{str(folder)!r} holds neither a world model (model/) nor an agent (agent/); give the folder of a run, as "
            "`wm-gym demo` makes it."
        )
    run = read_record(folder)
    data, agent = folder / "data", folder / "agent"
    return replace(
        run,
        data=Dataset.open(data) if data.exists() else None,
        driver=Driver.load(agent, device) if (agent / MANIFEST).exists() else None,
    )


def _introduction(run: Run) -> list[Html]:
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
            f"A world model learnt {simulator} from {data}; an agent was trained in that model's dreams, and "
            "then driven in the simulator.",
            "lead",
        )
    ]
    if run.driver is None:
        parts.append(
            paragraph("There is no finished agent in this run yet, so the parts that need one are left out.", "note")
        )
    return parts


def _drive_sections(run: Run, seed: int, gif_file: Path, connection: Mapping[str, Any] | None) -> list[Html | None]:
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
            FrameCodec(name="png").encode(film.strip),
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
            NOTHING if by.predicted_correlation is None else f"{by.predicted_correlation:.2f}",
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
        figure(figures.draw_reward_gap(windows, gap.reward), "Predicted against real reward"),
        paragraph(
            f"Summed rewards of {len(windows)} windows from {len(drives)} drives of the agent on the tracks with "
            f"seeds {drives[0].seed} to {drives[-1].seed}; the windows overlap. Predicted: the dream under the actions "
            "really taken, which tests the model alone. Agent in the dream: from the same states, with the agent "
            "choosing its actions there, each reward times the probability that the dream has come that far; the "
            "dream gap is what it promises beyond the real sum."
        ),
        paragraph(calibration) if (calibration := _calibration(gap)) else None,
        *_uncertainty_parts(gap),
    )


def _uncertainty_parts(gap: RealityGap) -> list[Html]:
    """How far the model says its dreams may be off, and how far they were; nothing where it does not tell."""
    if not gap.uncertainty:
        return []
    rows = [
        [
            str(at.steps),
            f"{at.mean_deviation:.2f}",
            f"{at.mean_error:.2f}",
            f"{100 * at.coverage:.0f} %",
            NOTHING if at.auroc is None else f"{at.auroc:.2f}",
        ]
        for at in gap.uncertainty
    ]
    return [
        heading("Uncertainty of the dream"),
        table(
            ("steps ahead", "mean deviation", "mean absolute error", "errors within one deviation", "AUROC"),
            rows,
            words=(),
        ),
        paragraph(
            "The deviation is what the model says of the error of its summed reward under the actions really taken; of "
            "normal errors 68 % are within it. AUROC tells how well it finds the quarter of the windows with the "
            "largest errors: 0.5 is chance, 1 is always."
        ),
    ]


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
        hits = NOTHING if ends.recall is None else f"{100 * ends.recall:.0f} %"
        parts.append(
            f"The simulator ended {ends.num_real} of these drives, the model predicted {ends.num_predicted} ends "
            f"(recall {hits}, Brier score {ends.brier:.4f})."
        )
    return " ".join(parts)


def _data_section(run: Run) -> Html | None:
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
        figure(figures.draw_histograms(statistics), "Histograms of rewards and actions"),
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


def _listed(numbers: Sequence[int]) -> str:
    words = [str(number) for number in numbers]
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
