"""The autopilots of ``CarRacingDriving-v0``: a racing line, a speed profile within the tyres' grip, and pure pursuit.

At the start of an episode it reads the track from the simulator and finds the line of least curvature on the road.
The speed along it is bounded by the lateral acceleration in the bends and by the distance left for braking before
them. While driving it steers by pure pursuit (Coulter 1992, "Implementation of the Pure Pursuit Path Tracking
Algorithm", CMU-RI-TR-92-01) and gives no more throttle than the rear tyres can still take beside the lateral force:
CarRacing's car is rear-driven and spins otherwise.

There are two. The racer knows how heavy the turning wheels are, which the autopilot leaves out, and drives so that
one who only sees the road can follow.

Lengths are CarRacing's map units, times seconds. The constants without a source were chosen by experiment on tracks
with seeds below 1000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.box2d.car_dynamics import (
    ENGINE_POWER,
    FRICTION_LIMIT,
    SIZE,
    WHEEL_MOMENT_OF_INERTIA,
    WHEEL_R,
    WHEELPOS,
)
from gymnasium.envs.box2d.car_racing import FPS
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.envs.car_racing import CarRacingDrivingEnv
from wm_gym.errors import SimulatorError
from wm_gym.observation import Observed

Points = NDArray[np.float64]

# The car of gymnasium.envs.box2d.car_dynamics, in its own units.
_WHEELBASE = (WHEELPOS[0][1] - WHEELPOS[2][1]) * SIZE
_WHEEL_RADIUS = WHEEL_R * SIZE
_TYRE_GRIP = FRICTION_LIMIT
_GRIP_ON_GRASS = 0.6
_FULL_BRAKE = 15.0
"""Wheel speed in rad/s that a fully pressed brake takes away in one frame."""
_MAX_WHEEL_ANGLE_RAD = 0.4

_WHEEL_INERTIA = WHEEL_MOMENT_OF_INERTIA / _WHEEL_RADIUS**2
"""Mass that a wheel's rotation adds to the car's inertia: 5.5, where car and wheels together weigh 7.3."""


@dataclass(frozen=True)
class Manner:
    """How an autopilot drives.

    Attributes:
        half_line_width: How far the racing line may leave the centre line; the road reaches 6.7 to each side.
        lateral_acceleration: The most in a bend.
        braking: Deceleration that the speeds before a bend count on.
        top_speed: The most anywhere.
        grip_used: Fraction of the rear tyres' grip that throttle and bend may use together.
        lookahead: Pure pursuit looks this far ahead: a length, and seconds of the current speed.
        delay_s: The pose is predicted this far: half an action and the time that the front wheels take to turn.
    """

    half_line_width: float
    lateral_acceleration: float
    braking: float
    top_speed: float
    grip_used: float
    lookahead: tuple[float, float]
    delay_s: float


STEADY = Manner(
    half_line_width=4.0,
    lateral_acceleration=110.0,
    braking=90.0,
    top_speed=73.0,
    grip_used=0.8,
    lookahead=(4.0, 0.16),
    delay_s=0.06,
)
"""Of the autopilot."""
FAST = Manner(
    half_line_width=3.5,
    lateral_acceleration=110.0,
    braking=45.0,
    top_speed=76.0,
    grip_used=0.685,
    lookahead=(4.9, 0.13),
    delay_s=0.076,
)
"""Of the racer."""
_BRAKING_S = 0.3
_DRIVING_S = 0.5
"""The racer would reach a lower and a higher speed in these times, had the tyres the grip."""
_MAX_SPIN = 8.0
"""Units a second by which the driven wheels may turn faster than the road passes."""

_PACE = (0.4, 1.25)
"""Slowest and fastest speed of a varied pace, as fractions of the best one."""


class CarRacingAutopilot:
    """Drives laps of CarRacing from the simulator's state; it never looks at the frames.

    Args:
        varied_pace: Draw a pace for each episode, from less than half of the best speed to more than the car can
            hold in every bend. Without it there is no randomness.
    """

    name = "autopilot"
    manner: ClassVar[Manner] = STEADY

    def __init__(self, *, varied_pace: bool = False) -> None:
        self._varied_pace = varied_pace
        self._env: CarRacingDrivingEnv | None = None
        self._line = np.zeros((0, 2))
        self._arc = np.zeros(0)
        self._speeds = np.zeros(0)
        self._nearest = 0

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Read the track of a new episode; call after ``env.reset``.

        Args:
            env: ``CarRacingDriving-v0``, wrapped or not.
            seed: The pace follows from it, where it is varied.

        Raises:
            SimulatorError: ``env`` is another simulator.
        """
        simulator = env.unwrapped
        if not isinstance(simulator, CarRacingDrivingEnv):
            raise SimulatorError(f"this autopilot drives CarRacingDriving-v0 only, not {simulator}.")
        self._env = simulator
        self._line = racing_line(simulator.centre_line, self.manner.half_line_width)
        pace = np.random.default_rng((seed, 2)).uniform(*_PACE) if self._varied_pace else 1.0
        self._speeds = speed_profile(self._line, self.manner) * pace
        self._arc = np.concatenate(([0.0], np.cumsum(_spacing(self._line))))  # (N + 1,): the last one closes the lap
        self._nearest = 0

    def act(self, observation: Observed) -> FloatArray:
        """The driving action ``(4,)`` float32 for the simulator's current state."""
        if self._env is None:
            raise SimulatorError("the autopilot has no simulator yet; call reset(env, seed) first.")
        car = self._env.simulation.car
        assert car is not None
        velocity = np.asarray(car.hull.linearVelocity)
        speed = float(np.hypot(*velocity))
        heading = car.hull.angle + np.pi / 2 + car.hull.angularVelocity * self.manner.delay_s
        position = np.asarray(car.hull.position) + velocity * self.manner.delay_s

        self._nearest = self._find_nearest(position)
        length, seconds = self.manner.lookahead
        lookahead = length + seconds * speed
        to_target = self._point_ahead(lookahead) - position
        bearing = _wrap_angle(np.arctan2(to_target[1], to_target[0]) - heading)
        # Behind the car, pure pursuit would ask for less steering the more the car must turn.
        bearing = float(np.clip(bearing, -np.pi / 2, np.pi / 2))
        distance = max(float(np.hypot(*to_target)), length)
        curvature = 2 * np.sin(bearing) / distance
        wheel_angle = float(np.arctan(_WHEELBASE * curvature))
        wheel_angle = float(np.clip(wheel_angle, -_MAX_WHEEL_ANGLE_RAD, _MAX_WHEEL_ANGLE_RAD))

        target_speed = self._speeds[self._nearest]
        off_line = abs(bearing) - 0.3
        if off_line > 0:
            target_speed = min(target_speed, max(12.0, 60.0 - 80.0 * off_line))
        throttle, brake = self._pedals(speed, float(target_speed), abs(wheel_angle))
        # The simulator's steering value is the angle of the front wheels in radians, to the right.
        return np.array((-wheel_angle, throttle, brake, 1.0), dtype=np.float32)

    def _pedals(self, speed: float, target_speed: float, wheel_angle: float) -> tuple[float, float]:
        """Throttle and brake for a speed, where the front wheels stand at ``wheel_angle`` (radians, never negative)."""
        mass, rear_wheels = self._mass_and_rear_wheels()
        if speed > target_speed:
            deceleration = min((speed - target_speed) / 0.1, 1.2 * self.manner.braking)
            # What the ground gives back to each of the four wheels in a frame, the brake must take from it.
            wheel_slowing = mass * deceleration / 4 * _WHEEL_RADIUS / WHEEL_MOMENT_OF_INERTIA / FPS
            return 0.0, float(np.clip(wheel_slowing / _FULL_BRAKE, 0.0, 0.15))
        if _spins(rear_wheels, speed):
            return 0.0, 0.0
        lateral = mass * speed**2 * np.tan(wheel_angle) / _WHEELBASE / 4
        on_road = all(wheel.tiles for wheel in rear_wheels)
        grip = self.manner.grip_used * _TYRE_GRIP * (1.0 if on_road else _GRIP_ON_GRASS)
        force = np.sqrt(max(grip**2 - lateral**2, (0.1 * grip) ** 2))
        force = min(force, mass * (target_speed - speed) / 0.15 / len(rear_wheels))
        return _throttle(force * _WHEEL_RADIUS, speed), 0.0

    def _mass_and_rear_wheels(self) -> tuple[float, Any]:
        assert self._env is not None
        car = self._env.simulation.car
        assert car is not None
        return car.hull.mass + sum(wheel.mass for wheel in car.wheels), car.wheels[2:]

    def _find_nearest(self, position: Points) -> int:
        """The nearest point of the line, searched around the last one: another part of the track may be nearer."""
        num_points = len(self._line)
        window = (self._nearest + np.arange(-15, 30)) % num_points
        distances = np.hypot(*(self._line[window] - position).T)
        if distances.min() > 25.0:  # Thrown off far: rejoin where it is nearest.
            window = np.arange(num_points)
            distances = np.hypot(*(self._line - position).T)
        return int(window[np.argmin(distances)])

    def _point_ahead(self, distance: float) -> Points:
        along = (self._arc[self._nearest] + distance) % self._arc[-1]
        closed = np.vstack((self._line, self._line[:1]))
        return np.array([np.interp(along, self._arc, closed[:, axis]) for axis in (0, 1)])


