"""Gymnasium ids of this package; entry points are text, so that nothing heavy is imported before an env is made."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

_ENTRY_POINTS = {
    "CarlaDriving-v0": "wm_gym.envs:CarlaDrivingEnv",
    "CarRacingDriving-v0": "wm_gym.envs:CarRacingDrivingEnv",
    "DreamDriving-v0": "wm_gym.envs:DreamDrivingEnv",
}
_VECTOR_ENTRY_POINTS = {"DreamDriving-v0": "wm_gym.envs:DreamVectorEnv"}


def register_envs() -> None:
    """Register the environments of this package with Gymnasium; a second call changes nothing."""
    for env_id, entry_point in _ENTRY_POINTS.items():
        if env_id not in registry:
            register(env_id, entry_point, vector_entry_point=_VECTOR_ENTRY_POINTS.get(env_id))
