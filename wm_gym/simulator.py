"""Which simulator a dataset, a model or an agent belongs to: a record, not code that runs one."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from wm_gym.actions import ActionFormat
from wm_gym.vector import Fields

MAX_FRAME_SIDE = 4096
"""Pixels; what is larger is a mistake or damage."""

FrameSide = Annotated[int, Field(ge=1, le=MAX_FRAME_SIDE)]
"""Height or width of a frame, in pixels."""


class SimulatorSpec(BaseModel):
    """A simulator as it was used: enough to make the same environment again.

    Attributes:
        id: Gymnasium id, for example ``"CarRacingDriving-v0"``.
        kwargs: Keyword arguments for ``gym.make`` (JSON values only).
        frame_size: Height and width of its frames, in pixels.
        action: What its stored action vectors mean.
        step_s: Simulated seconds between two actions, or 0 where the simulator does not say.
        vector: Fields of the vector that it gives beside the frame; empty where it gives none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    frame_size: tuple[FrameSide, FrameSide]
    action: ActionFormat
    step_s: float = Field(default=0.0, ge=0.0)
    vector: Fields = ()

    @field_validator("kwargs")
    @classmethod
    def _as_read_back(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """JSON has lists alone: a record with tuples would not equal itself once it was read."""
        try:
            plain: dict[str, Any] = json.loads(json.dumps(kwargs))
        except TypeError as error:
            raise ValueError(f"arguments must be JSON values: {error}") from error
        return plain

    @field_validator("vector")
    @classmethod
    def _names_differ(cls, fields: Fields) -> Fields:
        names = [field.name for field in fields]
        if len(set(names)) < len(names):
            raise ValueError(f"two fields of the vector have one name: {', '.join(names)}")
        return fields

    def misfit(self, other: SimulatorSpec, known: str = "the world model was trained with") -> str | None:
        """Why another simulator does not show and take what this one does, as a clause; ``None``: it does.

        Args:
            other: The other one; the clause begins with it.
            known: How the clause goes on: what this record stands for.
        """
        if other.frame_size != self.frame_size:
            theirs, own = ("{}x{}".format(*spec.frame_size) for spec in (other, self))
            return f"the frames of {other.id} are {theirs}, but {known} {own}"
        if other.vector != self.vector:
            theirs, own = (", ".join(field.name for field in spec.vector) or "none" for spec in (other, self))
            bounds = ", with other bounds or classes" if theirs == own else ""
            return f"{other.id} gives these numbers beside its frames: {theirs}; but {known}: {own}{bounds}"
        if other.action != self.action:
            return (
                f"{other.id} takes {other.action.dim} {other.action.kind} values from {list(other.action.low)} to "
                f"{list(other.action.high)}, but {known} {self.action.dim} {self.action.kind} ones, those of {self.id}"
            )
        return None

    @model_serializer(mode="wrap")
    def _without_an_empty_vector(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A record without a vector is written, and identified, as it was before there were vectors."""
        values: dict[str, Any] = handler(self)
        if not self.vector:
            del values["vector"]
        return values