class CarRacingRacer(CarRacingAutopilot):
    """Faster and surer than the autopilot: it knows the inertia of the turning wheels, which that leaves out.

    Of what a brake takes from a wheel's rotation, three parts in four slow that rotation; the rest slows the car.
    """

    name = "racer"
    manner = FAST

    def _pedals(self, speed: float, target_speed: float, wheel_angle: float) -> tuple[float, float]:
        mass, rear_wheels = self._mass_and_rear_wheels()
        lateral = mass * speed**2 * np.tan(wheel_angle) / _WHEELBASE / 4  # force on each of the four tyres
        grip = self.manner.grip_used * _TYRE_GRIP
        if speed <= target_speed and not all(wheel.tiles for wheel in rear_wheels):
            grip *= _GRIP_ON_GRASS
        force = np.sqrt(max(grip**2 - lateral**2, (0.1 * _TYRE_GRIP) ** 2))  # what is left for driving or braking
        if speed > target_speed:
            deceleration = min((speed - target_speed) / _BRAKING_S, 1.2 * self.manner.braking, 4 * force / mass)
            wheel_slowing = (mass / 4 + _WHEEL_INERTIA) * deceleration * _WHEEL_RADIUS / WHEEL_MOMENT_OF_INERTIA / FPS
            return 0.0, float(wheel_slowing / _FULL_BRAKE)
        if _spins(rear_wheels, speed):
            return 0.0, 0.0
        acceleration = min((target_speed - speed) / _DRIVING_S, len(rear_wheels) * force / mass)
        # The road turns the front wheels, so that their inertia comes through the rear tyres.
        torque = (mass / 2 + 2 * _WHEEL_INERTIA) * acceleration * _WHEEL_RADIUS
        return _throttle(torque, speed), 0.0


