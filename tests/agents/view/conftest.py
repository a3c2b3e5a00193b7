"""A dataset of small episodes with vectors, and an untrained world model that takes them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests import the helper modules by name

from own_data import LENGTHS, SPEC, make_episode

from wm_gym.agents.view.episodes import EpisodeShelf
from wm_gym.data_collection import Dataset, DatasetMetadata, Episode, FrameCodec
from wm_gym.data_collection.datasets.survey import survey
from wm_gym.world_model import WorldModel


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
