"""A trained agent that drives from camera frames, in Gymnasium or outside it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy

from wm_gym.actions import ActionName, FloatArray
from wm_gym.agents.bundles.folder import load_agent
from wm_gym.agents.policies.observers import LatentObserver, Observer
from wm_gym.device import resolve_device
from wm_gym.envs.dream_model import DreamModel
from wm_gym.errors import BundleError, SimulatorError
from wm_gym.observation import split_observation
from wm_gym.simulator import SimulatorSpec


class Driver:
    """An agent that keeps what it needs of the episode so far: observations in, actions out.

    Each call of :meth:`act` gives the last action and the new observation to its observer, and what that makes of them
    to the policy. For an agent that sees through a world model, the observer advances a latent state, as
    :class:`~wm_gym.envs.latent_observation.LatentObservation` does; for one that sees pixels, it keeps the last frames.
    Call :meth:`reset` before the first frame of every episode, and :meth:`act` once every ``simulator.step_s`` seconds,
    the rhythm that the agent knows; the action given back must be the one that is carried out, or :meth:`carried_out`
    be told the one that was.

    It is also a behaviour (:class:`~wm_gym.data_collection.recording.behaviours.Behaviour`), for collection
    and evaluation.

    Args:
        observer: What turns frames into the policy's observations. A world model stands for the
            :class:`~wm_gym.agents.policies.observers.LatentObserver` over it.
        policy: A Stable-Baselines3 policy over these observations.
        action: Kind of action that the policy gives; ``None`` is the simulator's own.
        deterministic: Whether :meth:`act` takes the policy's mean action rather than a draw from it, unless told.
        name: What datasets record as the behaviour.

    ```python
    driver = Driver.load("runs/agent")
    driver.reset()
    action = driver.act(frame)  # (steering, throttle, brake, gear) for a driving simulator
    ```
    """

    def __init__(
        self,
        observer: Observer | DreamModel,
        policy: BasePolicy,
        action: ActionName | None = None,
        *,
        deterministic: bool = True,
        name: str = "agent",
    ) -> None:
        self.observer = LatentObserver(observer) if isinstance(observer, DreamModel) else observer
        self.policy = policy
        self.action = self.observer.simulator.action.resolve(action)
        self.deterministic = deterministic
        self.name = name
        self._last_action: FloatArray | None = None
        self._seed = 0
        self._num_acts = 0

    @classmethod
    def load(
        cls, path: str | Path = "bundled", device: str | torch.device = "cpu", *, deterministic: bool = True
    ) -> Driver:
        """Read an agent's folder, or the one that the package ships.

        Args:
            path: The folder, or ``"bundled"``.
            device: Where it computes: ``"cpu"``, ``"cuda"``, … or ``"auto"``.
            deterministic: See the class.

        Raises:
            BundleError: The folder is missing, damaged or of another kind or version.
            ConfigError: There is no such device.
        """
        agent = load_agent(path, resolve_device(device))
        return cls(agent.observer, agent.policy, agent.manifest.config.action, deterministic=deterministic)

    @property
    def model(self) -> DreamModel:
        """The world model that the agent sees through.

        Raises:
            BundleError: It sees pixels, without a world model.
        """
        if not isinstance(self.observer, LatentObserver):
            raise BundleError(
                "this agent sees pixels and has no world model; use one that was trained in a dream, or on the "
                "features of a world model."
            )
        return self.observer.model

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator that the agent knows: its world model's, or the one that it was trained on."""
        return self.observer.simulator

    def check_simulator(self, simulator: SimulatorSpec) -> None:
        """Check that a simulator shows and takes what the agent knows; warn where its rhythm is another.

        Raises:
            SimulatorError: Its frame size, vector or action format is another one.
        """
        check_simulator_fits(self.simulator, simulator)

    def reset(self, env: Any = None, seed: int = 0) -> None:
        """Forget the episode so far.

        Args:
            env: Not used; behaviours are given the simulator.
            seed: Of the draws where actions are not deterministic.
        """
        self._last_action = None
        self._seed = seed
        self._num_acts = 0

    @torch.no_grad()
    def act(self, observed: Any, deterministic: bool | None = None) -> FloatArray:
        """The action for what was seen last.

        Args:
            observed: What the simulator gives: a frame ``(H, W, 3)`` uint8 RGB, or a ``Dict`` of ``"image"`` and
                ``"vector"`` ``(V,)`` float32. A frame of another size than the simulator's is resized without regard to
                its proportions (by areas when shrinking): give the camera the proportions of the training frames.
            deterministic: Overrides the driver's own setting.

        Returns:
            ``(A,)`` float32 in the stored format of the simulator, within its bounds.

        Raises:
            SimulatorError: There is no RGB frame, or the vector has not the entries that the agent knows.
        """
        seen = split_observation(observed)
        frame, fields = seen.image, self.simulator.vector
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise SimulatorError(
                f"a frame must be uint8 of shape (H, W, 3), RGB, but {frame.dtype} of shape {frame.shape} was given."
            )
        if seen.vector.shape != (len(fields),) or not np.isfinite(seen.vector).all():
            raise SimulatorError(
                f"the agent takes {len(fields)} finite numbers beside each frame "
                f"({', '.join(field.name for field in fields) or 'none'}), but a vector of shape {seen.vector.shape} "
                "was given; act() takes what the simulator that it was trained on gives."
            )
        return self._act_on(self.observer.observation(seen, self._last_action), deterministic)

    @torch.no_grad()
    def act_on_features(self, features: FloatArray, deterministic: bool | None = None) -> FloatArray:
        """The action for an imagined state, of which there is no frame.

        Args:
            features: ``(F,)`` float32, which :attr:`model` gives for the state.
            deterministic: Overrides the driver's own setting.

        Returns:
            As :meth:`act`.

        Raises:
            BundleError: The agent sees pixels, without a world model.
        """
        _ = self.model
        return self._act_on(features, deterministic)

    def actions(self, observations: NDArray[Any]) -> FloatArray:
        """The policy's mean actions ``(N, A)`` in the stored format for a batch of its observations ``(N, ...)``.

        The episode under way is not touched: this is how an agent acts in many dreams at once.
        """
        chosen = self.policy.predict(observations, deterministic=True)[0]
        return self.simulator.action.to_stored(chosen, self.action)

    def carried_out(self, action: FloatArray) -> None:
        """Say that another action ``(A,)``, in the stored format, took the place of the one that was given last."""
        self._last_action = np.array(action, np.float32)

    def _act_on(self, observation: Any, deterministic: bool | None) -> FloatArray:
        """The action ``(A,)`` for what the policy sees; it counts as carried out."""
        chosen = self._choose(observation, self.deterministic if deterministic is None else deterministic)
        self._last_action = self.simulator.action.to_stored(chosen, self.action)
        self._num_acts += 1
        return self._last_action.copy()

    def _choose(self, observation: NDArray[Any], deterministic: bool) -> FloatArray:
        """The policy's action ``(values,)`` for an observation without a batch dimension."""
        if deterministic:
            return np.asarray(self.policy.predict(observation, deterministic=True)[0], np.float32)
        # Policies draw from torch's global generator: it is lent for the draw, seeded by episode and step.
        devices = [self.policy.device] if self.policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence((self._seed, self._num_acts)).generate_state(1)[0]))
            return np.asarray(self.policy.predict(observation, deterministic=False)[0], np.float32)


