"""CARLA as a driving simulator; needs the optional package ``carla`` and a running server."""

from wm_gym.envs.carla.env import CarlaDrivingEnv

__all__ = ["CarlaDrivingEnv"]
