"""What an agent adds to an export: its policy, and a whole driver: the newest frame in, the action out."""

from __future__ import annotations

from pathlib import Path

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from wm_gym.actions import ActionFormat, ActionName
from wm_gym.agents.bundles.folder import LoadedAgent, PixelAgentManifest, load_agent
from wm_gym.errors import ExportError
from wm_gym.export.folder import ExportResult, ExportSettings, export_parts
from wm_gym.export.parts import (
    Observe,
    Part,
    RandomInputs,
    Tensors,
    TensorSpec,
    action_spec,
    is_first_spec,
    model_parts,
    next_state_specs,
    state_specs,
    vector_specs,
)
from wm_gym.frames import frames_to_tensor
from wm_gym.observation import Observation
from wm_gym.world_model import WorldModel


class MeanAction(nn.Module):
    """A policy's action without exploration, as ``predict(..., deterministic=True)`` of Stable-Baselines3 gives it.

    It consists of the policy's own layers: the distributions that Stable-Baselines3 builds around their output on every
    call have no place in a file.

    Args:
        policy: Of one of the algorithms in :mod:`wm_gym.agents.policies.algorithms`, over features.

    Raises:
        ExportError: It is of another class.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.is_squashed = policy.squash_output
        layers: list[nn.Module]
        if isinstance(policy, ActorCriticPolicy):
            layers = [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]
            layers += [nn.Tanh()] if policy.squash_output else []
        elif isinstance(policy, SACPolicy):
            layers = [policy.actor.features_extractor, policy.actor.latent_pi, policy.actor.mu, nn.Tanh()]
        elif isinstance(policy, TD3Policy):
            layers = [policy.actor.features_extractor, policy.actor.mu]  # ends in a tanh
        else:
            raise ExportError(f"a {type(policy).__name__} cannot be exported; use an agent of another algorithm.")
        self.layers = nn.Sequential(*layers)
        space = policy.action_space
        assert isinstance(space, spaces.Box)
        self.register_buffer("low", torch.as_tensor(space.low, device=policy.device), persistent=False)
        self.register_buffer("high", torch.as_tensor(space.high, device=policy.device), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, F)`` to actions of the policy's kind ``(B, values)``, within their bounds."""
        values: Tensor = self.layers(features)
        if self.is_squashed:
            return self.low + 0.5 * (values + 1) * (self.high - self.low)
        return values.clamp(self.low, self.high)


class StoredAction(nn.Module):
    """:meth:`wm_gym.actions.ActionFormat.to_stored` on tensors.

    Args:
        stored: The format.
        name: The kind of the actions that it is given.
    """

    low: Tensor
    high: Tensor

    def __init__(self, stored: ActionFormat, name: ActionName) -> None:
        super().__init__()
        self.is_driving = stored.kind == "driving"
        self.is_steer_accel = name == "steer_accel"
        self.register_buffer("low", torch.tensor(stored.low), persistent=False)
        self.register_buffer("high", torch.tensor(stored.high), persistent=False)

    def forward(self, action: Tensor) -> Tensor:
        """``(B, values)`` to stored actions ``(B, A)`` within their bounds."""
        if self.is_steer_accel:
            steering, acceleration = action[:, :1], action[:, 1:]
            forward = torch.ones_like(acceleration)
            action = torch.cat((steering, acceleration.clamp(min=0), (-acceleration).clamp(min=0), forward), dim=1)
        action = action.clamp(self.low, self.high)
        return torch.cat((action[:, :3], action[:, 3:].round()), dim=1) if self.is_driving else action


class PolicyModule(nn.Module):
    """What :meth:`wm_gym.agents.Driver.act_on_features` computes.

    Args:
        model: The world model whose features the policy sees.
        policy: The policy.
        action: Kind of action that it gives.
    """

    def __init__(self, model: WorldModel, policy: BasePolicy, action: ActionName) -> None:
        super().__init__()
        self.mean_action = MeanAction(policy)
        self.stored_action = StoredAction(model.simulator.action, action).to(model.device)

    def forward(self, features: Tensor) -> Tensors:
        """``(B, F)`` to stored actions ``(B, A)``."""
        return (self.stored_action(self.mean_action(features)),)


