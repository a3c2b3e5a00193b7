"""The autopilot of ``CarlaDriving-v0``: a planned speed, pure pursuit, and distance to what is ahead.

It reads the route and the road users around from the environment and never looks at the frames.

* Steering is pure pursuit of the route (Coulter 1992, "Implementation of the Pure Pursuit Path Tracking Algorithm",
  CMU-RI-TR-92-01), further ahead the faster it drives, with the route's own curvature fed forward.
* The speed is bounded by the limit, by the lateral acceleration in the bends and by the braking distance before them.
* Vehicles and pedestrians on the way are followed by the Intelligent Driver Model (Treiber, Hennecke and Helbing 2000,
  "Congested traffic states in empirical observations and microscopic simulations", Physical Review E 62).
* It brakes evenly to a stop before the line of a light that is not green, unless the light turns yellow too late.
* The pedals follow the wanted acceleration by feed-forward and a PI control of the speed that would result from it, so
  that vehicles of different weight and power drive alike.

In junctions it lets vehicles pass that would meet it there if they went straight on. It knows no right of way, does not
change lanes of its own accord and never overtakes. Metres, degrees and seconds in CARLA's left-handed frame (yaw
clockwise seen from above).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.envs.carla.road_ahead import CORRIDOR_M, first_on_route, on_level, outline
from wm_gym.envs.carla.route import Route, RouteState
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.errors import SimulatorError
from wm_gym.observation import Observed

_LATERAL_ACCELERATION = 2.5
"""m/s^2 in bends."""
_RECOVERY_ACCELERATION = 4.0
"""m/s^2 on the arc back to the route; more than in bends, so that it does not slow down in every one."""
_BRAKING = 2.0
"""m/s^2 planned before bends, and IDM's comfortable deceleration."""
_ACCELERATION = 2.5
"""m/s^2: the strongest one wanted."""
_HARDEST_BRAKING = 8.0
_GIVE_UP_BRAKING = 4.5
"""m/s^2 that stopping at a light that turns yellow may need; where it needs more, the vehicle drives on."""
_LIMIT_USED = 0.97
"""Fraction of the speed limit that is driven."""
_CURVATURE_WINDOW = 5.0
"""Metres over which the curvature of the route is averaged: maps have small kinks where roads meet."""
_LOOKAHEAD = (3.5, 0.45)
"""Pure pursuit looks this far ahead: a length, and seconds of the current speed."""
_PREVIEW_S = 0.4
"""The planned speed is taken from this far ahead, as the vehicle takes time to follow it."""
_SPEED_GAIN = 1.5
"""m/s^2 wanted for each m/s that the speed is off."""

_TIME_HEADWAY_S = 1.5
_VEHICLE_GAP = 3.0
"""Metres left to a vehicle or pedestrian at a standstill."""
_LINE_GAP = 1.0
"""Metres left to a stop line."""
_ARRIVED = 0.5
"""A vehicle that stands no more than so many metres before where it should stop stays there."""
_QUEUE = 1.0
"""m/s below which the vehicle ahead is one that waits."""
_NEXT_LIGHT = 5.0
"""A stop line that is so many metres further away than a moment before is another one."""
_FRONT_OVERHANG = 1.0
"""Metres from the front axle to the front end, for cars."""
_SIGHT = (25.0, 4.0)
"""How far along the route it looks for others: a length, and seconds of the current speed."""
_CROSSING_S = np.array((0.5, 1.0, 1.5, 2.0, 2.5))
"""In junctions, vehicles are expected straight ahead of where they are after so many seconds."""
_CROSSING_ACCELERATION = 1.5
"""m/s^2 at which the own vehicle is expected to go on meanwhile."""
_CROSSING_MARGIN = 1.5
"""Metres before and behind the own vehicle that a crossing one must leave."""
_CROSSING_ANGLE = 20.0
"""Degrees from the route's heading: what drives more nearly in the same direction is followed instead."""

_FEED_FORWARD = 0.16
"""Pedal for each m/s^2 wanted."""
_PROPORTIONAL = 0.25
"""Pedal for each m/s below the speed that the accelerations wanted should have given."""
_INTEGRAL = 0.25
"""Change of the pedal in a second for each m/s of it."""
_BRAKE_SHARE = 0.7
"""Brakes are stronger than engines: the brake pedal for a negative command."""
_REST_PEDAL = 0.03
"""Commands below it press no pedal, so that throttle and brake do not take turns."""
_STANDSTILL = 0.3
"""m/s below which a vehicle that wants to stop holds the brake."""

