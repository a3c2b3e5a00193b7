"""The parts of a world model as modules of plain tensors, which other runtimes can hold.

Every tensor has the batch as its first dimension. States enter and leave as their two tensors, ``latent`` and
``memory``: a file keeps nothing between calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from wm_gym.frames import frames_to_tensor
from wm_gym.observation import Observation
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

Tensors = tuple[Tensor, ...]

_BANK_SIZE = 16
_OBSERVED_STEPS = 3
_GOES_ON = 0.7


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a part.

    Attributes:
        name: As the exported file calls it, where it has names.
        shape: Without the batch dimension.
        dtype: Of its values.
        meaning: In a few words.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    meaning: str

    def describe(self) -> dict[str, object]:
        """As a record of JSON values; the batch is ``"B"``."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"name": self.name, "shape": ["B", *self.shape], "dtype": dtype, "meaning": self.meaning}


@dataclass(frozen=True)
class Part:
    """What one exported file computes.

    Attributes:
        name: Also of its files.
        meaning: In one sentence.
        module: In evaluation mode; takes the inputs in their order and returns a tuple of the outputs.
        inputs: In order.
        outputs: In order.
        draw_inputs: Random inputs for a batch of a size, on the module's device, from a generator on the CPU.
    """

    name: str
    meaning: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    draw_inputs: Callable[[int, torch.Generator], Tensors]


class _OfModel(nn.Module):
    """A part that calls the world model; exporters keep of it what the part uses."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model


class Encoder(_OfModel):
    """Frames, with vectors where the simulator gives them, to encoded latents."""

    def forward(self, frames: Tensor, vector: Tensor | None = None) -> Tensors:
        """``(B, 3, H, W)`` float32 in [-1, 1] and ``(B, V)`` to ``(B, Z)``."""
        return (self.model.encode(frames if vector is None else Observation(frames, vector)),)


class Observe(_OfModel):
    """The state after a frame that was seen."""

    def forward(self, latent: Tensor, memory: Tensor, action: Tensor, encoded: Tensor, is_first: Tensor) -> Tensors:
        """Next latent and memory, and the features.

        Args:
            latent: ``(B, Z)`` of the state before; any numbers where ``is_first``.
            memory: ``(B, ...)`` of the state before; any numbers where ``is_first``.
            action: ``(B, A)`` stored action that led to the frame; any numbers where ``is_first``.
            encoded: ``(B, Z)``, what the encoder makes of the frame.
            is_first: ``(B,)`` bool; whether the frame is the first of its episode.
        """
        first = self.model.dynamics.initial(encoded)
        later = self.model.observe_latent(LatentState(latent, memory), action, encoded)
        state = first.where(is_first, later)
        return *state, self.model.features(state)


class Step(_OfModel):
    """One imagined step."""

    def forward(self, latent: Tensor, memory: Tensor, action: Tensor, noise: Tensor | None = None) -> Tensors:
        """Next latent and memory, reward ``(B,)``, continuation ``(B,)`` and features ``(B, F)``."""
        state, reward, continuation = self.model.imagine(LatentState(latent, memory), action, noise)
        return *state, reward, continuation, self.model.features(state)


class Decoder(_OfModel):
    """Latents of states to frames."""

    def forward(self, latent: Tensor) -> Tensors:
        """``(B, Z)`` to ``(B, 3, H, W)`` float32 in [-1, 1]."""
        return (self.model.decode_latent(latent),)


class VectorDecoder(nn.Module):
    """Features to the vectors that they speak of."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.head = model.vector_head

    def forward(self, features: Tensor) -> Tensors:
        """``(B, F)`` to ``(B, V)`` in the simulator's units."""
        return (self.head(features),)