class SampledDriver(Driver):
    """A driver that draws its actions, for recordings: it tells what it meant, which is the policy's mean.

    Attributes:
        intended_action: ``(A,)`` float32 in the stored format: the mean at the last step. A clone copies it rather than
            the draw.
    """

    intended_action: FloatArray

    def reset(self, env: Any = None, seed: int = 0) -> None:
        """As the base class does it."""
        super().reset(env, seed)
        self.intended_action = self.simulator.action.to_stored(np.zeros(self.simulator.action.dim))

    def _act_on(self, observation: Any, deterministic: bool | None) -> FloatArray:
        self.intended_action = self.simulator.action.to_stored(self._choose(observation, True), self.action)
        return super()._act_on(observation, deterministic)


def check_simulator_fits(trained: SimulatorSpec, simulator: SimulatorSpec) -> None:
    """Check that a simulator shows and takes what an agent trained on another record knows.

    Args:
        trained: The simulator that the agent, or its world model, was trained on.
        simulator: The one that an agent is to drive.

    Raises:
        SimulatorError: Its frame size, vector or action format is another one.
    """
    misfit = trained.misfit(simulator, "the agent was trained with")
    if misfit is not None:
        height, width = trained.frame_size
        raise SimulatorError(
            f"{misfit}; make the simulator as it was recorded, with frame_size=({height}, {width}), or use an agent "
            "for this simulator."
        )
    known = trained.step_s > 0 and simulator.step_s > 0
    if known and not math.isclose(simulator.step_s, trained.step_s, rel_tol=1e-3):
        warnings.warn(
            f"an action lasts {simulator.step_s:g} s in {simulator.id}, but {trained.step_s:g} s where the agent was "
            "trained, which expects the world to move at that pace; it may drive badly (see action_repeat).",
            stacklevel=3,
        )