_HOLD_BRAKE = 0.4

_PACE = (0.6, 1.15)
"""Slowest and fastest varied pace, as fractions of the planned speed."""

_WAITS_WITHIN = 15.0
"""Metres before a red light or a standing vehicle in which a patient driver speeds up no more."""
_OTHERS_PEDALS = 0.1
"""Pedals that differ by more are another driver's."""

_SLOWLY_OVER = 0.7
"""Share of the red lights and of others that a reckless driver does not come to at full pace."""
_OVER = (0.3, 5.0)
"""m/s that it brakes to."""
_OVER_FROM = (-4.0, 4.0)
"""Metres from the vehicle's front to the line where it has that speed; negative ones are past the line."""
_OVER_DECAY = (0.3, 3.0)
"""1/s: how the speed decays before that; large ones brake late, and are still braking on the line."""
_RUN = 1.0
"""Metres from the line to the rear where a light has been run for certain."""


@runtime_checkable
class CarlaSimulator(Protocol):
    """What the autopilot reads from the unwrapped environment.

    Attributes:
        route: The way to drive.
        route_state: Where the vehicle is on it.
        ego_state: The vehicle's pose and motion.
        speed_limit: m/s.
        step_s: Seconds between two actions.
        max_steer_angle: Degrees of the front wheels at steering 1.
        wheelbase: Metres.
    """

    @property
    def route(self) -> Route: ...  # noqa: D102 - described above
    @property
    def route_state(self) -> RouteState: ...  # noqa: D102
    @property
    def ego_state(self) -> EgoState: ...  # noqa: D102
    @property
    def speed_limit(self) -> float: ...  # noqa: D102
    @property
    def step_s(self) -> float: ...  # noqa: D102
    @property
    def max_steer_angle(self) -> float: ...  # noqa: D102
    @property
    def wheelbase(self) -> float: ...  # noqa: D102

    def road_users(self) -> Sequence[RoadUser]:
        """The vehicles and pedestrians around, without the ego vehicle."""
        ...

    def light_ahead(self) -> tuple[float, str] | None:
        """Metres along the route from the vehicle's front to the next stop line, and the state of its light.

        The lights that are stopped at are ``"red"`` and ``"yellow"`` ones. ``None`` where no stop line is near; a line
        that the vehicle is over is the next one, with negative metres, until the rear is past it.
        """
        ...


