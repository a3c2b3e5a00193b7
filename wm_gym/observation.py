"""What is seen of a simulator at one moment: a frame, and the numbers that come with it."""

from __future__ import annotations

from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from typing_extensions import NamedTuple  # Python 3.10 has no generic ones

from wm_gym.frames import Frame
from wm_gym.vector import Fields, vector_space

ArrayT = TypeVar("ArrayT")
Observed: TypeAlias = Frame | dict[str, NDArray[Any]]
"""What a Gymnasium environment gives: a frame ``(H, W, 3)`` uint8, or a ``Dict`` of ``"image"`` and ``"vector"``
``(V,)`` float32."""


class Observation(NamedTuple, Generic[ArrayT]):
    """Frame and vector; of arrays outside the world model, of tensors inside it.

    Attributes:
        image: ``(..., H, W, 3)`` uint8 RGB as an array, ``(..., 3, H, W)`` float in [-1, 1] as a tensor.
        vector: ``(..., V)`` float32; 0 entries where the simulator tells nothing beside the frame.
    """

    image: ArrayT
    vector: ArrayT

    @property
    def given(self) -> Any:
        """The image alone where the vector has no entries, which is what models of such simulators are given."""
        return self if self.vector.shape[-1] else self.image  # type: ignore[attr-defined]


def split_observation(observed: Any) -> Observation[NDArray[Any]]:
    """What a Gymnasium environment gives, a frame or a ``Dict`` with ``"image"`` and ``"vector"``, as one type."""
    if isinstance(observed, Observation):
        return observed
    if isinstance(observed, dict):
        return Observation(np.asarray(observed["image"]), np.asarray(observed["vector"], np.float32))
    image = np.asarray(observed)
    return Observation(image, np.zeros((*image.shape[:-3], 0), np.float32))


def join_observation(observation: Observation[NDArray[Any]]) -> Any:
    """The opposite of :func:`split_observation`: the frame alone where the vector has no entries."""
    if observation.vector.shape[-1] == 0:
        return observation.image
    return {"image": observation.image, "vector": observation.vector}


def observation_space(frame_size: tuple[int, int], fields: Fields) -> spaces.Space[Any]:
    """The Gymnasium space of what :func:`join_observation` gives."""
    image = spaces.Box(0, 255, (*frame_size, 3), np.uint8)
    return spaces.Dict({"image": image, "vector": vector_space(fields)}) if fields else image


def select_rows(observed: Any, rows: Any) -> Any:
    """Rows of a batch as :func:`join_observation` gives it."""
    if isinstance(observed, dict):
        return {name: part[rows] for name, part in observed.items()}
    return observed[rows]


def assign_rows(observed: Any, rows: Any, values: Any) -> None:
    """Write rows into a batch as :func:`join_observation` gives it."""
    if isinstance(observed, dict):
        for name, part in observed.items():
            part[rows] = values[name]
    else:
        observed[rows] = values