class RandomInputs:
    """Random inputs for the parts of a model, on its device, from generators on the CPU.

    States and encoded latents come from a few random frames that are encoded once: encoding large frames takes long.
    """

    def __init__(self, model: WorldModel) -> None:
        self.model = model

    def pixels(self, number: int, generator: torch.Generator) -> Tensor:
        """Frames as a camera gives them, ``(number, H, W, 3)`` uint8."""
        shape = (number, *self.model.config.frame_size, 3)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(self.model.device)

    def frames(self, number: int, generator: torch.Generator) -> Tensor:
        """``(number, 3, H, W)`` in [-1, 1]."""
        return frames_to_tensor(self.pixels(number, generator))

    def vectors(self, number: int, generator: torch.Generator) -> Tensors:
        """``(number, V)`` within the fields' bounds, whole numbers for classes; nothing where there are no fields."""
        fields = self.model.simulator.vector
        if not fields:
            return ()
        low = torch.tensor([field.low for field in fields])
        high = torch.tensor([field.high for field in fields])
        values = low + (high - low) * torch.rand(number, len(fields), generator=generator)
        is_class = torch.tensor([bool(field.classes) for field in fields])
        return (torch.where(is_class, values.round(), values).to(self.model.device),)

    def encoded(self, number: int, generator: torch.Generator) -> Tensor:
        """What the encoder makes of frames ``(number, Z)``."""
        return self._bank[torch.randint(0, _BANK_SIZE, (number,), generator=generator).to(self.model.device)]

    def actions(self, number: int, generator: torch.Generator) -> Tensor:
        """``(number, A)`` within the bounds of the stored format."""
        low, high = self.model.action_low, self.model.action_high
        return low + (high - low) * self.uniform(number, len(low), generator)

    def firsts(self, number: int, generator: torch.Generator) -> Tensor:
        """``(number,)`` bool, half of them true in the mean."""
        return self.uniform(number, 1, generator)[:, 0] < 0.5

    def uniform(self, number: int, size: int, generator: torch.Generator) -> Tensor:
        """``(number, size)`` in [0, 1)."""
        return torch.rand(number, size, generator=generator).to(self.model.device)

    @torch.no_grad()
    def states(self, number: int, generator: torch.Generator) -> LatentState:
        """States of ``number`` episodes over random frames, some of them only begun and others some steps long."""
        state = self.model.dynamics.initial(self.encoded(number, generator))
        for _ in range(_OBSERVED_STEPS):
            action, encoded = self.actions(number, generator), self.encoded(number, generator)
            goes_on = torch.rand(number, generator=generator) < _GOES_ON
            state = self.model.observe_latent(state, action, encoded).where(goes_on.to(self.model.device), state)
        return state

    @cached_property
    def _bank(self) -> Tensor:
        # Exporters do not take tensors of the inference mode.
        with torch.inference_mode(False), torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            frames = self.frames(_BANK_SIZE, generator)
            vectors = self.vectors(_BANK_SIZE, generator) or (frames.new_zeros(_BANK_SIZE, 0),)
            return self.model.encode(Observation(frames, *vectors))