class CarlaAutopilot:
    """Drives the routes of ``CarlaDriving-v0`` from the simulator's state; it never looks at the frames.

    Args:
        varied_pace: Draw a pace for each episode, from well below the planned speed to somewhat above it. Without it
            there is no randomness.
    """

    name = "autopilot"

    def __init__(self, *, varied_pace: bool = False) -> None:
        self._varied_pace = varied_pace
        self._simulator: CarlaSimulator | None = None
        self._route: Route | None = None
        self._speeds = self._curvatures = self._headings = np.zeros(0)
        self._pace = 1.0
        self._pedals = _Pedals()
        self._stops: bool | None = None
        self._to_line = math.inf

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Plan the speed along the route of a new episode; call after ``env.reset``.

        Args:
            env: ``CarlaDriving-v0``, wrapped or not.
            seed: The pace follows from it, where it is varied.

        Raises:
            SimulatorError: ``env`` is another simulator.
        """
        simulator = env.unwrapped
        if not isinstance(simulator, CarlaSimulator):
            raise SimulatorError(f"this autopilot drives CarlaDriving-v0 only, not {simulator}.")
        self._simulator = simulator
        self._pace = float(np.random.default_rng((seed, 2)).uniform(*_PACE)) if self._varied_pace else 1.0
        self._route = simulator.route
        self._speeds = bend_speeds(self._route)
        self._curvatures = route_curvatures(self._route)
        self._headings = np.radians(np.unwrap(self._route.headings, period=360))
        self._pedals = _Pedals()
        self._stops = None
        self._to_line = math.inf

    def act(self, observation: Observed) -> FloatArray:
        """The driving action ``(4,)`` float32 for the simulator's current state."""
        simulator, route = self._simulator, self._route
        if simulator is None or route is None:
            raise SimulatorError("the autopilot has no simulator yet; call reset(env, seed) first.")
        ego = simulator.ego_state
        curvature = self._steering_curvature(simulator, route)
        wheel_angle = math.degrees(math.atan(simulator.wheelbase * curvature))
        steering = min(1.0, max(-1.0, wheel_angle / simulator.max_steer_angle))

        ahead = simulator.route_state.distance + max(0.0, ego.speed) * _PREVIEW_S
        planned = min(_LIMIT_USED * simulator.speed_limit, float(np.interp(ahead, route.distances, self._speeds)))
        planned *= self._pace
        planned = min(planned, math.sqrt(_RECOVERY_ACCELERATION / max(abs(curvature), 1e-3)))
        wanted = min(_ACCELERATION, max(-_HARDEST_BRAKING, _SPEED_GAIN * (planned - ego.speed)))
        wanted = min(wanted, self._heeding(simulator, route, planned))
        wanted = max(wanted, -_HARDEST_BRAKING)
        throttle, brake = self._pedals.press(ego.speed, wanted, simulator.step_s)
        return np.array((steering, throttle, brake, 1.0), dtype=np.float32)

    def _heeding(self, simulator: CarlaSimulator, route: Route, planned: float) -> float:
        """The acceleration in m/s^2 that lights and other road users permit."""
        ahead = _first_ahead(simulator, route)
        permitted = min(self._following(simulator, ahead, planned), self._stopping(simulator, ahead))
        return min(permitted, self._yielding(simulator, route))

    def _steering_curvature(self, simulator: CarlaSimulator, route: Route) -> float:
        """Curvature in 1/m to drive, positive to the right.

        Pure pursuit alone cuts corners, as it looks past where a bend begins. So the curvature is the route's own where
        the vehicle is, and pursuit adds by how much the vehicle's arc to the target differs from the one from the
        route.
        """
        ego = simulator.ego_state
        # The action is held until the next one: what matters is where the vehicle will be half-way.
        delay = simulator.step_s / 2
        # The centre of a vehicle that turns does not move where the vehicle points.
        moving = ego.speed > _STANDSTILL
        course = math.atan2(ego.velocity[1], ego.velocity[0]) if moving else math.radians(ego.yaw)
        course += math.radians(ego.yaw_rate) * delay
        x, y = ego.x + ego.velocity[0] * delay, ego.y + ego.velocity[1] * delay
        here = simulator.route_state.distance + max(0.0, ego.speed) * delay
        lookahead = _LOOKAHEAD[0] + _LOOKAHEAD[1] * abs(ego.speed)
        target_x, target_y = self._point_ahead(route, here + lookahead)
        on_route_x, on_route_y = self._point_ahead(route, here)
        route_heading = float(np.interp(here, route.distances, self._headings))
        arc = _arc_curvature(target_x - x, target_y - y, course, lookahead)
        ideal = _arc_curvature(target_x - on_route_x, target_y - on_route_y, route_heading, lookahead)
        return float(np.interp(here, route.distances, self._curvatures)) + arc - ideal

    @staticmethod
    def _point_ahead(route: Route, distance: float) -> tuple[float, float]:
        """A point of the route, which goes straight on beyond its end."""
        x, y = route.point_at(distance).tolist()
        beyond, heading = max(0.0, distance - route.length), math.radians(float(route.headings[-1]))
        return x + beyond * math.cos(heading), y + beyond * math.sin(heading)

    @staticmethod
    def _following(simulator: CarlaSimulator, ahead: _Ahead | None, planned: float) -> float:
        """The acceleration in m/s^2 that the first road user on the way permits."""
        if ahead is None:
            return _ACCELERATION
        own = simulator.ego_state.speed
        # The planned speed is kept elsewhere: here, driving faster than it must not brake more for others far away.
        followed = following_acceleration(own, max(planned, own), ahead.gap, ahead.speed)
        # The model would creep up to a standing vehicle for ever.
        has_arrived = ahead.speed < _STANDSTILL and ahead.gap < _VEHICLE_GAP + _ARRIVED
        return min(followed, -1.0) if has_arrived else followed

    def _yielding(self, simulator: CarlaSimulator, route: Route) -> float:
        """The acceleration in m/s^2 that vehicles permit which cross the way in a junction."""
        distance, speed = simulator.route_state.distance, max(0.0, simulator.ego_state.speed)
        front = _length(simulator) / 2
        place = first_crossing(route, distance, simulator.ego_state, front, simulator.road_users())
        if place is None:
            return _ACCELERATION
        return -max(1.0, speed**2 / (2 * max(place - front - _CROSSING_MARGIN, 0.1)))

    def _stopping(self, simulator: CarlaSimulator, ahead: _Ahead | None) -> float:
        """The acceleration in m/s^2 that the next traffic light permits: even braking to a stop before its line.

        At green as well where a queue leaves no room beyond the line: a vehicle that waits on the line runs the light
        when it turns red.
        """
        light, speed = simulator.light_ahead(), max(0.0, simulator.ego_state.speed)
        to_line, state = light if light is not None else (math.inf, "green")
        is_free = state not in ("red", "yellow")
        if is_free or to_line > self._to_line + _NEXT_LIGHT:
            self._stops = None
        self._to_line = to_line
        room = to_line - _LINE_GAP
        braking = speed**2 / (2 * max(room, 0.1))
        if is_free:
            room_taken = _length(simulator) + _VEHICLE_GAP
            has_queue = ahead is not None and ahead.speed < _QUEUE and ahead.gap < to_line + room_taken
            if not has_queue or to_line < 0 or braking > _GIVE_UP_BRAKING:
                return _ACCELERATION
        elif self._stops is None or speed < _STANDSTILL:
            # Decided once for each light: to brake when a light turns red that was driven towards would end in the
            # junction, and a vehicle that gave up braking half-way would be too slow to pass before red. But who was
            # to drive on and stands, behind others or in the hands of another driver, is too late.
            self._stops = state == "red" or braking <= _GIVE_UP_BRAKING
        # A light is run by the rear: a vehicle that came to a stand on its line waits there.
        if self._stops is False or to_line < -_length(simulator):
            return _ACCELERATION
        if room < _ARRIVED:
            return -max(braking, 1.0)
        if braking > 0.75 * _BRAKING:
            return -braking
        return 0.0 if braking > 0.5 * _BRAKING else _ACCELERATION


