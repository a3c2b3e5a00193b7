"""The embedded driving simulator: Gymnasium's CarRacing with driving actions, resized frames and a fast renderer."""

from wm_gym.envs.car_racing.env import CarRacingDrivingEnv
from wm_gym.envs.car_racing.simulation import CarRacingSimulation

__all__ = ["CarRacingDrivingEnv", "CarRacingSimulation"]
