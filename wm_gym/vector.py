"""What a simulator tells in numbers beside the frame: the fields of an observation's vector.

A field is one number: a measured one with a unit and bounds, or one of several named classes. The vector of an
observation has one entry a field, ``(V,)`` float32; a simulator without fields has vectors of 0 entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

FloatArray = NDArray[np.float32]


class VectorField(BaseModel):
    """One entry of an observation's vector.

    Attributes:
        name: What it is called, for example ``"speed"``.
        unit: ``"m/s"``, ``"m"``, ...; empty for classes and plain numbers.
        low: The least value that the world model tells apart; a smaller one counts as this one.
        high: The largest such value.
        classes: Names of the classes of which the entry gives the number; empty for a measured number.
        mirror_sign: Factor under mirroring left for right: -1 for what turns its sign, such as steering.
        mirrored_classes: The class that each class becomes under mirroring; empty where they stay.
        privileged: Whether a real car could not know it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    unit: str = ""
    low: float
    high: float
    classes: tuple[str, ...] = ()
    mirror_sign: Literal[-1, 1] = 1
    mirrored_classes: tuple[int, ...] = ()
    privileged: bool = False

    @classmethod
    def of_classes(
        cls, name: str, classes: Sequence[str], *, mirrored: Sequence[int] = (), privileged: bool = False
    ) -> VectorField:
        """A field that gives the number of a class."""
        return cls(
            name=name,
            low=0.0,
            high=float(len(classes) - 1),
            classes=tuple(classes),
            mirrored_classes=tuple(mirrored),
            privileged=privileged,
        )

    @model_validator(mode="after")
    def _fits_together(self) -> VectorField:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the bounds of {self.name} are {self.low} and {self.high}, but must be finite and rise")
        if self.classes and (self.low, self.high) != (0.0, len(self.classes) - 1.0):
            raise ValueError(
                f"{self.name} has {len(self.classes)} classes, so its bounds are 0 and their number less 1"
            )
        if self.mirrored_classes and sorted(self.mirrored_classes) != list(range(len(self.classes))):
            raise ValueError(f"mirrored_classes of {self.name} must name each of its {len(self.classes)} classes once")
        return self


Fields = tuple[VectorField, ...]


def vector_space(fields: Fields) -> spaces.Box:
    """The Gymnasium space of vectors ``(V,)`` float32."""
    low = np.array([field.low for field in fields], np.float32)
    high = np.array([field.high for field in fields], np.float32)
    return spaces.Box(low, high, dtype=np.float32)


def bounded(fields: Fields, values: Sequence[float]) -> FloatArray:
    """Measured values as a vector ``(V,)`` float32 within the fields' bounds."""
    low = np.array([field.low for field in fields], np.float32)
    high = np.array([field.high for field in fields], np.float32)
    return np.clip(np.asarray(values, np.float32), low, high)


def mirror_vectors(fields: Fields, vectors: NDArray[Any]) -> NDArray[Any]:
    """Vectors ``(..., V)`` as they are in a world mirrored left for right; a new array."""
    mirrored = vectors * np.array([field.mirror_sign for field in fields], np.float32)
    for place, field in enumerate(fields):
        if field.mirrored_classes:
            mirrored[..., place] = np.array(field.mirrored_classes, np.float32)[vectors[..., place].astype(np.int64)]
    return mirrored.astype(np.float32)
