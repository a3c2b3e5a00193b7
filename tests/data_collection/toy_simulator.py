"""A small image environment and its behaviours, importable by worker processes.

A dot runs over a 16x16 frame; the first action value pushes it sideways. An episode ends when the dot reaches the
right edge (terminated) or after 40 steps (truncated by the registered time limit).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from wm_gym.errors import SimulatorLostError

ENV_ID = "WmGymToyDot-v0"
NAME = ENV_ID  # registered in a worker by the import that unpickling make_behaviour makes


class ToyDotEnv(gym.Env):
    metadata: ClassVar = {"render_modes": [], "unrecorded": ("lose_file", "is_gone", "wait_for")}

    def __init__(
        self,
        *,
        render_mode=None,
        size=16,
        fail_at=None,
        kill_file=None,
        always_kill=False,
        sleep_s=0.0,
        lose_file=None,
        is_gone=False,
        wait_for=None,
    ):
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.render_mode = render_mode
        self.size = size
        self.fail_at = fail_at
        self.kill_file = kill_file
        self.always_kill = always_kill
        self.sleep_s = sleep_s
        self.lose_file = lose_file
        self.is_gone = is_gone
        self.wait_for = wait_for

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.is_gone:
            raise SimulatorLostError("the toy is gone.")
        while self.wait_for and not Path(self.wait_for).exists():
            time.sleep(0.01)
        self.position = self.np_random.uniform(0, self.size / 2, 2)
        self.steps = 0
        return self._frame(), {}

    def step(self, action):
        time.sleep(self.sleep_s)
        self.steps += 1
        self.position += (float(action[0]) + 0.2, float(action[1]))
        self.position = np.clip(self.position, 0, self.size - 1)
        if self.steps == self.fail_at:
            raise ZeroDivisionError("the toy broke")
        if self.kill_file and self.steps == 3 and (self.always_kill or not Path(self.kill_file).exists()):
            Path(self.kill_file).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.lose_file and self.steps == 3 and not Path(self.lose_file).exists():
            Path(self.lose_file).touch()
            return self._frame(), 0.0, False, True, {"simulator_lost": True, "lost_reason": "the toy was lost."}
        terminated = bool(self.position[0] >= self.size - 1)
        info = {"x": float(self.position[0]), "is_left": bool(self.position[0] < 8), "name": "toy", "vector": [1, 2]}
        return self._frame(), float(action[0]), terminated, False, info

    def _frame(self):
        frame = np.full((self.size, self.size, 3), self.steps, np.uint8)
        column, row = self.position.astype(int)
        frame[row, column] = (255, 0, 128)
        return frame


class ToyBehaviour:
    def __init__(self, name, scale, dim):
        self.name = name
        self.scale = scale
        self.dim = dim

    def reset(self, env, seed):
        self.rng = np.random.default_rng(seed)

    def act(self, observation):
        return self.rng.uniform(-self.scale, self.scale, self.dim).astype(np.float32)


def make_behaviour(name, spec):
    return ToyBehaviour(name, {"wild": 1.0, "calm": 0.1}[name], spec.action.dim)


if ENV_ID not in gym.registry:
    gym.register(id=ENV_ID, entry_point=ToyDotEnv, max_episode_steps=40)
