"""The report's figures, as PNG files in memory."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wm_gym.agents.evaluation.calibration import RewardCalibration
from wm_gym.agents.evaluation.reality_gap import Windows
from wm_gym.agents.evaluation.scorecard import Scorecard
from wm_gym.data_collection.datasets.statistics import DatasetStatistics

Row = Mapping[str, Any]
"""A row of a run's ``metrics.jsonl``."""

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#7a7a7a"
_PALE = "#9aa3ad"
_COLOURS = (_BLUE, _ORANGE, _GREEN, "#CC79A7", "#E69F00", "#56B4E9", _GREY)
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_WIDTH = 9.6  # inches
_DPI = 144
PAGE_SCALE = 0.68
"""Pixels of a page for each pixel of a figure; the rest is for screens with more of them."""
_SMOOTH_SHARE = 50  # a smoothed curve averages over this part of its points


class ReturnBar(NamedTuple):
    """One driver's mean return.

    Attributes:
        label: Name of the driver.
        mean: Mean return.
        interval: 95 % interval of the mean, or ``None``.
        is_chief: Whether it is the agent that the report is about.
    """

    label: str
    mean: float
    interval: tuple[float, float] | None
    is_chief: bool


def draw_returns(bars: Sequence[ReturnBar]) -> bytes:
    """Mean returns with their intervals, one below the other."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH * 0.75, 0.75 + 0.38 * len(bars)), layout="constrained")
        axes = figure.subplots()
        for position, bar in enumerate(bars):
            colour = _BLUE if bar.is_chief else _GREY
            axes.barh(position, bar.mean, height=0.55, color=colour, alpha=0.35)
            low, high = bar.interval or (bar.mean, bar.mean)
            axes.plot([low, high], [position, position], color=colour, linewidth=2.5, solid_capstyle="butt")
            axes.plot(bar.mean, position, "o", color=colour, markersize=6)
        axes.axvline(0.0, color=_PALE, linewidth=0.8)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mean return of an episode, with the 95 % interval of the mean")
        return _png(figure)


def draw_reward_gap(gap: Windows, calibration: RewardCalibration | None) -> bytes:
    """Sums of rewards by horizon, predicted against real ones over the longest horizon, and single steps in bins."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.3), layout="constrained")
        left, right, *others = figure.subplots(1, 2 if calibration is None else 3)
        sums = {steps: gap.sums(steps) for steps in gap.horizons}
        series = (
            ("simulator", _GREY, "o-"),
            ("dream under the same actions", _BLUE, "s-"),
            ("dream with the agent driving in it", _ORANGE, "^--"),
        )
        for index, (label, colour, style) in enumerate(series):
            means = [float(np.mean(sums[steps][index])) for steps in gap.horizons]
            left.plot(gap.horizons, means, style, color=colour, label=label, markersize=5)
        left.set(title="Mean summed reward by horizon", xlabel="steps ahead", ylabel="summed reward")
        left.legend()
        longest = gap.horizons[-1]
        real, predicted, _ = sums[longest]
        _draw_diagonal(right, [*real, *predicted])
        right.plot(real, predicted, "o", color=_BLUE, alpha=0.55, markersize=4)
        right.set(
            title=f"Each window, {longest} step{'' if longest == 1 else 's'} ahead",
            xlabel="real summed reward",
            ylabel="predicted under the same actions",
        )
        right.legend()
        if calibration is not None:
            _draw_calibration(others[0], calibration)
        return _png(figure)


def _draw_calibration(axes: Axes, calibration: RewardCalibration) -> None:
    predicted = [group.mean_predicted for group in calibration.bins]
    real = [group.mean_real for group in calibration.bins]
    _draw_diagonal(axes, [*predicted, *real])
    axes.plot(predicted, real, "o-", color=_BLUE, markersize=4)
    axes.set(title="Single steps, in bins", xlabel="mean predicted reward", ylabel="mean real reward")
    axes.legend()


def _draw_diagonal(axes: Axes, values: Sequence[float]) -> None:
    """Where both coordinates are equal, as far as the values go."""
    ends = [float(min(values)), float(max(values))]
    axes.plot(ends, ends, color=_PALE, linewidth=1, label="equal")


