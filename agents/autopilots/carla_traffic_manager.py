"""CARLA's own driver, the Traffic Manager, as a behaviour of ``CarlaDriving-v0``: undisturbed, and with disturbances.

It drives where it likes and does not know of the environment's route, so that rewards and driving metrics of its
episodes say little. It cannot be asked what it would do, either: it drives, and ``info["applied_action"]`` says
afterwards what it did, which is what the collector records.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.envs.carla.state import EgoState
from wm_gym.errors import SimulatorError
from wm_gym.observation import Observed

_FORMAT = ActionFormat.driving()


@runtime_checkable
class TrafficManagerEnv(Protocol):
    """What the behaviours need of an environment.

    Attributes:
        traffic_manager_drives: Whether the Traffic Manager drives, instead of the actions given to ``step``.
    """

    traffic_manager_drives: bool

    @property
    def applied_action(self) -> FloatArray:
        """What the pedals and the wheel did during the last step: ``(4,)`` in the driving format."""

    @property
    def step_s(self) -> float:
        """Simulated seconds between two actions."""

    @property
    def ego_state(self) -> EgoState:
        """Pose and speed."""

    @property
    def wheelbase(self) -> float:
        """Distance of the axles, in metres."""

    @property
    def max_steer_angle(self) -> float:
        """Angle of the wheels at full lock, in degrees."""


class TrafficManager:
    """Lets the Traffic Manager drive all the time."""

    name = "traffic-manager"

    def __init__(self) -> None:
        self._simulator: TrafficManagerEnv | None = None

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Begin an episode: hand over the wheel."""
        inner = env.unwrapped
        if not isinstance(inner, TrafficManagerEnv):
            raise SimulatorError(f"{type(inner).__name__} has no Traffic Manager; use CarlaDriving-v0.")
        self._simulator = inner
        inner.traffic_manager_drives = True

    def act(self, observation: Observed) -> FloatArray:
        """The action of the last step ``(4,)``; the environment ignores it."""
        return self._env.applied_action

    @property
    def _env(self) -> TrafficManagerEnv:
        if self._simulator is None:
            raise SimulatorError(f"the behaviour {self.name!r} was not reset; call reset(env, seed) first.")
        return self._simulator


class NoisyTrafficManager(TrafficManager):
    """Takes the wheel now and then, and hands it back, so that a dataset shows mistakes and the recovery from them.

    An episode alternates between stretches that the Traffic Manager drives and disturbances of 0.3 to 1.5 s, which
    begin with the action that it applied last. One kind adds a steering offset that rises and falls evenly, strong
    enough for a lateral acceleration of 1 to 4 m/s^2; the other one holds the steering at an acceleration of its own,
    from half the brake to most of the throttle. Each episode draws how much of the time disturbances take, from 5 to
    40 %.
    """

    name = "noisy-traffic-manager"

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Begin an episode: hand over the wheel."""
        super().reset(env, seed)
        self._rng = np.random.default_rng((seed, 1))
        self._disturbed_fraction = self._rng.uniform(0.05, 0.4)
        self._num_steps = self._step = 0
        self._steering = self._offset = self._acceleration = 0.0
        self._steps_left = self._stretch_steps(self._env)

    def act(self, observation: Observed) -> FloatArray:
        """The action ``(4,)`` of a disturbance; while the Traffic Manager drives, one that is ignored."""
        env = self._env
        if self._steps_left == 0:
            env.traffic_manager_drives = not env.traffic_manager_drives
            if env.traffic_manager_drives:
                self._steps_left = self._stretch_steps(env)
            else:
                self._begin_disturbance(env)
        self._steps_left -= 1
        if env.traffic_manager_drives:
            return env.applied_action
        self._step += 1
        # Rises to 1 in the middle of the disturbance and falls again; never 0 in its steps.
        share = 1.0 - abs(2.0 * self._step / (self._num_steps + 1) - 1.0)
        controls = np.array([self._steering + share * self._offset, self._acceleration])
        return _FORMAT.to_stored(np.clip(controls, -1.0, 1.0), "steer_accel")

    def _stretch_steps(self, env: TrafficManagerEnv) -> int:
        """How long the Traffic Manager drives: a disturbance lasts 0.9 s on average, and the fraction does the rest."""
        mean_s = 0.9 * (1.0 - self._disturbed_fraction) / self._disturbed_fraction
        return max(1, round((0.5 + self._rng.exponential(max(0.1, mean_s - 0.5))) / env.step_s))

    def _begin_disturbance(self, env: TrafficManagerEnv) -> None:
        steering, acceleration = _FORMAT.from_stored(env.applied_action, "steer_accel")
        self._steering, self._acceleration, self._offset = float(steering), float(acceleration), 0.0
        self._num_steps = self._steps_left = max(1, round(self._rng.uniform(0.3, 1.5) / env.step_s))
        self._step = 0
        if self._rng.random() < 0.7:
            # A bicycle's lateral acceleration is v^2 tan(wheel angle) / wheelbase.
            speed = max(3.0, abs(env.ego_state.speed))
            angle = math.degrees(math.atan(self._rng.uniform(1.0, 4.0) * env.wheelbase / speed**2))
            self._offset = float(self._rng.choice((-1.0, 1.0))) * min(0.5, angle / env.max_steer_angle)
        else:
            self._acceleration = float(self._rng.uniform(-0.5, 0.8))
