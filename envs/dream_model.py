"""What an environment needs of a world model: the five verbs, and nothing of how they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from wm_gym.device import parse_device
from wm_gym.errors import BundleError
from wm_gym.rollouts import RolloutModel
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.uncertainty import Uncertainty


@runtime_checkable
class DreamModel(RolloutModel, Protocol):
    """A world model as the environments know it; :class:`wm_gym.world_model.WorldModel` is one.

    The tensors that ``imagine`` returns belong to the caller, who may write into them.
    """

    start_states: LatentState | None
    """Real encoded states that dreams start from, or ``None``."""

    @property
    def simulator(self) -> SimulatorSpec:
        """The simulator that the model was trained on."""
        ...

    @property
    def feature_dim(self) -> int:
        """``F``: size of the vector that a policy sees."""
        ...

    def decode(self, state: LatentState) -> Tensor:
        """Frames ``(B, 3, H, W)`` float in [-1, 1]."""
        ...


def resolve_model(model: str | Path | DreamModel, device: str | torch.device | None = None) -> DreamModel:
    """Return the model to dream with, in evaluation mode.

    Args:
        model: A model's folder, ``"bundled"`` for the one that the package ships, or a model itself, which is used
            as it is: not copied and not moved, only put in evaluation mode.
        device: Where a model that is read from a folder computes; ``None`` is the CPU. For a model itself ``None`` is
            wherever it is, and so is ``"auto"``.

    Raises:
        BundleError: The folder holds no usable model, the object is none, or it is on another device.
        ConfigError: There is no such device here.
    """
    if isinstance(model, (str, Path)):
        from wm_gym.world_model import WorldModel

        loaded = WorldModel.from_pretrained(model, device="cpu" if device is None else device)
        loaded.eval()
        return loaded
    if not isinstance(model, DreamModel):
        raise BundleError(
            f"model= takes a model's folder, 'bundled' or a WorldModel, but a {type(model).__name__} was given."
        )
    if device not in (None, "auto") and not _same_device(parse_device(device), model.device):
        raise BundleError(
            f"the model is on {model.device}, but device={str(device)!r} was asked for; "
            "move it with model.to(...) first, or leave device out."
        )
    if isinstance(model, nn.Module):
        model.eval()
    return model


def start_states_of(model: DreamModel, start_states: LatentState | None = None) -> LatentState:
    """The bank of start states: the given one or else the model's own, float32 on the model's device.

    Raises:
        BundleError: There is none, it is empty, or its shape is not that of this model's states.
    """
    bank = model.start_states if start_states is None else start_states
    if bank is not None and not isinstance(bank, LatentState):
        raise BundleError(f"start_states= takes a LatentState or None, but a {type(bank).__name__} was given.")
    if bank is None:
        raise BundleError(
            "the world model has no start states to dream from; pass start_states=, "
            "or use a model saved at the end of its training."
        )
    if bank.batch_size == 0 or bank.latent.dim() != 2 or bank.memory.shape[0] != bank.batch_size:
        raise BundleError(
            f"start states are at least one row of latent (B, Z) and memory (B, ...), but latent "
            f"{tuple(bank.latent.shape)} and memory {tuple(bank.memory.shape)} were given."
        )
    own = model.start_states
    if own is not None and (
        bank.latent.shape[1:] != own.latent.shape[1:] or bank.memory.shape[1:] != own.memory.shape[1:]
    ):
        raise BundleError(
            f"the start states have latent {tuple(bank.latent.shape[1:])} and memory {tuple(bank.memory.shape[1:])}, "
            f"but this model's states have {tuple(own.latent.shape[1:])} and {tuple(own.memory.shape[1:])}; "
            "encode them with the same model."
        )
    return bank.to(model.device).to(torch.float32)


def uncertainty_of(model: DreamModel) -> Uncertainty | None:
    """How far the model's dreams may be off, on its device; ``None`` where it does not tell, as most do not."""
    uncertainty = getattr(model, "uncertainty", None)
    return uncertainty.to(model.device) if isinstance(uncertainty, Uncertainty) else None


def _same_device(asked: torch.device, actual: torch.device) -> bool:
    """Whether two devices are one; ``"cuda"`` without an index stands for any CUDA device."""
    return asked.type == actual.type and (asked.index is None or asked.index == (actual.index or 0))