def draw_agreement(card: Scorecard) -> bytes:
    """Predicted against real mean return of every policy, a panel for each horizon.

    Beside the intervals of both, an error bar with ends shows the doubt of the dream, where it is known.
    """
    with matplotlib.rc_context(_STYLE):
        figure, grid = _grid(len(card.agreement), row_height=3.3)
        for place, (axes, agreement) in enumerate(zip(grid, card.agreement, strict=True)):
            points = [score.by_horizon[place] for score in card.policies]
            ends: list[float] = []
            for point in points:
                if point.doubt is not None:
                    label = None if axes.get_legend_handles_labels()[1] else "doubt of the dream"
                    axes.errorbar(
                        point.real, point.predicted, point.doubt, color=_ORANGE, linewidth=0.9, capsize=3, label=label
                    )
                    ends += [point.predicted - point.doubt, point.predicted + point.doubt]
                low, high = point.real_ci95 or (point.real, point.real)
                axes.plot([low, high], [point.predicted] * 2, color=_BLUE, alpha=0.5, linewidth=1.2)
                ends += [low, high]
                low, high = point.predicted_ci95 or (point.predicted, point.predicted)
                axes.plot([point.real] * 2, [low, high], color=_BLUE, alpha=0.5, linewidth=1.2)
                ends += [low, high]
            axes.plot([point.real for point in points], [point.predicted for point in points], "o", color=_BLUE)
            _draw_diagonal(axes, ends)
            known = "unknown" if agreement.spearman is None else f"{agreement.spearman:.2f}"
            whole = ", whole drives" if agreement.compared_with == "whole_drive" else ""
            axes.set(
                title=f"{agreement.steps} steps, rank correlation {known}",
                xlabel=f"mean return in the simulator{whole}",
                ylabel="mean return in the dream",
            )
            axes.legend()
        return _png(figure)


def draw_model_curves(rows: Sequence[Row], saved_update: int | None = None, keep: str = "best") -> bytes | None:
    """How a world model's training went, and how good its open-loop predictions are.

    Args:
        rows: Of its ``metrics.jsonl``.
        saved_update: The update that the saved model is of; ``None`` where no model is saved yet.
        keep: Which one is saved at the end, as the run's ``training.keep`` says: the ``"best"`` or the ``"last"``.

    Returns:
        The figure, or ``None`` where nothing was logged.
    """
    train = [row for row in rows if row.get("kind") == "train"]
    validation = [row for row in rows if row.get("kind") == "validation"]
    panels: list[Callable[[Axes], None]] = []
    if train:
        panels.append(lambda axes: _draw_losses(axes, train))
    if validation:
        saved = saved_validation(validation, saved_update, keep)
        label = "saved" if saved["update"] == saved_update else "to be saved so far"
        at = f"(update {saved['update']})"
        copy = "repeating the last frame"
        reward, told = saved.get("reward") or {}, {"correlation": "correlation with the real one"}
        panels += [
            lambda axes: _draw_validation(axes, validation, saved, label),
            lambda axes: _draw_psnr_curve(axes, validation),
            lambda axes: _draw_by_horizon(
                axes, saved, f"PSNR by horizon {at}", "dB", {"psnr": "dream", "psnr_copy": copy}
            ),
            lambda axes: _draw_by_horizon(
                axes, saved, f"SSIM by horizon {at}", "", {"ssim": "dream", "ssim_copy": copy}
            ),
            lambda axes: _draw_by_horizon(axes, reward, f"Summed reward {at}", "", told),
        ]
    if not panels:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, grid = _grid(len(panels))
        for axes, draw in zip(grid, panels, strict=True):
            draw(axes)
        return _png(figure)


def saved_validation(rows: Sequence[Row], saved_update: int | None, keep: str) -> Row:
    """The validation of the model that is saved, or of the one that would be if the training ended now.

    Args:
        rows: The validations, at least one.
        saved_update: See :func:`draw_model_curves`, also for what follows.
        keep: ``"best"`` or ``"last"``.
    """
    for row in rows:
        if row["update"] == saved_update:
            return row
    if keep == "last":
        return rows[-1]
    return min(rows, key=lambda row: row["loss"] if math.isfinite(row["loss"]) else math.inf)


_AGENT_PANELS: tuple[tuple[str, str, str, float], ...] = (
    ("train", "ep_rew_mean", "Dream return", 1.0),
    ("validation", "score", "Score of the validation drives", 1.0),
    ("train", "entropy_loss", "Entropy of the policy", -1.0),
    ("train", "std", "Deviation of the actions", 1.0),
    ("train", "ent_coef", "Entropy coefficient", 1.0),
    ("train", "value_loss", "Value loss", 1.0),
    ("train", "critic_loss", "Critic loss", 1.0),
    ("train", "approx_kl", "KL divergence of an update", 1.0),
)
_LOGARITHMIC = ("value_loss", "critic_loss")


