"""Compare ways to learn to drive at equal numbers of simulator frames, on the embedded simulator.

* ``dream``: record drives, train a world model on them, train PPO in its dreams from the clone on (``--anew``: without
  one); with ``--rounds`` a share of the budget is recorded by the agent, and model and agent learn from that.
* ``cloned``: the same recordings and a world model trained on them; a policy over its features copies their actions.
  With ``--corrected-share`` it drives a share of the budget itself, corrected by ``--teacher``, and copies that too.
* ``pixels``: PPO on the simulator itself, from the last frames, without a world model.

A budget counts every simulator frame (1/50 s) that a method touches: recordings, rollouts, and the drives that choose
among checkpoints. No method takes more than its budget; what it took is in the results. All agents are evaluated on
the same held-out tracks. Recordings are made by drivers of the package (the ``--behaviour`` mix), most of them better
than a beginner: ``pixels`` starts without that knowledge.

Run from the repository's root, and again to go on where it was stopped or to add budgets, seeds and methods::

    python benchmarks/equal_frames.py --budgets 20000,50000,100000 --seeds 0,1,2 --out runs/equal_frames
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wm_gym.agents.baselines.behaviour_cloning import clone_behaviour, make_cloning_config
from wm_gym.agents.baselines.simulator_training import train_in_simulator
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.demo import CORRECTIONS_SEED, DemoSettings
from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.policies.config import make_agent_config
from wm_gym.agents.policies.pixel_config import make_pixel_config
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.agents.training.rounds import make_rounds_config, train_agent_in_rounds
from wm_gym.agents.training.selection import selection_for
from wm_gym.config import load_config
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.data_collection.recording.collector import collect
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.errors import ConfigError, WMGymError
from wm_gym.files import write_json_atomically
from wm_gym.provenance import provenance
from wm_gym.training.trainer import WorldModelTrainer

RECIPE = DemoSettings()
"""Settings of model, clone and agent, where none are given."""

SIMULATOR = RECIPE.simulator
FRAMES_A_DECISION = 4
EPISODE_DECISIONS = 250  # 1,000 frames, after which CarRacing truncates
PATIENCE = RECIPE.patience  # recordings are cut after so many decisions without a reward above 0
CHECKPOINTS = 10  # of a dream training, unless validate_every says otherwise
RESULTS = "results.json"


@dataclass(frozen=True)
class Settings:
    """What all cells have in common; a results file belongs to one such set."""

    tracks: int
    behaviour: str
    config: str
    model_changes: tuple[str, ...]
    agent_changes: tuple[str, ...]
    pixel_changes: tuple[str, ...]
    cloning_changes: tuple[str, ...]
    anew: bool
    select_drives: int
    top_fraction: float
    corrected_share: float
    teacher: str
    rounds: int
    rounds_share: float
    rounds_changes: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One training: a method, a budget in simulator frames, a seed, and the folder that its runs share."""

    method: str
    budget: int
    seed: int
    folder: Path
    workers: int
    device: str
    settings: Settings


class Trained(NamedTuple):
    """What a method gives: the agent's folder, and the simulator frames that went into it."""

    agent: Path
    frames: int


