"""Fixtures shared by all tests: tiny datasets and models, made on the fly."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("WM_GYM_SHARE_CORES", "0")  # results repeat bit by bit with the same number of threads alone
os.environ["HF_HUB_OFFLINE"] = "1"  # a test reaches no network but the Hub of the fixture `hub`

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from wm_gym.actions import ActionFormat
from wm_gym.config import Config, load_config
from wm_gym.models import normalisation
from wm_gym.models.compiled import compiled
from wm_gym.models.dynamics import recurrence
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread: small tensors gain nothing from more, and results repeat bit by bit."""
    torch.set_num_threads(1)


@pytest.fixture
def driving_spec() -> SimulatorSpec:
    return SimulatorSpec(id="CarRacingDriving-v0", frame_size=(64, 64), action=ActionFormat.driving(), step_s=0.08)


@pytest.fixture
def debug_config() -> Config:
    return load_config("debug")


@pytest.fixture
def tiny_model(debug_config, driving_spec) -> WorldModel:
    """An untrained world model of the smallest sizes, with start states."""
    torch.manual_seed(0)
    model = WorldModel(debug_config.model, driving_spec).eval()
    # The heads start at zero; give them something to say.
    for head in (model.reward_head, model.continuation_head):
        torch.nn.init.normal_(head.mlp[-1].weight, std=0.1)
    torch.nn.init.normal_(model.dynamics.output[-1].weight, std=0.1)
    frames = torch.rand(16, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        state = model.initial_state(frames)
    model.start_states = LatentState(*(part.clone() for part in state))
    return model


@pytest.fixture(scope="session")
def kernels() -> None:
    """The compiled kernels, where they can be compiled; a source that does not compile there is a failure."""
    openmp = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if sys.platform != "linux" or not openmp.exists() or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs Linux, a C++ compiler and PyTorch's own OpenMP")
    for module in (normalisation, recurrence):
        assert compiled(module._SOURCE) is not None


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def car_racing_data(tmp_path_factory):
    """Four short real CarRacing episodes at 64x64, recorded by the collector."""
    from wm_gym.agents.behaviours import make_behaviour
    from wm_gym.data_collection.recording.collector import collect

    path = tmp_path_factory.mktemp("data") / "car"
    collect(
        path,
        "car-racing",
        make_behaviour=make_behaviour,
        episodes=4,
        behaviour="noisy:0.5,random:0.5",
        max_episode_steps=30,
        progress=False,
    )
    return path


@pytest.fixture
def given_up(monkeypatch, tmp_path_factory):
    """A file that is there once a worker has been given up."""
    from wm_gym.data_collection.recording.worker_pool import Losses

    file, add = tmp_path_factory.mktemp("given_up") / "file", Losses.add

    def add_and_tell(losses, *arguments):
        is_given_up = add(losses, *arguments)
        if is_given_up:
            file.touch()
        return is_given_up

    monkeypatch.setattr(Losses, "add", add_and_tell)
    return file


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A small Hub on this machine that the real client talks to, as its owner and with an empty cache."""
    pytest.importorskip("huggingface_hub", reason="needs the extra `hub`: pip install 'wm_gym[hub]'")
    from huggingface_hub import constants

    from tests.hub_server import TOKEN, HubServer

    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # As if the variable had been set before the client was first imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # A folder without others, so that no name is taken for a path here.
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        yield server
