"""The kinds of world model that are measured side by side: as it is, and accelerated."""

from __future__ import annotations

from wm_gym.acceleration import AcceleratedModel, Precision
from wm_gym.world_model import WorldModel

DreamedModel = WorldModel | AcceleratedModel

KINDS: tuple[Precision | None, ...] = (None, "fp32", "bf16")
"""Precision of each kind that is accelerated; ``None`` is the model as it is."""


def label(precision: Precision | None) -> str:
    """What a table calls the kind."""
    return "as it is" if precision is None else f"accelerated, {precision}"


def model_of_kind(model: WorldModel, precision: Precision | None) -> DreamedModel:
    """The model of that kind."""
    return model if precision is None else AcceleratedModel(model, precision)
