"""Lets the tests of this folder import their helper module; the bundled model and agent, read once."""

import sys
from pathlib import Path

import pytest

from wm_gym.agents.play.drive_record import DriveRecord
from wm_gym.agents.play.loading import load_setup
from wm_gym.agents.play.session import PlaySetup

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def bundled():
    """Model and agent."""
    return load_setup()


@pytest.fixture
def setup(bundled, tmp_path) -> PlaySetup:
    record = DriveRecord(tmp_path / "drives", bundled.model.simulator)
    return PlaySetup(model=bundled.model, driver=bundled.driver, record=record)
