"""The policy network of an agent: Stable-Baselines3's.

Over the features of a world model it stands behind a fixed normaliser; over pixels behind three convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from torch import Tensor, nn

from wm_gym.agents.policies.algorithms import ALGORITHMS
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.pixel_config import PixelAgentConfig
from wm_gym.envs.dream_model import DreamModel
from wm_gym.precision import single_precision
from wm_gym.state import LatentState

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
_FEATURE_LIMIT = 10.0
_SMALLEST_RELATIVE_DEVIATION = 0.1
_BATCH = 1024


class FeatureNormaliser(BaseFeaturesExtractor):
    """Standardises features with a mean and a deviation that are part of the saved policy and never drift.

    A running estimate would change under the policy while it learns, and would have to be carried to the simulator
    beside it; this one is measured once, over the real states that dreams start from.

    Args:
        observation_space: ``Box`` of shape ``(F,)``.
    """

    mean: Tensor
    deviation: Tensor
    limit: Tensor

    def __init__(self, observation_space: spaces.Box) -> None:
        (size,) = observation_space.shape
        super().__init__(observation_space, size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.register_buffer("limit", torch.tensor(torch.inf))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, F)`` float32 to ``(B, F)`` of mean 0 and deviation 1 over the start states, within [-10, 10].

        Until :func:`set_normalisation` is called, features pass unchanged.
        """
        return ((features - self.mean) / self.deviation).clamp(-self.limit, self.limit)


class _BFloat16Hidden(MlpExtractor):
    """The hidden layers of policy and critic, in bfloat16 while they learn.

    The layers behind them stay in float32: an update compares probabilities with those that the rollout had.
    """

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, F)`` to the last hidden layers ``(B, N)`` of both, float32."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.training):
            policy, value = super().forward(features)
        return policy.float(), value.float()


class BFloat16Policy(ActorCriticPolicy):
    """Stable-Baselines3's ``"MlpPolicy"`` of on-policy algorithms, of the same parameters, that learns in bfloat16."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _BFloat16Hidden(
            self.features_dim, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )


def policy_of(config: AgentConfig) -> str | type[BasePolicy]:
    """What an algorithm is given as its ``policy``."""
    return BFloat16Policy if config.policy_precision == "bf16" else "MlpPolicy"


@torch.no_grad()
def feature_statistics(model: DreamModel, start_states: LatentState) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``(F,)`` of the features over start states; see :func:`statistics_of`."""
    batches = map(LatentState, start_states.latent.split(_BATCH), start_states.memory.split(_BATCH))
    return statistics_of(torch.cat([model.features(batch.to(model.device)).cpu().double() for batch in batches]))


def statistics_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``(F,)`` float32 of features ``(N, F)``.

    A feature that hardly varies there may vary in a dream: a deviation counts as at least a tenth of the average one.
    """
    features = features.double()
    deviation = features.std(dim=0, unbiased=False)
    floor = float(deviation.mean()) * _SMALLEST_RELATIVE_DEVIATION
    if floor == 0.0:  # a single start state, or equal ones, say nothing about the scale
        return features.mean(dim=0).float(), torch.ones_like(deviation).float()
    return features.mean(dim=0).float(), deviation.clamp_min(floor).float()


def set_normalisation(policy: nn.Module, mean: Tensor, deviation: Tensor) -> None:
    """Set mean and deviation ``(F,)`` in every normaliser of a policy: actor, critics and target networks."""
    for module in policy.modules():
        if isinstance(module, FeatureNormaliser):
            module.mean.copy_(mean)
            module.deviation.copy_(deviation)
            module.limit.fill_(_FEATURE_LIMIT)


def policy_arguments(config: AgentConfig) -> dict[str, Any]:
    """The ``policy_kwargs`` of a resolved configuration for Stable-Baselines3's ``"MlpPolicy"``."""
    assert config.activation is not None
    arguments: dict[str, Any] = {
        **ALGORITHMS[config.algo].policy,
        "net_arch": list(config.net_arch),
        "activation_fn": _ACTIVATIONS[config.activation],
        "features_extractor_class": FeatureNormaliser,
    }
    if config.log_std_init is not None:
        arguments["log_std_init"] = config.log_std_init
    return arguments


def pixel_policy(config: PixelAgentConfig, observation_space: spaces.Space[Any]) -> tuple[str, dict[str, Any]]:
    """The name of Stable-Baselines3's policy for frames, or frames and a vector, and its ``policy_kwargs``.

    The convolutions are those of Mnih et al. 2015; a vector joins what they give.
    """
    has_vector = isinstance(observation_space, spaces.Dict)
    arguments = {
        "net_arch": list(config.net_arch),
        "activation_fn": _ACTIVATIONS[config.activation],
        "features_extractor_kwargs": {"cnn_output_dim" if has_vector else "features_dim": config.features_dim},
        "log_std_init": config.log_std_init,
    }
    return "MultiInputPolicy" if has_vector else "CnnPolicy", arguments


@single_precision()
def rebuild_policy(
    config: AgentConfig | PixelAgentConfig, observation_space: spaces.Space[Any], action_space: spaces.Box
) -> BasePolicy:
    """An untrained policy of the class and sizes that the configuration's training had.

    Args:
        config: A resolved configuration.
        observation_space: Of the dream, or of stacked frames.
        action_space: Of the dream, or of the simulator.
    """
    if isinstance(config, PixelAgentConfig):
        name, arguments = pixel_policy(config, observation_space)
        arguments["use_sde"] = config.use_sde
    else:
        name, arguments = "MlpPolicy", policy_arguments(config)
        if config.algorithm.get("use_sde"):
            arguments["use_sde"] = True
    policy_class = ALGORITHMS[config.algo].load().policy_aliases[name]
    return policy_class(observation_space, action_space, lambda _: 0.0, **arguments)