def draw_agent_curves(rows: Sequence[Row]) -> bytes | None:
    """How an agent's training went, over dream steps.

    Args:
        rows: Of its ``metrics.jsonl``.

    Returns:
        The figure, or ``None`` where nothing was logged.
    """
    panels = []
    for kind, key, title, factor in _AGENT_PANELS:
        found = [row for row in rows if row.get("kind") == kind and None not in (row.get(key), row.get("dream_steps"))]
        if found:
            steps = np.array([row["dream_steps"] for row in found], np.float64)
            values = factor * np.array([row[key] for row in found], np.float64)
            panels.append((title, steps, values, key in _LOGARITHMIC))
    if not panels:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, grid = _grid(len(panels))
        for axes, (title, steps, values, is_logarithmic) in zip(grid, panels, strict=True):
            _draw_curve(axes, steps, values, _BLUE)
            if is_logarithmic and (values > 0).any():
                axes.set_yscale("log")
            axes.set(title=title, xlabel="dream steps")
            axes.xaxis.set_major_formatter(_thousands)
        return _png(figure)


def draw_histograms(statistics: DatasetStatistics) -> bytes:
    """Histograms of the rewards and of every action value of a dataset."""
    histograms = [statistics.reward, *statistics.actions]
    with matplotlib.rc_context(_STYLE):
        figure, grid = _grid(len(histograms), columns=min(5, len(histograms)), row_height=1.9)
        for axes, histogram in zip(grid, histograms, strict=True):
            if len(histogram.edges) == len(histogram.counts) + 1 and histogram.edges[0] < histogram.edges[-1]:
                axes.stairs(histogram.counts, histogram.edges, fill=True, color=_BLUE, alpha=0.6)
            else:
                axes.bar([histogram.mean], [sum(histogram.counts)], width=0.1, color=_BLUE, alpha=0.6)
                axes.set_xlim(histogram.mean - 1, histogram.mean + 1)
            axes.set_title(histogram.name)
            axes.yaxis.set_major_formatter(_thousands)
            # A few rare values, such as the reward of a crash, would be invisible on a linear axis.
            axes.set_yscale("symlog", linthresh=10)
        grid[0].set_ylabel("steps")
        return _png(figure)


def _draw_losses(axes: Axes, rows: Sequence[Row]) -> None:
    left_out = {"kind", "update", "gradient_norm", "learning_rate", "updates_per_s"}
    names = [name for name, value in rows[-1].items() if name not in left_out and isinstance(value, (int, float))]
    updates = np.array([row["update"] for row in rows], np.float64)
    for name, colour in zip(names, _COLOURS, strict=False):
        values = np.array([row.get(name, math.nan) for row in rows], np.float64)
        if (values > 0).any():
            _draw_curve(axes, updates, np.where(values > 0, values, np.nan), colour, name)
    axes.set_yscale("log")
    axes.set(title="Training losses", xlabel="updates")
    # The names take the upper third of the panel.
    low, high = axes.get_ylim()
    low = max(low, high * 1e-6)
    axes.set_ylim(low, high * (high / low) ** 0.6)
    axes.legend(ncols=2, loc="upper right", columnspacing=1.0, handlelength=1.2, fontsize=7)


def _draw_validation(axes: Axes, rows: Sequence[Row], saved: Row, label: str) -> None:
    axes.plot([row["update"] for row in rows], [row["loss"] for row in rows], "o-", color=_BLUE, markersize=3)
    axes.plot(saved["update"], saved["loss"], "o", color=_ORANGE, markersize=7, label=f"{label}: {saved['loss']:.3g}")
    axes.set(title="Validation loss", xlabel="updates")
    axes.legend()


def _draw_psnr_curve(axes: Axes, rows: Sequence[Row]) -> None:
    by_horizon = rows[-1].get("psnr") or {}
    for steps, colour in zip(sorted(by_horizon, key=int), _COLOURS, strict=False):
        points = [(row["update"], row["psnr"][steps]) for row in rows if steps in (row.get("psnr") or {})]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=f"{steps} ahead")
    axes.set(title="PSNR of dreamt frames", xlabel="updates", ylabel="dB")
    if by_horizon:
        axes.legend()


def _draw_by_horizon(axes: Axes, row: Row, title: str, unit: str, names: Mapping[str, str]) -> None:
    for (name, label), colour, style in zip(names.items(), (_BLUE, _GREY), ("o-", "s--"), strict=False):
        values = {int(steps): value for steps, value in (row.get(name) or {}).items() if value is not None}
        if values:
            axes.plot(list(values), list(values.values()), style, color=colour, markersize=4, label=label)
    axes.set(title=title, xlabel="steps ahead", ylabel=unit)
    if axes.lines:
        axes.legend()


def _draw_curve(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str, label: str | None = None
) -> None:
    """A curve with its moving average in front of it."""
    window = len(y) // _SMOOTH_SHARE
    if window < 2:
        axes.plot(x, y, "o-" if len(y) < 5 else "-", color=colour, label=label, markersize=3)
        return
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    kernel = np.ones(window) / window
    axes.plot(np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid"), color=colour, label=label)


def _grid(count: int, columns: int = 3, row_height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH, row_height * rows))
    figure.set_layout_engine("constrained", h_pad=0.1)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _thousands(value: float, _: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