class PatientAutopilot(CarlaAutopilot):
    """Drives as the autopilot does, but speeds up no more before a red light or a standing vehicle; for teaching.

    A learner often stops too early. The autopilot would then say to drive on, as there is room, and with ever more
    throttle, as nothing comes of it; and the learner would hear that before a red light one drives
    (docs/experiments.md). This one says to stay. It drives well by itself, too, but leaves more room in queues.
    """

    name = "patient"

    def __init__(self) -> None:
        super().__init__()
        self._meant = np.zeros(4, dtype=np.float32)

    def act(self, observation: Observed) -> FloatArray:
        """As the base class does it."""
        self._meant = super().act(observation)
        return self._meant

    def carried_out(self, action: FloatArray) -> None:
        """Another driver's pedals were pressed: what did not come of the own ones is not to be made up for."""
        if np.abs(action - self._meant)[1:3].max() > _OTHERS_PEDALS:
            self._pedals = _Pedals()

    def _stopping(self, simulator: CarlaSimulator, ahead: _Ahead | None) -> float:
        permitted = super()._stopping(simulator, ahead)
        waits = ahead is not None and ahead.speed < _STANDSTILL and ahead.gap < _WAITS_WITHIN
        waits |= self._stops is True and -_length(simulator) < self._to_line < _WAITS_WITHIN
        return min(permitted, 0.0) if waits else permitted


class RecklessAutopilot(CarlaAutopilot):
    """Drives over red lights and into the vehicle ahead, so that recordings show what comes of it.

    A world model must learn that an episode ends because of the place, however the vehicle came there: a policy soon
    finds the manner that the recordings lack. So some lights are run at full pace, others after braking on the line or
    near it, down to creeping over it; and so are others run into.
    """

    name = "reckless"

    def __init__(self) -> None:
        super().__init__(varied_pace=True)
        self._random = np.random.default_rng(0)
        self._line: float | None = None
        self._at_lights = self._at_others = _Manner(math.inf, 0.0, 0.0)

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """As the base class does it; how each light is run and others are run into follows from the seed, too."""
        super().reset(env, seed)
        self._random = np.random.default_rng((seed, 3))
        self._at_others = _Manner.draw(np.random.default_rng((seed, 4)))
        self._line = None

    def _heeding(self, simulator: CarlaSimulator, route: Route, planned: float) -> float:
        speed = simulator.ego_state.speed
        permitted = min(self._over_light(simulator), self._into_others(simulator, route))
        return min(_ACCELERATION, _SPEED_GAIN * (permitted - speed))

    def _over_light(self, simulator: CarlaSimulator) -> float:
        """The speed in m/s with which the next red light is driven towards."""
        front = simulator.route_state.distance + _length(simulator) / 2
        light = simulator.light_ahead()
        if light is not None and light[0] > -_length(simulator) / 2:
            line, is_red = front + light[0], light[1] in ("red", "yellow")
            if self._line is None and is_red:
                self._line = line
                self._at_lights = _Manner.draw(self._random)
            elif self._line is not None and not is_red and abs(line - self._line) < _NEXT_LIGHT:
                self._line = None
        if self._line is None:
            return math.inf
        to_line = self._line - front
        if to_line < -_length(simulator) - _RUN:
            self._line = None
        return self._at_lights.speed(to_line)

    def _into_others(self, simulator: CarlaSimulator, route: Route) -> float:
        """The speed in m/s with which the first road user on the way is driven towards."""
        ahead = _first_ahead(simulator, route)
        if ahead is None:
            return math.inf
        # A light is run after its line, but nobody drives on after a collision.
        return max(0.0, ahead.speed) + self._at_others.speed(ahead.gap + _OVER_FROM[0])


