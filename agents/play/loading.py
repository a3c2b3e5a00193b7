"""What ``wm-gym play`` is started with, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.play.drive_record import DriveRecord
from wm_gym.agents.play.session import PlaySetup
from wm_gym.agents.policies.observers import LatentObserver
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.device import resolve_device
from wm_gym.envs.dream_model import DreamModel, resolve_model
from wm_gym.files import check_writable


def load_setup(
    agent: str = "bundled",
    model: str | Path | None = None,
    *,
    record: str | Path | None = None,
    device: str = "cpu",
    **settings: Any,
) -> PlaySetup:
    """Load agent and world model.

    Args:
        agent: An agent's folder, ``"bundled"``, or ``"none"``.
        model: A world model's folder or ``"bundled"``; ``None`` is the one that the agent sees through, and the bundled
            one where there is none.
        record: Folder for episodes; see :class:`~wm_gym.agents.play.drive_record.DriveRecord`.
        device: Where model and agent compute.
        **settings: Further ones of :class:`~wm_gym.agents.play.session.PlaySetup`.

    Raises:
        BundleError: Agent or model is missing or damaged.
        ConfigError: A value is out of range.
        SimulatorError: Agent and model know different simulators.
        DatasetError: The folder for episodes holds something else.
        OutputError: The folder for episodes cannot be written.
    """
    place = resolve_device(device)
    driver = None if agent == "none" else Driver.load(agent, place)
    dreamt: DreamModel
    if model is None and driver is not None and isinstance(driver.observer, LatentObserver):
        dreamt = driver.model
    else:
        dreamt = resolve_model("bundled" if model is None else model, place)
    kept = None
    if record is not None:
        kept = DriveRecord(check_writable(local_folder(record), is_folder=True), dreamt.simulator)
    return PlaySetup(model=dreamt, driver=driver, record=kept, **settings)
