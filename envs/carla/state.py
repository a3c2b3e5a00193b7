"""What the environment knows of the vehicles around, free of the simulator's own objects.

CARLA's frame: metres and degrees, left-handed (x forward, y right), yaw clockwise seen from above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RoadUserKind = Literal["vehicle", "pedestrian"]


@dataclass(frozen=True)
class EgoState:
    """Pose and motion of the ego vehicle's centre.

    Attributes:
        x: Metres.
        y: Metres.
        z: Metres.
        yaw: Degrees.
        speed: m/s along the heading, negative backwards.
        velocity: ``(2,)`` m/s in the map's x and y.
        yaw_rate: Degrees a second, positive turns right.
    """

    x: float
    y: float
    z: float
    yaw: float
    speed: float
    velocity: tuple[float, float]
    yaw_rate: float


@dataclass(frozen=True)
class RoadUser:
    """A vehicle or pedestrian other than the ego vehicle, as a box seen from above.

    Attributes:
        id: The actor's id in the simulator.
        kind: ``"vehicle"`` or ``"pedestrian"``.
        x: Centre, metres.
        y: Centre, metres.
        yaw: Degrees.
        speed: m/s along the heading, negative backwards.
        half_length: Metres.
        half_width: Metres.
        z: Metres, or ``None`` where it is not known.
    """

    id: int
    kind: RoadUserKind
    x: float
    y: float
    yaw: float
    speed: float
    half_length: float
    half_width: float
    z: float | None = None