def _length(simulator: CarlaSimulator) -> float:
    """Metres from the front end to the rear."""
    return simulator.wheelbase + 2 * _FRONT_OVERHANG


class _Ahead(NamedTuple):
    """The first road user on the way: metres from the own front to its rear, and its speed in m/s along the way."""

    gap: float
    speed: float


def _first_ahead(simulator: CarlaSimulator, route: Route) -> _Ahead | None:
    ego, distance = simulator.ego_state, simulator.route_state.distance
    sight = _SIGHT[0] + _SIGHT[1] * max(0.0, ego.speed)
    nearest = first_on_route(route, distance, sight, ego, simulator.road_users())
    return None if nearest is None else _Ahead(nearest[0] - _length(simulator) / 2, nearest[1])


class _Manner(NamedTuple):
    """How a reckless driver comes to a place.

    Attributes:
        pace: m/s there, infinite for one that does not brake.
        begin: Metres before the place where it has that speed; negative ones are past it.
        decay: How its speed decays until then, in 1/s.
    """

    pace: float
    begin: float
    decay: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Manner:
        """Any manner: at full pace, after braking, or creeping."""
        is_slow = rng.random() < _SLOWLY_OVER
        pace = float(np.exp(rng.uniform(*np.log(_OVER)))) if is_slow else math.inf
        return cls(pace, float(rng.uniform(*_OVER_FROM)), float(np.exp(rng.uniform(*np.log(_OVER_DECAY)))))

    def speed(self, metres: float) -> float:
        """m/s at so many metres before the place."""
        return self.pace + self.decay * max(0.0, metres - self.begin)


class _Pedals:
    """Throttle and brake for a wanted acceleration."""

    def __init__(self) -> None:
        self._reference: float | None = None
        self._integral = 0.0

    def press(self, speed: float, wanted: float, seconds: float) -> tuple[float, float]:
        """Throttle and brake, both in [0, 1], at a speed (m/s) for an acceleration (m/s^2) held for some seconds."""
        if speed < _STANDSTILL and wanted <= 0:
            self._reference, self._integral = None, 0.0
            return 0.0, _HOLD_BRAKE
        # How fast the vehicle would be if it had done what was wanted; never far from how fast it is.
        reference = speed if self._reference is None else min(speed + 1.0, max(speed - 1.0, self._reference))
        error = reference - speed
        self._integral = min(0.4, max(-0.4, self._integral + _INTEGRAL * error * seconds))
        self._reference = reference + wanted * seconds
        command = _FEED_FORWARD * wanted + _PROPORTIONAL * error + self._integral
        if abs(command) < _REST_PEDAL:
            return 0.0, 0.0
        return (min(1.0, command), 0.0) if command > 0 else (0.0, min(1.0, -_BRAKE_SHARE * command))


def _arc_curvature(x: float, y: float, course: float, shortest: float) -> float:
    """Curvature of the arc that begins in direction ``course`` (radians) and leads to a point ``(x, y)`` away.

    A point nearer than ``shortest`` counts as so far away.
    """
    bearing = (math.atan2(y, x) - course + math.pi) % (2 * math.pi) - math.pi
    # To a point behind, the arc would bend less the more the vehicle must turn.
    bearing = min(math.pi / 2, max(-math.pi / 2, bearing))
    return 2 * math.sin(bearing) / max(math.hypot(x, y), shortest)


