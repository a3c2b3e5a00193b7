"""Which simulator a dataset, a model or an agent belongs to: a record, not code that runs one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from wm_gym.actions import ActionFormat

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
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    kwargs: dict[str, Any] = Field(default_factory=dict)
    frame_size: tuple[FrameSide, FrameSide]
    action: ActionFormat
    step_s: float = Field(default=0.0, ge=0.0)
