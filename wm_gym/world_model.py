"""The world model: encoder, latent dynamics, decoder, reward and termination heads behind five verbs.

* ``encode``: observations (a frame, and a vector where the simulator gives one) to latents;
* ``observe``: advance the state with what the simulator showed (filtering);
* ``imagine``: advance it with no frame: next state, reward, continuation probability;
* ``features``: the vector that a policy sees;
* ``decode``: the frame.

Letters of shapes: ``B`` batch, ``T`` time, ``H, W`` frame, ``V`` vector, ``A`` stored action, ``Z`` latent, ``F``
features.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wm_gym.config import ModelConfig
from wm_gym.device import resolve_device
from wm_gym.errors import ConfigError, SimulatorError
from wm_gym.models.decoder import StateDecoder
from wm_gym.models.dynamics import make_dynamics
from wm_gym.models.dynamics.base import Filtered
from wm_gym.models.encoder import SpatialEncoder
from wm_gym.models.heads import ContinuationHead, RewardHead
from wm_gym.models.vector import CarriedVector, VectorHead
from wm_gym.observation import Observation
from wm_gym.precision import single_precision
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.uncertainty import Uncertainty


class Imagined(NamedTuple):
    """One imagined step.

    Attributes:
        state: The next latent state.
        reward: ``(B,)`` float32, expected reward of the step.
        continuation: ``(B,)`` float32, probability that the episode goes on after the step.
    """

    state: LatentState
    reward: Tensor
    continuation: Tensor


class WorldModel(nn.Module):
    """A world model of one simulator.

    Args:
        config: Architecture.
        simulator: The simulator whose frames and actions it models.

    Attributes:
        start_states: Encoded real states that dreams start from (on the CPU, float32), or ``None``.
        uncertainty: How far its dreams may be off (on the CPU), or ``None``; no part of its parameters, nor of its
            fingerprint.
        metrics: Figures measured on held-out episodes at the end of training; saved as ``metrics.json``.
        provenance: Versions, seeds and data that it was made from.
    """

    action_low: Tensor
    action_high: Tensor

    @single_precision()
    def __init__(self, config: ModelConfig, simulator: SimulatorSpec) -> None:
        super().__init__()
        self.config = config
        self.simulator = simulator
        self.start_states: LatentState | None = None
        self.uncertainty: Uncertainty | None = None
        self.metrics: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.encoder = SpatialEncoder(config, simulator.vector)
        seen = simulator.action.dim * (1 + len(config.dynamics.action_gains))
        self.dynamics = make_dynamics(config.dynamics, config.latent_dim, seen, simulator.vector)
        self.decoder = StateDecoder(config, config.latent_dim)
        self.reward_head = RewardHead(self.dynamics.feature_dim, config.heads)
        self.continuation_head = ContinuationHead(self.dynamics.feature_dim, config.heads)
        if simulator.vector:
            self.vector_head = (
                CarriedVector(simulator.vector)
                if config.dynamics.carries_vector
                else VectorHead(self.dynamics.feature_dim, simulator.vector, config.heads)
            )
        self.register_buffer("action_low", torch.tensor(simulator.action.low), persistent=False)
        self.register_buffer("action_high", torch.tensor(simulator.action.high), persistent=False)

    @property
    def feature_dim(self) -> int:
        """``F``: size of the vector that a policy sees."""
        return self.dynamics.feature_dim

    @property
    def noise_dim(self) -> int:
        """Uniform random numbers that one imagined step takes; 0 for deterministic dynamics."""
        return self.dynamics.noise_dim

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.action_low.device

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration, the simulator and the parameters: equal models have equal fingerprints."""
        from wm_gym.bundle import model_fingerprint

        return model_fingerprint(self)

    def encode(self, observed: Observation[Tensor] | Tensor) -> Tensor:
        """Observations to latents ``(..., Z)``.

        Args:
            observed: Image ``(..., 3, H, W)`` float in [-1, 1] and vector ``(..., V)``; the image alone where the
                simulator has no vector.

        Raises:
            SimulatorError: The vector is missing, or has not as many entries as the simulator's.
        """
        if not isinstance(observed, Observation):
            observed = Observation(observed, observed.new_zeros(*observed.shape[:-3], 0))
        image, vector = observed
        fields = self.simulator.vector
        if vector.shape[-1] != len(fields):
            raise SimulatorError(
                f"the world model sees {len(fields)} numbers beside each frame ({', '.join(f.name for f in fields)}), "
                f"but {vector.shape[-1]} were given; give Observation(image, vector) as its simulator does."
            )
        encoded: Tensor = self.encoder(image.flatten(0, -4), vector.flatten(0, -2))
        latents = torch.cat((encoded, self.dynamics.carry(vector.flatten(0, -2))), dim=-1)
        return latents.view(*image.shape[:-3], -1)

    def initial_state(self, observed: Observation[Tensor] | Tensor) -> LatentState:
        """The state after the first observation of an episode; see :meth:`encode`."""
        return self.dynamics.initial(self.encode(observed))

    def observe(self, state: LatentState, action: Tensor, observed: Observation[Tensor] | Tensor) -> LatentState:
        """The state after taking ``action`` ``(B, A)`` (stored format) and seeing what :meth:`encode` takes."""
        return self.observe_latent(state, action, self.encode(observed))

    def observe_latent(self, state: LatentState, action: Tensor, latent: Tensor) -> LatentState:
        """As :meth:`observe`, for a frame that is encoded already ``(B, Z)``."""
        return self.dynamics.observe(state, self._scaled(action), latent)

    def filter(self, latents: Tensor, actions: Tensor) -> Filtered:
        """Follow whole clips: encoded latents ``(B, T, Z)`` and the actions ``(B, T - 1, A)`` between them."""
        return self.dynamics.filter(latents, self._scaled(actions))

    def imagine(self, state: LatentState, action: Tensor, noise: Tensor | None = None) -> Imagined:
        """The predicted next state, its reward and continuation probability.

        Args:
            state: Batch of states.
            action: ``(B, A)`` float32 in the stored format.
            noise: ``(B, noise_dim)`` uniform numbers in [0, 1); needed where ``noise_dim > 0``.
        """
        following = self.imagine_state(state, action, noise)
        features = self.features(following)
        return Imagined(following, self.reward_head.mean(features), self.continuation_head.probability(features))

    def imagine_state(self, state: LatentState, action: Tensor, noise: Tensor | None = None) -> LatentState:
        """As :meth:`imagine`, without the heads."""
        return self.dynamics.imagine(state, self._scaled(action), noise)

    def at_temperature(self, temperature: float) -> WorldModel:
        """A copy whose dreams are more random (above 1) or less (below 1) than what was learnt.

        The probabilities of what is drawn are taken to the power of ``1 / temperature``. A policy that learns in dreams
        of a higher temperature finds it harder to use what is wrong in them (Ha and Schmidhuber 2018, "World Models",
        arXiv 1803.10122, section 4). The temperature is the copy's alone: it is not saved with the model.

        Raises:
            ConfigError: The temperature is not a number above 0, or these dynamics draw nothing.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"temperature={temperature} must be a number above 0, such as 0.5 or 1.5.")
        if not self.dynamics.is_stochastic:
            kind = self.config.dynamics.kind
            raise ConfigError(
                f"dynamics of kind {kind!r} draw nothing, so that a dream has no temperature; use 'rssm'."
            )
        tempered = copy.deepcopy(self)
        tempered.dynamics.set_temperature(temperature)
        return tempered

    def features(self, state: LatentState) -> Tensor:
        """``(B, F)`` float32: what a policy sees."""
        features = self.dynamics.features(state)
        # Asked for even where nothing is to convert, a conversion takes longer than all the rest of this function.
        return features if features.dtype == torch.float32 else features.float()

    def decode(self, state: LatentState) -> Tensor:
        """Frames ``(B, 3, H, W)`` float in [-1, 1]."""
        return self.decode_latent(state.latent)

    def decode_vector(self, state: LatentState) -> Tensor:
        """The vector ``(B, V)`` float32 in the simulator's units that the features speak of."""
        features = self.features(state)
        if not self.simulator.vector:
            return features.new_zeros(len(features), 0)
        vectors: Tensor = self.vector_head(features)
        return vectors

    def decode_latent(self, latent: Tensor) -> Tensor:
        """As :meth:`decode`, from latents ``(B, Z)``."""
        images: Tensor = self.decoder(latent)
        return images

    def _scaled(self, action: Tensor) -> Tensor:
        """Stored actions as the dynamics see them: scaled to [-1, 1], and bent around the middle by each gain."""
        scaled = 2 * (action - self.action_low) / (self.action_high - self.action_low) - 1
        gains = self.config.dynamics.action_gains
        if not gains:
            return scaled
        return torch.cat((scaled, *(torch.tanh(gain * scaled) for gain in gains)), dim=-1)

    def num_parameters(self) -> dict[str, int]:
        """Parameters by component, and in all."""
        counts = {
            name: sum(parameter.numel() for parameter in part.parameters()) for name, part in self.named_children()
        }
        return {**counts, "total": sum(counts.values())}

    def save_pretrained(self, path: str | Path) -> Path:
        """Write the model as a folder; see :func:`wm_gym.bundle.save_model`."""
        from wm_gym.bundle import save_model

        return save_model(self, path)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        video: str | Path | None = None,
        message: str | None = None,
        env_hub: bool = False,
        judgement: str | Path | None = None,
    ) -> str:
        """Send the model to the Hugging Face Hub in one commit; needs the extra ``hub``.

        Args:
            repository: ``"owner/name"``; made where there is none.
            private: Whether nobody else may see a repository that is made now.
            video: A file ``.mp4`` or ``.gif`` that the model card shows.
            message: Of the commit.
            env_hub: Whether to add an ``env.py``, by which LeRobot's EnvHub makes its dreams.
            judgement: A ``scorecard.json`` of ``wm-gym judge``, whose figures the card shows.

        Returns:
            The address of the repository.

        Raises:
            BundleError: The name is not of that form, there is no such video or judgement, the extra is not
                installed, one may not write there, the repository holds something else, or the Hub cannot be reached.
        """
        from wm_gym.hub_push import PushTarget, push_model

        return push_model(self, PushTarget(repository, private, video, message), env_hub=env_hub, judgement=judgement)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
        """Read a model.

        Args:
            path: Its folder, ``"bundled"`` for the one that the package ships, or a repository on the Hugging Face
                Hub, ``"owner/name"`` or ``"owner/name@revision"``; see
                :func:`wm_gym.bundle_location.resolve_folder`.
            device: Where it computes.

        Raises:
            BundleError: The folder or repository is missing, damaged or of another kind or version.
            ConfigError: There is no such device here.
        """
        from wm_gym.bundle import load_model

        return load_model(path, resolve_device(device))