def model_parts(model: WorldModel) -> tuple[Part, ...]:
    """Encoder, observe, step and decoders of a world model, which is put in evaluation mode."""
    model.eval()
    draw = RandomInputs(model)
    state = state_specs(model)
    following = next_state_specs(model)
    action, is_first, features = action_spec(model), is_first_spec(), features_spec(model)
    frames = TensorSpec("frames", (3, *model.config.frame_size), torch.float32, "RGB, channels first, in [-1, 1]")
    encoded = TensorSpec("encoded", state[0].shape, torch.float32, "what the encoder makes of the frame")
    noise = TensorSpec("noise", (model.noise_dim,), torch.float32, "uniform random numbers in [0, 1)")
    reward = TensorSpec("reward", (), torch.float32, "expected reward of the step")
    continuation = TensorSpec("continuation", (), torch.float32, "probability that the episode goes on")
    noises = (noise,) if model.noise_dim else ()

    def draw_observed(number: int, generator: torch.Generator) -> Tensors:
        states, actions = draw.states(number, generator), draw.actions(number, generator)
        return *states, actions, draw.encoded(number, generator), draw.firsts(number, generator)

    def draw_step(number: int, generator: torch.Generator) -> Tensors:
        inputs = (*draw.states(number, generator), draw.actions(number, generator))
        return (*inputs, draw.uniform(number, model.noise_dim, generator)) if model.noise_dim else inputs

    return (
        Part(
            "encoder",
            "What the encoder makes of frames.",
            Encoder(model).eval(),
            (frames, *vector_specs(model)),
            (encoded,),
            lambda number, generator: (draw.frames(number, generator), *draw.vectors(number, generator)),
        ),
        Part(
            "observe",
            "The state after an action and the frame that followed it, or after the first frame of an episode.",
            Observe(model).eval(),
            (*state, action, encoded, is_first),
            (*following, features),
            draw_observed,
        ),
        Part(
            "step",
            "One imagined step, which sees no frame.",
            Step(model).eval(),
            (*state, action, *noises),
            (*following, reward, continuation, features),
            draw_step,
        ),
        Part(
            "decoder",
            "The frame of a state.",
            Decoder(model).eval(),
            (state[0],),
            (frames,),
            lambda number, generator: draw.states(number, generator)[:1],
        ),
        *_vector_parts(model, draw),
    )


def _vector_parts(model: WorldModel, draw: RandomInputs) -> tuple[Part, ...]:
    if not model.simulator.vector:
        return ()
    features = TensorSpec("features", (model.feature_dim,), torch.float32, "what a policy sees of a state")
    return (
        Part(
            "vector_decoder",
            "The vector that features speak of.",
            VectorDecoder(model).eval(),
            (features,),
            vector_specs(model),
            lambda number, generator: (model.features(draw.states(number, generator)),),
        ),
    )


def state_specs(model: WorldModel) -> tuple[TensorSpec, TensorSpec]:
    """Latent and memory of a state, as inputs."""
    with torch.no_grad():
        state = model.dynamics.initial(torch.zeros(1, model.dynamics.latent_dim, device=model.device))
    return (
        TensorSpec("latent", tuple(state.latent.shape[1:]), torch.float32, "latent of the state"),
        TensorSpec("memory", tuple(state.memory.shape[1:]), torch.float32, "memory of the state"),
    )


def next_state_specs(model: WorldModel) -> tuple[TensorSpec, TensorSpec]:
    """Latent and memory of the state that follows, as outputs."""
    latent, memory = state_specs(model)
    return (
        TensorSpec("next_latent", latent.shape, latent.dtype, "latent of the state that follows"),
        TensorSpec("next_memory", memory.shape, memory.dtype, "memory of the state that follows"),
    )


def vector_specs(model: WorldModel) -> tuple[TensorSpec, ...]:
    """The vector beside a frame; nothing where the simulator gives none."""
    fields = model.simulator.vector
    meaning = ", ".join(f"{field.name} ({field.unit})" if field.unit else field.name for field in fields)
    return (TensorSpec("vector", (len(fields),), torch.float32, meaning),) if fields else ()


def action_spec(model: WorldModel, name: str = "action") -> TensorSpec:
    """An action in the stored format."""
    stored = model.simulator.action
    meaning = "steering, throttle, brake, gear" if stored.kind == "driving" else "the simulator's own action"
    return TensorSpec(name, (stored.dim,), torch.float32, meaning)


def is_first_spec() -> TensorSpec:
    """Whether a row begins an episode."""
    return TensorSpec(
        "is_first", (), torch.bool, "whether the frame is its episode's first: state and action before do not count"
    )


def features_spec(model: WorldModel) -> TensorSpec:
    """What a policy sees."""
    return TensorSpec("features", (model.feature_dim,), torch.float32, "what a policy sees of the state that follows")
