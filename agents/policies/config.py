"""The configuration of an agent and its training in imagination: typed, saved with every agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wm_gym.actions import ActionName
from wm_gym.agents.policies.algorithms import ALGORITHMS, unknown_algorithm
from wm_gym.config import parse_config


class AgentConfig(BaseModel):
    """How an agent is made. ``None`` stands for the algorithm's default in :mod:`wm_gym.agents.policies.algorithms`.

    Names are those of Stable-Baselines3 wherever it has the setting; further settings of the algorithm's constructor
    go into ``algorithm``, for example ``{"vf_coef": 1.0}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    algo: str = Field(default="ppo", description="Algorithm: a name in ALGORITHMS.")
    steps: int = Field(default=1_000_000, ge=1, description="Dream steps in all, summed over the dreams side by side.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="All randomness of the training follows from it.")

    action: ActionName | None = Field(
        default=None, description="Kind of action: None is steer_accel for driving simulators, else native."
    )
    num_envs: int | None = Field(default=None, ge=1, description="Dreams side by side.")
    horizon: int = Field(default=30, ge=1, description="Steps until a dream is truncated.")
    termination: Literal["sample", "threshold", "never"] = Field(
        default="sample", description="How the model's continuation ends a dream; see DreamDrivingEnv."
    )
    uncertainty_limit: float | None = Field(
        default=None,
        gt=0,
        description="Dreams are truncated where their uncertainty, in units of reward, is above this; None: never. For "
        "world models that tell it (wm-gym train-uncertainty).",
    )
    model_precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Precision of the world model's matrix products while it dreams: fp32 or bf16."
    )
    policy_precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Precision of the hidden layers of policy and critic while they learn, as most of PPO's time goes "
        "into them; they act in fp32 (ppo, a2c).",
    )
    compile_model: bool = Field(
        default=False,
        description="Compile the world model first, which takes some ten seconds on a CPU; see AcceleratedModel.",
    )
    normalise_observations: bool = Field(
        default=True, description="Standardise features by their mean and deviation over the start states."
    )
    reward_scale: float | Literal["auto"] = Field(
        default="auto",
        description="Factor on rewards in training only; auto brings random rollouts' discounted returns to size 1.",
    )

    reward_limit: float | None = Field(
        default=None,
        gt=0,
        description="Largest reward of a step, before scaling; more counts as this much in training. A dream's end "
        "makes haste look better than it is: where an episode has time for the whole track, a limit takes that away.",
    )

    net_arch: tuple[int, ...] = Field(default=(256, 256), max_length=64, description="Hidden layers of each network.")
    activation: Literal["tanh", "relu", "silu"] | None = Field(default=None, description="Between hidden layers.")
    log_std_init: float | None = Field(default=None, description="Log of the actions' first deviation.")

    learning_rate: float | None = Field(default=None, gt=0, description="Learning rate at the beginning.")
    final_learning_rate: float = Field(
        default=1.0, ge=0, le=1, description="Learning rate at the end, as a share of learning_rate (linear decay)."
    )
    gamma: float | None = Field(default=None, ge=0, le=1, description="Discount factor.")
    gae_lambda: float | None = Field(
        default=None, ge=0, le=1, description="Decay of generalised advantage estimation (ppo, a2c)."
    )
    n_steps: int | None = Field(
        default=None, ge=1, description="Steps of each dream between updates (ppo, a2c: None is the horizon)."
    )
    batch_size: int | None = Field(default=None, ge=1, description="Steps in a minibatch (all but a2c).")
    n_epochs: int | None = Field(default=None, ge=1, description="Passes over the steps of an update (ppo).")
    ent_coef: float | str | None = Field(default=None, description="Entropy coefficient; sac also takes 'auto'.")
    clip_range: float | None = Field(
        default=None, gt=0, description="Furthest that an update moves the ratio of probabilities from 1 (ppo)."
    )
    target_kl: float | None = Field(
        default=None, gt=0, description="An update stops early at 1.5 times this KL divergence (ppo)."
    )
    exploration_noise: float | None = Field(
        default=None, ge=0, description="Deviation of the noise on actions in [-1, 1] (td3, ddpg)."
    )
    algorithm: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments of the algorithm.")

    critic_steps: int = Field(
        default=0,
        ge=0,
        description="Dream steps at the beginning in which the critic learns alone, so that a policy that has "
        "one, as a clone does, is not unlearnt by the first updates (ppo, a2c).",
    )
    anchor: float = Field(
        default=0.0,
        ge=0,
        description="What a step's reward loses in training where the policy's mean action differs from the initial "
        "policy's by one of that one's deviations, growing with the square: a policy that stays near recorded driving "
        "stays where the dream can be trusted (ppo, a2c).",
    )
    policy_average: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="What is validated and saved is a moving average of the policy's parameters over the rounds: the "
        "share that the average keeps in each. 0 takes the policy as it is.",
    )
    validate_every: int | None = Field(
        default=None, ge=1, description="Dream steps between validations, where a training has them."
    )
    checkpoint_overhead: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="A checkpoint is written as often as costs at most this share of the time.",
    )

    @field_validator("algo")
    @classmethod
    def _algorithm_is_known(cls, value: str) -> str:
        if value.lower() not in ALGORITHMS:
            raise ValueError(unknown_algorithm(value))
        return value.lower()

    @field_validator("net_arch")
    @classmethod
    def _layers_have_units(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= units <= 16_384 for units in value):
            raise ValueError(f"every layer of net_arch needs 1 to 16,384 units, but {list(value)} was given")
        return value

    @field_validator("reward_scale")
    @classmethod
    def _scale_is_positive(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value < float("inf"):
            raise ValueError(f"reward_scale must be 'auto' or a number above 0, but {value} was given")
        return value


def make_agent_config(values: Mapping[str, Any] | None = None, changes: Iterable[str] = ()) -> AgentConfig:
    """Make a configuration from a mapping and ``key=value`` changes.

    Args:
        values: Settings by name; those left out have their defaults.
        changes: For example ``["gamma=0.98", "algorithm.vf_coef=1.0"]``; values are read as YAML.

    Raises:
        ConfigError: A key is unknown, or a value is of the wrong type or out of range.
    """
    return parse_config(AgentConfig, dict(values or {}), changes, origin="the agent's configuration")
