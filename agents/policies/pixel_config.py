"""The configuration of an agent that learns from pixels in the simulator itself: typed, saved with every such agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wm_gym.actions import ActionName
from wm_gym.config import Width, parse_config
from wm_gym.errors import ConfigError
from wm_gym.simulator import SimulatorSpec

SMALLEST_FRAME = 36
"""Pixels a side below which nothing is left of a frame after the policy's three convolutions."""


class PixelAgentConfig(BaseModel):
    """How PPO learns from pixels. Names are those of Stable-Baselines3 wherever it has the setting.

    The defaults are for few frames, 20,000 to 100,000 of the simulator: short rollouts, each used for ten epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    algo: Literal["ppo"] = Field(default="ppo", description="Algorithm.")
    steps: int = Field(default=25_000, ge=1, description="Decisions in all, a multiple of num_envs.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="All randomness of the training follows from it.")
    action: ActionName | None = Field(
        default=None, description="Kind of action: None is steer_accel for driving simulators, else native."
    )

    num_envs: int = Field(default=4, ge=1, description="Simulators side by side.")
    frame_stack: int = Field(default=4, ge=1, le=8, description="How many of the last frames the policy sees.")
    normalise_rewards: bool = Field(
        default=True, description="Divide rewards by the running deviation of their discounted sum, in training only."
    )

    features_dim: Width = Field(default=512, description="Width of the layer after the convolutions.")
    net_arch: tuple[Width, ...] = Field(
        default=(256,), max_length=64, description="Further hidden layers of actor and critic each."
    )
    activation: Literal["tanh", "relu", "silu"] = Field(default="relu", description="Between these layers.")
    log_std_init: float = Field(default=-0.7, description="Log of the actions' first deviation.")
    use_sde: bool = Field(default=False, description="Explore by noise that depends on the state (gSDE).")
    sde_sample_freq: int = Field(default=4, ge=-1, description="Steps between draws of that noise; -1: a rollout.")

    learning_rate: float = Field(default=3e-4, gt=0)
    final_learning_rate: float = Field(
        default=0.1, ge=0, le=1, description="Learning rate at the end, as a share of learning_rate (linear decay)."
    )
    gamma: float = Field(default=0.99, ge=0, le=1, description="Discount factor.")
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    n_steps: int = Field(default=128, ge=2, description="Steps of each simulator between updates, about.")
    batch_size: int = Field(default=128, ge=2)
    n_epochs: int = Field(default=10, ge=1)
    ent_coef: float = Field(default=0.0, ge=0, description="Entropy coefficient.")
    clip_range: float = Field(default=0.2, gt=0)
    target_kl: float | None = Field(default=None, gt=0)
    vf_coef: float = Field(default=0.5, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0)

    checkpoint_overhead: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="A checkpoint is written as often as costs at most this share of the time.",
    )


def make_pixel_config(values: Mapping[str, Any] | None = None, changes: Iterable[str] = ()) -> PixelAgentConfig:
    """Make a configuration from a mapping and ``key=value`` changes.

    Raises:
        ConfigError: A key is unknown, or a value is of the wrong type or out of range.
    """
    return parse_config(PixelAgentConfig, dict(values or {}), changes, origin="the pixel agent's configuration")


def resolve_pixel_config(config: PixelAgentConfig, simulator: SimulatorSpec) -> PixelAgentConfig:
    """Choose the kind of action, and check that the settings fit each other and the simulator.

    Raises:
        ConfigError: They do not.
    """
    action = simulator.action.resolve(
        config.action or ("steer_accel" if simulator.action.kind == "driving" else "native")
    )
    if config.steps % config.num_envs or config.steps < 2 * config.num_envs:
        raise ConfigError(
            f"steps={config.steps} cannot be shared out among num_envs={config.num_envs} simulators evenly; use a "
            f"multiple of {config.num_envs} from {2 * config.num_envs} on."
        )
    if min(simulator.frame_size) < SMALLEST_FRAME:
        height, width = simulator.frame_size
        raise ConfigError(
            f"frames of {height}x{width} are too small for a policy that learns from pixels; use frames of at least "
            f"{SMALLEST_FRAME} pixels a side."
        )
    return config.model_copy(update={"action": action})
