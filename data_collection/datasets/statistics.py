"""What is in a dataset, and what in it may harm training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import DRIVING_NAMES, ActionFormat
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import INFO_PREFIX, TIME_INFO
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader, read_steps
from wm_gym.errors import printable
from wm_gym.simulator import SimulatorSpec

NUM_BINS = 10
FEW_STEPS = 2_000
SHORT_EPISODE_STEPS = 10
_TIME = INFO_PREFIX + TIME_INFO
_MOST = 0.8
_CLEAR = 0.2
_ENOUGH = 100
_UNEVEN = 0.1
_BAR_WIDTH = 40


@dataclass(frozen=True)
class Histogram:
    """Mean, spread and a histogram of one number over all steps; values that are not finite are left out.

    Attributes:
        name: What was counted.
        minimum: Smallest value.
        maximum: Largest value.
        mean: Mean.
        std: Standard deviation.
        edges: Bin edges, one more than counts.
        counts: Steps in each bin.
    """

    name: str
    minimum: float
    maximum: float
    mean: float
    std: float
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class BehaviourStatistics:
    """Episodes of one behaviour.

    Attributes:
        episodes: Number of episodes.
        steps: Their steps.
        mean_return: Their mean return.
        terminated: How many of them terminated.
    """

    episodes: int
    steps: int
    mean_return: float
    terminated: int


@dataclass(frozen=True)
class DatasetStatistics:
    """What :func:`describe` found.

    Attributes:
        path: The dataset's folder or URL.
        fingerprint: Name of its content.
        simulator: Gymnasium id of the simulator.
        frame_size: Height and width of the frames, in pixels.
        codec: How frames are stored.
        episodes: Number of episodes.
        steps: Number of steps.
        hours: Simulated time, or 0 where the simulator's step is not known.
        file_bytes: Size of all episode files.
        length_min: Steps of the shortest episode.
        length_mean: Mean steps of an episode.
        length_max: Steps of the longest episode.
        return_min: Smallest return.
        return_mean: Mean return.
        return_max: Largest return.
        ends: Episodes by end: terminated, truncated, none.
        behaviours: By name.
        reward: Rewards over all steps.
        actions: Every action value over all steps.
        infos: Names of the further scalars.
        warnings: What may harm training, one sentence each.
    """

    path: str
    fingerprint: str
    simulator: str
    frame_size: tuple[int, int]
    codec: str
    episodes: int
    steps: int
    hours: float
    file_bytes: int
    length_min: int
    length_mean: float
    length_max: int
    return_min: float
    return_mean: float
    return_max: float
    ends: dict[str, int]
    behaviours: dict[str, BehaviourStatistics]
    reward: Histogram
    actions: list[Histogram]
    infos: list[str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


def describe(dataset: Dataset) -> DatasetStatistics:
    """Count lengths, returns, rewards and actions, and look for what may harm training. Frames are not read.

    A dataset on object storage is downloaded for it.

    Raises:
        DatasetError: a file is cut or damaged, or cannot be downloaded.
    """
    dataset.download()
    headers = dataset.episodes
    steps = [read_steps(header) for header in headers]
    actions = np.concatenate([tensors["actions"] for tensors in steps])
    rewards = np.concatenate([tensors["rewards"] for tensors in steps])
    infos: dict[str, list[NDArray[np.float32]]] = {}
    for tensors in steps:
        for name, values in tensors.items():
            if name.startswith(INFO_PREFIX):
                infos.setdefault(name.removeprefix(INFO_PREFIX), []).append(values)
    simulator = dataset.metadata.simulator
    names = _action_names(simulator.action)
    lengths = [header.length for header in headers]
    returns = [header.return_ for header in headers]
    return DatasetStatistics(
        path=str(dataset.path),
        fingerprint=dataset.fingerprint,
        simulator=simulator.id,
        frame_size=simulator.frame_size,
        codec=str(dataset.metadata.codec),
        episodes=len(headers),
        steps=sum(lengths),
        hours=sum(lengths) * simulator.step_s / 3600,
        file_bytes=sum(header.file_bytes for header in headers),
        length_min=min(lengths),
        length_mean=float(np.mean(lengths)),
        length_max=max(lengths),
        return_min=min(returns),
        return_mean=float(np.mean(returns)),
        return_max=max(returns),
        ends=dict(Counter(header.end for header in headers)),
        behaviours=by_behaviour(headers),
        reward=_histogram("reward", rewards),
        actions=[_histogram(name, actions[:, i]) for i, name in enumerate(names)],
        infos=sorted(infos),
        warnings=[
            *_value_warnings(names, actions, rewards, {name: np.concatenate(parts) for name, parts in infos.items()}),
            *_driving_warnings(dataset, steps),
            *_coverage_warnings(dataset),
        ],
    )


def render(statistics: DatasetStatistics) -> str:
    """The statistics as text for a terminal."""
    s = statistics
    per_frame = s.file_bytes / (s.steps + s.episodes)
    lines = [
        f"{s.path}  ({s.fingerprint})",
        f"simulator   {s.simulator}, frames {s.frame_size[0]}x{s.frame_size[1]}, stored as {s.codec}",
        f"content     {s.episodes} episodes, {s.steps} steps"
        + (f" ({s.hours:.2f} h of driving)" if s.hours else "")
        + f", {s.file_bytes / 1e6:.1f} MB ({per_frame:.0f} bytes a frame)",
        f"lengths     {s.length_min} to {s.length_max} steps, mean {s.length_mean:.1f}",
        f"returns     {s.return_min:.1f} to {s.return_max:.1f}, mean {s.return_mean:.1f}",
        "ends        " + ", ".join(f"{count} {end}" for end, count in sorted(s.ends.items())),
        "infos       " + (", ".join(s.infos) or "none"),
        "",
        f"{'behaviour':<24}{'episodes':>10}{'steps':>10}{'mean return':>14}{'terminated':>12}",
    ]
    for name, b in s.behaviours.items():
        lines.append(f"{name:<24}{b.episodes:>10}{b.steps:>10}{b.mean_return:>14.1f}{b.terminated:>12}")
    for histogram in (s.reward, *s.actions):
        lines += ["", *_render_histogram(histogram)]
    if s.warnings:
        lines += ["", *(f"warning: {warning}" for warning in s.warnings)]
    return "\n".join(map(printable, lines))  # names come from files


def _action_names(action: ActionFormat) -> Sequence[str]:
    return DRIVING_NAMES if action.kind == "driving" else [f"action {i}" for i in range(action.dim)]


def by_behaviour(headers: Sequence[EpisodeHeader]) -> dict[str, BehaviourStatistics]:
    """What each behaviour drove, by its name in the order of the names."""
    found = {}
    for name in sorted({header.behaviour for header in headers}):
        own = [header for header in headers if header.behaviour == name]
        found[name] = BehaviourStatistics(
            episodes=len(own),
            steps=sum(header.length for header in own),
            mean_return=float(np.mean([header.return_ for header in own])),
            terminated=sum(header.end == "terminated" for header in own),
        )
    return found


def _histogram(name: str, values: NDArray[np.float32]) -> Histogram:
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return Histogram(name, 0.0, 0.0, 0.0, 0.0, [0.0, 1.0], [0])
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return Histogram(name, low, high, low, 0.0, [low, high], [len(finite)])
    counts, edges = np.histogram(finite, bins=NUM_BINS)
    return Histogram(
        name, low, high, float(finite.mean()), float(finite.std()), edges.tolist(), [int(count) for count in counts]
    )


def _render_histogram(histogram: Histogram) -> Iterator[str]:
    h = histogram
    yield f"{h.name}: {h.minimum:.3g} to {h.maximum:.3g}, mean {h.mean:.3g}, standard deviation {h.std:.3g}"
    most = max(h.counts)
    for low, high, count in zip(h.edges, h.edges[1:], h.counts, strict=False):
        bar = "#" * int(np.ceil(_BAR_WIDTH * count / most)) if most else ""
        yield f"  {low:>9.3g} to {high:<9.3g}{count:>9} {bar}".rstrip()


def _value_warnings(
    names: Sequence[str],
    actions: NDArray[np.float32],
    rewards: NDArray[np.float32],
    infos: dict[str, NDArray[np.float32]],
) -> Iterator[str]:
    for name, values in [("rewards", rewards), *((f"action {n!r}", actions[:, i]) for i, n in enumerate(names))]:
        bad = int((~np.isfinite(values)).sum())
        if bad:
            yield f"{name} are not finite at {bad} steps."
    for name, values in infos.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            yield f"info {name!r} is not finite at {bad} steps (NaN stands for a step that did not report it)."
    constant = [name for i, name in enumerate(names) if np.ptp(actions[:, i]) == 0]
    if len(constant) == len(names):
        yield "every action is the same, so a model cannot learn what actions do."
    else:
        for name in constant:
            if name != "gear":  # most episodes never leave the forward gear
                yield f"the action value {name!r} never changes, so a model cannot learn what it does."
    if np.ptp(rewards) == 0:
        yield f"every reward is {float(rewards[0]):g}, so there is nothing to learn from them."


def _driving_warnings(dataset: Dataset, steps: Sequence[Mapping[str, NDArray[Any]]]) -> Iterator[str]:
    """What is wrong with pedals, gear and time steps, as it often is in recordings that people converted."""
    simulator = dataset.metadata.simulator
    if simulator.action.kind == "driving":
        actions = np.concatenate([tensors["actions"] for tensors in steps])
        reverse, brakes = float(np.mean(actions[:, 3] < 0)), float(np.mean(actions[:, 2] > actions[:, 1]))
        if reverse > _MOST:
            yield f"the gear is reverse at {reverse:.0%} of the steps, so the car drives backwards; check the gear."
        if brakes > _MOST:
            yield (
                f"the brake is pressed harder than the throttle at {brakes:.0%} of the steps; if the car moved "
                "forward nonetheless, the throttle has the wrong sign (convert it with --scale throttle=-1)."
            )
        pedals, gains = _pedals_and_gains(simulator, steps)
        if len(gains) >= _ENOUGH and np.ptp(pedals) > 0 and np.ptp(gains) > 0:
            agreement = float(np.corrcoef(pedals, gains)[0, 1])
            if agreement < -_CLEAR:
                yield (
                    f"the speed falls where the throttle is pressed and rises under the brake (correlation "
                    f"{agreement:.2f}), so the car drives backwards by its pedals; check whether they are swapped."
                )
    if dataset.metadata.collection is None:
        if simulator.step_s == 0:
            yield "the time between two frames is not recorded; convert it again with --step-s."
        times = [np.diff(tensors[_TIME]) for tensors in steps if _TIME in tensors]
        differences = np.concatenate(times) if times else np.empty(0)
        if len(differences) and simulator.step_s > 0:
            median = float(np.median(differences))
            if not 0.8 < median / simulator.step_s < 1.25:
                yield (
                    f"the dataset says {simulator.step_s:g} s a step, but by the recorded times it is {median:.3g} s; "
                    "convert it again without --step-s."
                )
            uneven = float(np.mean(np.abs(differences - median) > 0.5 * median))
            if uneven > _UNEVEN:
                yield f"{uneven:.0%} of the time steps are more than half off their median, {median:.3g} s."


def _pedals_and_gains(
    simulator: SimulatorSpec, steps: Sequence[Mapping[str, NDArray[Any]]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Throttle less brake in forward gear, and the speed gained until the next step; empty without a recorded speed."""
    place = next((i for i, entry in enumerate(simulator.vector) if entry.name == "speed"), None)
    pedals, gains = [np.empty(0)], [np.empty(0)]
    for tensors in steps:
        speed = tensors.get(f"{INFO_PREFIX}speed")
        if place is not None and "vectors" in tensors:
            speed = tensors["vectors"][:-1, place]
        if speed is None:
            continue
        actions, gained = tensors["actions"][:-1].astype(np.float64), np.diff(speed.astype(np.float64))
        usable = np.isfinite(gained) & (actions[:, 3] > 0)
        pedals.append((actions[:, 1] - actions[:, 2])[usable])
        gains.append(gained[usable])
    return np.concatenate(pedals), np.concatenate(gains)


def _coverage_warnings(dataset: Dataset) -> Iterator[str]:
    headers = dataset.episodes
    behaviours = {header.behaviour for header in headers}
    if len(behaviours) == 1:
        yield (
            f"every episode was driven by {next(iter(behaviours))!r}; a mix such as noisy:0.7,random:0.2,autopilot:0.1 "
            "shows a model more situations."
        )
    if dataset.num_steps < FEW_STEPS:
        yield f"there are only {dataset.num_steps} steps; a world model needs some thousands at least."
    short = sum(header.length < SHORT_EPISODE_STEPS for header in headers)
    if short:
        yield f"{short} episodes have fewer than {SHORT_EPISODE_STEPS} steps and give no clip of usual length."
    lossy = sorted({str(header.codec) for header in headers if not header.codec.is_lossless})
    if lossy:
        yield f"frames are stored with a loss ({', '.join(lossy)}); a model learns to draw its artefacts."
    if all(header.end != "terminated" for header in headers):
        yield "no episode terminated, so a model cannot learn when driving ends."
    missing = headers[-1].index + 1 - len(headers)
    if missing:
        yield f"{missing} episodes below number {headers[-1].index} are missing; the same collection makes them again."