def train_in_dream(cell: Cell) -> Trained:
    """Record, train a world model, train PPO in its dreams; record the agent and go on, where rounds are asked for."""
    config = make_agent_config({"seed": cell.seed}, cell.settings.agent_changes)
    # Drives that choose a checkpoint come off the recording, and count with all the frames that they can take.
    checkpoints = math.ceil(config.steps / (config.validate_every or math.ceil(config.steps / CHECKPOINTS)))
    kept_back = checkpoints * cell.settings.select_drives * EPISODE_DECISIONS
    rounds = cell.settings.rounds
    of_the_agent = round(cell.settings.rounds_share * (cell.budget // FRAMES_A_DECISION - kept_back)) if rounds else 0
    of_the_clone = 0 if cell.settings.anew else decisions_of_the_clone(cell, kept_back + of_the_agent)
    data, frames = record(cell, kept_back + of_the_agent + of_the_clone)
    model = train_model(cell, data)
    frames += kept_back * FRAMES_A_DECISION
    initial = None
    if not cell.settings.anew:
        initial, driven = clone(cell, data, model, of_the_clone)
        frames += driven
    if rounds:
        values = {
            "rounds": rounds,
            # Every recording ends with a whole drive, which may reach beyond what was asked for.
            "steps": of_the_agent - rounds * (EPISODE_DECISIONS - 1),
            "select_drives": cell.settings.select_drives,
            "workers": cell.workers,
            "seed": cell.seed,
        }
        run = train_agent_in_rounds(
            model,
            [data],
            out=cell.folder / "dream",
            config=make_rounds_config(values, cell.settings.rounds_changes),
            agent_config=config,
            initial=initial,
            device=cell.device,
        )
        return Trained(run.path, frames + sum(entry.recorded_steps for entry in run.rounds) * FRAMES_A_DECISION)
    with selection_for(model, cell.settings.select_drives) as selection:
        summary = train_agent(
            model,
            out=cell.folder / "dream",
            config=config,
            initial=initial,
            device=cell.device,
            on_checkpoint=selection,
        )
    return Trained(summary.path, frames)


def train_by_cloning(cell: Cell) -> Trained:
    """Record, train a world model, copy the recorded actions over its features."""
    of_the_clone = decisions_of_the_clone(cell, 0)
    data, frames = record(cell, of_the_clone)
    agent, driven = clone(cell, data, train_model(cell, data), of_the_clone)
    return Trained(agent, frames + driven)


def train_from_pixels(cell: Cell) -> Trained:
    """PPO on the simulator itself."""
    config = make_pixel_config({"seed": cell.seed}, cell.settings.pixel_changes)
    decisions = cell.budget // FRAMES_A_DECISION
    summary = train_in_simulator(
        SIMULATOR,
        out=cell.folder / "pixels",
        config=config,
        steps=decisions - decisions % config.num_envs,
        device=cell.device,
    )
    return Trained(summary.path, summary.frames)


METHODS: dict[str, Callable[[Cell], Trained]] = {
    "dream": train_in_dream,
    "pixels": train_from_pixels,
    "cloned": train_by_cloning,
}
"""To compare another recipe, add a function that trains within ``cell.budget`` and counts its frames."""


def record(cell: Cell, kept_back: int) -> tuple[Path, int]:
    """A dataset of the budget without ``kept_back`` decisions, and its frames.

    Episodes are whole, so the last one may not begin where it might end beyond the budget.
    """
    decisions = cell.budget // FRAMES_A_DECISION - kept_back
    wanted = decisions - EPISODE_DECISIONS + 1
    if wanted < 2 * EPISODE_DECISIONS:
        raise ConfigError(
            f"a budget of {cell.budget} frames leaves {max(0, decisions)} decisions to record, too few to train on; "
            "use a larger budget or fewer selection drives."
        )
    folder = cell.folder / f"data-{decisions}"
    collect(
        folder,
        SIMULATOR,
        make_behaviour=make_behaviour,
        frames=wanted,
        behaviour=cell.settings.behaviour,
        workers=cell.workers,
        seed=cell.seed,
        patience=PATIENCE,
    )
    return folder, Dataset.open(folder).num_steps * FRAMES_A_DECISION


def train_model(cell: Cell, data: Path) -> Path:
    """A world model of a dataset; methods that share the dataset share it."""
    folder = cell.folder / f"model-{data.name}"
    config = load_config(cell.settings.config, (f"training.seed={cell.seed}", *cell.settings.model_changes))
    opened = open_training_data(data, config.training.validation_fraction)
    WorldModelTrainer(
        config,
        opened.simulator,
        opened.train,
        opened.validation,
        folder,
        data_info=opened.info,
        data_metrics=opened.metrics,
        device=cell.device,
    ).run()
    return folder


def decisions_of_the_clone(cell: Cell, kept_back: int) -> int:
    """How many decisions of the budget the clone takes itself, while the teacher corrects it."""
    return round(cell.settings.corrected_share * (cell.budget // FRAMES_A_DECISION - kept_back))


def clone(cell: Cell, data: Path, model: Path, corrected: int) -> Trained:
    """A policy that copies the recorded drivers; methods that share the dataset share it.

    Args:
        cell: The training.
        data: The dataset.
        model: A world model of it.
        corrected: So many decisions, it then drives itself, and copies the teacher's corrections as well.

    Returns:
        The clone, and the frames that it drove.
    """
    config = make_cloning_config({"seed": cell.seed}, cell.settings.cloning_changes)

    def copied(datasets: Sequence[Path], name: str, behaviours: tuple[str, ...]) -> Path:
        return clone_behaviour(
            datasets,
            model,
            out=cell.folder / f"{name}-{data.name}",
            top_fraction=cell.settings.top_fraction,
            config=config.model_copy(update={"behaviours": behaviours}),
            device=cell.device,
        ).path

    first = copied([data], "clone", config.behaviours)
    if not corrected:
        return Trained(first, 0)
    corrections = cell.folder / f"corrections-{data.name}"
    collect(
        corrections,
        SIMULATOR,
        make_behaviour=make_behaviour,
        frames=max(1, corrected - EPISODE_DECISIONS + 1),
        behaviour=f"corrected({first} by {cell.settings.teacher})",
        workers=cell.workers,
        seed=cell.seed + CORRECTIONS_SEED,
        patience=PATIENCE,
    )
    behaviours = (*config.behaviours, "corrected(*)") if config.behaviours else ()
    second = copied([data, corrections], "corrected-clone", behaviours)
    return Trained(second, Dataset.open(corrections).num_steps * FRAMES_A_DECISION)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and evaluate; the entry of the results file."""
    started = time.monotonic()
    trained = METHODS[cell.method](cell)
    if trained.frames > cell.budget:
        print(f"{cell.method} took {trained.frames} frames of {cell.budget}", file=sys.stderr)
    training_s = time.monotonic() - started
    result = evaluate(str(trained.agent), episodes=cell.settings.tracks, seed=HELD_OUT_FROM, workers=cell.workers)
    return {
        "method": cell.method,
        "budget": cell.budget,
        "seed": cell.seed,
        "frames": trained.frames,
        "mean_return": result.mean_return,
        "ci95": result.ci95,
        "returns": result.returns,
        "driving": result.driving,
        "training": load_agent(trained.agent).metrics,
        "seconds": round(training_s, 1),
    }


def render(cells: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table: one row for each budget and method.

    The interval is over tracks, each by its mean over the seeds; the range is over the seeds, each by its mean over
    the tracks.
    """
    lines = [
        "| budget (frames) | method | taken | mean return | 95 % interval over tracks | range over seeds | seeds |",
        "| ---: | --- | ---: | ---: | --- | --- | ---: |",
    ]
    for budget in sorted({cell["budget"] for cell in cells}):
        for method in METHODS:
            row = [cell for cell in cells if (cell["budget"], cell["method"]) == (budget, method)]
            if not row:
                continue
            by_track = [statistics.fmean(track) for track in zip(*(cell["returns"] for cell in row), strict=True)]
            interval = bootstrap_interval(by_track)
            means = [cell["mean_return"] for cell in row]
            lines.append(
                f"| {budget:,} | {method} | {max(cell['frames'] for cell in row):,} | {statistics.fmean(means):.1f} | "
                f"{'-' if interval is None else f'{interval[0]:.1f} to {interval[1]:.1f}'} | "
                f"{min(means):.1f} to {max(means):.1f} | {len(row)} |"
            )
    return "\n".join(lines)


def render_seeds(cells: Sequence[dict[str, Any]]) -> str:
    """Each seed's mean return, as a Markdown table: one row for each budget and method."""
    seeds = sorted({cell["seed"] for cell in cells})
    means = {(cell["budget"], cell["method"], cell["seed"]): f"{cell['mean_return']:.1f}" for cell in cells}
    lines = [
        f"| budget (frames) | method | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        f"| ---: | --- |{' ---: |' * len(seeds)}",
    ]
    for budget in sorted({cell["budget"] for cell in cells}):
        for method in METHODS:
            if any((budget, method, seed) in means for seed in seeds):
                row = " | ".join(means.get((budget, method, seed), "") for seed in seeds)
                lines.append(f"| {budget:,} | {method} | {row} |")
    return "\n".join(lines)


def read_results(file: Path, settings: Settings) -> dict[str, Any]:
    """The results so far, which must be of the same settings."""
    wanted = json.loads(json.dumps(asdict(settings)))
    if not file.exists():
        return {"settings": wanted, "cells": []}
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    different = [name for name, value in wanted.items() if results["settings"].get(name) != value]
    if different:
        raise ConfigError(
            f"{str(file)!r} holds results with another {different[0].replace('_', ' ')}; repeat it, or choose another "
            "folder."
        )
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing cells and print the table."""
    options = parse(arguments)
    settings = Settings(
        tracks=options.tracks,
        behaviour=options.behaviour,
        config=options.config,
        model_changes=tuple(options.set_model),
        agent_changes=tuple(options.set_agent),
        pixel_changes=tuple(options.set_pixels),
        cloning_changes=tuple(options.set_cloning),
        anew=options.anew,
        select_drives=options.select_drives,
        top_fraction=options.top_fraction,
        corrected_share=options.corrected_share,
        teacher=options.teacher,
        rounds=options.rounds,
        rounds_share=options.rounds_share,
        rounds_changes=tuple(options.set_rounds),
    )
    file = options.out / RESULTS
    results = read_results(file, settings)
    done = {(cell["budget"], cell["seed"], cell["method"]) for cell in results["cells"]}
    for budget in options.budgets:
        for seed in options.seeds:
            for method in options.methods:
                if (budget, seed, method) in done:
                    continue
                print(f"{method}, {budget:,} frames, seed {seed}", flush=True)
                folder = options.out / f"budget-{budget}" / f"seed-{seed}"
                cell = Cell(method, budget, seed, folder, options.workers, options.device, settings)
                results["cells"].append(run_cell(cell))
                results["provenance"] = provenance()
                write_json_atomically(file, results)
    print(render(results["cells"]))
    print()
    print(render_seeds(results["cells"]))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--budgets", type=numbers, default=[20_000, 50_000, 100_000], help="simulator frames")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--methods", type=methods, default=list(METHODS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tracks", type=int, default=30, help="held-out tracks for each agent")
    parser.add_argument("--workers", type=int, default=2, help="processes that record and evaluate")
    parser.add_argument("--device", default="auto", help="where models and policies train")
    parser.add_argument("--behaviour", default=RECIPE.behaviour)
    parser.add_argument("--config", default=RECIPE.config, help="preset of the world model")
    parser.add_argument("--set-model", action="append", metavar="KEY=VALUE")
    parser.add_argument("--set-agent", action="append", metavar="KEY=VALUE")
    parser.add_argument("--set-pixels", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--set-cloning", action="append", metavar="KEY=VALUE")
    parser.add_argument("--anew", action="store_true", help="the dream method's policy does not begin as the clone")
    parser.add_argument(
        "--select-drives", type=int, default=0, help="drives that choose among dream checkpoints; they cost frames"
    )
    parser.add_argument(
        "--corrected-share",
        type=float,
        default=0.0,
        help="share of the budget that the clone drives itself, corrected by the teacher",
    )
    parser.add_argument("--teacher", default=RECIPE.teacher, help="the behaviour that corrects the clone")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of the dream method")
    parser.add_argument(
        "--rounds-share", type=float, default=0.4, help="share of the dream method's decisions that its agents record"
    )
    parser.add_argument("--set-rounds", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--top-fraction", type=float, default=1.0, help="share of the recordings that is cloned")
    options = parser.parse_args(arguments)
    if options.set_model is None:
        options.set_model = RECIPE.model_changes
    if options.set_cloning is None:
        options.set_cloning = RECIPE.clone_changes or ()
    if options.set_agent is None:
        options.set_agent = RECIPE.agent_changes
    return options


def numbers(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(part) for part in text.split(",")]


def methods(text: str) -> list[str]:
    """Names of methods between commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no method; use {', '.join(METHODS)}")
    return names


if __name__ == "__main__":
    try:
        main()
    except WMGymError as error:
        sys.exit(f"equal_frames: {error}")
