"""A world model as a judge: it dreams episodes of several policies, which are compared with those in the simulator."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from wm_gym.agents.behaviours import (
    BLIND_BEHAVIOURS,
    check_names_agent,
    is_blind,
    is_privileged,
    make_behaviour,
    make_blind_behaviour,
)
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import AgentManifest, agent_simulator, read_agent_manifest
from wm_gym.agents.evaluation.counterfactuals import (
    CounterfactualScore,
    check_has_wheel,
    dream_of_counterfactuals,
    pictures_of,
    record_counterfactuals,
    score_counterfactuals,
)
from wm_gym.agents.evaluation.dream_drives import (
    AgentInDreams,
    BlindInDreams,
    DreamPolicy,
    OnlookerInDreams,
    doubted_dream_drives,
    drawn_states,
    first_states,
)
from wm_gym.agents.evaluation.evaluation import RETURN_HORIZONS, EvaluationResult, check_at_least, evaluate
from wm_gym.agents.evaluation.finished_episodes import FinishedEpisodes
from wm_gym.agents.evaluation.multiple_choice import (
    CHOICE_STEPS,
    SHORTER_STEPS,
    ChoiceScore,
    dream_of_choices,
    record_decision_points,
    score_choices,
)
from wm_gym.agents.evaluation.pictures import PictureScore
from wm_gym.agents.evaluation.results_file import SavedEvaluation, read_evaluation
from wm_gym.agents.evaluation.scorecard import (
    RealDrives,
    Scorecard,
    check_can_be_ranked,
    driving_agreement,
    score_policies,
)
from wm_gym.agents.policies.observers import LatentObserver
from wm_gym.bundle import ModelManifest, read_manifest
from wm_gym.data_collection.recording.behaviours import Behaviour
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.data_collection.recording.worker_pool import connection_of_each
from wm_gym.device import resolve_device
from wm_gym.envs.dream_model import DreamModel, resolve_model
from wm_gym.errors import BundleError, ConfigError
from wm_gym.progress import progress_bar
from wm_gym.provenance import measured_on
from wm_gym.simulator import SimulatorSpec

Starts = Literal["simulator", "model"]
DRIVEN = "driven"
"""Source of episodes that the judgement made itself."""


def judge(
    model: str | Path,
    policies: Sequence[str],
    *,
    results: Sequence[str | Path] = (),
    episodes: int = 20,
    steps: int = RETURN_HORIZONS[-1],
    draws: int = 4,
    starts: Starts = "simulator",
    choices: int = 0,
    counterfactuals: int = 0,
    seed: int = HELD_OUT_FROM,
    workers: int = 1,
    worker_connections: Sequence[Mapping[str, Any]] | None = None,
    device: str = "cpu",
    progress: bool = True,
    finished: FinishedEpisodes | None = None,
) -> Scorecard:
    """Let a world model predict the returns of policies, and compare with what they earn in its simulator.

    Every policy dreams from the same states under the same noise. Its real return is read from the results of earlier
    evaluations where these are given, and driven otherwise.

    Args:
        model: The world model's folder, or ``"bundled"``.
        policies: Two or more: folders of agents, ``"bundled"``, ``"random"``, or actions that are held, as in
            ``"held(0 0.2)"``. An agent that sees through this very model acts on its features; any other one is shown
            the frames of the dream.
        results: JSON files of ``wm-gym evaluate``, each of one of the policies.
        episodes: Start states of the dreams, and drives of each policy; number ``i`` has the seed ``seed + i``.
        steps: Length of the dreams; returns are compared over 50, 150 and 250 of them, as far as they go, and over all.
        draws: Dreams from each start state, which differ in the noise of stochastic dynamics.
        starts: ``"simulator"`` begins dreams at the first observations of the simulator's episodes;
            ``"model"`` at states drawn from the model's own, which needs no simulator.
        choices: Decision points of the multiple choice (see
            :mod:`~wm_gym.agents.evaluation.multiple_choice`), on seeds from ``seed`` on; 0 leaves it out.
        counterfactuals: Decision points at which wheel and pedals are held (see
            :mod:`~wm_gym.agents.evaluation.counterfactuals`), on the same seeds, and dreamt frames are compared (see
            :mod:`~wm_gym.agents.evaluation.pictures`); 0 leaves both out.
        seed: Of the first start state and the first episode. From 1,000,000 up they are held out.
        workers: Processes that drive side by side.
        worker_connections: Where the simulator of each runs, as for
            :func:`~wm_gym.agents.evaluation.evaluation.evaluate`.
        device: Where model and agents compute.
        progress: Show progress bars.
        finished: Where the finished episodes of the policies are kept, which a stopped judgement then goes on from;
            ``None`` keeps none.

    Returns:
        The scorecard.

    Raises:
        ConfigError: A number is out of range, a policy is unknown, named twice, alone, or cannot dream, or there is
            no wheel to be held.
        BundleError: Model, agent or results are missing, damaged, or do not belong together.
        SimulatorError: The simulator cannot be made, or does not repeat itself at decision points.
        SimulatorLostError: No simulator can be reached any more.
    """
    names = [str(name) for name in policies]
    for name, value, least in (
        ("episodes", episodes, 1),
        ("steps", steps, 1),
        ("draws", draws, 1),
        ("choices", choices, 0),
        ("counterfactuals", counterfactuals, 0),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        check_at_least(name, value, least)
    connections = connection_of_each(workers, worker_connections)
    _, manifest = read_manifest(model)
    _check_policies(names, manifest, model)
    if counterfactuals:
        check_has_wheel(manifest.simulator)
    given = _read_results(results, names, manifest.simulator)
    computes = resolve_device(device)
    world = resolve_model(model, computes)
    judged = {name: _make_policy(name, world, manifest, computes) for name in names}
    horizons = sorted({one for one in RETURN_HORIZONS if one < steps} | {steps})

    choice_score, choices_s, shorter_choices = None, None, []
    if choices:
        started = time.monotonic()
        *shorter_choices, choice_score = _choose(world, judged, choices, seed, connections[0], progress=progress)
        choices_s = time.monotonic() - started
    counterfactual_score, picture_score, counterfactuals_s = None, None, None
    if counterfactuals:
        started = time.monotonic()
        counterfactual_score, picture_score = _hold(
            world, judged, counterfactuals, seed, connections[0], progress=progress
        )
        counterfactuals_s = time.monotonic() - started

    started = time.monotonic()
    seeds = list(range(seed, seed + episodes))
    begin = first_states(world, seeds, connections[0]) if starts == "simulator" else drawn_states(world, episodes, seed)
    dreamt = {}
    with progress_bar(len(judged), "policy", "dream", enabled=progress) as bar:
        for name, policy in judged.items():
            dreamt[name] = doubted_dream_drives(world, policy, begin, seeds, steps=steps, draws=draws)
            bar.update()
    dream_s = time.monotonic() - started

    # Where a file cannot tell the return over some steps, all are compared by whole episodes, which must not be cut.
    is_known = all(drives.returns_over(one) is not None for drives in given.values() for one in horizons)
    real = dict(given)
    for name in names:
        if name not in given:
            driven = evaluate(
                name,
                world.simulator,
                episodes=episodes,
                seed=seed,
                workers=workers,
                worker_connections=worker_connections,
                max_episode_steps=steps if is_known else None,
                gap=False,
                horizons=horizons,
                device=device,
                progress=progress,
                finished=finished,
            )
            real[name] = _drives_of(driven, DRIVEN)
    predicted = {name: drives.rewards for name, drives in dreamt.items()}
    doubts = {name: drives.deviations for name, drives in dreamt.items() if drives.deviations is not None}
    scores, agreements = score_policies(predicted, real, horizons, doubts)
    seconds = [drives.drive_s for drives in real.values()]
    return Scorecard(
        model=str(model),
        simulator=world.simulator,
        starts=starts,
        seeds=seeds,
        draws=draws,
        policies=scores,
        agreement=agreements,
        choices=choice_score,
        dream_s=dream_s,
        drive_s=None if None in seconds else sum(one for one in seconds if one is not None),
        choices_s=choices_s,
        machine=measured_on(str(computes)),
        counterfactuals=counterfactual_score,
        pictures=picture_score,
        counterfactuals_s=counterfactuals_s,
        driving_agreement=driving_agreement(scores),
        shorter_choices=shorter_choices,
    )


def _check_policies(names: Sequence[str], model: ModelManifest, path: str | Path) -> None:
    """Check all that can be told without reading a tensor."""
    check_can_be_ranked(names)
    seen: dict[object, str] = {}
    for name in names:
        place: object = Path(name).resolve() if Path(name).is_dir() else name
        if place in seen:
            raise ConfigError(f"the policy {name!r} is named twice; name each once.")
        seen[place] = name
        if is_blind(name):
            make_behaviour(name, model.simulator)
        else:
            _check_agent(name, model, path)


def _check_agent(name: str, model: ModelManifest, path: str | Path) -> None:
    blind = ", ".join(BLIND_BEHAVIOURS)
    if is_privileged(name) or name.startswith(("noisy(", "sampled(")):
        raise ConfigError(
            f"the policy {name!r} cannot drive in a dream, as it reads the simulator's state or draws its actions "
            f"anew in every step; name agents, {blind}."
        )
    check_names_agent("the policy", name, BLIND_BEHAVIOURS)
    if not _sees_through(name, model):
        misfit = agent_simulator(name).misfit(model.simulator, "the agent was trained with")
        if misfit is not None:
            raise BundleError(
                f"the agent at {name!r} cannot drive in dreams of {str(path)!r}: {misfit}; leave it out, or judge with "
                "a model of its simulator."
            )


def _sees_through(name: str, model: ModelManifest) -> bool:
    """Whether an agent acts on the features of this very model."""
    agent = read_agent_manifest(name)[1]
    return isinstance(agent, AgentManifest) and agent.model.fingerprint == model.fingerprint


def _read_results(files: Sequence[str | Path], names: Sequence[str], simulator: SimulatorSpec) -> dict[str, RealDrives]:
    """The episodes that files tell of, by policy."""
    found: dict[str, RealDrives] = {}
    for file in files:
        evaluation = read_evaluation(Path(file))
        if evaluation.driver is None or evaluation.simulator is None:
            raise BundleError(
                f"{str(file)!r} does not say who drove in which simulator; evaluate again, or remove the file."
            )
        name = next((name for name in names if _is_same(name, evaluation.driver)), None)
        if name is None:
            raise ConfigError(
                f"{str(file)!r} is an evaluation of {evaluation.driver!r}, which is not among the policies; name it "
                "there, or leave the file out."
            )
        if name in found:
            raise ConfigError(f"{str(file)!r} is the second evaluation of {name!r}; give one for each policy.")
        if evaluation.simulator != simulator:
            raise BundleError(
                f"{str(file)!r} was driven in {_describe(evaluation.simulator)}, but the world model was trained on "
                f"{_describe(simulator)}; evaluate there, or leave the file out."
            )
        found[name] = _drives_of(evaluation, str(file))
    return found


def _drives_of(evaluation: SavedEvaluation | EvaluationResult, source: str) -> RealDrives:
    return RealDrives(
        source=source,
        seeds=evaluation.seeds,
        returns=evaluation.returns,
        lengths=evaluation.lengths,
        by_horizon=evaluation.returns_by_horizon,
        max_steps=evaluation.max_episode_steps,
        drive_s=sum(evaluation.drive_s) if evaluation.drive_s else None,
        driving_score=evaluation.driving.get("driving_score"),
    )


def _is_same(policy: str, driver: str) -> bool:
    """Whether a policy and the driver of an evaluation are one: by name, or as folders."""
    return policy == driver or (Path(policy).is_dir() and Path(policy).resolve() == Path(driver).resolve())


def _describe(simulator: SimulatorSpec) -> str:
    height, width = simulator.frame_size
    arguments = ", ".join(f"{name}={value!r}" for name, value in simulator.kwargs.items())
    return f"{simulator.id} ({height}x{width}{', ' if arguments else ''}{arguments})"


def _make_policy(name: str, model: DreamModel, manifest: ModelManifest, device: torch.device) -> DreamPolicy:
    if is_blind(name):
        return BlindInDreams(partial(make_blind_behaviour, name, model.simulator))
    driver = Driver.load(name, device)
    if not _sees_through(name, manifest):
        return OnlookerInDreams(driver)
    driver.observer = LatentObserver(model)  # the same model, and no copy for every agent
    return AgentInDreams(driver)


def _choose(
    model: DreamModel,
    judged: Mapping[str, DreamPolicy],
    count: int,
    seed: int,
    connection: Mapping[str, Any],
    *,
    progress: bool,
) -> list[ChoiceScore]:
    """The multiple choice, over the fewest steps first."""
    points = record_decision_points(
        model.simulator, _drivers(model, judged), count, seed=seed, connection=connection, progress=progress
    )
    promised = [dream_of_choices(model, point) for point in points]
    return [score_choices(points, promised, steps) for steps in (*SHORTER_STEPS, CHOICE_STEPS)]


def _hold(
    model: DreamModel,
    judged: Mapping[str, DreamPolicy],
    count: int,
    seed: int,
    connection: Mapping[str, Any],
    *,
    progress: bool,
) -> tuple[CounterfactualScore, PictureScore | None]:
    """The counterfactuals, and the pictures of what was driven for them; no pictures where the model has none."""
    points = record_counterfactuals(
        model.simulator, _drivers(model, judged), count, seed=seed, connection=connection, progress=progress
    )
    dreamt = [dream_of_counterfactuals(model, point) for point in points]
    return score_counterfactuals(points, [one.returns for one in dreamt]), pictures_of(points, dreamt, model.device)


def _drivers(model: DreamModel, judged: Mapping[str, DreamPolicy]) -> list[Behaviour]:
    """Who drives to decision points: the agents, or all policies where none of them is an agent."""
    agents: list[Behaviour] = [
        one.driver for one in judged.values() if isinstance(one, AgentInDreams | OnlookerInDreams)
    ]
    return agents or [make_behaviour(name, model.simulator) for name in judged]
