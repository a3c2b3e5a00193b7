"""From a dataset to batches of clips on the device."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.frames import frames_to_tensor
from wm_gym.losses import ClipTensors


class ClipArrays(Protocol):
    """A batch of clips as arrays; ``T`` frames and ``T - 1`` steps each."""

    @property
    def frames(self) -> NDArray[np.uint8]:
        """``(B, T, H, W, 3)`` uint8."""

    @property
    def actions(self) -> NDArray[np.float32]:
        """``(B, T - 1, A)`` float32, stored format."""

    @property
    def rewards(self) -> NDArray[np.float32]:
        """``(B, T - 1)`` float32."""

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """``(B, T - 1)`` bool."""


class ClipSource(Protocol):
    """What training needs of a dataset."""

    def draw_clips(self, rng: np.random.Generator, batch_size: int, length: int) -> NDArray[np.int64]:
        """Draw clips without reading them: ``(B, 2)``, the position of the episode and the first frame in it."""

    def read_clips(self, draws: NDArray[np.int64], length: int) -> ClipArrays:
        """Read the drawn clips."""


def to_tensors(clips: ClipArrays, device: torch.device | str) -> ClipTensors:
    """Move a batch of clips to the device; frames become float ``(B, T, 3, H, W)`` in [-1, 1] there."""
    return ClipTensors(
        frames=frames_to_tensor(torch.from_numpy(clips.frames).to(device)),
        actions=torch.from_numpy(clips.actions).to(device),
        rewards=torch.from_numpy(clips.rewards).to(device),
        terminated=torch.from_numpy(clips.terminated).to(device),
    )


class ClipLoader:
    """Micro-batches of training clips as a pure function of (seed, update, micro-batch).

    Nothing has to be saved to resume, and the clips of an update do not depend on the number of devices: each rank
    reads its share of the same draw. The next micro-batch is read in a thread while the device works.

    Args:
        source: The training episodes.
        batch_size: Clips in a micro-batch, over all ranks; must be a multiple of ``world_size``.
        clip_length: Frames in a clip.
        accumulation: Micro-batches in an update.
        seed: Seed of the draws.
        beginning_share: Share of the clips that are moved to the beginning of their episode.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        source: ClipSource,
        batch_size: int,
        clip_length: int,
        *,
        accumulation: int,
        seed: int,
        beginning_share: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self.clip_length = clip_length
        self.accumulation = accumulation
        self.seed = seed
        self.beginning_share = beginning_share
        self.rank = rank
        self.world_size = world_size

    def read(self, update: int, micro: int) -> ClipArrays:
        """This rank's share of one micro-batch."""
        rng = np.random.default_rng((self.seed, update, micro))
        draws = self.source.draw_clips(rng, self.batch_size, self.clip_length)
        if self.beginning_share > 0:
            draws[rng.random(self.batch_size) < self.beginning_share, 1] = 0
        return self.source.read_clips(draws[self.rank :: self.world_size], self.clip_length)

    def updates(self, first: int, stop: int) -> Generator[list[ClipArrays]]:
        """The micro-batches of each update from ``first`` to ``stop`` (excluded), one list an update."""
        with ThreadPoolExecutor(1, thread_name_prefix="clips") as reader:
            ahead = reader.submit(self._read_update, first)
            for update in range(first, stop):
                clips = ahead.result()
                if update + 1 < stop:
                    ahead = reader.submit(self._read_update, update + 1)
                yield clips

    def _read_update(self, update: int) -> list[ClipArrays]:
        return [self.read(update, micro) for micro in range(self.accumulation)]
