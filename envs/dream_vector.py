"""Many dreams in one batch as a Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from wm_gym.envs.arguments import check_choice, check_count, check_reset_options, check_seed
from wm_gym.envs.dream_environment import DreamEnvironment
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.imagined_rollouts import ImaginedRollouts
from wm_gym.envs.rollout_contract import DEFAULT_FPS, Observations
from wm_gym.errors import ConfigError
from wm_gym.frames import Frame
from wm_gym.observation import assign_rows, select_rows
from wm_gym.state import LatentState

Mask = NDArray[np.bool_]


class DreamVectorEnv(DreamEnvironment, VectorEnv[Any, ArrayLike, NDArray[Any]]):
    """``N`` dreams of one world model, advanced by one batched call of the model a step.

    Spaces, rewards, ends and seeding of each dream are those of :class:`~wm_gym.envs.dream.DreamDrivingEnv`, whose
    arguments it takes. It answers as ``gymnasium.vector.SyncVectorEnv`` over ``N`` of them would, ``infos`` included,
    and ``reset(seed=s)`` seeds dream ``i`` with ``s + i``.

    Reset options: ``start_state`` (a whole number, or an array ``(N,)`` of them), and ``reset_mask`` ``(N,)`` bool,
    which resets those dreams only and leaves the others as they are.

    Args:
        num_envs: ``N``.
        model: See :class:`~wm_gym.envs.dream.DreamDrivingEnv`, also for all arguments that are not listed here.
        render_mode: ``"rgb_array"`` returns ``N`` frames, ``"human"`` shows them in a grid.
        autoreset_mode: When a dream that is over begins anew: ``NEXT_STEP`` (default: the next step ignores its action
            and returns the first observation with reward 0), ``SAME_STEP`` (the same step returns the first observation
            and the last one in ``infos["final_obs"]``), ``DISABLED`` (by ``reset`` with a ``reset_mask``).
        max_episode_steps: As for ``gym.make``: a lower horizon.
        disable_env_checker: As for ``gym.make``; there is no checker here.

    Raises:
        ConfigError: An argument is out of range or unknown.
        BundleError: The model is missing, damaged or has no start states.
    """

    _rollouts: ImaginedRollouts
    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array", "human"],
        "render_fps": DEFAULT_FPS,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

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
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        disable_env_checker: bool | None = None,
    ) -> None:
        del disable_env_checker
        if max_episode_steps is not None:
            horizon = min(check_count("horizon", horizon), check_count("max_episode_steps", max_episode_steps))
        if not isinstance(autoreset_mode, AutoresetMode):
            check_choice("autoreset_mode", autoreset_mode, tuple(mode.value for mode in AutoresetMode))
        self.autoreset_mode = AutoresetMode(autoreset_mode)
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
        self._set_up(rollouts, render_mode, render_size)
        self.num_envs = rollouts.num_slots
        self.single_observation_space = rollouts.single_observation_space
        self.single_action_space = rollouts.actions.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**rollouts.metadata(type(self).metadata), "autoreset_mode": self.autoreset_mode}
        self._has_begun = False
        self._start_state = np.zeros(self.num_envs, np.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin new dreams; see the class for ``options``.

        Args:
            seed: ``s`` seeds dream ``i`` with ``s + i``; a list gives each its own; ``None`` goes on with a
                dream's stream.
            options: ``start_state`` and ``reset_mask``.

        Raises:
            ConfigError: The number of seeds is wrong, or an option is unknown or out of range.
        """
        options = check_reset_options(options, ("start_state", "reset_mask"))
        seeds = self._seeds(seed)
        mask = self._check_mask(options.get("reset_mask"))
        rows = None if mask is None else np.flatnonzero(mask)
        chosen = None
        if options.get("start_state") is not None:
            chosen = self._rollouts.check_start_state(options["start_state"], (self.num_envs,))
            chosen = chosen if rows is None else chosen[rows]
        super().reset(seed=seeds[0])
        if mask is not None:
            seeds = [slot_seed if is_reset else None for slot_seed, is_reset in zip(seeds, mask, strict=True)]
        self._rollouts.random.seed(seeds)
        self._begin(rows, chosen)
        certain = None if self._rollouts.uncertainty is None else np.zeros(self.num_envs)
        begun = np.ones(self.num_envs, np.bool_) if mask is None else mask
        infos = self._infos(np.ones(self.num_envs), certain, begun)
        self._has_begun = self._has_begun or mask is None
        self._show()
        return self._rollouts.observations(), infos

    def step(self, actions: ArrayLike) -> tuple[Observations, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """Imagine one step of every dream.

        Args:
            actions: ``(N, values)``; those of dreams that only begin anew are ignored.

        Returns:
            Observations ``(N, ...)``, rewards ``(N,)`` float64, terminations and truncations ``(N,)`` bool, and infos.

        Raises:
            ResetNeeded: A dream has not begun, or is over and ``autoreset_mode`` is ``DISABLED``.
            ConfigError: The actions have the wrong shape or a value that is not finite.
        """
        rollouts = self._rollouts
        stored = rollouts.actions.to_stored(actions, (self.num_envs,))
        over = None
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._has_begun and rollouts.needs_reset.any():
            over = rollouts.needs_reset.copy()
        if over is not None and over.all():
            # Dreams that began together end together at their horizon: there is nothing to imagine then.
            outcome = rollouts.no_step()
        else:
            outcome = rollouts.step(stored, None if over is None else ~over)
        continuation, uncertainty = outcome.continuation, outcome.uncertainty
        infos: dict[str, Any] = {}
        if over is not None:
            self._begin(np.flatnonzero(over))
            continuation = np.where(over, 1.0, continuation)  # and the uncertainty is 0
        observations = rollouts.observations()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and rollouts.needs_reset.any():
            done = rollouts.needs_reset.copy()
            rows = np.flatnonzero(done)
            final = np.full(self.num_envs, None, dtype=object)
            last = select_rows(observations, rows)  # a copy: the rows are written over
            for place, row in enumerate(rows):
                final[row] = select_rows(last, place)
            infos["final_obs"], infos["_final_obs"] = final, done.copy()
            infos["final_info"], infos["_final_info"] = self._infos(continuation, uncertainty, done), done.copy()
            self._begin(rows)
            assign_rows(observations, rows, rollouts.observations(rows))
            continuation = np.where(done, 1.0, continuation)
            uncertainty = None if uncertainty is None else np.where(done, 0.0, uncertainty)
        infos.update(self._infos(continuation, uncertainty, np.ones(self.num_envs, np.bool_)))
        self._show()
        return observations, outcome.reward, outcome.terminated, outcome.truncated, infos

    def render(self) -> tuple[Frame, ...] | None:
        """Decode the current states: ``N`` uint8 frames in mode ``"rgb_array"``, shown in a grid in ``"human"``."""
        pictures = self._render(self.render_mode)
        return None if pictures is None else tuple(pictures)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the window, if there is one."""
        self._renderer.close()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (list, tuple, np.ndarray)) and np.ndim(np.asarray(seed, object)) == 1:
            if len(seed) != self.num_envs:
                raise ConfigError(
                    f"a list of seeds has one for each of {self.num_envs} dreams, but {len(seed)} were given."
                )
            return [check_seed(slot_seed) for slot_seed in seed]
        first = check_seed(seed)
        assert first is not None
        return [first + slot for slot in range(self.num_envs)]

    def _check_mask(self, mask: Any) -> Mask | None:
        if mask is None:
            return None
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ConfigError(
                f"the reset option 'reset_mask' takes a bool array of shape ({self.num_envs},), but {mask!r} was given."
            )
        if not mask.any():
            raise ConfigError("the reset option 'reset_mask' chooses no dream; leave out the reset instead.")
        return mask

    def _begin(self, rows: NDArray[np.int64] | None, chosen: NDArray[np.int64] | None = None) -> None:
        """Begin new dreams in the slots ``rows`` (``None``: all)."""
        self._start_state[slice(None) if rows is None else rows] = self._rollouts.reset(rows, chosen)

    def _infos(
        self, continuation: NDArray[np.float64], uncertainty: NDArray[np.float64] | None, mask: Mask
    ) -> dict[str, Any]:
        """What a single dream tells in ``info``, as arrays with their masks; zero where the mask is false."""
        told = {"start_state": self._start_state, "continuation": continuation, "uncertainty": uncertainty}
        infos: dict[str, Any] = {}
        for name, values in told.items():
            if values is not None:
                infos[name], infos[f"_{name}"] = np.where(mask, values, 0), mask.copy()
        return infos
