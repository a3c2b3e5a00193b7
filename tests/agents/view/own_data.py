"""Small episodes with vectors, each of its own length, behaviour and return."""

import numpy as np

from wm_gym.actions import ActionFormat
from wm_gym.data_collection import Episode
from wm_gym.simulator import SimulatorSpec
from wm_gym.vector import VectorField

SPEC = SimulatorSpec(
    id="Toy-v0",
    frame_size=(64, 64),
    action=ActionFormat.driving(),
    step_s=0.05,
    vector=(
        VectorField(name="speed", unit="m/s", low=0, high=30),
        VectorField.of_classes("light", ("none", "red", "green")),
    ),
)
LENGTHS = (70, 64, 63, 12)
"""Steps of the episodes: their frames fill pieces, or leave one frame, or fewer than a piece, for the last."""


def make_episode(index: int) -> Episode:
    """Frames that become brighter along the road; behaviour, end and return are its own."""
    rng = np.random.default_rng(index)
    steps = LENGTHS[index]
    frames = rng.integers(0, 40, (steps + 1, 64, 64, 3), dtype=np.uint8)
    frames += np.arange(steps + 1, dtype=np.uint8)[:, None, None, None] * 2
    ends = np.zeros(steps, bool)
    ends[-1] = True
    speed = np.linspace(0, 10, steps + 1)
    return Episode(
        frames=frames,
        actions=rng.uniform([-1, 0, 0, 1], [1, 1, 1, 1], (steps, 4)).astype(np.float32),
        rewards=np.full(steps, index + 0.5, np.float32),
        terminated=ends & (index == 3),
        truncated=ends & (index != 3),
        vectors=np.stack((speed, np.arange(steps + 1) % 3), axis=1).astype(np.float32),
        infos={"progress": np.where(np.arange(steps) < 2, np.nan, 0.25).astype(np.float32)},
        seed=index,
        behaviour=("calm", "wild")[index % 2],
        index=index,
    )


def small_episode() -> Episode:
    """Five steps with frames of 32x48 pixels."""
    ends = np.arange(5) == 4
    return Episode(
        frames=np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8),
        actions=np.zeros((5, 4), np.float32),
        rewards=np.ones(5, np.float32),
        terminated=ends,
        truncated=ends,
        vectors=np.ones((6, 2), np.float32),
    )
