"""Environments: simulators, the dream, and the wrapper between them. Names are imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wm_gym.envs.car_racing import CarRacingDrivingEnv
    from wm_gym.envs.carla import CarlaDrivingEnv
    from wm_gym.envs.dream import DreamDrivingEnv
    from wm_gym.envs.dream_vec_env import DreamVecEnv
    from wm_gym.envs.dream_vector import DreamVectorEnv
    from wm_gym.envs.latent_observation import LatentObservation
    from wm_gym.envs.simulators import describe_simulator, make_simulator, make_simulator_from_spec

__all__ = [
    "CarRacingDrivingEnv",
    "CarlaDrivingEnv",
    "DreamDrivingEnv",
    "DreamVecEnv",
    "DreamVectorEnv",
    "LatentObservation",
    "describe_simulator",
    "make_simulator",
    "make_simulator_from_spec",
]

_MODULES = {
    "CarRacingDrivingEnv": "wm_gym.envs.car_racing",
    "CarlaDrivingEnv": "wm_gym.envs.carla",
    "DreamDrivingEnv": "wm_gym.envs.dream",
    "DreamVecEnv": "wm_gym.envs.dream_vec_env",
    "DreamVectorEnv": "wm_gym.envs.dream_vector",
    "LatentObservation": "wm_gym.envs.latent_observation",
    "describe_simulator": "wm_gym.envs.simulators",
    "make_simulator": "wm_gym.envs.simulators",
    "make_simulator_from_spec": "wm_gym.envs.simulators",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
