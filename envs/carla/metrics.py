"""Driving metrics in the sense of the CARLA leaderboard 1.0 and 2.0 (https://leaderboard.carla.org).

* Route completion: per cent of the route that was driven. Distance driven off the road does not count.
* Infraction penalty: the product of a coefficient for each infraction, 1 without any.
* Driving score: route completion times infraction penalty. The leaderboard's program multiplies the penalty, not the
  completion, by the part that was driven on the road; the driving score is the same.
* Infractions by kind for each kilometre of the route that was driven.

What is not covered, because this environment does not simulate it: stop signs, scenarios and their time-outs, the
minimum speed, giving way to emergency vehicles, and driving in a lane of the opposite direction, which the leaderboard
counts as off the road. Being blocked and leaving the route end a drive without a penalty of their own, as there.
Leaderboard 2.1 has another formula, 1 / (1 + a sum of points), and numbers that cannot be compared with these.

The leaderboard's figure for several routes is the mean of each of the three scores over the routes. Its rates are all
infractions over all kilometres; ``rate * km`` gives the count of one drive back.
"""

from __future__ import annotations

from typing import Literal, get_args

CollisionKind = Literal["pedestrian", "vehicle", "static"]

COLLISION_PENALTY: dict[CollisionKind, float] = {"pedestrian": 0.50, "vehicle": 0.60, "static": 0.65}
"""What a collision multiplies the infraction penalty by."""
RED_LIGHT_PENALTY = 0.70

_LEAST_KM = 0.001
"""Rates are for at least so many kilometres, so that a drive that never starts has finite ones."""


def collision_kind(type_id: str) -> CollisionKind:
    """What was hit, from the type of the other actor, such as ``walker.pedestrian.0001`` or ``static.pole``."""
    if type_id.startswith("walker."):
        return "pedestrian"
    return "vehicle" if type_id.startswith("vehicle.") else "static"


class CollisionFilter:
    """Makes one collision of the many events that a contact causes: the simulator reports one for every tick of it.

    An event is a new collision unless the same actor was touched less than ``quiet_s`` before. The leaderboard's
    ``CollisionTest`` counts a contact that goes on again after 5 s, and ignores others within 5 m of the last one and
    those at a standstill; none of this is done here.

    Args:
        quiet_s: Seconds.
    """

    def __init__(self, quiet_s: float = 2.0) -> None:
        self._quiet_s = quiet_s
        self._last_touch: dict[int, float] = {}

    def is_new(self, actor_id: int, time_s: float) -> bool:
        """Whether an event begins a new collision.

        Args:
            actor_id: Of the other actor.
            time_s: Simulated time of the event; never less than in the call before.
        """
        last = self._last_touch.get(actor_id)
        self._last_touch[actor_id] = time_s
        return last is None or time_s - last >= self._quiet_s


class DrivingRecord:
    """Gathers what happens on one drive.

    Args:
        route_length: Metres.

    Raises:
        ValueError: ``route_length`` is not positive.
    """

    def __init__(self, route_length: float) -> None:
        if route_length <= 0:
            raise ValueError(f"a route of {route_length} m cannot be driven")
        self._route_length = route_length
        self._reached = 0.0
        self._off_road_m = 0.0
        self._is_off_road = False
        self._departures = 0
        self._collisions: dict[CollisionKind, int] = dict.fromkeys(get_args(CollisionKind), 0)
        self._red_lights = 0
        self._deviations = 0
        self._blocked = 0

    def add_step(self, distance: float, *, off_road: bool = False, route_done: bool = False) -> None:
        """Add a step.

        Args:
            distance: Metres along the route at the end of the step; driving backwards takes nothing away.
            off_road: Whether the vehicle is off the road; the distance gained in this step is then lost.
            route_done: Whether the route counts as driven to its end.
        """
        reached = self._route_length if route_done else min(distance, self._route_length)
        gained = max(0.0, reached - self._reached)
        self._reached += gained
        if off_road:
            self._off_road_m += gained
            self._departures += not self._is_off_road
        self._is_off_road = off_road

    def add_collision(self, kind: CollisionKind) -> None:
        """Add a collision; see :class:`CollisionFilter` for what is one."""
        self._collisions[kind] += 1

    def add_red_light(self) -> None:
        """Add a red light that was run."""
        self._red_lights += 1

    def add_route_deviation(self) -> None:
        """Add that the vehicle went too far away from its route."""
        self._deviations += 1

    def add_blocked(self) -> None:
        """Add that the vehicle did not move for too long."""
        self._blocked += 1

    def metrics(self) -> dict[str, float]:
        """The metrics so far.

        Returns:
            ``route_completion`` (0 to 100), ``infraction_penalty`` (0 to 1), ``driving_score`` (0 to 100), ``km`` (of
            the route, on and off the road, at least 0.001), and for each of these kilometres
            ``collisions_pedestrian_per_km``, ``collisions_vehicle_per_km``, ``collisions_static_per_km``,
            ``red_lights_per_km``, ``off_road_per_km`` (times that the vehicle left the road),
            ``route_deviations_per_km`` and ``blocked_per_km``.
        """
        km = max(self._reached / 1000, _LEAST_KM)
        completion = 100 * max(0.0, self._reached - self._off_road_m) / self._route_length
        penalty = RED_LIGHT_PENALTY**self._red_lights
        for kind, count in self._collisions.items():
            penalty *= COLLISION_PENALTY[kind] ** count
        return {
            "route_completion": completion,
            "infraction_penalty": penalty,
            "driving_score": completion * penalty,
            **{f"collisions_{kind}_per_km": count / km for kind, count in self._collisions.items()},
            "red_lights_per_km": self._red_lights / km,
            "off_road_per_km": self._departures / km,
            "route_deviations_per_km": self._deviations / km,
            "blocked_per_km": self._blocked / km,
            "km": km,
        }
