"""Back in the simulator: drives on held-out seeds, with intervals, driving metrics, the reality gap and a video."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wm_gym.agents.behaviours import BEHAVIOURS, SIMULATOR_BEHAVIOURS, check_names_agent, is_held
from wm_gym.agents.bundles.driver import check_simulator_fits
from wm_gym.agents.bundles.folder import AgentManifest, agent_simulator, read_agent_manifest
from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.evaluation.drives import DriveResult, DriveSettings, run_drives
from wm_gym.agents.evaluation.finished_episodes import FinishedEpisodes
from wm_gym.agents.evaluation.reality_gap import RealityGap, summarise_gap
from wm_gym.agents.evaluation.video import check_video_path
from wm_gym.data_collection.recording.plan import HELD_OUT_FROM
from wm_gym.data_collection.recording.worker_pool import connection_of_each
from wm_gym.envs.simulators import SIMULATORS, resolve_simulator
from wm_gym.errors import ConfigError, OutputError, SimulatorError
from wm_gym.files import check_writable, write_json_result
from wm_gym.progress import progress_bar
from wm_gym.provenance import provenance
from wm_gym.simulator import SimulatorSpec

RETURN_HORIZONS = (50, 150, 250)
"""Steps from the beginning of an episode over which its rewards are summed, beside the whole episode's."""

# How an entry of `info` becomes a driving metric: over the steps of an episode, then averaged over the episodes.
_DRIVING_METRICS: dict[str, tuple[str, str]] = {
    "mean_speed": ("speed", "mean"),
    "off_road_fraction": ("off_road", "mean"),
    "progress": ("progress", "last"),
    "lap_finished_rate": ("lap_finished", "last"),
    "route_completion": ("route_completion", "last"),
    "infraction_penalty": ("infraction_penalty", "last"),
    "driving_score": ("driving_score", "last"),
    "infraction_penalty_2_1": ("infraction_penalty_2_1", "last"),
    "driving_score_2_1": ("driving_score_2_1", "last"),
}
PER_KM = "_per_km"
"""How the names of rates of infractions end."""
_KM = "km"
_ROUTE_DONE = "route_done"
"""What CARLA's ``info["end"]`` says of an episode that came to the end of its route."""


