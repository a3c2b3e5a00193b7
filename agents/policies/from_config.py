"""From the settings of an agent to its algorithm: defaults filled in, what does not fit refused, the algorithm made."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_gym.actions import ActionFormat
from wm_gym.agents.policies.algorithms import ALGORITHMS, Algorithm
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# Settings of AgentConfig that are keyword arguments of the algorithm's class under the same name.
_PASSED_ON = (
    "learning_rate",
    "gamma",
    "gae_lambda",
    "n_steps",
    "batch_size",
    "n_epochs",
    "ent_coef",
    "clip_range",
    "target_kl",
)
# Keyword arguments that the training itself sets, or that are no plain values.
_RESERVED = frozenset(
    {
        "policy",
        "env",
        "policy_kwargs",
        "seed",
        "device",
        "verbose",
        "tensorboard_log",
        "stats_window_size",
        "action_noise",
        "replay_buffer_class",
        "replay_buffer_kwargs",
        "rollout_buffer_class",
        "rollout_buffer_kwargs",
        "optimize_memory_usage",
        "_init_setup_model",
    }
)


def resolve(config: AgentConfig, action_format: ActionFormat) -> AgentConfig:
    """Replace every ``None`` that stands for a default by that default, and check that the settings fit together.

    Args:
        config: The configuration as the user gave it.
        action_format: What the world model's actions mean.

    Raises:
        ConfigError: A setting is not one of this algorithm, or the model does not offer the kind of action.
    """
    algorithm = ALGORITHMS[config.algo]
    offered = _keywords_of(algorithm)
    _check_keywords(config, offered)
    values = config.model_dump()
    values["action"] = action_format.resolve(
        config.action or ("steer_accel" if action_format.kind == "driving" else "native")
    )
    for name, default in algorithm.defaults.items():
        if values[name] is None:
            values[name] = default
    if algorithm.is_on_policy:
        if values["n_steps"] is None:
            values["n_steps"] = config.horizon
        if config.batch_size is None and values["batch_size"] is not None:
            values["batch_size"] = _divisor_up_to(values["batch_size"], values["num_envs"] * values["n_steps"])
    values["algorithm"] = {**algorithm.keywords, **config.algorithm}
    return type(config).model_validate(values)


def make_algorithm(config: AgentConfig, **arguments: Any) -> BaseAlgorithm:
    """Make the algorithm of a resolved configuration.

    Args:
        config: From :func:`resolve`.
        **arguments: What the training sets: ``policy``, ``env``, ``policy_kwargs``, ``learning_rate``, ``device``, ….

    Raises:
        ConfigError: Stable-Baselines3 refuses a value.
    """
    algorithm = ALGORITHMS[config.algo]
    keywords = {name: getattr(config, name) for name in _PASSED_ON if getattr(config, name) is not None}
    # YAML has lists where Stable-Baselines3 wants tuples, as in train_freq=(4, "step").
    keywords.update({name: tuple(v) if isinstance(v, list) else v for name, v in config.algorithm.items()})
    if config.exploration_noise:
        from stable_baselines3.common.noise import NormalActionNoise

        size = arguments["env"].action_space.shape
        keywords["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, config.exploration_noise))
    try:
        return algorithm.load()(**{**keywords, **arguments})
    except (AssertionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{config.algo} cannot be made with these settings: {reason}.") from error


def _keywords_of(algorithm: Algorithm) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(algorithm.load()).parameters if name not in _RESERVED)


def _check_keywords(config: AgentConfig, offered: tuple[str, ...]) -> None:
    algorithm = ALGORITHMS[config.algo]
    for name in _PASSED_ON:
        if getattr(config, name) is not None and name not in offered:
            raise ConfigError(f"{config.algo} has no setting {name!r}; leave it out or choose another algorithm.")
    if config.log_std_init is not None and not algorithm.is_on_policy:
        raise ConfigError(f"{config.algo} has no setting 'log_std_init'; leave it out or choose ppo or a2c.")
    if config.exploration_noise is not None and "exploration_noise" not in algorithm.defaults:
        raise ConfigError(
            f"{config.algo} explores by its own sampling and takes no exploration_noise; leave it out or choose td3."
        )
    for name in ("critic_steps", "anchor", "policy_precision"):
        if getattr(config, name) != AgentConfig.model_fields[name].default and not algorithm.is_on_policy:
            raise ConfigError(f"{config.algo} has no setting {name!r}; leave it out or choose ppo or a2c.")
    further = [name for name in offered if name not in _PASSED_ON]
    for name in config.algorithm:
        if name in _PASSED_ON:
            raise ConfigError(f"algorithm.{name} is a setting of its own; give it as {name} instead.")
        if name not in further:
            raise ConfigError(
                f"{config.algo} has no keyword argument {name!r} that can be set here{did_you_mean(name, further)}; "
                f"the known ones are {', '.join(further)}."
            )


def _divisor_up_to(largest: int, total: int) -> int:
    """The largest divisor of ``total`` up to ``largest``, so that no mini-batch is cut short."""
    best = max(divisor for divisor in range(1, min(largest, total) + 1) if total % divisor == 0)
    # Where all divisors are small (a prime number of transitions), one mini-batch that is cut costs less.
    return best if best >= math.isqrt(largest) else min(largest, total)
