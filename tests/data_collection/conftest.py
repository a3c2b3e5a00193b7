import sys
from pathlib import Path

import fsspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests and worker processes import the helper modules by name

from episode_factory import make_episode, make_metadata

from wm_gym.data_collection import Dataset


@pytest.fixture(autouse=True)
def _empty_memory():
    """``memory://`` is one for the whole process; no test leaves anything there."""
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def episodes():
    return [make_episode(i, steps=6 + 3 * i, behaviour=("calm", "wild")[i % 2], terminated=i == 3) for i in range(5)]


@pytest.fixture
def dataset(tmp_path, episodes):
    return Dataset.create(tmp_path / "data", make_metadata(), episodes)
