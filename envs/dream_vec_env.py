"""Many dreams in one batch as a Stable-Baselines3 vector environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from wm_gym.envs.arguments import check_reset_options
from wm_gym.envs.dream_environment import DreamEnvironment
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.imagined_rollouts import ImaginedRollouts
from wm_gym.envs.rendering import tile
from wm_gym.envs.rollout_contract import Observations
from wm_gym.frames import Frame
from wm_gym.observation import assign_rows, select_rows
from wm_gym.state import LatentState

Indices = int | Iterable[int] | None


class DreamVecEnv(DreamEnvironment, VecEnv):
    """``N`` dreams of one world model for Stable-Baselines3, advanced by one batched call of the model a step.

    Spaces, rewards, ends and seeding of each dream are those of :class:`~wm_gym.envs.dream.DreamDrivingEnv`;
    ``seed(s)`` followed by ``reset()`` seeds dream ``i`` with ``s + i``. A dream that is over begins anew in the same
    step, and its entry of ``infos`` then holds

    * ``terminal_observation``: the last observation of the dream that is over;
    * ``TimeLimit.truncated``: whether the horizon ended it, so that on-policy algorithms bootstrap with the value of
      ``terminal_observation``; false where the model ended it, where there is nothing left to be gained;
    * ``episode``: dream return ``"r"`` and length ``"l"``, as ``Monitor`` records them, so that algorithms log
      ``rollout/ep_rew_mean``. :meth:`env_is_wrapped` therefore answers true for ``Monitor``.

    The entries of dreams that go on are empty. Where the model tells its uncertainty, every entry has that of the step,
    ``uncertainty``; see :class:`~wm_gym.envs.dream.DreamDrivingEnv`. Options: ``start_state``; see :meth:`set_options`.

    Args:
        num_envs: ``N``.
        model: See :class:`~wm_gym.envs.dream.DreamDrivingEnv`, also for all arguments that are not listed here.
        render_mode: ``"rgb_array"`` lets :meth:`render` return the dreams in a grid, ``"human"`` shows them.
        render_size: Height, or height and width, of one rendered dream.

    Raises:
        ConfigError: An argument is out of range or unknown.
        BundleError: The model is missing, damaged or has no start states.

    ```python
    PPO("MlpPolicy", DreamVecEnv(64, model="bundled", action="steer_accel")).learn(100_000)
    ```
    """

    _rollouts: ImaginedRollouts

    def __init__(
        self,
        num_envs: int = 1,
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
        rollouts = ImaginedRollouts(
            num_envs,
            model=model,
            horizon=horizon,
            observation=observation,
            action=action,
            device=device,
            start_states=start_states,
            termination=termination,
            uncertainty_limit=uncertainty_limit,
        )
        self._set_up(rollouts, render_mode, render_size)  # first, as the base class asks for the render mode
        super().__init__(rollouts.num_slots, rollouts.single_observation_space, rollouts.actions.space)
        self.metadata = rollouts.metadata(self.metadata)
        self._returns = np.zeros(self.num_envs)
        self._actions: NDArray[np.float32] | None = None

    def reset(self) -> Observations:
        """Begin new dreams with the seeds and options that were set before, each of which counts once.

        Returns:
            ``(N, ...)`` first observations.

        Raises:
            ConfigError: An option is unknown or out of range.
        """
        chosen = np.full(self.num_envs, -1, np.int64)
        for slot, slot_options in enumerate(self._options):
            start_state = check_reset_options(slot_options, ("start_state",)).get("start_state")
            if start_state is not None:
                chosen[slot] = self._rollouts.check_start_state(start_state)
        self._rollouts.random.seed(self._seeds)
        self._reset_seeds()
        self._reset_options()
        used = self._rollouts.reset(start_state=chosen)
        self.reset_infos = [self._reset_info(int(start)) for start in used]
        self._returns[:] = 0.0
        return self._rollouts.observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions ``(N, values)`` of the next step.

        Raises:
            ConfigError: The actions have the wrong shape or a value that is not finite.
        """
        self._actions = self._rollouts.actions.to_stored(actions, (self.num_envs,))

    def step_wait(self) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Imagine the step.

        Returns:
            Observations ``(N, ...)``, rewards ``(N,)`` float32, dones ``(N,)`` bool and infos; see the class.

        Raises:
            ResetNeeded: :meth:`reset` was not called.
            RuntimeError: :meth:`step_async` was not called.
        """
        if self._actions is None:
            raise RuntimeError("step_wait() needs the actions of a step_async() before it.")
        rollouts = self._rollouts
        outcome = rollouts.step(self._actions)
        self._actions = None
        self._returns += outcome.reward
        observations = rollouts.observations()
        infos: list[dict[str, Any]]
        if outcome.uncertainty is None:
            infos = [{} for _ in range(self.num_envs)]
        else:
            infos = [{"uncertainty": sigma} for sigma in outcome.uncertainty.tolist()]
        dones = outcome.terminated | outcome.truncated
        rows = np.flatnonzero(dones)
        if len(rows):
            lengths = rollouts.elapsed[rows]
            last_observations = select_rows(observations, rows)
            used = rollouts.reset(rows)
            assign_rows(observations, rows, rollouts.observations(rows))
            for i, row in enumerate(rows.tolist()):
                infos[row] |= {
                    "terminal_observation": select_rows(last_observations, i),
                    "TimeLimit.truncated": bool(outcome.truncated[row]),
                    "episode": {"r": float(self._returns[row]), "l": int(lengths[i])},
                }
                self.reset_infos[row] = self._reset_info(int(used[i]))
            self._returns[rows] = 0.0
        return observations, outcome.reward.astype(np.float32), dones, infos

    def _reset_info(self, start_state: int) -> dict[str, Any]:
        certain = {} if self._rollouts.uncertainty is None else {"uncertainty": 0.0}
        return {"start_state": start_state, "continuation": 1.0, **certain}

    def close(self) -> None:
        """Close the window, if there is one."""
        self._renderer.close()

    def get_images(self) -> Sequence[Frame | None]:
        """The dreams' current states as ``N`` decoded frames ``(H, W, 3)`` uint8."""
        return self._renderer.pictures(self._rollouts.frames())

    def render(self, mode: str | None = None) -> Frame | None:
        """Decode the dreams and lay them out in a grid: returned for ``"rgb_array"``, shown for ``"human"``.

        Args:
            mode: Takes the place of ``render_mode`` if that is ``"rgb_array"``.
        """
        pictures = self._render(None if self.render_mode is None else mode or self.render_mode)
        return None if pictures is None else tile(pictures)

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """The attribute, once for each dream asked for: all dreams share it.

        Raises:
            AttributeError: There is none of this name.
        """
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of all dreams.

        Raises:
            AttributeError: Only some dreams are named: they are one batch, and share every attribute.
        """
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise AttributeError(f"the dreams of a DreamVecEnv share {attr_name!r}: set it for all, with indices=None.")
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of single dreams; ``"render"`` is the only one that they have.

        Raises:
            AttributeError: Another method is named.
        """
        if method_name != "render":
            raise AttributeError(
                f"the dreams of a DreamVecEnv are one batch and have no method {method_name!r} of their own; "
                "call the DreamVecEnv's."
            )
        rows = np.fromiter(self._get_indices(indices), np.int64)
        return list(self._renderer.pictures(self._rollouts.frames(rows)))

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """False for every wrapper but ``Monitor``, whose episode statistics are in ``infos``."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
