"""A part of an episode's time as an episode of its own, so that one long recording can be split."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader
from wm_gym.errors import DatasetError


@dataclass(frozen=True)
class EpisodePart:
    """Neighbouring steps of an episode.

    Attributes:
        whole: The header of the episode's file.
        first: Its first frame in the part, which is also its first step.
        length: Number of steps; there is one frame more.
    """

    whole: EpisodeHeader
    first: int
    length: int

    @property
    def header(self) -> EpisodeHeader:
        """The header of the part. Return, checksum and size of the file are those of the whole episode."""
        is_last = self.first + self.length == self.whole.length
        return replace(self.whole, length=self.length, end=self.whole.end if is_last else "none")

    def cut(self, episode: Episode) -> Episode:
        """The part of the whole episode."""
        steps = slice(self.first, self.first + self.length)
        frames = slice(self.first, self.first + self.length + 1)
        return replace(
            episode,
            frames=episode.frames[frames],
            actions=episode.actions[steps],
            rewards=episode.rewards[steps],
            terminated=episode.terminated[steps],
            truncated=episode.truncated[steps],
            vectors=episode.vectors[frames],
            infos={name: values[steps] for name, values in episode.infos.items()},
        )


def split_by_time(header: EpisodeHeader, fraction: float) -> tuple[EpisodePart, EpisodePart]:
    """The beginning of an episode, and its end with about ``fraction`` of the steps; they share no frame.

    Raises:
        DatasetError: The episode has fewer than 3 steps: one for each part, and one between them.
    """
    if header.length < 3:
        raise DatasetError(
            f"{header.path} has {header.length} steps, but 3 are the least that can be split by time; collect more."
        )
    held_out = min(max(1, round(header.length * fraction)), header.length - 2)
    first = header.length - held_out
    return EpisodePart(header, 0, first - 1), EpisodePart(header, first, held_out)
