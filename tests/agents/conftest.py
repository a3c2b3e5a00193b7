"""Lets the tests of this folder import its helper modules; agents small enough to train in a second."""

import shutil
import sys
from pathlib import Path

import pytest

from wm_gym.agents.policies.config import AgentConfig

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def small_config() -> AgentConfig:
    return AgentConfig(
        steps=96,
        num_envs=4,
        horizon=8,
        net_arch=(8,),
        batch_size=16,
        n_epochs=2,
        termination="never",
        reward_scale=0.5,
        checkpoint_overhead=1.0,
        policy_average=0.0,
    )


@pytest.fixture
def agent_folder(tiny_model, small_config, tmp_path) -> Path:
    """A trained agent, though not one that drives well."""
    from wm_gym.agents.training.dream_training import train_agent

    return train_agent(tiny_model, out=tmp_path / "agent", config=small_config, progress=False).path


@pytest.fixture
def pixel_agent_folder(driving_spec, tmp_path) -> Path:
    """An agent that sees the last two frames, with the weights that it began with."""
    from wm_gym.agents.bundles.folder import save_pixel_agent
    from wm_gym.agents.policies.network import rebuild_policy
    from wm_gym.agents.policies.observers import PixelObserver
    from wm_gym.agents.policies.pixel_config import PixelAgentConfig

    config = PixelAgentConfig(features_dim=16, net_arch=(8,), frame_stack=2, action="steer_accel")
    policy = rebuild_policy(config, PixelObserver(driving_spec, 2).space, driving_spec.action.space("steer_accel"))
    policy.set_training_mode(False)
    return save_pixel_agent(tmp_path / "pixel_agent", policy, driving_spec, config, {"frames": 5})


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
