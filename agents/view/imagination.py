"""What a world model makes of recorded episodes: its reconstruction of each frame, and dreams that begin there."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.agents.view.episodes import PIECE, EpisodeShelf
from wm_gym.envs.dream_model import DreamModel
from wm_gym.errors import ConfigError
from wm_gym.frames import resize_frame, tensor_to_frames
from wm_gym.observation import Observation
from wm_gym.rollouts import LatentFilter, dream
from wm_gym.shared_cores import adapt_threads
from wm_gym.state import LatentState

MAX_DREAM_STEPS = 250
_KEPT_EPISODES = 4
_MAX_SEED = 2**31
_MAX_PSNR_DB = 60.0  # of equal frames it would be infinite


class Imagined(NamedTuple):
    """What the model shows of ``T`` moments.

    Attributes:
        frames: ``(T, H, W, 3)`` uint8 RGB, of the model's size.
        psnr: ``(T,)`` float, peak signal-to-noise ratio against the recorded frames in dB, at most 60.
        vectors: ``(T, V)`` float32, what the model takes the vector for.
        rewards: ``(T,)`` predicted rewards of a dream; ``None`` for a reconstruction.
        continuations: ``(T,)`` predicted probabilities that the dream goes on; ``None`` for a reconstruction.
    """

    frames: NDArray[np.uint8]
    psnr: NDArray[np.float64]
    vectors: NDArray[np.float32]
    rewards: NDArray[np.float32] | None = None
    continuations: NDArray[np.float32] | None = None


class Imagination:
    """Follows episodes with a world model; not for several threads at once.

    Of every episode that was followed lately the state at the beginning of each piece is kept, so that any piece costs
    its own frames alone.

    Args:
        model: The world model, which takes the dataset's vectors and actions.
        shelf: The episodes.
    """

    def __init__(self, model: DreamModel, shelf: EpisodeShelf) -> None:
        self.model = model
        self._shelf = shelf
        self._marks: OrderedDict[int, list[LatentState]] = OrderedDict()

    @torch.inference_mode()
    def reconstruct(self, position: int, number: int) -> Imagined:
        """What the model shows after having seen each frame of a piece, and all before it.

        Args:
            position: Of the episode.
            number: Of the piece, as for :meth:`EpisodeShelf.piece`.

        Raises:
            DatasetError: The episode is damaged, cannot be had, or has no such piece.
        """
        adapt_threads()
        recorded = self._shelf.piece(position, number)
        states = LatentState.cat(self._states(position, number, recorded))
        return self._imagined(states, recorded.image)

    @torch.inference_mode()
    def dream(self, position: int, start: int, steps: int, seed: int) -> Imagined:
        """Dream from a frame on, under the recorded actions and with no further look at the frames.

        Args:
            position: Of the episode.
            start: The last frame that is seen.
            steps: Most steps; there are fewer where the episode ends before.
            seed: Of the draws of a stochastic model.

        Returns:
            What the model shows after each step.

        Raises:
            ConfigError: A number is out of range.
            DatasetError: The episode is damaged, or cannot be had.
        """
        header = self._shelf.header(position)
        if not 0 <= start < header.length:
            raise ConfigError(f"episode {header.index} has no step after frame {start}; begin a dream before its end.")
        if not 1 <= steps <= MAX_DREAM_STEPS:
            raise ConfigError(f"a dream of {steps} steps was asked for; use 1 to {MAX_DREAM_STEPS}.")
        if not 0 <= seed < _MAX_SEED:
            raise ConfigError(f"the seed {seed} is not in 0 to {_MAX_SEED - 1}.")
        adapt_threads()
        number = start // PIECE
        first = self._states(position, number, self._shelf.piece(position, number))[start - number * PIECE]
        actions = torch.from_numpy(self._shelf.actions(position)[start : start + steps]).to(self.model.device)
        dreamt = dream(self.model, first, actions[None], torch.Generator().manual_seed(seed))
        recorded = self._frames(position, start + 1, len(actions))
        shown = self._imagined(LatentState.cat(dreamt.states), recorded)
        return shown._replace(
            rewards=dreamt.rewards[0].float().cpu().numpy(), continuations=dreamt.continuations[0].float().cpu().numpy()
        )

    def _states(self, position: int, number: int, recorded: Observation[NDArray[Any]]) -> list[LatentState]:
        """The state at each frame of a piece, whose observations are at hand; pieces before it are followed first."""
        marks = self._marks.setdefault(position, [])
        self._marks.move_to_end(position)
        while len(self._marks) > _KEPT_EPISODES:
            self._marks.popitem(last=False)
        actions = self._shelf.actions(position)
        for piece in range(len(marks), number):
            marks.append(self._follow(actions, piece, self._shelf.piece(position, piece), marks)[-1])
        return self._follow(actions, number, recorded, marks)

    def _follow(
        self,
        actions: NDArray[np.float32],
        number: int,
        recorded: Observation[NDArray[Any]],
        marks: list[LatentState],
    ) -> list[LatentState]:
        """The state at each frame of a piece; ``marks`` has the last state of every piece before it."""
        latent = LatentFilter(self.model)
        latent.state = marks[number - 1] if number else None
        states = []
        for place in range(len(recorded.image)):
            seen = Observation(recorded.image[place : place + 1], recorded.vector[place : place + 1])
            t = number * PIECE + place
            states.append(latent.observe(seen, actions[t - 1 : t] if t else None))
        return states

    def _frames(self, position: int, start: int, count: int) -> NDArray[np.uint8]:
        numbers = range(start // PIECE, (start + count - 1) // PIECE + 1)
        frames = np.concatenate([self._shelf.piece(position, number).image for number in numbers])
        return frames[start - numbers[0] * PIECE :][:count]

    def _imagined(self, states: LatentState, recorded: NDArray[np.uint8]) -> Imagined:
        frames, vectors = [], []
        fields = self.model.simulator.vector
        for first in range(0, states.batch_size, PIECE):
            part = LatentState(states.latent[first : first + PIECE], states.memory[first : first + PIECE])
            frames.append(tensor_to_frames(self.model.decode(part)).contiguous().cpu().numpy())
            if fields:  # what DreamModel leaves out: only models of simulators with a vector have it
                vectors.append(self.model.decode_vector(part).float().cpu().numpy())  # type: ignore[attr-defined]
        shown = np.concatenate(frames)
        psnr = [_psnr(ours, theirs) for ours, theirs in zip(shown, recorded, strict=True)]
        told = np.concatenate(vectors) if vectors else np.zeros((len(shown), 0), np.float32)
        return Imagined(shown, np.array(psnr), told)


def _psnr(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """Of a shown frame against a recorded one, which is brought to its size."""
    target = resize_frame(theirs, *ours.shape[:2]).astype(np.float64)
    error = float(np.mean((ours - target) ** 2))
    return _MAX_PSNR_DB if error == 0 else min(_MAX_PSNR_DB, 10 * math.log10(255**2 / error))
