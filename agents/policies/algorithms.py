"""The algorithms of Stable-Baselines3 that agents are trained with: one entry of :data:`ALGORITHMS` each.

To add one, write its entry: where its class is, and the defaults that suit many dreams side by side.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wm_gym.errors import did_you_mean

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


@dataclass(frozen=True)
class Algorithm:
    """An entry of the registry.

    Attributes:
        path: Its class as ``"module:Class"``.
        is_on_policy: Whether it learns only from the rollouts of its current policy.
        defaults: Values for settings of ``AgentConfig`` that are left at ``None``.
        keywords: Further keyword arguments of the class, overridden by ``AgentConfig.algorithm``.
        policy: Arguments of its policy that differ from the policy class's defaults.
        tensors: Attributes of the class that are tensors learned outside its ``get_parameters()``.
    """

    path: str
    is_on_policy: bool
    defaults: Mapping[str, Any]
    keywords: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    policy: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    tensors: tuple[str, ...] = ()

    def load(self) -> type[BaseAlgorithm]:
        """Import the class."""
        loaded: type[BaseAlgorithm] = pkgutil.resolve_name(self.path)
        return loaded


_ON_POLICY = {"num_envs": 256, "activation": "tanh", "log_std_init": -1.2, "gamma": 0.99, "gae_lambda": 0.95}
_OFF_POLICY = {"num_envs": 64, "activation": "relu", "gamma": 0.99, "learning_rate": 3e-4, "batch_size": 256}
# 64 dreams take a step together, so that 16 updates a step reuse each transition about 64 times.
_REPLAY = {"buffer_size": 100_000, "learning_starts": 2_000, "gradient_steps": 16}

ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(
        path="stable_baselines3:PPO",
        is_on_policy=True,
        defaults={
            **_ON_POLICY,
            "learning_rate": 3e-4,
            "batch_size": 1024,
            "n_epochs": 5,
            "ent_coef": 0.001,
            "clip_range": 0.2,
            "target_kl": 0.03,
        },
    ),
    "a2c": Algorithm(
        path="stable_baselines3:A2C",
        is_on_policy=True,
        defaults={**_ON_POLICY, "learning_rate": 7e-4, "ent_coef": 0.0},
    ),
    "sac": Algorithm(
        path="stable_baselines3:SAC",
        is_on_policy=False,
        defaults={**_OFF_POLICY, "ent_coef": "auto"},
        keywords=_REPLAY,
        tensors=("log_ent_coef",),
    ),
    "td3": Algorithm(
        path="stable_baselines3:TD3",
        is_on_policy=False,
        defaults={**_OFF_POLICY, "exploration_noise": 0.1},
        keywords=_REPLAY,
    ),
    "ddpg": Algorithm(
        path="stable_baselines3:DDPG",
        is_on_policy=False,
        defaults={**_OFF_POLICY, "exploration_noise": 0.1},
        keywords=_REPLAY,
        policy={"n_critics": 1},
    ),
}
"""The algorithms by name: ``ppo``, ``a2c``, ``sac``, ``td3`` and ``ddpg``, each with its class and defaults."""


def unknown_algorithm(name: str) -> str:
    """The sentence for an algorithm that is not in the registry."""
    return (
        f"no algorithm is called {name!r}{did_you_mean(name.lower(), ALGORITHMS)}; use one of {', '.join(ALGORITHMS)}"
    )
