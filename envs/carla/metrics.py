"""Driving metrics in the sense of the CARLA leaderboard 2.x (https://leaderboard.carla.org).

* Route completion: per cent of the route that was driven. Distance driven off the road does not count.
* Infraction penalty: the product of a coefficient for each infraction, 1 without any (leaderboard 1.0 and 2.0); and
  ``1 / (1 + sum of points)`` with points for each infraction (leaderboard 2.1, in the fields that end in ``_2_1``).
* Driving score: route completion times infraction penalty. The leaderboard's program multiplies the penalty, not the
  completion, by the part that was driven on the road; the driving score is the same.
* Infractions by kind for each kilometre of the route that was driven.

Thresholds and criteria are the leaderboard's. See :class:`CollisionFilter` for what is one collision. A red light is
run where the vehicle's rear crosses a line of 1.2 lane widths at the junction, in the lane that the light is for; a
light counts once in a row. The road is left 0.5 m beyond the outermost lane. A route is done beyond 99 % of it and
within 10 m of its end. 30 m away from the route is a deviation, 180 s below 0.1 m/s is being blocked. The time for a
route is that of leaderboard 1.0, 5 s and 0.8 s for each metre; 2.x gives 180 s and the time at a quarter of the limit.

What differs still:

* Stop signs, scenarios and their time-outs, the minimum speed and giving way to emergency vehicles are not covered, as
  this environment does not simulate them; nor is driving in a lane of the opposite direction or in one that is not the
  route's, which the leaderboard counts as off the road.
* The leaderboard also ends an episode that was away from its route for 30 % of it.
* The leaderboard ignores a collision within 3 m of one before, which it remembers for as long as the vehicle is within
  5 m of it; here both are 5 m.
* By default a collision and leaving the road end an episode here, but not a drive there; see ``end`` of the
  environment's settings.

Being blocked and leaving the route end an episode without a penalty of their own, as there.

The leaderboard's figure for several routes is the mean of each of the scores over the routes. Its rates are all
infractions over all kilometres; ``rate * km`` gives the count of one episode back.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

CollisionKind = Literal["pedestrian", "vehicle", "static"]

COLLISION_PENALTY: dict[CollisionKind, float] = {"pedestrian": 0.50, "vehicle": 0.60, "static": 0.65}
"""What a collision multiplies the infraction penalty by."""
RED_LIGHT_PENALTY = 0.70
COLLISION_POINTS: dict[CollisionKind, float] = {"pedestrian": 1.00, "vehicle": 0.70, "static": 0.60}
"""What a collision adds to the sum of leaderboard 2.1."""
RED_LIGHT_POINTS = 0.40

_LEAST_KM = 0.001
"""Rates are for at least so many kilometres, so that an episode that never starts has finite ones."""


def collision_kind(type_id: str) -> CollisionKind | None:
    """What was hit, from the type of the other actor, such as ``walker.pedestrian.0001`` or ``static.pole``.

    Returns:
        ``None`` for a sidewalk, contact with which is no collision.
    """
    if "sidewalk" in type_id:
        return None
    if type_id.startswith("walker."):
        return "pedestrian"
    return "vehicle" if type_id.startswith("vehicle.") else "static"


class CollisionFilter:
    """Makes one collision of the many events that a contact causes: the simulator reports one for every tick of it.

    As in the leaderboard's ``CollisionTest``, an event is none or no new one

    * if the actor is the one of the last collision and that was less than ``same_s`` before,
    * if the vehicle is within ``same_m`` of where it was at a collision before, and was so all the time since,
    * or if it stood: then it is not its fault.

    Args:
        same_s: Seconds.
        same_m: Metres.
        least_speed: m/s below which a vehicle stands.
    """

    def __init__(self, same_s: float = 5.0, same_m: float = 5.0, least_speed: float = 0.1) -> None:
        self._same_s = same_s
        self._same_m = same_m
        self._least_speed = least_speed
        self._last: tuple[int, float] | None = None
        self._place = (0.0, 0.0)
        self._places: list[tuple[float, float]] = []

    def move(self, place: tuple[float, float]) -> None:
        """Tell where the vehicle is (x and y in metres) at every tick, before the tick's events."""
        self._places = [before for before in self._places if math.dist(before, place) <= self._same_m]
        self._place = place

    def is_new(self, actor_id: int, time_s: float, speed: float) -> bool:
        """Whether an event begins a new collision.

        Args:
            actor_id: Of the other actor.
            time_s: Simulated time of the event; never less than in the call before.
            speed: m/s of the vehicle before it.
        """
        if self._last is not None and self._last[0] == actor_id and time_s - self._last[1] < self._same_s:
            return False
        if self._places or speed < self._least_speed:
            return False
        self._last = actor_id, time_s
        self._places.append(self._place)
        return True


class DrivingRecord:
    """Gathers what happens on one episode.

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
            ``route_completion`` (0 to 100), ``infraction_penalty`` (0 to 1), ``driving_score`` (0 to 100), the latter
            two by leaderboard 2.1 as ``infraction_penalty_2_1`` and ``driving_score_2_1``, ``km`` (of the route, on and
            off the road, at least 0.001), and for each of these kilometres
            ``collisions_pedestrian_per_km``, ``collisions_vehicle_per_km``, ``collisions_static_per_km``,
            ``red_lights_per_km``, ``off_road_per_km`` (times that the vehicle left the road),
            ``route_deviations_per_km`` and ``blocked_per_km``.
        """
        km = max(self._reached / 1000, _LEAST_KM)
        completion = 100 * max(0.0, self._reached - self._off_road_m) / self._route_length
        penalty = RED_LIGHT_PENALTY**self._red_lights
        points = RED_LIGHT_POINTS * self._red_lights
        for kind, count in self._collisions.items():
            penalty *= COLLISION_PENALTY[kind] ** count
            points += COLLISION_POINTS[kind] * count
        return {
            "route_completion": completion,
            "infraction_penalty": penalty,
            "driving_score": completion * penalty,
            "infraction_penalty_2_1": 1 / (1 + points),
            "driving_score_2_1": completion / (1 + points),
            **{f"collisions_{kind}_per_km": count / km for kind, count in self._collisions.items()},
            "red_lights_per_km": self._red_lights / km,
            "off_road_per_km": self._departures / km,
            "route_deviations_per_km": self._deviations / km,
            "blocked_per_km": self._blocked / km,
            "km": km,
        }
