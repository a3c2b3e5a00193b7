"""What the environments over imagined rollouts have in common, Gymnasium's and Stable-Baselines3's."""

from __future__ import annotations

import gymnasium as gym

from wm_gym.envs.arguments import check_count
from wm_gym.envs.dream_model import DreamModel
from wm_gym.envs.rendering import FrameRenderer
from wm_gym.envs.rollout_contract import RolloutContract
from wm_gym.frames import Frame


class DreamEnvironment:
    """Model, horizon and rendering of an environment over imagined rollouts."""

    render_mode: str | None
    _rollouts: RolloutContract

    def _set_up(
        self, rollouts: RolloutContract, render_mode: str | None, render_size: int | tuple[int, int] | None
    ) -> None:
        self._rollouts = rollouts
        self.render_mode = render_mode
        self._renderer = FrameRenderer(render_mode, render_size, self.model.config.frame_size, rollouts.fps)

    @property
    def model(self) -> DreamModel:
        """The world model that dreams."""
        return self._rollouts.model

    @property
    def horizon(self) -> int:
        """Steps until a dream is truncated; a new value counts at once, also for the dreams under way."""
        return self._rollouts.horizon

    @horizon.setter
    def horizon(self, value: int) -> None:
        self._rollouts.horizon = check_count("horizon", value)

    @property
    def num_start_states(self) -> int:
        """How many states a dream can start from."""
        return self._rollouts.num_start_states

    def _render(self, mode: str | None) -> list[Frame] | None:
        """The dreams' current states, decoded: returned for ``"rgb_array"``, shown in a window for ``"human"``."""
        if mode == "rgb_array":
            return self._renderer.pictures(self._rollouts.frames())
        if mode == "human":
            self._renderer.show(self._rollouts.frames())
        else:
            gym.logger.warn("render() does nothing without a render mode; make the environment with render_mode=.")
        return None

    def _show(self) -> None:
        """Show the dreams where the render mode is ``"human"``."""
        if self.render_mode == "human":
            self._render("human")
