"""Keeping what was driven as episodes of datasets, one for the simulator and one for the dream."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wm_gym.actions import FloatArray
from wm_gym.agents.play.worlds import View
from wm_gym.data_collection.datasets.appending import GrowingDataset
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader, EpisodeRecorder
from wm_gym.data_collection.datasets.metadata import DatasetMetadata, versions
from wm_gym.data_collection.recording.worker import scalar_infos
from wm_gym.simulator import SimulatorSpec

SIMULATOR_FOLDER = "simulator"
DREAM_FOLDER = "dream"


class DriveRecord:
    """The datasets that episodes are kept in: ``FOLDER/simulator``, and ``FOLDER/dream`` for what was only imagined.

    Both are made with their first episode. They are ordinary datasets; their episodes carry ``info.by_hand``, 1 where
    the hand drove a step and 0 where the agent did.

    Args:
        folder: The folder for both.
        simulator: The simulator's record.

    Raises:
        DatasetError: One of them exists and is something else.
    """

    def __init__(self, folder: Path, simulator: SimulatorSpec) -> None:
        self._codec = FrameCodec()
        sources = {
            SIMULATOR_FOLDER: f"driven in {simulator.id} by wm-gym play",
            DREAM_FOLDER: f"imagined by a world model of {simulator.id} in wm-gym play, not simulated",
        }
        self._datasets = {
            name: GrowingDataset(
                folder / name,
                DatasetMetadata(simulator=simulator, codec=self._codec, source=source, created_with=versions()),
            )
            for name, source in sources.items()
        }

    def begin(self, view: View, *, seed: int) -> Drive:
        """Begin an episode with what its world shows first.

        Args:
            view: The first view.
            seed: Of the simulator's reset, or -1 in a dream.
        """
        return Drive(EpisodeRecorder(self._codec, view.observed, seed=seed, behaviour="hand", index=0))

    def keep(self, drive: Drive, *, is_dream: bool) -> EpisodeHeader:
        """Write an episode as the next one of its dataset.

        Raises:
            DatasetError: It has no step, or it cannot be written.
        """
        drive.recorder.behaviour = "+".join(sorted(drive.drivers, reverse=True))  # hand+agent
        return self._datasets[DREAM_FOLDER if is_dream else SIMULATOR_FOLDER].add(drive.recorder)


@dataclass
class Drive:
    """An episode so far: what records its steps, and the names of those who drove."""

    recorder: EpisodeRecorder
    drivers: set[str] = field(default_factory=set)

    def add(self, action: FloatArray, view: View, driver: str, *, by_hand: bool) -> None:
        """Add a step: the action ``(A,)``, and what it led to.

        Args:
            action: In the stored format.
            view: What the world shows after it.
            driver: Name of who drove.
            by_hand: Whether it was the hand.
        """
        self.drivers.add(driver)
        self.recorder.add(
            action,
            view.observed,
            view.reward,
            terminated=view.terminated,
            truncated=view.truncated,
            infos={**scalar_infos(view.info), "by_hand": float(by_hand)},
        )