def route_curvatures(route: Route) -> NDArray[np.float64]:
    """Curvature ``(N,)`` of a route in 1/m, positive to the right, averaged over a few metres."""
    headings = np.radians(np.unwrap(route.headings, period=360))
    half = _CURVATURE_WINDOW / 2
    low, high = (np.clip(route.distances + shift, 0.0, route.length) for shift in (-half, half))
    turned = np.interp(high, route.distances, headings) - np.interp(low, route.distances, headings)
    return np.asarray(turned / np.maximum(high - low, 1e-6))


def bend_speeds(route: Route) -> NDArray[np.float64]:
    """The highest speed at each point of a route that is comfortable in the bends and can be braked down to in time.

    Returns:
        ``(N,)`` m/s; very high where no bend is near.
    """
    squares = _LATERAL_ACCELERATION / np.maximum(np.abs(route_curvatures(route)), 1e-9)
    # Braking evenly, the square of the speed falls in proportion to the distance: a running minimum from behind.
    brought_forward = squares + 2 * _BRAKING * route.distances
    allowed = np.minimum.accumulate(brought_forward[::-1])[::-1] - 2 * _BRAKING * route.distances
    return np.sqrt(allowed)


def following_acceleration(speed: float, desired_speed: float, gap: float, leader_speed: float) -> float:
    """The acceleration of the Intelligent Driver Model in m/s^2.

    Args:
        speed: m/s.
        desired_speed: On a free road, m/s.
        gap: Metres to the rear end of what is ahead.
        leader_speed: Its speed along the route, m/s.
    """
    if gap <= 0.1:
        return -_HARDEST_BRAKING
    approach = speed * (speed - leader_speed) / (2 * math.sqrt(_ACCELERATION * _BRAKING))
    wanted_gap = _VEHICLE_GAP + max(0.0, speed * _TIME_HEADWAY_S + approach)
    free = (max(0.0, speed) / max(desired_speed, 0.1)) ** 4
    return _ACCELERATION * (1 - free - (wanted_gap / gap) ** 2)


def first_crossing(
    route: Route, distance: float, ego: EgoState, front: float, users: Sequence[RoadUser]
) -> float | None:
    """Where the first vehicle comes onto the strip along the route that would meet the ego vehicle in a junction.

    Vehicles are taken to keep their speed and direction, the ego vehicle to speed up a little.

    Args:
        route: The route.
        distance: Of the ego vehicle's centre, metres along the route.
        ego: The ego vehicle.
        front: Metres from its centre to its front end.
        users: The others.

    Returns:
        Metres along the route from ``distance``, or ``None`` where nothing crosses. A vehicle that the ego vehicle has
        reached already is left out: there, driving on is better than to stop in its way.
    """
    speed = max(0.0, ego.speed)
    reached = speed * _CROSSING_S + _CROSSING_ACCELERATION / 2 * _CROSSING_S**2  # (times,)
    window = slice(*np.searchsorted(route.distances, (distance, distance + reached[-1] + front + _CROSSING_MARGIN)))
    in_junction = route.in_junction[window]
    if not in_junction.any():
        return None
    way, headings = route.points[window], np.radians(route.headings[window])
    along = route.distances[window] - distance
    heights = None if route.heights is None else route.heights[window]
    places = []
    for user in users:
        if user.kind != "vehicle" or user.speed < _STANDSTILL:
            continue
        if math.hypot(user.x - ego.x, user.y - ego.y) > _CROSSING_S[-1] * (user.speed + speed) + 10.0:
            continue
        yaw = math.radians(user.yaw)
        moved = (user.speed * _CROSSING_S)[:, None] * (math.cos(yaw), math.sin(yaw))  # (times, 2)
        sides = outline(user) + moved[:, None]  # (times, points, 2)
        offsets = sides[:, :, None] - way  # (times, points, len(way), 2)
        squares = np.einsum("tpnk,tpnk->tpn", offsets, offsets)
        closest = np.argmin(squares, axis=2)  # (times, points)
        angle = np.abs((yaw - headings[closest] + np.pi) % (2 * np.pi) - np.pi)
        crosses = (squares.min(axis=2) < CORRIDOR_M**2) & in_junction[closest] & (angle > math.radians(_CROSSING_ANGLE))
        crosses &= on_level(user, along, heights)[closest]
        meets = crosses & (np.abs(along[closest] - reached[:, None]) < front + _CROSSING_MARGIN)
        if meets.any():
            place = float(along[closest][crosses].min())
            if place > front:
                places.append(place)
    return min(places, default=None)
