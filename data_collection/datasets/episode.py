"""One recorded episode in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import FloatArray
from wm_gym.errors import DatasetError

BoolArray = NDArray[np.bool_]

INFO_PREFIX = "info."
TIME_INFO = "time_s"
"""The info with the seconds since the episode's first frame, where a converted recording has times."""
_INTENDED = "intended_action."


@dataclass
class Episode:
    """A run of a simulator from reset to end. ``T`` counts steps: ``T`` actions lie between ``T + 1`` frames.

    Attributes:
        frames: ``(T + 1, H, W, 3)`` uint8 RGB; ``frames[t]`` is what was seen before ``actions[t]``.
        actions: ``(T, A)`` float32, in the dataset's stored action format.
        rewards: ``(T,)`` float32; ``rewards[t]`` was given for ``actions[t]``.
        terminated: ``(T,)`` bool; an end that belongs to the task. True at the last step at most.
        truncated: ``(T,)`` bool; a cut from outside the task. True at the last step at most.
        vectors: ``(T + 1, V)`` float32, the observation's vector at each frame; ``V`` is 0 where it has none.
        infos: Further scalars by name, each ``(T,)`` float32; NaN where a step did not report one.
        seed: Seed that the simulator was reset with, or -1 where it is not known.
        behaviour: Name of the policy that drove.
        index: Number of the episode in its dataset, 0 or more.
    """

    frames: NDArray[np.uint8]
    actions: FloatArray
    rewards: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    vectors: FloatArray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    infos: dict[str, FloatArray] = field(default_factory=dict)
    seed: int = -1
    behaviour: str = "unknown"
    index: int = 0

    def __post_init__(self) -> None:
        if self.vectors.size == 0:
            self.vectors = np.zeros((len(self.frames), 0), np.float32)

    def __len__(self) -> int:
        """Number of steps ``T``."""
        return len(self.actions)

    @property
    def return_(self) -> float:
        """Sum of the rewards."""
        return float(np.sum(self.rewards, dtype=np.float64))

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the frames, in pixels."""
        return int(self.frames.shape[1]), int(self.frames.shape[2])

    @property
    def intended_actions(self) -> FloatArray:
        """``(T, A)`` float32: what the driver would have done; where nothing disturbed it, what it did."""
        actions = self.actions.copy()
        for place in range(actions.shape[1]):
            intended = self.infos.get(f"{_INTENDED}{place}")
            if intended is not None:
                np.copyto(actions[:, place], intended, where=np.isfinite(intended))
        return actions

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Everything but the frames, by the names that a file gives them."""
        return {
            "actions": self.actions,
            "rewards": self.rewards,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "vectors": self.vectors,
            **{INFO_PREFIX + name: values for name, values in self.infos.items()},
        }

    def check(self) -> None:
        """Check shapes, dtypes, finiteness and the place of the end.

        Raises:
            DatasetError: something does not fit; the sentence names the array.
        """
        name = f"episode {self.index}"
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or 0 in self.frames.shape:
            raise DatasetError(f"{name} has frames of shape {self.frames.shape}, but (T + 1, H, W, 3) is wanted.")
        if self.frames.dtype != np.uint8:
            raise DatasetError(f"{name} has frames of type {self.frames.dtype}, but uint8 is wanted.")
        steps = len(self.frames) - 1
        if steps < 1:
            raise DatasetError(f"{name} has {len(self.frames)} frame, but one step needs two.")
        check_steps(name, steps, self.tensors())
        if self.index < 0:
            raise DatasetError(f"an episode has the index {self.index}, but 0 or more is wanted.")


def intention_infos(intended: FloatArray | None) -> dict[str, float]:
    """The entries of ``Episode.infos`` for what a disturbed driver would have done, ``(A,)``, in one step."""
    return {} if intended is None else {f"{_INTENDED}{place}": float(value) for place, value in enumerate(intended)}


def check_steps(name: str, steps: int, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check everything of an episode but its frames; see :meth:`Episode.check`.

    Args:
        name: What to call the episode in a message.
        steps: Number of steps ``T`` that the frames leave room for.
        tensors: ``actions``, ``rewards``, ``terminated``, ``truncated``, ``vectors`` and any ``info.<name>``.

    Raises:
        DatasetError: something does not fit.
    """
    actions = tensors["actions"]
    if actions.ndim != 2 or actions.shape[1] < 1:
        raise DatasetError(f"{name} has actions of shape {actions.shape}, but (T, A) is wanted.")
    types: dict[str, type] = {
        "actions": np.float32,
        "rewards": np.float32,
        "terminated": np.bool_,
        "truncated": np.bool_,
        **{key: np.float32 for key in tensors if key.startswith(INFO_PREFIX)},
    }
    for key, dtype in types.items():
        values = tensors[key]
        if len(values) != steps or (key != "actions" and values.ndim != 1):
            raise DatasetError(
                f"{name} has {steps + 1} frames and {key} of shape {values.shape}, but {steps} entries are wanted."
            )
        if values.dtype != dtype:
            raise DatasetError(f"{name} has {key} of type {values.dtype}, but {np.dtype(dtype)} is wanted.")
    vectors = tensors["vectors"]
    if vectors.ndim != 2 or len(vectors) != steps + 1 or vectors.dtype != np.float32:
        raise DatasetError(
            f"{name} has {steps + 1} frames and vectors of shape {vectors.shape} and type {vectors.dtype}, but "
            f"({steps + 1}, V) float32 is wanted."
        )
    for key in ("actions", "rewards", "vectors"):
        not_finite = np.argwhere(~np.isfinite(tensors[key]))
        if len(not_finite):
            raise DatasetError(f"{name} has {key} that are not finite, at step {not_finite[0, 0]}.")
    for key in ("terminated", "truncated"):
        flags = tensors[key]
        if flags[:-1].any():
            raise DatasetError(
                f"{name} is marked {key} at step {int(np.argmax(flags))} of {steps}, but an episode ends with its "
                "last step; split it there."
            )
