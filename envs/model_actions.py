"""Actions from outside, checked and brought to the vectors that a world model takes."""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from wm_gym.actions import ActionFormat, ActionName, FloatArray
from wm_gym.errors import ConfigError


class ModelActions:
    """The actions of one environment over a world model.

    Args:
        action_format: What the model's action vectors mean.
        name: The kind of action that the environment takes; ``None`` is the format's own.

    Raises:
        ConfigError: The format does not offer ``name``.
    """

    def __init__(self, action_format: ActionFormat, name: str | None = None) -> None:
        self.format = action_format
        self.name: ActionName = action_format.resolve(name)
        self.space: spaces.Box = action_format.space(self.name)

    def to_stored(self, actions: ArrayLike, batch_shape: tuple[int, ...] = ()) -> FloatArray:
        """Check actions and return the stored vectors ``(*batch_shape, A)`` float32, clipped to their bounds.

        Raises:
            ConfigError: The shape is not ``(*batch_shape, values)``, or a value is not finite.
        """
        values = _as_numbers(actions)
        self._check_shape(values, (*batch_shape, *self.space.shape))
        if not np.isfinite(values).all():
            raise _not_finite(values)
        return self.format.to_stored(values, self.name)

    def one_to_stored(self, action: ArrayLike) -> list[float]:
        """As :meth:`to_stored` of a single action, in plain numbers, which takes a fraction of the time."""
        values = _as_numbers(action)
        self._check_shape(values, self.space.shape)
        numbers: list[float] = values.tolist()
        # Sums of float32 numbers cannot overflow in Python's own.
        if not math.isfinite(sum(numbers)):
            raise _not_finite(values)
        return self.format.one_to_stored(numbers, self.name)

    def _check_shape(self, values: FloatArray, expected: tuple[int, ...]) -> None:
        if values.shape != expected:
            raise ConfigError(f"{self.name!r} actions of shape {expected} are needed, but {values.shape} was given.")


def _as_numbers(values: ArrayLike) -> FloatArray:
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"actions are arrays of numbers, but {values!r:.100} was given.") from error


def _not_finite(values: FloatArray) -> ConfigError:
    given = values.tolist() if values.ndim == 1 else "NaN or inf"
    return ConfigError(f"every value of an action must be finite, but {given} was given; check the policy's output.")
