"""The dream of a world model as a Gymnasium environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike

from wm_gym.envs.arguments import check_reset_options, check_seed
from wm_gym.envs.dream_environment import DreamEnvironment
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.rollout_contract import DEFAULT_FPS, Observations
from wm_gym.envs.single_rollout import SingleRollout
from wm_gym.envs.slot_random import draw_key
from wm_gym.frames import Frame
from wm_gym.state import LatentState


class DreamDrivingEnv(DreamEnvironment, gym.Env[Any, ArrayLike]):
    """An episode that a world model imagines: no simulator runs.

    ## Description
    The world model was trained on recorded episodes of a simulator. A dream starts from a state that the simulator was
    really in, encoded by the model; from there on the model alone predicts what every action leads to. A policy trained
    on the ``"latent"`` observations drives the simulator unchanged behind
    :class:`~wm_gym.envs.latent_observation.LatentObservation`.

    ## Action space
    The action space of the simulator that the model was trained on. Values out of bounds are clipped; a wrong shape and
    values that are not finite are refused.

    | ``action=`` | space | values |
    | --- | --- | --- |
    | ``"driving"`` | ``Box([-1, 0, 0, -1], 1, (4,), float32)`` | steering (positive is right), throttle, brake, gear |
    | ``"steer_accel"`` | ``Box(-1, 1, (2,), float32)`` | steering (positive is right), acceleration (negative brakes) |
    | ``"native"`` | the simulator's own ``Box`` | for models of simulators that are not driving ones |

    The gear is rounded to -1 (reverse), 0 (neutral) or 1 (forward); under ``"steer_accel"`` it is always forward.
    The default is the first of these that the model has: ``"driving"`` for driving simulators, else ``"native"``.

    ## Observation space
    | ``observation=`` | space | content |
    | --- | --- | --- |
    | ``"latent"`` (default) | ``Box(-inf, inf, (F,), float32)`` | the model's features of the latent state |
    | ``"image"`` | ``Box(0, 255, (H, W, 3), uint8)`` | the decoded RGB frame, which costs a decoding a step |

    ## Rewards
    The reward that the model predicts for the step, in the simulator's own units: with a model that predicts 0.4 for
    each of 50 steps, the dream return is 20.

    ## Starting state
    One of the model's start states, encoded from real frames, drawn with equal probability. ``info["start_state"]``
    says which.

    ## Episode end
    - *Terminated*: the model's termination head says that the task has ended. ``termination="sample"`` (the default)
      draws it with probability ``1 - continuation``, so that the expected dream return is the one that the model
      predicts, and a small risk at every step counts for what it is. ``"threshold"`` ends where the continuation is
      below 0.5: easier to look at, but a risk of 40 % at each step is then no risk at all. ``"never"`` leaves the
      horizon as the only end.
    - *Truncated*: ``horizon`` steps are done. Errors of a world model add up with every imagined step, so dreams are
      short; bootstrap with the value of the last observation. With ``uncertainty_limit`` also where the dream's
      ``uncertainty`` is above it.

    ## Information
    ``start_state`` (int), which the dream began from, and ``continuation`` (float), the predicted probability that the
    episode goes on after the step; 1 after ``reset``. Where the model tells its uncertainty, ``uncertainty`` (float):
    one standard deviation of the error of the reward summed up since ``reset``, in units of reward; 0 after ``reset``.

    ## Arguments
    Args:
        model: A model's folder, ``"bundled"`` for the one that the package ships, or a
            :class:`~wm_gym.world_model.WorldModel`, which is shared (not copied) and put in evaluation mode.
        horizon: Steps until the dream is truncated.
        observation: ``"latent"`` or ``"image"``.
        action: ``"driving"``, ``"steer_accel"`` or ``"native"``; ``None`` is the model's own.
        render_mode: ``"rgb_array"`` returns the decoded frame, ``"human"`` shows it in a window at the simulator's
            pace; ``None`` decodes nothing.
        device: Where a model that is read from a folder computes; ``None`` is the CPU. A model that is passed in stays
            where it is, and another device is refused.
        start_states: Bank of states to start from; ``None`` is the model's own.
        termination: ``"sample"``, ``"threshold"`` or ``"never"``.
        render_size: Height, or height and width, of rendered frames; ``None`` is the model's frame size.
        uncertainty_limit: Truncate a dream when its ``uncertainty`` is above this, in units of reward; ``None``: never.

    Raises:
        ConfigError: An argument is out of range or unknown.
        BundleError: The model is missing, damaged or has no start states.

    ```python
    env = gym.make("DreamDriving-v0", horizon=50, render_mode="rgb_array")
    observation, info = env.reset(seed=0)
    ```

    ## Reset options
    ``start_state`` (int) chooses the start state instead of drawing it.

    ## Seeding
    ``reset(seed=...)`` makes everything that follows repeat: start states, terminations and the model's noise. All
    numbers come from one counter-based stream, whose key is drawn from ``np_random``; a ``reset`` without a seed goes
    on with it. Dream ``i`` of a vector environment reset with ``seed`` is what this environment dreams after
    ``reset(seed=seed + i)``.

    ## Version history
    - v0: first version.
    """

    _rollouts: SingleRollout
    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": DEFAULT_FPS}  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | DreamModel = "bundled",
        *,
        horizon: int = 50,
        observation: str = "latent",
        action: str | None = None,
        render_mode: str | None = None,
        device: str | torch.device | None = None,
        start_states: LatentState | None = None,
        termination: str = "sample",
        render_size: int | tuple[int, int] | None = None,
        uncertainty_limit: float | None = None,
    ) -> None:
        rollout = SingleRollout(
            model=model,
            horizon=horizon,
            observation=observation,
            action=action,
            device=device,
            start_states=start_states,
            termination=termination,
            uncertainty_limit=uncertainty_limit,
        )
        self._set_up(rollout, render_mode, render_size)
        self.observation_space = rollout.single_observation_space
        self.action_space = rollout.actions.space
        self.metadata = rollout.metadata(type(self).metadata)
        self._keyed_by: np.random.Generator | None = None
        self._start_state = 0

    @property
    def state(self) -> LatentState:
        """The current latent state, a batch of one on the model's device; not to be written into."""
        return self._rollouts.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin a new dream; see the class for ``options``.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        seed = check_seed(seed)
        start_state = check_reset_options(options, ("start_state",)).get("start_state")
        chosen = None if start_state is None else int(self._rollouts.check_start_state(start_state))
        super().reset(seed=seed)
        # A new generator, from a seed or set by the user, starts a new stream.
        if self.np_random is not self._keyed_by:
            self._rollouts.random.set_key(draw_key(self.np_random))
            self._keyed_by = self.np_random
        observation, self._start_state = self._rollouts.reset(chosen)
        self._show()
        return observation, self._info(1.0)

    def step(self, action: ArrayLike) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Imagine one step.

        Args:
            action: One action of :attr:`action_space`.

        Returns:
            Observation, reward, terminated, truncated, and the information that the class lists.

        Raises:
            ResetNeeded: The dream is over or has not begun.
            ConfigError: The action has the wrong shape or a value that is not finite.
        """
        observation, reward, terminated, truncated, continuation = self._rollouts.step(action)
        self._show()
        return observation, reward, terminated, truncated, self._info(continuation)

    def _info(self, continuation: float) -> dict[str, Any]:
        info: dict[str, Any] = {"start_state": self._start_state, "continuation": continuation}
        if self._rollouts.uncertainty is not None:
            info["uncertainty"] = self._rollouts.sigma
        return info

    def render(self) -> Frame | None:
        """Decode the current state: returned as uint8 ``(H, W, 3)`` in mode ``"rgb_array"``, shown in ``"human"``."""
        pictures = self._render(self.render_mode)
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Close the window, if there is one."""
        self._renderer.close()
