"""A dataset of small episodes with vectors, and an untrained world model that takes them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wm_gym.actions import ActionFormat
from wm_gym.agents.view.episodes import EpisodeShelf
from wm_gym.data_collection import Dataset, DatasetMetadata, Episode, FrameCodec
from wm_gym.data_collection.datasets.survey import survey
from wm_gym.simulator import SimulatorSpec
from wm_gym.vector import VectorField
from wm_gym.world_model import WorldModel

sys.path.insert(0, str(Path(__file__).parent))  # tests import the helper modules by name
sys.path.insert(0, str(Path(__file__).parent.parent))

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


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return [make_episode(index) for index in range(len(LENGTHS))]


@pytest.fixture
def dataset(tmp_path, episodes) -> Dataset:
    metadata = DatasetMetadata(simulator=SPEC, codec=FrameCodec(name="png"))
    return Dataset.create(tmp_path / "data", metadata, episodes)


@pytest.fixture
def shelf(dataset) -> EpisodeShelf:
    return EpisodeShelf(survey(dataset.path))


@pytest.fixture
def model(debug_config) -> WorldModel:
    torch.manual_seed(0)
    made = WorldModel(debug_config.model, SPEC).eval()
    for head in (made.reward_head, made.continuation_head):
        torch.nn.init.normal_(head.mlp[-1].weight, std=0.1)
    torch.nn.init.normal_(made.dynamics.output[-1].weight, std=0.1)
    return made


def damage(dataset: Dataset, position: int, *, header: bool = False) -> Path:
    """Change a byte of an episode's tensors, or cut its header."""
    path = dataset.episodes[position].path
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # only the checksum can tell
    path.write_bytes(content[:100] if header else content)
    return path


@pytest.fixture
def damaged() -> object:
    """The function that damages an episode."""
    return damage
