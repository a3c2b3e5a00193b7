"""From a recording's columns to the four driving actions and the rewards of its rows. ``N`` counts rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import DRIVING_NAMES, ActionFormat, FloatArray
from wm_gym.data_collection.conversion.reward_expression import RewardExpression
from wm_gym.errors import DatasetError

Columns = dict[str, NDArray[np.float64]]
"""``(N,)`` float64 by name."""


def scaled(name: str, columns: Mapping[str, NDArray[np.float64]], scale: Mapping[str, float]) -> Columns:
    """The columns of a recording called ``name``, some of them multiplied by a factor.

    Raises:
        DatasetError: A factor is for a column that there is not.
    """
    result = dict(columns)
    for column, factor in scale.items():
        if column not in result:
            raise DatasetError(f"--scale {column} names no column of {name}; it has {', '.join(result)}.")
        result[column] = result[column] * factor
    return result


def driving_actions(
    name: str,
    columns: Columns,
    positions: NDArray[np.int64],
    fill: Mapping[str, float],
    notify: Callable[[str], None],
) -> tuple[FloatArray, Columns]:
    """The actions ``(N, 4)`` float32 of rows, and the columns with all four actions among them.

    A throttle below 0 counts as the brake where there is none; without it the brake is 0. Without a gear it is forward.

    Args:
        name: What messages call the recording.
        columns: What it has.
        positions: ``(N,)``, the rows' numbers in the source, counted from 0.
        fill: Values of actions that it lacks, by name.
        notify: Called with a sentence where something is assumed.

    Raises:
        DatasetError: There is no throttle, ``fill`` gives what is no action or is there already, or a value is out of
            its range.
    """
    rows = len(positions)
    columns = dict(columns)
    if "throttle" in columns and "brake" not in columns and (columns["throttle"] < 0).any():
        notify(f"{name} has no brake; a throttle below 0 counts as the brake.")
        columns["brake"] = np.maximum(-columns["throttle"], 0)
        columns["throttle"] = np.maximum(columns["throttle"], 0)
    for action, value in fill.items():
        if action not in DRIVING_NAMES:
            raise DatasetError(f"--fill {action} is no action; use one of {', '.join(DRIVING_NAMES)}.")
        if action in columns:
            raise DatasetError(f"{name} has a column for {action} already; leave out --fill {action}.")
        columns[action] = np.full(rows, value)
    if "throttle" not in columns:
        raise DatasetError(f"{name} has no throttle; give a value for all rows, as in --fill throttle=0.3.")
    if "brake" not in columns:
        notify(f"{name} has no brake; it is taken as 0.")
        columns["brake"] = np.zeros(rows)
    columns.setdefault("gear", np.ones(rows))
    stored = np.stack([columns[action] for action in DRIVING_NAMES], axis=-1)
    form = ActionFormat.driving()
    outside = np.argwhere(~((stored >= np.array(form.low) - 1e-3) & (stored <= np.array(form.high) + 1e-3)))
    if len(outside):
        row, place = outside[0]
        column, value = DRIVING_NAMES[place], stored[row, place]
        if column in fill:
            remedy = f"give another --fill {column}"
        elif column == "throttle" and value < 0:
            remedy = "rename the column of the brake, and a throttle below 0 counts as the brake"
        elif column == "gear" or (column == "brake" and value < 0):
            remedy = "change it in the recording"
        else:
            factor = 1 / np.nanmax(np.abs(stored[:, place]))
            digits = 1 - math.floor(math.log10(factor))
            remedy = f"give a factor, as in --scale {column}={math.floor(factor * 10**digits + 1e-6) / 10**digits:g}"
        raise DatasetError(
            f"{name} has {column} {value:g} in row {positions[row] + 1}, out of its range (steering -1 to "
            f"1, throttle and brake 0 to 1, gear -1, 0 or 1); {remedy}."
        )
    return form.to_stored(stored), columns


def rewards_of(
    name: str, columns: Columns, positions: NDArray[np.int64], formula: RewardExpression | None
) -> FloatArray:
    """The rewards ``(N,)`` float32 of rows: by a formula, else the column ``reward``, else 0.

    Raises:
        DatasetError: One is not finite; the arguments are those of :func:`driving_actions`.
    """
    rewards = columns.get("reward", np.zeros(len(positions)))
    if formula is not None:
        rewards = formula(columns)
    if not np.isfinite(rewards).all():
        row = positions[int(np.argmin(np.isfinite(rewards)))] + 1
        raise DatasetError(f"{name} has a reward that is not finite in row {row}; change --reward or the column.")
    return rewards.astype(np.float32)
