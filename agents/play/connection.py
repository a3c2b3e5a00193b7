"""One browser's page: its messages in, steps at its pace out."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from wm_gym.actions import DRIVING_NAMES
from wm_gym.agents.play.controls import HandControls
from wm_gym.agents.play.messages import (
    Controls,
    Driving,
    Horizon,
    Message,
    Order,
    Pause,
    Record,
    RubbishError,
    Shown,
    Speed,
    Start,
    Temperature,
    parse_message,
)
from wm_gym.agents.play.session import MODES, PlaySession, PlaySetup
from wm_gym.agents.play.worlds import View
from wm_gym.agents.web.pictures import encode_pictures
from wm_gym.envs.rollout_contract import DEFAULT_FPS
from wm_gym.errors import WMGymError

T = TypeVar("T")
Compute = Callable[[Callable[[], T]], Awaitable[T]]
"""Runs a function where models and simulators run, and waits for it without blocking the network."""

_MOST_UNDERWAY = 2
"""Steps on their way to the page, which says what it has shown: a page that is slow, or asleep, is not flooded."""
_RUBBISH = 1008  # WebSocket: policy violation


class Connection:
    """Drives a session as its page says, until the page is gone.

    Args:
        channel: The accepted WebSocket.
        setup: What all sessions share.
        compute: Where models and simulators run.
        say: Takes a sentence for the log.
        name: What the log calls the page.
    """

    def __init__(
        self, channel: WebSocket, setup: PlaySetup, compute: Compute[Any], say: Callable[[str], None], name: str
    ) -> None:
        self._channel = channel
        self._setup = setup
        self._compute = compute
        self._say = say
        self._name = name
        self._told: deque[str] = deque()
        self._session: PlaySession = PlaySession(setup, self._told.append)
        self._orders: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._hand = HandControls()
        self._paused = False
        self._wants_one = False
        self._waits = False
        self._speed = 1.0
        self._sent = self._shown = 0
        self._due = 0.0

    async def run(self) -> None:
        """Serve the page until it is closed or sends rubbish; the log has a sentence for either."""
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._drive())]
        ended = f"{self._name} was closed."
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except RubbishError as error:
            ended = f"{self._name} was refused, because {str(error).rstrip('.')}."
            with suppress(Exception):
                await self._channel.close(_RUBBISH, "not understood")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self._compute(self._session.close)
            except WMGymError as error:
                self._told.append(f"{self._name}: {error}")
            for sentence in (*self._told, ended):
                self._say(sentence)

    async def _read(self) -> None:
        """Take the page's messages as they come; returns when it is gone."""
        while True:
            received = await self._channel.receive()
            if received["type"] == "websocket.disconnect":
                return
            message = parse_message(received)
            if isinstance(message, Controls):
                self._hand = message.hand
            elif isinstance(message, Shown):
                self._shown = min(max(self._shown, message.number), self._sent)
            else:
                self._orders.append(message)
            self._wake.set()

    async def _drive(self) -> None:
        """Carry out orders and steps, one at a time; returns when the page cannot be reached."""
        with suppress(ConnectionError, WebSocketDisconnect):
            await self._send(await self._compute(self._greeting))
            await self._obey(Order(kind="again"))
            while True:
                self._wake.clear()
                if self._waits and not self._must_wait:
                    self._waits = False
                    await self._send_state()
                elif self._orders:
                    await self._obey(self._orders.popleft())
                elif (wait_s := self._wait_s()) is None or wait_s > 0:
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), wait_s)
                else:
                    await self._step()

    def _wait_s(self) -> float | None:
        """Seconds until the next step; ``None`` until the page says something."""
        stands = self._paused and not self._wants_one
        if stands or self._waits or self._session.ended is not None or self._sent - self._shown >= _MOST_UNDERWAY:
            return None
        return 0.0 if self._wants_one else self._due - asyncio.get_running_loop().time()

    @property
    def _must_wait(self) -> bool:
        """Whether an episode that has just begun waits for the hand: else the car rolls off before one is ready."""
        return self._session.pilot.who == "hand" and self._hand.is_neutral and not self._wants_one

    async def _step(self) -> None:
        period_s = self._step_s / self._speed
        # Late by more than a step: the time is lost, not caught up with.
        self._due = max(self._due, asyncio.get_running_loop().time() - period_s) + period_s
        self._wants_one = False
        hand = self._hand
        if await self._try(lambda: self._session.step(hand)):
            await self._show()
        if self._session.ended is not None:
            await self._send_state()

    async def _obey(self, order: Message) -> None:
        if isinstance(order, Pause):
            self._paused = order.paused
        elif isinstance(order, Speed):
            self._speed = order.speed
            self._due = 0.0
        elif isinstance(order, Order) and order.kind == "single_step":
            self._paused, self._wants_one = True, self._session.ended is None
        elif await self._try(lambda: self._change(order)) and isinstance(order, Start | Order):
            if self._session.leading.steps == 0:
                self._waits = self._must_wait
            await self._send_state()  # the page then knows of a new episode before it is shown
            await self._show()
            return
        await self._send_state()

    def _change(self, order: Message) -> bool:
        """What an order changes in the session."""
        session = self._session
        if isinstance(order, Start):
            session.start(mode=order.mode, start_state=order.start_state, seed=order.seed)
        elif isinstance(order, Driving):
            session.pilot.who = order.who
        elif isinstance(order, Horizon):
            session.horizon = order.steps
        elif isinstance(order, Temperature):
            session.dream.temperature = order.temperature
        elif isinstance(order, Record):
            session.keeps_drives = order.on
        elif isinstance(order, Order):
            {"again": session.again, "next": session.next, "dream_again": session.dream_again}[order.kind]()
        return True

    async def _try(self, change: Callable[[], bool]) -> bool:
        """Compute; what the user can mend is told to the page and the log, and nothing stops."""
        try:
            outcome: bool = await self._compute(change)
        except WMGymError as error:
            self._say(f"{self._name}: {error}")
            await self._send({"kind": "problem", "text": str(error)})
            return False
        while self._told:
            sentence = self._told.popleft()
            self._say(sentence)
            await self._send({"kind": "notice", "text": sentence})
        return outcome

    @property
    def _step_s(self) -> float:
        return self._setup.model.simulator.step_s or 1.0 / DEFAULT_FPS

    def _greeting(self) -> dict[str, Any]:
        """What the page has to know once."""
        simulator = self._setup.model.simulator
        driving = simulator.action.kind == "driving"
        return {
            "kind": "hello",
            "simulator": simulator.id,
            "modes": MODES,
            "step_s": self._step_s,
            "start_states": self._session.dream.num_start_states,
            "frame_size": simulator.frame_size,
            "has_agent": self._setup.driver is not None,
            "can_record": self._setup.record is not None,
            "has_gear": driving,
            "actions": DRIVING_NAMES if driving else [f"value {place}" for place in range(simulator.action.dim)],
            "vector": [
                {"name": field.name, "unit": field.unit, "low": field.low, "high": field.high, "classes": field.classes}
                for field in simulator.vector
            ],
        }

    async def _send_state(self) -> None:
        session = self._session
        await self._send(
            {
                "kind": "state",
                "mode": session.mode,
                "who": session.pilot.who,
                "paused": self._paused,
                "speed": self._speed,
                "horizon": session.horizon,
                "temperature": session.dream.temperature if session.dream.has_temperature else None,
                "start_state": session.start_state,
                "seed": session.seed,
                "record": session.keeps_drives,
                "waits": self._waits,
                "ended": session.ended,
            }
        )

    async def _show(self) -> None:
        """Send what the worlds show."""
        session = self._session
        views = dict(session.views)
        if not views:
            return
        self._sent += 1
        header = {
            "number": self._sent,
            "action": None if session.action is None else [round(float(value), 4) for value in session.action],
            "worlds": {name: _numbers(view) for name, view in views.items()},
        }
        await self._channel.send_bytes(
            encode_pictures(header, {name: view.observed.image for name, view in views.items()})
        )

    async def _send(self, message: dict[str, Any]) -> None:
        await self._channel.send_text(json.dumps(message))


def _numbers(view: View) -> dict[str, Any]:
    """A view without its picture, as JSON values."""
    return {
        "reward": view.reward,
        "return": view.return_,
        "continuation": view.continuation,
        "uncertainty": view.info.get("uncertainty"),
        "steps": view.steps,
        "ended": view.ended,
        "vector": [float(value) for value in view.observed.vector],
    }
