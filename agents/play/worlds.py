"""The two worlds that one can drive in, with one interface: the dream and the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.data_collection.recording.driving import check_not_lost
from wm_gym.envs.dream import DreamDrivingEnv
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.simulators import make_simulator_from_spec
from wm_gym.errors import ConfigError
from wm_gym.observation import Observation, split_observation
from wm_gym.rollouts import LatentFilter, RolloutModel
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

TEMPERATURES = (0.1, 5.0)
"""The lowest and the highest."""


class View(NamedTuple):
    """What a world shows after a step, or after its start.

    Attributes:
        observed: Frame ``(H, W, 3)`` uint8 RGB and vector ``(V,)`` float32.
        reward: Of the last step; in a dream it is predicted.
        return_: Sum of the rewards since the start.
        continuation: Predicted probability that the episode goes on; ``None`` in the simulator, which knows.
        steps: Steps since the start.
        terminated: Whether the task has ended.
        truncated: Whether the episode was cut.
        info: What the world says of the step.
    """

    observed: Observation[NDArray[Any]]
    reward: float
    return_: float
    continuation: float | None
    steps: int
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        """Whether there is no next step."""
        return self.terminated or self.truncated


class DreamWorld:
    """Drives that a world model imagines.

    Args:
        model: The world model, which dreams may share.

    Attributes:
        horizon: Steps until a dream is cut; counts from the next start on.
        termination: As of :class:`~wm_gym.envs.dream.DreamDrivingEnv`; counts from the next start on.
    """

    def __init__(self, model: DreamModel, horizon: int, termination: str) -> None:
        self.model = model
        self.horizon = horizon
        self.termination = termination
        self._temperature = 1.0
        self._tempered = model
        self._env = self._make(None)
        self._view: View | None = None

    @property
    def num_start_states(self) -> int:
        """How many start states the model has."""
        return 0 if self.model.start_states is None else self.model.start_states.batch_size

    @property
    def has_temperature(self) -> bool:
        """Whether the model draws anything."""
        return isinstance(self.model, WorldModel) and self.model.dynamics.is_stochastic

    @property
    def temperature(self) -> float:
        """As of :meth:`~wm_gym.world_model.WorldModel.at_temperature`; counts from the next start on."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        if not isinstance(self.model, WorldModel):
            raise ConfigError("this world model has no temperature.")
        low, high = TEMPERATURES
        if not low <= temperature <= high:
            raise ConfigError(f"temperature={temperature} is not in {low} to {high}.")
        self._tempered = self.model if temperature == 1.0 else self.model.at_temperature(temperature)
        self._temperature = temperature

    @property
    def features(self) -> FloatArray:
        """What a policy sees of the imagined state: ``(F,)`` float32."""
        return _features(self.model, self._env.state)

    def start(self, start_state: int, seed: int) -> View:
        """Dream from one of the model's start states; equal seeds and actions give equal dreams.

        Raises:
            ConfigError: There is no such start state.
        """
        self._env = self._make(None)
        return self._begin({"start_state": start_state}, seed)

    def start_from(self, state: LatentState, seed: int) -> View:
        """Dream from any state, a batch of one."""
        self._env = self._make(LatentState(state.latent.clone(), state.memory.clone()))
        return self._begin({"start_state": 0}, seed)

    def step(self, action: FloatArray) -> View:
        """Imagine one step under an action ``(A,)`` in the stored format."""
        assert self._view is not None
        self._view = _next_view(self._view, self._env.step(action))
        return self._view

    def _begin(self, options: dict[str, Any], seed: int) -> View:
        observed, info = self._env.reset(seed=seed, options=options)
        self._view = _first_view(observed, info)
        return self._view

    def _make(self, start_states: LatentState | None) -> DreamDrivingEnv:
        return DreamDrivingEnv(
            self._tempered,
            horizon=self.horizon,
            observation="image",
            start_states=start_states,
            termination=self.termination,
        )


class SimulatorWorld:
    """Drives in the simulator.

    Args:
        spec: The simulator's record.
        connection: Where it runs, as for :func:`~wm_gym.envs.simulators.make_simulator`.

    Raises:
        SimulatorError: It cannot be made.
    """

    def __init__(self, spec: SimulatorSpec, connection: Mapping[str, Any] | None = None) -> None:
        self._env = make_simulator_from_spec(spec, connection=connection)
        self._filter: LatentFilter | None = None
        self._view: View | None = None

    @property
    def state(self) -> LatentState:
        """The latent state that the world model has filtered from the frames so far, a batch of one."""
        assert self._filter is not None
        assert self._filter.state is not None
        return self._filter.state

    @property
    def features(self) -> FloatArray:
        """What a policy sees of :attr:`state`: ``(F,)`` float32."""
        assert self._filter is not None
        return _features(self._filter.model, self.state)

    def start(self, seed: int, followed_by: DreamModel | None = None) -> View:
        """Begin an episode.

        Args:
            seed: Of the simulator's reset.
            followed_by: A world model that filters :attr:`state` from what is seen; ``None`` saves its time.

        Raises:
            SimulatorLostError: The simulator was lost.
        """
        observed, info = self._env.reset(seed=seed)
        self._filter = None if followed_by is None else LatentFilter(followed_by)
        self._view = _first_view(observed, info)
        self._follow(None)
        return self._view

    def step(self, action: FloatArray) -> View:
        """Do one step under an action ``(A,)`` in the stored format.

        Raises:
            SimulatorLostError: The simulator was lost.
        """
        assert self._view is not None
        step = self._env.step(action)
        check_not_lost(step[-1])
        self._view = _next_view(self._view, step)
        self._follow(action)
        return self._view

    def close(self) -> None:
        """Close the simulator."""
        self._env.close()

    def _follow(self, action: FloatArray | None) -> None:
        if self._filter is not None and self._view is not None:
            image, vector = self._view.observed
            batch: Observation[NDArray[Any]] = Observation(image[None], vector[None])
            self._filter.observe(batch, None if action is None else action[None])


def _features(model: RolloutModel, state: LatentState) -> FloatArray:
    with torch.inference_mode():
        return np.array(model.features(state)[0].cpu().numpy(), np.float32)


def _first_view(observed: Any, info: Mapping[str, Any]) -> View:
    return View(split_observation(observed), 0.0, 0.0, info.get("continuation"), 0, False, False, info)


def _next_view(before: View, step: tuple[Any, Any, bool, bool, Mapping[str, Any]]) -> View:
    """The view after what an environment's ``step`` gave."""
    observed, reward, terminated, truncated, info = step
    return View(
        observed=split_observation(observed),
        reward=float(reward),
        return_=before.return_ + float(reward),
        continuation=info.get("continuation"),
        steps=before.steps + 1,
        terminated=bool(terminated),
        truncated=bool(truncated),
        info=info,
    )
