"""A world model made fast for dreaming: compiled, and in bf16 where asked.

A dream needs of a model the next state, reward and continuation, and nothing that can be told from a state later. The
compiled step leaves the rest out, fuses what lies between the matrix products, and holds the parameters in the layout
that the products like best. On a CPU it is one library, compiled ahead of time; on a GPU it is recorded as a CUDA
graph, so that it costs one launch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from wm_gym.ahead_of_time import AheadOfTime, OtherInputsError
from wm_gym.config import ModelConfig
from wm_gym.errors import ConfigError, did_you_mean
from wm_gym.observation import Observation
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.world_model import Imagined, WorldModel

Precision = Literal["fp32", "bf16"]

_Step = Callable[..., Sequence[Tensor]]
"""Of latent, memory, action and, where the model takes any, noise; gives what :class:`DreamStep` gives."""


class DreamStep(nn.Module):
    """What a dream needs of one imagined step, as tensors, in evaluation mode and float32.

    Args:
        model: The world model.
        precision: Of the matrix products.
    """

    def __init__(self, model: WorldModel, precision: Precision) -> None:
        super().__init__()
        self.model = model.eval()
        self.precision = precision

    def forward(self, latent: Tensor, memory: Tensor, action: Tensor, noise: Tensor | None = None) -> Sequence[Tensor]:
        """Reward, continuation and memory, and the latent where the next step reads it; see ``WorldModel.imagine``."""
        with self._autocast():
            following, reward, continuation = self.model.imagine(LatentState(latent, memory), action, noise)
        # Not using what was computed is what lets a compiler leave it out.
        read = (following.latent.float(),) if self.model.dynamics.reads_latent else ()
        return reward, continuation, following.memory.float(), *read

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


class _CompiledForCPU:
    """A step that is compiled when it is first called with one dream, and when with more."""

    def __init__(self, step: DreamStep) -> None:
        self._step = step
        self._kinds: dict[tuple[bool, int], AheadOfTime] = {}

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        kind = (len(inputs[0]) == 1, len(inputs))
        try:
            if kind not in self._kinds:
                self._kinds[kind] = AheadOfTime(self._step, inputs)
            return self._kinds[kind](inputs)
        except OtherInputsError:
            return self._step(*inputs)


def _compiled_for_gpu(step: DreamStep) -> _Step:
    # PyTorch counts what it compiles by the function's code, and gives up beyond eight: each model has its own.
    own = FunctionType(DreamStep.forward.__code__.replace(), globals(), DreamStep.forward.__name__, (None,))
    # A CUDA graph is of one size.
    options: dict[str, Any] = {"triton.cudagraphs": step.model.device.type == "cuda"}
    compiled: _Step = torch.compile(MethodType(own, step), dynamic=False, options=options)
    # What a CUDA graph gives lies in memory that its next run writes into.
    return lambda *inputs: [output.clone() for output in compiled(*inputs)]


class AcceleratedModel:
    """A trained world model whose imagined step is compiled.

    It takes the place of the model in every dream environment and in training in imagination: ``gym.make(
    "DreamDriving-v0", model=AcceleratedModel(model))``. The first step with one dream, and the first with several,
    compiles, which takes some fifteen seconds on a CPU, for as many threads as PyTorch has then; on a GPU every number
    of dreams has a step of its own. Where nothing can be compiled, for lack of a C++ compiler or on a CPU with a
    PyTorch older than 2.6, a warning says so and the model steps as it is.

    The parameters at the first step are part of what is compiled: a model that goes on learning needs a new one.

    For dynamics whose latent is only a read-out of the memory (``rssm``) the states that :meth:`imagine` gives keep the
    latent that they came with, and :meth:`decode` makes it anew.

    Args:
        model: The world model; used as it is, on its device, in evaluation mode.
        precision: ``"fp32"``, or ``"bf16"`` for the matrix products; states, rewards and probabilities stay float32.
        compiled: ``False`` takes the step as it is, in the wanted precision.

    Attributes:
        start_states: Those of the model, or ``None``.
        uncertainty: That of the model, or ``None``; computed beside the compiled step, in float32.

    Raises:
        ConfigError: The precision is unknown.
    """

    def __init__(self, model: WorldModel, precision: Precision = "fp32", *, compiled: bool = True) -> None:
        if precision not in get_args(Precision):
            known = get_args(Precision)
            raise ConfigError(f"precision={precision!r} is unknown{did_you_mean(precision, known)}; use fp32 or bf16.")
        self.model = model.eval()
        self.start_states = model.start_states
        self.uncertainty = model.uncertainty
        self.precision: Precision = precision
        self.is_compiled = compiled
        self._prepare()

    def _prepare(self) -> None:
        """Make the step, which is compiled when it is first taken."""
        self._dynamics = self.model.dynamics
        self._eager_step = DreamStep(self.model, self.precision)
        self._step: _Step = self._eager_step
        if self.is_compiled:
            on_cpu = self.model.device.type == "cpu"
            self._step = _CompiledForCPU(self._eager_step) if on_cpu else _compiled_for_gpu(self._eager_step)

    def __getstate__(self) -> dict[str, Any]:
        """What is compiled belongs to its process: another one compiles anew."""
        left_out = ("_dynamics", "_eager_step", "_step")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceleratedModel:
        """A copy in the same process has the same parameters, and so the same compiled step."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if isinstance(self._step, _CompiledForCPU):
            copied._step = self._step
        return copied

    @property
    def config(self) -> ModelConfig:
        """Configuration of the model."""
        return self.model.config

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator that the model was trained on."""
        return self.model.simulator

    @property
    def feature_dim(self) -> int:
        """``F``: size of the vector that a policy sees."""
        return self.model.feature_dim

    @property
    def noise_dim(self) -> int:
        """Uniform random numbers that one imagined step takes."""
        return self.model.noise_dim

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def initial_state(self, observed: Observation[Tensor] | Tensor) -> LatentState:
        """As :meth:`WorldModel.initial_state`."""
        return self.model.initial_state(observed)

    def observe(self, state: LatentState, action: Tensor, observed: Observation[Tensor] | Tensor) -> LatentState:
        """As :meth:`WorldModel.observe`."""
        return self.model.observe(state, action, observed)

    @torch.no_grad()
    def imagine(self, state: LatentState, action: Tensor, noise: Tensor | None = None) -> Imagined:
        """As :meth:`WorldModel.imagine`, but for the latent; see the class."""
        inputs = (state.latent, state.memory, action) if noise is None else (state.latent, state.memory, action, noise)
        try:
            outputs = self._step(*inputs)
        except Exception as error:
            if not self.is_compiled:
                raise
            # Wrong arguments raise here, too: then the error is the caller's own, and not one of the compiled step.
            outputs = self._eager_step(*inputs)
            self._step, self.is_compiled = self._eager_step, False
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(f"the world model could not be compiled ({reason}); it dreams as it is.", stacklevel=2)
        reward, continuation, memory, *read = outputs
        return Imagined(LatentState(read[0] if read else state.latent, memory), reward, continuation)

    def features(self, state: LatentState) -> Tensor:
        """As :meth:`WorldModel.features`."""
        return self._dynamics.features(state)  # float32 already, as every state here

    def decode(self, state: LatentState) -> Tensor:
        """Frames ``(B, 3, H, W)`` float in [-1, 1]."""
        return self.model.decode_latent(self._dynamics.shown(state))

    def decode_vector(self, state: LatentState) -> Tensor:
        """As :meth:`WorldModel.decode_vector`."""
        return self.model.decode_vector(state)


def accelerate(
    model: str | Path | WorldModel | AcceleratedModel = "bundled",
    precision: Precision = "fp32",
    *,
    device: str | torch.device = "cpu",
) -> AcceleratedModel:
    """A world model for fast dreams, from its folder, ``"bundled"`` or the model itself; see :class:`AcceleratedModel`.

    A model that is accelerated already, in this precision, is returned as it is.

    Raises:
        BundleError: The folder is missing or damaged.
        ConfigError: The precision is unknown.
    """
    if isinstance(model, AcceleratedModel):
        return model if model.is_compiled and model.precision == precision else AcceleratedModel(model.model, precision)
    loaded = model if isinstance(model, WorldModel) else WorldModel.from_pretrained(model, device)
    return AcceleratedModel(loaded, precision)
