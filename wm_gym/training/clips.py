"""From a dataset to batches of clips on the device."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_gym.clips import Clips
from wm_gym.frames import frames_to_tensor
from wm_gym.observation import Observation
from wm_gym.vector import Fields, mirror_vectors
from wm_gym.world_model import WorldModel


class ClipSource(Protocol):
    """What training needs of a dataset."""

    def draw_clips(self, rng: np.random.Generator, batch_size: int, length: int) -> NDArray[np.int64]:
        """Draw clips without reading them: ``(B, 2)``, the position of the episode and the first frame in it."""

    def read_clips(self, draws: NDArray[np.int64], length: int) -> Clips[NDArray[Any]]:
        """Read the drawn clips."""

    def episode_lengths(self) -> NDArray[np.int64]:
        """Steps of each episode, by position; an episode has one frame more."""


def to_tensors(clips: Clips[NDArray[Any]], device: torch.device | str) -> Clips[Tensor]:
    """Move a batch of clips to the device; frames become float ``(B, T, 3, H, W)`` in [-1, 1] there."""

    def move(values: Any) -> Any:
        return None if values is None else torch.as_tensor(values).to(device)

    moved = Clips(*map(move, clips))
    return moved._replace(frames=frames_to_tensor(moved.frames))


@dataclass(eq=False)
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
        ending_share: Share of the clips that are moved to the end of their episode, and past it by a drawn number of
            steps: see :func:`move_past_the_end`.
        mirror_share: Share of the clips that are mirrored; see :func:`mirror`.
        fields: Of the source's vectors.
        rank: This process.
        world_size: Number of processes.
    """

    source: ClipSource
    batch_size: int
    clip_length: int
    _: KW_ONLY
    accumulation: int
    seed: int
    beginning_share: float = 0.0
    ending_share: float = 0.0
    mirror_share: float = 0.0
    fields: Fields = ()
    rank: int = 0
    world_size: int = 1

    def read(self, update: int, micro: int) -> Clips[NDArray[Any]]:
        """This rank's share of one micro-batch."""
        rng = np.random.default_rng((self.seed, update, micro))
        draws = self.source.draw_clips(rng, self.batch_size, self.clip_length)
        beyond = np.zeros(self.batch_size, np.int64)
        if self.beginning_share > 0:
            draws[rng.random(self.batch_size) < self.beginning_share, 1] = 0
        if self.ending_share > 0:
            are_ends = rng.random(self.batch_size) < self.ending_share
            # An episode has one frame more than steps.
            draws[are_ends, 1] = self.source.episode_lengths()[draws[are_ends, 0]] + 1 - self.clip_length
            beyond[are_ends] = rng.integers(self.clip_length - 1, size=int(are_ends.sum()))
        is_mirrored = np.zeros(self.batch_size, np.bool_)
        if self.mirror_share > 0:
            is_mirrored = rng.random(self.batch_size) < self.mirror_share
        share = slice(self.rank, None, self.world_size)
        return self._read(draws[share], beyond[share], is_mirrored[share], rng)

    def _read(
        self,
        draws: NDArray[np.int64],
        beyond: NDArray[np.int64],
        is_mirrored: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> Clips[NDArray[Any]]:
        clips = move_past_the_end(self.source.read_clips(draws, self.clip_length), beyond)
        mirror(clips, is_mirrored, self.fields)
        return clips

    def updates(self, first: int, stop: int) -> Generator[list[Clips[NDArray[Any]]]]:
        """The micro-batches of each update from ``first`` to ``stop`` (excluded), one list an update."""
        with ThreadPoolExecutor(1, thread_name_prefix="clips") as reader:
            ahead = reader.submit(self._read_update, first)
            for update in range(first, stop):
                clips = ahead.result()
                if update + 1 < stop:
                    ahead = reader.submit(self._read_update, update + 1)
                yield clips

    def _read_update(self, update: int) -> list[Clips[NDArray[Any]]]:
        return [self.read(update, micro) for micro in range(self.accumulation)]


class EncodedEpisodes(NamedTuple):
    """The latents of all episodes of a source, by position: ``(frames, Z)`` float32 on the CPU.

    Attributes:
        latents: Of the frames as they are.
        mirrored: Of the frames mirrored; ``None`` where they are not needed.
    """

    latents: list[Tensor]
    mirrored: list[Tensor] | None

    def clips(self, draws: NDArray[np.int64], length: int) -> Tensor:
        """The latents ``(B, T, Z)`` of drawn clips, as they are; see :meth:`ClipSource.draw_clips`."""
        return torch.stack([self.latents[position][first : first + length] for position, first in draws])


@dataclass(eq=False)
class EncodedClipLoader(ClipLoader):
    """A loader of clips whose frames were encoded before, once each.

    Args:
        episodes: The latents of ``source``; see :func:`encode_episodes`.
        shown: Time steps of a micro-batch whose frames are read, for the decoder; the same for all clips.
    """

    _: KW_ONLY
    episodes: EncodedEpisodes
    shown: int

    def _read(
        self,
        draws: NDArray[np.int64],
        beyond: NDArray[np.int64],
        is_mirrored: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> Clips[NDArray[Any]]:
        clips = move_past_the_end(self.source.read_clips(draws, self.clip_length), beyond)
        shown = np.sort(rng.choice(self.clip_length, self.shown, replace=False))
        clips = clips._replace(frames=np.ascontiguousarray(clips.frames[:, shown]), shown=shown)
        mirror(clips, is_mirrored, self.fields)
        latents = []
        for (position, start), steps, turned in zip(draws, beyond, is_mirrored, strict=True):
            of = self.episodes.mirrored if turned else self.episodes.latents
            assert of is not None
            clip = of[position][start : start + self.clip_length]
            latents.append(torch.cat((clip[steps:], clip[-1:].expand(steps, -1))) if steps else clip)
        return clips._replace(latents=torch.stack(latents))


def move_past_the_end(clips: Clips[NDArray[Any]], beyond: NDArray[np.int64]) -> Clips[NDArray[Any]]:
    """Let clips that end with their episode go on beyond it, with the last frame again and again.

    The end of an episode can only be the last step of a clip within it. A model that saw no other ends would learn
    that nothing ends before as many steps as a clip has, and would miss every end in an episode that is longer.

    Args:
        clips: Clips of ``T`` frames.
        beyond: ``(B,)`` steps after the end for each, below ``T - 1``; 0 leaves a clip as it is.

    Returns:
        The clips, with :attr:`Clips.is_real` where one goes beyond the end. The arrays given are written into.
    """
    if not beyond.any():
        return clips
    num_steps = clips.rewards.shape[1]
    for row in np.flatnonzero(beyond):
        for values in clips[:5]:
            values[row] = values[row][np.minimum(np.arange(len(values[row])) + beyond[row], len(values[row]) - 1)]
    return clips._replace(is_real=np.arange(num_steps) < (num_steps - beyond)[:, None])  # (B, T - 1)


def mirror(clips: Clips[NDArray[Any]], which: NDArray[np.bool_], fields: Fields = ()) -> None:
    """Mirror some clips in place, left for right: frames, vectors, and the steering of their driving actions.

    Args:
        clips: With stored driving actions, whose first value is the steering.
        which: ``(B,)`` bool.
        fields: Of the vectors.
    """
    if which.any():
        clips.frames[which] = clips.frames[which, :, :, ::-1]
        clips.vectors[which] = mirror_vectors(fields, clips.vectors[which])
        clips.actions[which, :, 0] *= -1


@torch.no_grad()
def encode_episodes(
    model: WorldModel,
    source: ClipSource,
    *,
    mirrored: bool = False,
    batch_size: int = 256,
    rank: int = 0,
    world_size: int = 1,
) -> EncodedEpisodes:
    """Encode every frame of ``source`` once, and its mirror image too where asked.

    Args:
        model: The model, which should be in evaluation mode.
        source: The episodes.
        mirrored: Encode the mirror images too.
        batch_size: Frames at once.
        rank: This process, which reads and encodes every ``world_size``-th episode.
        world_size: Number of processes; they exchange what they have encoded, so that each gets everything.
    """

    def encode(clip: Clips[NDArray[Any]]) -> Tensor:
        frames, vectors = (torch.from_numpy(part[0]) for part in clip.observations)  # a batch of one whole episode
        parts = [
            model.encode(
                Observation(
                    frames_to_tensor(frames[first : first + batch_size].to(model.device)),
                    vectors[first : first + batch_size].to(model.device),
                )
            )
            for first in range(0, len(frames), batch_size)
        ]
        return torch.cat(parts).float().cpu()

    latents: list[Tensor] = []
    turned: list[Tensor] = []
    for position, steps in enumerate(source.episode_lengths()):
        num_frames = int(steps) + 1
        if position % world_size == rank:
            episode = source.read_clips(np.array([[position, 0]]), num_frames)
            latents.append(encode(episode))
            if mirrored:
                mirror(episode, np.ones(1, np.bool_), model.simulator.vector)
                turned.append(encode(episode))
        else:
            latents.append(torch.zeros(num_frames, model.dynamics.latent_dim))
            if mirrored:
                turned.append(torch.zeros(num_frames, model.dynamics.latent_dim))
    if world_size > 1:
        # All but one process have zeros for an episode, so that the sum is what that one encoded, to the last bit.
        latents, turned = ([_summed(part, model.device) for part in parts] for parts in (latents, turned))
    return EncodedEpisodes(latents, turned if mirrored else None)


def _summed(values: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes."""
    total = values.to(device)
    torch.distributed.all_reduce(total)
    return total.cpu()
