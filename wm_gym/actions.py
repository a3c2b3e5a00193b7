"""Action formats and the maps between them.

Three names occur throughout the package:

* ``"driving"``: 4 values, steering [-1, 1] (positive turns right), throttle [0, 1], brake [0, 1] and gear {-1, 0, 1}
  (reverse, neutral, forward; any number is rounded). Datasets and world models of driving simulators store this one.
* ``"steer_accel"``: 2 values, steering [-1, 1] and acceleration [-1, 1]; positive is throttle, negative is brake,
  and the gear is always forward.
* ``"native"``: the Box of a simulator that is not a driving one, passed through unchanged.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from wm_gym.errors import ConfigError, did_you_mean

ActionName = Literal["driving", "steer_accel", "native"]
FloatArray = NDArray[np.float32]

DRIVING_NAMES = ("steering", "throttle", "brake", "gear")
"""The values of a driving action, in their order."""
_DRIVING_LOW = (-1.0, 0.0, 0.0, -1.0)
_DRIVING_HIGH = (1.0, 1.0, 1.0, 1.0)


class ActionFormat(BaseModel):
    """What the stored action vectors of a dataset or a world model mean.

    Attributes:
        kind: ``"driving"`` for the 4 driving values, ``"native"`` for any other simulator's own Box.
        low: Lower bound of each value.
        high: Upper bound of each value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["driving", "native"]
    low: tuple[float, ...] = Field(min_length=1, max_length=1024)
    high: tuple[float, ...] = Field(min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _bounds_hold_values(self) -> ActionFormat:
        if self.kind == "driving" and (self.low, self.high) != (_DRIVING_LOW, _DRIVING_HIGH):
            raise ValueError(
                "the bounds of driving actions are steering -1 to 1, throttle and brake 0 to 1, gear -1 to 1"
            )
        if len(self.low) != len(self.high) or not all(map(operator.le, self.low, self.high)):
            raise ValueError("low and high need as many numbers each, and no low above its high")
        return self

    @classmethod
    def driving(cls) -> ActionFormat:
        """The 4 driving values."""
        return cls(kind="driving", low=_DRIVING_LOW, high=_DRIVING_HIGH)

    @classmethod
    def native(cls, space: spaces.Box) -> ActionFormat:
        """The action space of a simulator that is not a driving one: a one-dimensional Box."""
        return cls(kind="native", low=tuple(map(float, space.low)), high=tuple(map(float, space.high)))

    @property
    def dim(self) -> int:
        """Number of values in one stored action."""
        return len(self.low)

    @property
    def names(self) -> tuple[ActionName, ...]:
        """The action names that an environment over this format offers; the first one is its own."""
        return ("driving", "steer_accel") if self.kind == "driving" else ("native",)

    def resolve(self, name: str | None) -> ActionName:
        """Return the action name to use, ``None`` standing for the format's own.

        Raises:
            ConfigError: ``name`` is not one that this format offers.
        """
        if name is None:
            return self.names[0]
        for offered in self.names:
            if name == offered:
                return offered
        raise ConfigError(
            f"action={name!r} is not offered for {self.kind} actions{did_you_mean(name, self.names)}; "
            f"use one of {', '.join(map(repr, self.names))}."
        )

    def space(self, name: str | None = None) -> spaces.Box:
        """The Gymnasium space of the named actions (float32)."""
        if self.resolve(name) == "steer_accel":
            return spaces.Box(-1.0, 1.0, (2,), np.float32)
        return spaces.Box(np.asarray(self.low, np.float32), np.asarray(self.high, np.float32), dtype=np.float32)

    def to_stored(self, action: ArrayLike, name: str | None = None) -> FloatArray:
        """Map actions of the named kind to the stored vectors, clipped to their bounds.

        Args:
            action: ``(..., 2)`` for ``"steer_accel"``, else ``(..., dim)``; any float dtype.
            name: The kind of ``action``; ``None`` is the format's own.

        Returns:
            ``(..., dim)`` float32; the gear of a driving action is rounded to -1, 0 or 1.
        """
        resolved = self.resolve(name)
        values = np.asarray(action, dtype=np.float32)
        expected = 2 if resolved == "steer_accel" else self.dim
        if values.shape[-1:] != (expected,):
            raise ConfigError(
                f"a {resolved!r} action has {expected} values, but one of shape {values.shape} was given."
            )
        if resolved == "steer_accel":
            given = values
            values = np.empty((*given.shape[:-1], self.dim), np.float32)
            values[..., 0] = given[..., 0]
            np.maximum(given[..., 1], 0, out=values[..., 1])
            np.maximum(-given[..., 1], 0, out=values[..., 2])
            values[..., 3] = 1
        low, high = _bounds(self.low, self.high)
        stored: FloatArray = np.minimum(np.maximum(values, low), high)
        if self.kind == "driving":
            stored[..., 3] = np.rint(stored[..., 3])
        return stored

    def one_to_stored(self, action: Sequence[float], name: ActionName) -> list[float]:
        """As :meth:`to_stored` of a single action, in plain numbers, which takes a fraction of the time.

        Args:
            action: Finite float32 values, two for ``"steer_accel"``, else ``dim``.
            name: The kind of ``action``, one of :attr:`names`.
        """
        if name == "steer_accel":
            steering, acceleration = action
            action = (steering, max(acceleration, 0.0), max(-acceleration, 0.0), 1.0)
        stored = [
            low if value < low else high if value > high else value
            for value, low, high in zip(action, self.low, self.high, strict=True)
        ]
        if self.kind == "driving":
            stored[3] = round(stored[3])
        return stored

    def from_stored(self, stored: ArrayLike, name: str | None = None) -> FloatArray:
        """Map stored vectors to actions of the named kind; the inverse of :meth:`to_stored` where one exists.

        ``"steer_accel"`` cannot express throttle and brake at once nor a gear: acceleration is throttle minus brake,
        and the gear is dropped.
        """
        values = np.asarray(stored, dtype=np.float32)
        if self.resolve(name) == "steer_accel":
            return np.stack((values[..., 0], values[..., 1] - values[..., 2]), axis=-1)
        return values


@lru_cache
def _bounds(low: tuple[float, ...], high: tuple[float, ...]) -> tuple[FloatArray, FloatArray]:
    """Bounds as arrays: a single dream's step would make them anew thousands of times a second."""
    return np.asarray(low, np.float32), np.asarray(high, np.float32)


def is_driving(env: Any) -> bool:
    """Whether an environment declares the driving actions (``metadata["driving"]``)."""
    return bool(env.unwrapped.metadata.get("driving", False))