class DriverModule(nn.Module):
    """What :meth:`wm_gym.agents.Driver.act` computes, for a batch of episodes whose states the caller keeps.

    Args:
        model: The world model that the agent sees through.
        policy: Its policy.
        action: Kind of action that the policy gives.
    """

    def __init__(self, model: WorldModel, policy: BasePolicy, action: ActionName) -> None:
        super().__init__()
        self.observe = Observe(model)
        self.policy = PolicyModule(model, policy, action)

    def forward(  # noqa: PLR0917 - the inputs of a file have places, not names
        self,
        frame: Tensor,
        latent: Tensor,
        memory: Tensor,
        last_action: Tensor,
        is_first: Tensor,
        vector: Tensor | None = None,
    ) -> Tensors:
        """The action, and latent and memory of the state to give back with the next frame.

        Args:
            frame: ``(B, H, W, 3)`` uint8 RGB, the newest one.
            latent: ``(B, Z)`` of the state before; any numbers where ``is_first``.
            memory: ``(B, ...)`` of the state before; any numbers where ``is_first``.
            last_action: ``(B, A)``, what was carried out since the frame before; any numbers where ``is_first``.
            is_first: ``(B,)`` bool; whether the frame is the first of its episode.
            vector: ``(B, V)``, what the simulator tells beside the frame, where it does.
        """
        # TensorRT takes uint8 inputs only where they become floats at once.
        image = frames_to_tensor(frame.float())
        encoded = self.observe.model.encode(image if vector is None else Observation(image, vector))
        next_latent, next_memory, features = self.observe(latent, memory, last_action, encoded, is_first)
        return *self.policy(features), next_latent, next_memory


def driver_part(model: WorldModel, policy: BasePolicy, action: ActionName) -> Part:
    """An agent with its world model as one part, whose actions are deterministic."""
    frame = TensorSpec("frame", (*model.config.frame_size, 3), torch.uint8, "the newest frame, RGB")

    draw = RandomInputs(model)

    def draw_inputs(number: int, generator: torch.Generator) -> Tensors:
        states, actions = draw.states(number, generator), draw.actions(number, generator)
        inputs = (draw.pixels(number, generator), *states, actions, draw.firsts(number, generator))
        return *inputs, *draw.vectors(number, generator)

    return Part(
        "driver",
        "The action for the newest frame of an episode.",
        DriverModule(model, policy, action).eval(),
        (frame, *state_specs(model), action_spec(model, "last_action"), is_first_spec(), *vector_specs(model)),
        (action_spec(model), *next_state_specs(model)),
        draw_inputs,
    )


def policy_part(model: WorldModel, policy: BasePolicy, action: ActionName) -> Part:
    """An agent's policy alone, which drives where there is no frame: in the dream."""
    draw = RandomInputs(model)
    return Part(
        "policy",
        "The action for the features of a state.",
        PolicyModule(model, policy, action).eval(),
        (TensorSpec("features", (model.feature_dim,), torch.float32, "what a policy sees of a state"),),
        (action_spec(model),),
        lambda number, generator: (model.features(draw.states(number, generator)),),
    )


def agent_parts(agent: LoadedAgent) -> tuple[Part, Part]:
    """Driver and policy of a loaded agent.

    Raises:
        ExportError: It sees pixels, without a world model.
    """
    config = agent.manifest.config
    if isinstance(agent.manifest, PixelAgentManifest):
        raise ExportError(
            f"the agent at {str(agent.path)!r} sees pixels and has no world model to export; give one that was trained "
            "in a dream, or cloned from data."
        )
    given = (agent.model, agent.policy, agent.model.simulator.action.resolve(config.action))
    return driver_part(*given), policy_part(*given)


def export_agent(
    path: str | Path,
    out: str | Path,
    settings: ExportSettings | None = None,
    device: str | torch.device = "cpu",
    *,
    progress: bool = True,
) -> ExportResult:
    """Export an agent's driver, its policy and the parts of its world model.

    See :func:`~wm_gym.export.folder.export_parts`.

    Args:
        path: The agent's folder, or ``"bundled"``.
        out: The folder to write.
        settings: How.
        device: Where it computes.
        progress: Whether to show a progress bar.

    Raises:
        BundleError: There is no such agent, or it is damaged.
        ExportError: It sees pixels, or see :func:`~wm_gym.export.folder.export_parts`.
    """
    agent = load_agent(path, device)
    parts = (*agent_parts(agent), *model_parts(agent.model))
    record = {"algorithm": agent.manifest.config.algo, "action": agent.manifest.config.action}
    return export_parts(parts, agent.model, out, settings, agent=record, progress=progress)
