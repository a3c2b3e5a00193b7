"""Latent dynamics, by name. A new one is a module beside this file and one line in ``DYNAMICS``."""

from __future__ import annotations

from wm_gym.config import DynamicsConfig
from wm_gym.errors import ConfigError, did_you_mean
from wm_gym.models.dynamics.base import Dynamics
from wm_gym.models.dynamics.gru import GRUDynamics
from wm_gym.models.dynamics.rssm import RSSMDynamics
from wm_gym.models.dynamics.transformer import TransformerDynamics
from wm_gym.vector import Fields

DYNAMICS: dict[str, type[Dynamics]] = {
    "gru": GRUDynamics,
    "rssm": RSSMDynamics,
    "transformer": TransformerDynamics,
}


def make_dynamics(config: DynamicsConfig, latent_dim: int, action_dim: int, fields: Fields = ()) -> Dynamics:
    """Build the dynamics that the configuration names.

    Args:
        config: Kind and sizes.
        latent_dim: Size of what the encoder makes of an observation.
        action_dim: Size of an action vector.
        fields: Of the observation's vector.

    Raises:
        ConfigError: There is no dynamics of that name.
    """
    if config.kind not in DYNAMICS:
        raise ConfigError(
            f"there is no dynamics {config.kind!r}{did_you_mean(config.kind, DYNAMICS)}; "
            f"use model.dynamics.kind = {' or '.join(DYNAMICS)}."
        )
    if config.carries_vector:
        return RSSMDynamics(config, latent_dim, action_dim, fields)
    return DYNAMICS[config.kind](config, latent_dim, action_dim)


__all__ = ["DYNAMICS", "Dynamics", "GRUDynamics", "RSSMDynamics", "TransformerDynamics", "make_dynamics"]
