"""The driving lanes of an OpenDRIVE map as samples of their centre lines, read by CARLA's own client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.carla_light.layout import Points

if TYPE_CHECKING:
    import carla

SPACING_M = 2.0


@dataclass(frozen=True, eq=False)
class LaneSamples:
    """Samples of all driving lanes, those of one lane in a row and in the direction of its traffic.

    Attributes:
        points: ``(N, 3)`` metres.
        yaws: ``(N,)`` degrees, the direction of the traffic.
        slopes: ``(N,)`` metres of rise for each metre in that direction.
        widths: ``(N,)`` metres.
        roads: ``(N,)`` ids.
        lanes: ``(N,)`` ids.
        stations: ``(N,)`` metres along the road.
        junctions: ``(N,)`` ids, -1 outside junctions.
        starts: ``(L + 1,)`` number of the first sample of each lane section, and ``N``.
        waypoints: The client's own, ``N`` of them.
    """

    points: Points
    yaws: Points
    slopes: Points
    widths: Points
    roads: NDArray[np.int64]
    lanes: NDArray[np.int64]
    stations: Points
    junctions: NDArray[np.int64]
    starts: NDArray[np.int64]
    waypoints: list[carla.Waypoint]

    def each_lane(self) -> Iterator[slice]:
        """The samples of each lane section."""
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield slice(start, stop)


def read_lanes(carla_map: carla.Map) -> LaneSamples:
    """Sample a map every ``SPACING_M`` metres.

    Raises:
        ValueError: It has no driving lanes.
    """
    waypoints = carla_map.generate_waypoints(SPACING_M)
    if not waypoints:
        raise ValueError("it has no lanes for driving")
    # Lanes with positive ids are driven against the road's own direction.
    waypoints.sort(key=lambda found: (found.road_id, found.section_id, found.lane_id, -found.lane_id * found.s))
    transforms = [found.transform for found in waypoints]
    keys = np.array([(found.road_id, found.section_id, found.lane_id) for found in waypoints])
    first = np.flatnonzero(np.any(np.diff(keys, axis=0) != 0, axis=1)) + 1
    return LaneSamples(
        points=np.array([(t.location.x, t.location.y, t.location.z) for t in transforms]),
        yaws=np.array([t.rotation.yaw for t in transforms]),
        slopes=np.tan(np.radians([t.rotation.pitch for t in transforms])),
        widths=np.array([found.lane_width for found in waypoints]),
        roads=keys[:, 0],
        lanes=keys[:, 2],
        stations=np.array([found.s for found in waypoints]),
        junctions=np.array([found.junction_id if found.is_junction else -1 for found in waypoints]),
        starts=np.concatenate(([0], first, [len(waypoints)])),
        waypoints=waypoints,
    )