@dataclass(frozen=True)
class EvaluationResult:
    """What a driver did in a simulator; the fields are those of the JSON file.

    Attributes:
        driver: Its name or folder.
        simulator: The record of the simulator.
        episodes: Number of episodes.
        seeds: Seed of each episode.
        returns: Return of each.
        lengths: Steps of each.
        max_episode_steps: Steps after which episodes were cut; ``None`` where it was left to the simulator.
        returns_by_horizon: By a number of steps, the return of each episode over its first so many, or fewer where the
            simulator ended it before. Numbers beyond a limit on the steps of an episode are left out.
        mean_return: Mean of the returns.
        std_return: Their standard deviation (of the sample; 0 for one episode).
        ci95: 95 % bootstrap interval of the mean return; ``None`` for one episode.
        terminated_rate: Share of the episodes that the simulator ended, rather than a limit on their length.
        driving: Driving metrics, as far as the simulator tells: ``mean_speed`` (in its own unit),
            ``off_road_fraction``, ``progress``, ``lap_finished_rate``; in CARLA ``success``, the share of the episodes
            that ended with their route done; and in the sense of the CARLA leaderboard
            ``route_completion`` and ``driving_score`` (0 to 100), ``infraction_penalty`` (0 to 1), the latter two by
            its version 2.1 too (``..._2_1``), ``km`` (driven in all episodes together), and all infractions of a kind
            over all these kilometres (``red_lights_per_km``, ...).
        infos: For every number in the simulator's ``info``: its ``mean`` over an episode's steps and its ``last``
            value, each averaged over the episodes.
        texts: For every text in the simulator's ``info``, its last value in each episode: ``texts["end"]`` says how
            each episode in CARLA ended (``""`` where it was cut by a limit on its steps).
        last_infos: For each episode, the last value of every number in the simulator's ``info``.
        drive_s: Seconds that each episode took.
        reality_gap: What the agent's world model promises against what the simulator gave in these episodes (see
            :class:`~wm_gym.agents.evaluation.reality_gap.RealityGap` for its fields); ``None`` for a driver without
            a model, or where it was not asked for.
        wall_s: Seconds that the evaluation took, in its last call where it was stopped.
        provenance: Versions of the packages, machine.
    """

    driver: str
    simulator: SimulatorSpec
    episodes: int
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    max_episode_steps: int | None
    returns_by_horizon: dict[int, list[float]]
    mean_return: float
    std_return: float
    ci95: tuple[float, float] | None
    terminated_rate: float
    driving: dict[str, float]
    infos: dict[str, dict[str, float]]
    texts: dict[str, list[str]]
    last_infos: list[dict[str, float]]
    drive_s: list[float]
    reality_gap: RealityGap | None
    wall_s: float
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The contents of the JSON file."""
        return {**asdict(self), "simulator": self.simulator.model_dump(mode="json")}


def evaluate(
    driver: str | Path,
    simulator: str | SimulatorSpec | None = None,
    *,
    episodes: int = 20,
    seed: int = HELD_OUT_FROM,
    workers: int = 1,
    worker_connections: Sequence[Mapping[str, Any]] | None = None,
    max_episode_steps: int | None = None,
    json_path: str | Path | None = None,
    video_path: str | Path | None = None,
    simulator_kwargs: Mapping[str, Any] | None = None,
    gap: bool = True,
    gap_horizon: int | None = None,
    horizons: Sequence[int] = RETURN_HORIZONS,
    device: str = "cpu",
    reset_options: Sequence[Mapping[str, Any]] | None = None,
    progress: bool = True,
    notify: Callable[[EvaluationResult], None] = lambda _: None,
    finished: FinishedEpisodes | None = None,
) -> EvaluationResult:
    """Let a driver drive in a simulator. The result does not depend on the number of workers.

    With a ``json_path`` it can be stopped, or killed, and called again: finished episodes are kept beside that file
    until it is written, and are not driven anew. The first one is, where a video is wanted.

    An episode whose simulator is lost (a server that dies or hangs) does not count and is driven again. A worker whose
    simulator is gone for good is given up, with a warning at the end, as long as another one remains.

    Args:
        driver: Name of a behaviour (see :mod:`wm_gym.agents.behaviours`), an agent's folder, or ``"bundled"``.
        simulator: Short name or Gymnasium id, or a record; ``None`` for the one that the agent's world model was
            trained on. Where it is that one, its arguments are those of the record, changed by ``simulator_kwargs``.
        episodes: How many; episode ``i`` has the seed ``seed + i``, for the simulator and the driver.
        seed: Of the first episode. From 1,000,000 up they are held out; use smaller ones to tune anything.
        workers: Processes that drive side by side, each with one thread. With ``worker_connections`` their number may
            be left out.
        worker_connections: For each worker, where its simulator runs, such as ``[{"port": 2000}, {"port": 2004}]``:
            one server each. Only arguments of the simulator's connection, which are not recorded.
        max_episode_steps: Steps after which an episode is cut; ``None`` leaves it to the simulator.
        json_path: Where to write the result.
        video_path: Where to write the first episode, as ``.mp4`` or ``.gif``.
        simulator_kwargs: Arguments of the simulator, with ``frame_size`` and ``action_repeat``.
        gap: Whether to dream from the moments of an agent's episodes too, and to compare (``reality_gap``).
        gap_horizon: Steps of these dreams; ``None`` for the horizon that the agent was trained with.
        horizons: Numbers of steps for ``returns_by_horizon``.
        device: Where an agent computes.
        reset_options: Options of the simulator's reset for each of the episodes, such as the route to drive.
        progress: Show a progress bar.
        notify: Called with the result before it is written, as the disk may have become full during the episodes.
        finished: Where finished episodes are kept, for who writes the results of several evaluations into one file;
            ``None`` keeps them beside ``json_path``.

    Returns:
        Returns, lengths, interval, driving metrics and, for an agent, the reality gap.

    Raises:
        ConfigError: A number is out of range, or the driver's name is unknown.
        BundleError: The agent cannot be loaded.
        SimulatorError: The simulator cannot be made or does not fit the agent, or no video has such a suffix.
        OutputError: A file cannot be written; if it shows so early, this is found before the episodes.
        SimulatorLostError: No simulator can be reached any more.

    Side effects: writes the files asked for, each in one move; starts ``workers`` processes if more than one.
    """
    started = time.monotonic()
    for name, value, least in (("episodes", episodes, 1), ("workers", workers, 1), ("seed", seed, 0)):
        check_at_least(name, value, least)
    for name, limit in (("max_episode_steps", max_episode_steps), ("gap_horizon", gap_horizon)):
        if limit is not None:
            check_at_least(name, limit, 1)
    for steps in horizons:
        check_at_least("a horizon", steps, 1)
    if reset_options is not None and len(reset_options) != episodes:
        raise ConfigError(f"{len(reset_options)} reset_options do not fit episodes={episodes}; give one for each.")
    video = None if video_path is None else check_writable(check_video_path(video_path))
    json_file = None if json_path is None else check_writable(json_path)
    connections = connection_of_each(workers, worker_connections)
    trained_on, horizon = _read_training(driver)
    asked_for = _simulator_asked_for(simulator, trained_on)
    spec, places = resolve_simulator(asked_for, simulator_kwargs or {}, connections)
    if trained_on is not None:
        check_simulator_fits(trained_on, spec)
    settings = DriveSettings(
        driver=str(driver),
        is_agent=trained_on is not None,
        simulator=spec,
        device=device,
        max_episode_steps=max_episode_steps,
        video=video,
        gap_horizon=(gap_horizon or horizon) if gap and horizon is not None else None,
        horizons=[steps for steps in horizons if max_episode_steps is None or steps <= max_episode_steps],
        reset_options=() if reset_options is None else tuple(reset_options),
    )
    seeds = [seed + index for index in range(episodes)]
    own = FinishedEpisodes(json_file)
    kept = (finished or own).of(settings, seeds)
    by_index = kept.read()
    if video is not None:
        by_index.pop(0, None)
    missing = {index: seeds[index] for index in range(episodes) if index not in by_index}
    name = Path(driver).name if settings.is_agent else str(driver)
    with progress_bar(episodes, "episode", f"evaluate {name}", enabled=progress, initial=len(by_index)) as bar:
        for result in run_drives(settings, missing, places) if missing else ():
            kept.add(result)
            by_index[result.index] = result
            bar.update()
            bar.set_postfix(mean_return=f"{statistics.fmean(r.return_ for r in by_index.values()):.1f}", refresh=False)
    results = [by_index[index] for index in range(episodes)]
    outcome = _summarise(str(driver), settings, seeds, results, time.monotonic() - started)
    # What the episodes have shown is told before anything is written that could fail.
    notify(outcome)
    for result in results:
        if result.video_problem is not None:
            raise OutputError(result.video_problem)
    if json_file is not None:
        write_json_result(json_file, outcome.to_json())
    own.remove()
    return outcome


def _summarise(
    driver: str, settings: DriveSettings, seeds: list[int], results: list[DriveResult], wall_s: float
) -> EvaluationResult:
    returns = [result.return_ for result in results]
    gaps = [result.gap for result in results if result.gap is not None]
    infos = {
        name: {
            "mean": statistics.fmean(r.info_means[name] for r in results if name in r.info_means),
            "last": statistics.fmean(r.info_last[name] for r in results if name in r.info_last),
        }
        for name in sorted({name for result in results for name in result.info_means})
    }
    return EvaluationResult(
        driver=driver,
        simulator=settings.simulator,
        episodes=len(results),
        seeds=seeds,
        returns=returns,
        lengths=[result.length for result in results],
        max_episode_steps=settings.max_episode_steps,
        returns_by_horizon={
            steps: [result.horizon_returns[place] for result in results]
            for place, steps in enumerate(settings.horizons)
        },
        mean_return=statistics.fmean(returns),
        std_return=statistics.stdev(returns) if len(returns) > 1 else 0.0,
        ci95=bootstrap_interval(returns),
        terminated_rate=statistics.fmean(result.terminated for result in results),
        driving=_driving_metrics(results, infos),
        infos=infos,
        texts={
            name: [result.texts.get(name, "") for result in results]
            for name in sorted({name for result in results for name in result.texts})
        },
        last_infos=[result.info_last for result in results],
        drive_s=[result.wall_s for result in results],
        reality_gap=summarise_gap(gaps, settings.gap_horizon) if gaps and settings.gap_horizon is not None else None,
        wall_s=wall_s,
        provenance=provenance(),
    )


def _driving_metrics(results: list[DriveResult], infos: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    metrics = {metric: infos[name][kind] for metric, (name, kind) in _DRIVING_METRICS.items() if name in infos}
    if _KM not in infos:
        return metrics
    total_km = sum(result.info_last[_KM] for result in results)
    for name in infos:
        if name.endswith(PER_KM):
            infractions = sum(result.info_last[name] * result.info_last[_KM] for result in results)
            metrics[name] = infractions / total_km
    success = statistics.fmean(result.texts.get("end") == _ROUTE_DONE for result in results)
    return {"success": success, **metrics, _KM: total_km}


def _read_training(driver: str | Path) -> tuple[SimulatorSpec | None, int | None]:
    """The simulator that an agent knows, if it is one, and the horizon of its dreams, if it sees through a model."""
    if str(driver) in (*BEHAVIOURS, *SIMULATOR_BEHAVIOURS) or is_held(str(driver)):
        return None, None
    check_names_agent("driver", str(driver), BEHAVIOURS)
    _, manifest = read_agent_manifest(driver)
    return agent_simulator(driver), manifest.config.horizon if isinstance(manifest, AgentManifest) else None


def simulator_id(driver: str | Path, simulator: str | SimulatorSpec | None) -> str:
    """The Gymnasium id of the simulator in which :func:`evaluate` lets a driver drive; raises as it does."""
    found = _simulator_asked_for(simulator, _read_training(driver)[0])
    return found.id if isinstance(found, SimulatorSpec) else SIMULATORS.get(found, found)


def _simulator_asked_for(
    simulator: str | SimulatorSpec | None, trained_on: SimulatorSpec | None
) -> str | SimulatorSpec:
    if trained_on is not None and (simulator is None or SIMULATORS.get(str(simulator), simulator) == trained_on.id):
        return trained_on
    if simulator is None:
        raise SimulatorError(f"this driver belongs to no simulator; name one, such as {next(iter(SIMULATORS))!r}.")
    return simulator


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise a ``ConfigError`` unless ``value`` is at least ``least``."""
    if value < least:
        raise ConfigError(f"{name}={value} must be a whole number of at least {least}.")
