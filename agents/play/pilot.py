"""Who drives: the hand or the agent, in turns of any length."""

from __future__ import annotations

from typing import Literal

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.play.controls import HandControls
from wm_gym.agents.play.worlds import View
from wm_gym.agents.policies.observers import LatentObserver, PixelObserver
from wm_gym.envs.dream_model import DreamModel
from wm_gym.errors import ConfigError

Who = Literal["hand", "agent"]


class Pilot:
    """Chooses every action, and keeps the agent informed while it does not drive.

    Args:
        action: The stored format.
        driver: The agent; ``None`` leaves the hand alone. Its networks are shared, its memory of the episode is not.

    Attributes:
        name: What datasets call the agent.
    """

    def __init__(self, action: ActionFormat, driver: Driver | None) -> None:
        self._action = action
        self._driver = None if driver is None else _with_own_memory(driver)
        self._who: Who = "hand"
        self.name = "agent" if driver is None else driver.name

    @property
    def who(self) -> Who:
        """Who drives."""
        return self._who

    @who.setter
    def who(self, who: Who) -> None:
        if who == "agent" and self._driver is None:
            raise ConfigError("there is no agent to hand over to; start wm-gym play with --agent bundled or a folder.")
        self._who = who

    def sees_through(self, model: DreamModel) -> bool:
        """Whether the agent takes the features of this very model."""
        observer = None if self._driver is None else self._driver.observer
        return isinstance(observer, LatentObserver) and observer.model is model

    def begin(self, seed: int) -> None:
        """Begin an episode."""
        if self._driver is not None:
            self._driver.reset(seed=seed)

    def action(self, view: View, features: FloatArray | None, hand: HandControls) -> FloatArray:
        """The next action ``(A,)`` float32 in the stored format.

        An agent that is shown frames looks at every one, also at those of the hand's episode: it may take over at the
        next.

        Args:
            view: What the world shows.
            features: ``(F,)`` float32 of the world's state, for an agent that takes them; ``None`` shows it the frame.
            hand: Where the hand holds wheel and pedals.
        """
        by_hand = hand.to_action(self._action)
        if self._driver is None:
            return by_hand
        if features is not None:
            return self._driver.act_on_features(features) if self._who == "agent" else by_hand
        wished = self._driver.act(view.observed)
        if self._who == "agent":
            return wished
        self._driver.carried_out(by_hand)
        return by_hand


def _with_own_memory(driver: Driver) -> Driver:
    """A driver that shares the networks of another one."""
    observer = driver.observer
    if isinstance(observer, PixelObserver):
        own: LatentObserver | PixelObserver = PixelObserver(observer.simulator, observer.frame_stack)
    else:
        own = LatentObserver(driver.model)
    return Driver(own, driver.policy, driver.action, deterministic=driver.deterministic, name=driver.name)