def racing_line(centre_line: Points, half_width: float, num_iterations: int = 400) -> Points:
    """The line of least squared curvature within ``half_width`` of a closed centre line.

    Args:
        centre_line: ``(N, 2)`` points in driving order, about evenly spaced.
        half_width: How far each point may be moved sideways.
        num_iterations: Steps of accelerated projected gradient descent (Nesterov 1983).

    Returns:
        ``(N, 2)``: the points, each moved along its normal.
    """
    num_points = len(centre_line)
    tangent = np.roll(centre_line, -1, axis=0) - np.roll(centre_line, 1, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack((-tangent[:, 1], tangent[:, 0]), axis=1)

    def bend(points: Points) -> Points:
        return np.roll(points, 1, axis=0) - 2 * points + np.roll(points, -1, axis=0)

    offset = np.zeros(num_points)
    leading = offset
    momentum = 1.0
    for _ in range(num_iterations):
        points = centre_line + leading[:, None] * normal
        gradient = np.einsum("nk,nk->n", bend(bend(points)), normal)
        # The second difference's largest singular value is 4, so 1/16 is the longest step that always descends.
        moved = np.clip(leading - gradient / 16, -half_width, half_width)
        next_momentum = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        leading = moved + (momentum - 1) / next_momentum * (moved - offset)
        offset, momentum = moved, next_momentum
    line: Points = centre_line + offset[:, None] * normal
    return line


def speed_profile(line: Points, manner: Manner = STEADY) -> NDArray[np.float64]:
    """The highest speed at each point of a closed line that keeps to the lateral grip there and can brake in time.

    Args:
        line: ``(N, 2)`` points in driving order.
        manner: Tells how fast a bend may be, and how hard is braked.

    Returns:
        ``(N,)`` speeds in units a second.
    """
    spacing = _spacing(line)
    chord = np.roll(line, -2, axis=0) - np.roll(line, 2, axis=0)
    heading = np.arctan2(chord[:, 1], chord[:, 0])
    curvature = np.abs(_wrap_angle(np.roll(heading, -1) - np.roll(heading, 1))) / (spacing + np.roll(spacing, 1))
    speeds = np.minimum(np.sqrt(manner.lateral_acceleration / np.maximum(curvature, 1e-6)), manner.top_speed)
    for index in range(2 * len(line) - 1, -1, -1):  # Twice round, as the line is closed.
        here, ahead = index % len(line), (index + 1) % len(line)
        speeds[here] = min(speeds[here], np.sqrt(speeds[ahead] ** 2 + 2 * manner.braking * spacing[here]))
    return speeds


def _spins(driven_wheels: Any, speed: float) -> bool:
    return bool(max(wheel.omega for wheel in driven_wheels) * _WHEEL_RADIUS - speed > _MAX_SPIN)


def _throttle(torque: float, speed: float) -> float:
    """The throttle that gives each driven wheel a torque."""
    # CarRacing's engine has constant power, so the throttle for a force grows with the wheel's speed.
    return float(np.clip(torque * (speed / _WHEEL_RADIUS + 5.0) / ENGINE_POWER, 0.0, 1.0))


def _spacing(line: Points) -> NDArray[np.float64]:
    """Distance from each point to the next one of a closed line: ``(N,)``."""
    return np.asarray(np.linalg.norm(np.roll(line, -1, axis=0) - line, axis=1))


def _wrap_angle(angle: Any) -> Any:
    """Angles in radians, brought to [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
