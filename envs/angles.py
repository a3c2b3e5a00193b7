"""Angles in degrees."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Degrees = TypeVar("_Degrees", float, NDArray[np.float64])


def wrap_degrees(angle: _Degrees) -> _Degrees:
    """An angle, or angles, brought to [-180, 180)."""
    return (angle + 180.0) % 360.0 - 180.0
