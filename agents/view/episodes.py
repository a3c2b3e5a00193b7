"""The episodes of a dataset as a page asks for them: a list, picture strips, steps, and frames piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import DRIVING_NAMES
from wm_gym.data_collection.datasets.episode import INFO_PREFIX
from wm_gym.data_collection.datasets.episode_file import (
    EpisodeHeader,
    check_episode_file,
    read_observations,
    read_steps,
)
from wm_gym.data_collection.datasets.survey import Survey
from wm_gym.errors import DatasetError
from wm_gym.frames import Frame, resize_frame
from wm_gym.observation import Observation

PIECE = 32
"""Frames that a page is sent at once."""
STRIP_FRAMES = 8
_STRIP_HEIGHT = 96
_STRIP_GAP = 2


class EpisodeShelf:
    """Reads episodes by their positions among the sound headers; an episode's checksum when it is first touched.

    Reading is safe from several threads. Episodes that are elsewhere are downloaded when they are first touched.

    Args:
        survey: What the dataset holds.
    """

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self._sound: set[int] = set()

    def listing(self) -> dict[str, Any]:
        """What the page has to know of the dataset, as JSON values."""
        simulator = self.survey.metadata.simulator
        driving = simulator.action.kind == "driving"
        return {
            "path": str(self.survey.path),
            "simulator": simulator.id,
            "source": self.survey.metadata.source or "",
            "step_s": simulator.step_s,
            "frame_size": simulator.frame_size,
            "piece": PIECE,
            "actions": [DRIVING_NAMES[n] if driving else f"value {n}" for n in range(simulator.action.dim)],
            "vector": [
                {"name": field.name, "unit": field.unit, "classes": field.classes} for field in simulator.vector
            ],
            "episodes": [_entry(header) for header in self.survey.headers],
            "problems": self.survey.problems,
        }

    def header(self, position: int) -> EpisodeHeader:
        """The header at a position.

        Raises:
            DatasetError: There is none.
        """
        if not 0 <= position < len(self.survey.headers):
            raise DatasetError(
                f"there is no episode at position {position}; {self.survey.path} has {len(self.survey.headers)}."
            )
        return self.survey.headers[position]

    def strip(self, position: int) -> Frame:
        """Frames from the first to the last at equal distances, side by side.

        Returns:
            ``(H', W', 3)`` uint8 RGB, ``H'`` at most 96.

        Raises:
            DatasetError: The episode is damaged, or cannot be had.
        """
        header = self._sound_header(position)
        height, width = header.frame_size
        if height > _STRIP_HEIGHT:
            height, width = _STRIP_HEIGHT, max(1, round(width * _STRIP_HEIGHT / height))
        places = np.linspace(0, header.length, STRIP_FRAMES).round().astype(int)
        gap = np.zeros((height, _STRIP_GAP, 3), np.uint8)
        parts: list[Frame] = []
        for place in places:
            frame = read_observations(header, int(place), 1).image[0]
            parts += [resize_frame(frame, height, width), gap]
        return np.concatenate(parts[:-1], axis=1)

    def steps(self, position: int) -> dict[str, Any]:
        """Actions, rewards, vectors and infos of an episode as JSON values; ``None`` where an info is not told.

        Raises:
            DatasetError: The episode is damaged, or cannot be had.
        """
        header = self._sound_header(position)
        tensors = read_steps(header)
        return {
            "actions": _columns(tensors["actions"]),
            "rewards": _plain(tensors["rewards"]),
            "vectors": _columns(tensors.get("vectors", np.zeros((0, 0), np.float32))),
            "infos": {
                name.removeprefix(INFO_PREFIX): _plain(values)
                for name, values in sorted(tensors.items())
                if name.startswith(INFO_PREFIX)
            },
        }

    def piece(self, position: int, number: int) -> Observation[NDArray[Any]]:
        """A piece of an episode, :data:`PIECE` frames or, at its end, fewer.

        Args:
            position: Of the episode.
            number: Of the piece; piece ``n`` begins with frame ``n * PIECE``.

        Returns:
            ``(T, H, W, 3)`` uint8 and ``(T, V)`` float32.

        Raises:
            DatasetError: The episode is damaged, cannot be had, or has no such piece.
        """
        header = self._sound_header(position)
        start = number * PIECE
        if not 0 <= start <= header.length:
            raise DatasetError(f"episode {header.index} has {header.length + 1} frames, and none from {start} on.")
        return read_observations(header, start, min(PIECE, header.length + 1 - start))

    def actions(self, position: int) -> NDArray[np.float32]:
        """The actions of an episode, ``(T, A)`` float32 in the stored format.

        Raises:
            DatasetError: The episode is damaged, or cannot be had.
        """
        return np.asarray(read_steps(self._sound_header(position))["actions"], np.float32)

    def _sound_header(self, position: int) -> EpisodeHeader:
        header = self.header(position)
        if position not in self._sound:
            header.read(check_episode_file)
            self._sound.add(position)
        return header


def _entry(header: EpisodeHeader) -> dict[str, Any]:
    return {
        "index": header.index,
        "length": header.length,
        "return": round(header.return_, 4) if np.isfinite(header.return_) else None,
        "end": header.end,
        "behaviour": header.behaviour,
        "seed": header.seed,
    }


def _columns(rows: NDArray[Any]) -> list[list[float | None]]:
    return [_plain(column) for column in rows.T]


def _plain(values: NDArray[Any]) -> list[float | None]:
    """Numbers as JSON has them: six digits, ``None`` for what is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
