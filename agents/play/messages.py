"""What browser and server say to each other.

The browser sends JSON texts, each an object with a ``kind``. The server sends JSON texts of its own, and each step as
one binary message (:mod:`wm_gym.agents.web.pictures`), with a picture for each world.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from wm_gym.agents.play.controls import HandControls
from wm_gym.agents.play.session import MAX_HORIZON, Mode
from wm_gym.agents.play.worlds import TEMPERATURES
from wm_gym.errors import WMGymError

MAX_MESSAGE_BYTES = 4096
SLOWEST, FASTEST = 0.05, 20.0
"""Bounds of the speed, as multiples of the simulated time."""
_SHOWN = 60


class RubbishError(WMGymError):
    """A message that no page of ours sends."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Controls(_Message):
    """Where the hand holds wheel and pedals; see :class:`~wm_gym.agents.play.controls.HandControls`."""

    kind: Literal["controls"]
    steering: float = Field(ge=-1, le=1)
    throttle: float = Field(ge=0, le=1)
    brake: float = Field(ge=0, le=1)
    reverse: bool = False

    @property
    def hand(self) -> HandControls:
        """The same for a session."""
        return HandControls(self.steering, self.throttle, self.brake, self.reverse)


class Shown(_Message):
    """The page has shown a step, and can take another one."""

    kind: Literal["shown"]
    number: int = Field(ge=0)


class Start(_Message):
    """Begin an episode: what is left out stays as it was."""

    kind: Literal["start"]
    mode: Mode | None = None
    start_state: int | None = Field(default=None, ge=0)
    seed: int | None = Field(default=None, ge=0)


class Order(_Message):
    """One of the orders without a value."""

    kind: Literal["again", "next", "dream_again", "single_step"]


class Driving(_Message):
    """Give the wheel to the hand or the agent."""

    kind: Literal["driver"]
    who: Literal["hand", "agent"]


class Pause(_Message):
    """Stop, or go on."""

    kind: Literal["pause"]
    paused: bool


class Speed(_Message):
    """How fast time goes: 1 is the simulated time."""

    kind: Literal["speed"]
    speed: float = Field(ge=SLOWEST, le=FASTEST)


class Horizon(_Message):
    """Steps until a dream is cut, from its next start on."""

    kind: Literal["horizon"]
    steps: int = Field(ge=1, le=MAX_HORIZON)


class Temperature(_Message):
    """Of the dream's draws, from its next start on."""

    kind: Literal["temperature"]
    temperature: float = Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])


class Record(_Message):
    """Keep episodes, or stop keeping them."""

    kind: Literal["record"]
    on: bool


Message = Controls | Shown | Start | Order | Driving | Pause | Speed | Horizon | Temperature | Record
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def parse_message(message: Mapping[str, Any]) -> Message:
    """Read an ASGI ``websocket.receive`` message.

    Raises:
        RubbishError: It is none that a page of ours sends.
    """
    text = message.get("text")
    if not isinstance(text, str):
        raise RubbishError("it sent bytes, but only JSON texts are read")
    try:
        return _ADAPTER.validate_json(text)
    except RecursionError as error:
        raise RubbishError("it sent JSON that is nested too deeply") from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, problem["loc"]))[:_SHOWN]  # names of the sender's making
        raise RubbishError(f"it sent what no page of ours sends ({where or 'message'}: {problem['msg']})") from error
