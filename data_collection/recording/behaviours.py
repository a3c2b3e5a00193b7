"""Behaviour policies: what drives while data are collected.

Those here need no knowledge of the simulator beyond its action format. Behaviours that drive well (autopilots,
learned agents) are in :mod:`wm_gym.agents`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.observation import Observed


class Behaviour(Protocol):
    """Chooses the actions of one environment.

    The same environment state, seed and frames give the same actions, whatever the behaviour did before ``reset``.

    Attributes:
        name: What datasets record as the episode's behaviour.
    """

    name: str

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Begin an episode; called after ``env.reset``.

        Args:
            env: The simulator, whose state the behaviour may read through ``env.unwrapped`` but never changes, except
                to let the simulator's own driver drive (``traffic_manager_drives``).
            seed: Of the episode; all randomness follows from it.
        """
        ...

    def act(self, observation: Observed, /) -> FloatArray:
        """The action for what is seen now: ``(A,)`` float32 in the stored format."""
        ...


class BlindBehaviour(Behaviour, Protocol):
    """A behaviour that looks at nothing, and therefore acts in a dream as it does in a simulator."""

    def reset(self, env: gym.Env[Any, Any] | None, seed: int) -> None:
        """Begin an episode; as for :class:`Behaviour`, but there need not be a simulator."""
        ...

    def act(self, observation: Observed | None, /) -> FloatArray:
        """The next action: ``(A,)`` float32 in the stored format."""
        ...


@runtime_checkable
class TracksActions(Protocol):
    """A behaviour that follows what it did, and has to know where something else was done."""

    def carried_out(self, action: FloatArray) -> None:
        """The action ``(A,)`` that took the place of the last one it gave, in the stored format."""
        ...


@runtime_checkable
class StatesIntention(Protocol):
    """A behaviour that does not always do what it means to.

    Attributes:
        intended_action: ``(A,)`` float32 in the stored format: what it would have done in the last step.
    """

    intended_action: FloatArray


class ControlSpace:
    """A symmetric view of an action format for adding noise: every control lies in [-1, 1], and 0 is neutral.

    Driving actions have two controls, steering and acceleration (negative brakes), so that noise never presses both
    pedals. Native actions have one control for each value, 0 being the middle of its range.
    """

    def __init__(self, action: ActionFormat) -> None:
        self._action = action
        self._low = np.asarray(action.low, dtype=np.float64)
        self._high = np.asarray(action.high, dtype=np.float64)
        self.is_driving = action.kind == "driving"
        self.dim = 2 if self.is_driving else action.dim

    def to_action(self, controls: NDArray[np.float64]) -> FloatArray:
        """Controls ``(dim,)``, clipped, to a stored action ``(A,)`` float32; the gear of a driving one is forward."""
        clipped = np.clip(controls, -1.0, 1.0)
        if self.is_driving:
            return self._action.to_stored(clipped, "steer_accel")
        return self._action.to_stored(self._low + (clipped + 1) / 2 * (self._high - self._low))

    def from_action(self, action: FloatArray) -> NDArray[np.float64]:
        """The controls ``(dim,)`` nearest to a stored action ``(A,)``."""
        if self.is_driving:
            return self._action.from_stored(action, "steer_accel").astype(np.float64)
        extent = np.where(self._high > self._low, self._high - self._low, 1.0)
        return (np.asarray(action, dtype=np.float64) - self._low) / extent * 2 - 1


class SmoothNoise:
    """Noise that changes gradually: a discrete Ornstein-Uhlenbeck process (Uhlenbeck and Ornstein 1930).

    Args:
        rng: Source of randomness.
        scale: Stationary standard deviation of each value, ``(dim,)``.
        correlation_steps: Steps after which the autocorrelation has fallen to 1/e.
    """

    def __init__(self, rng: np.random.Generator, scale: NDArray[np.float64], correlation_steps: float) -> None:
        self._rng = rng
        self._scale = scale
        self._keep = float(np.exp(-1.0 / correlation_steps))
        self._value = rng.normal(size=scale.shape) * scale

    def step(self) -> NDArray[np.float64]:
        """The next value, ``(dim,)``."""
        fresh = self._rng.normal(size=self._scale.shape) * self._scale
        self._value = self._keep * self._value + np.sqrt(1 - self._keep**2) * fresh
        return self._value


class SmoothRandom:
    """Random actions that change gradually over the whole range of the format.

    How strongly and how fast they change is drawn for each episode. Driving actions lean towards driving forwards:
    the gear is forward, and the mean acceleration is positive.

    Args:
        action: The format of the actions.
    """

    name = "random"

    def __init__(self, action: ActionFormat) -> None:
        self._controls = ControlSpace(action)
        self._mean = np.zeros(self._controls.dim)
        self.reset(None, seed=0)

    def reset(self, env: gym.Env[Any, Any] | None, seed: int) -> None:
        """Begin an episode."""
        rng = np.random.default_rng(seed)
        scale = np.full(self._controls.dim, rng.uniform(0.3, 0.8))
        if self._controls.is_driving:
            self._mean[1] = rng.uniform(0.0, 0.4)
            scale[1] = rng.uniform(0.2, 0.5)
        self._noise = SmoothNoise(rng, scale, correlation_steps=rng.uniform(2.0, 12.0))

    def act(self, observation: Observed | None) -> FloatArray:
        """The next action."""
        return self._controls.to_action(self._mean + self._noise.step())


class Held:
    """One action from the first step to the last: what a simulator, or a dream, makes of steering and pedals alone.

    Args:
        action: ``(A,)`` float32 in the stored format.
        name: What datasets record as the behaviour.
    """

    def __init__(self, action: FloatArray, name: str = "held") -> None:
        self.name = name
        self._action = np.array(action, np.float32)

    def reset(self, env: gym.Env[Any, Any] | None, seed: int) -> None:
        """Begin an episode."""

    def act(self, observation: Observed | None) -> FloatArray:
        """The action that is held."""
        return self._action.copy()


class Corrected:
    """A learner that drives, and a teacher that says in every step what it would have done.

    A copy of recorded drivers makes small mistakes that lead to places where none of them was. Recorded there, with the
    teacher's action beside what was done, it can learn the way back (Ross et al. 2011, "A Reduction of Imitation
    Learning and Structured Prediction to No-Regret Online Learning": DAgger).

    Args:
        learner: Drives.
        teacher: Sees the same frames, is reset with the same seed, and its actions are recorded as those intended.
        action: The format of the actions.
    """

    def __init__(self, learner: Behaviour, teacher: Behaviour, action: ActionFormat) -> None:
        by = "" if teacher.name == "autopilot" else f" by {teacher.name}"
        self.name = f"corrected({learner.name}{by})"
        self.intended_action = action.to_stored(np.zeros(action.dim))
        self._learner = learner
        self._teacher = teacher

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Begin an episode."""
        self._learner.reset(env, seed)
        self._teacher.reset(env, seed)

    def act(self, observation: Observed) -> FloatArray:
        """The learner's action."""
        action = self._learner.act(observation)
        self.intended_action = self._teacher.act(observation)
        self.carried_out(action)
        return action

    def carried_out(self, action: FloatArray) -> None:
        """Tell both what was done: the teacher never did what it said."""
        for driver in (self._learner, self._teacher):
            if isinstance(driver, TracksActions):
                driver.carried_out(action)


Disturbance = Literal["none", "offset", "noise", "hold", "drift", "acceleration"]


@dataclass(frozen=True)
class Disturbances:
    """How :class:`Noisy` disturbs: each pair is the least and the most that an episode draws.

    Attributes:
        strength: Size of offsets and noise; 1 moves a control from its middle to its end.
        fraction: Share of the time that is disturbed.
        jitter: Deviation of the noise on every action.
        mean_steps: Mean length of a disturbance.
        kinds: Which there are; ``"acceleration"`` is left out where the format has none.
    """

    strength: tuple[float, float]
    fraction: tuple[float, float]
    jitter: tuple[float, float]
    mean_steps: float
    kinds: tuple[Disturbance, ...]


ROUGH = Disturbances(
    strength=(0.1, 1.0),
    fraction=(0.05, 0.7),
    jitter=(0.0, 0.4),
    mean_steps=8,
    kinds=("offset", "noise", "hold", "acceleration"),
)
"""From hardly any to most of the time: off the road and back again, mostly slow."""
SWERVES = Disturbances(
    strength=(0.05, 0.5),
    fraction=(0.1, 0.4),
    jitter=(0.0, 0.15),
    mean_steps=6,
    kinds=("drift", "drift", "offset", "acceleration"),
)
"""Short and seldom enough to be at speed when they come: what steering does at speed has to be seen to be learned."""


class Noisy:
    """Another behaviour with disturbances, so that a dataset shows mistakes and the recovery from them.

    An episode alternates between stretches that the inner behaviour drives alone and disturbances of random kind and
    length: a constant offset on the steering (or on one control of a native format), smooth noise on everything, an
    action that is held, one that is held with such an offset, or, for driving formats, an acceleration of its own (full
    throttle to full brake). A good driver steers against an offset; only steering that is held shows where it leads.
    Each episode draws how strong disturbances are and how much of the time they take.

    On top, every action is jittered. A good driver's steering follows from the road; a world model that has seen no
    other takes steering for a sign that the road bends, and in its dreams the road follows the steering.

    What the inner behaviour would have done is recorded beside what was done: that is what there is to copy (Laskey et
    al. 2017, "DART: Noise Injection for Robust Imitation Learning"). Copied disturbances teach to go on with them.

    Args:
        inner: Drives; it sees the same frames and is reset with the same seed.
        action: The format of the actions.
        disturbances: How often and how strongly.
        name: What datasets record as the behaviour; ``None`` makes it from the inner one's.
    """

    def __init__(
        self,
        inner: Behaviour,
        action: ActionFormat,
        disturbances: Disturbances = ROUGH,
        name: str | None = None,
    ) -> None:
        self.name = name or (f"noisy({inner.name})" if inner.name != "autopilot" else "noisy")
        self._inner = inner
        self._disturbances = disturbances
        self._controls = ControlSpace(action)
        self._kinds = tuple(kind for kind in disturbances.kinds if kind != "acceleration" or self._controls.is_driving)
        self.intended_action = action.to_stored(np.zeros(action.dim))
        self._start(seed=0)

    def reset(self, env: gym.Env[Any, Any], seed: int) -> None:
        """Begin an episode."""
        self._inner.reset(env, seed)
        self._start(seed)

    def act(self, observation: Observed) -> FloatArray:
        """The inner behaviour's action, or the disturbed one."""
        # The inner behaviour is asked in every step: one with a memory must see every frame.
        action = self._inner.act(observation)
        self.intended_action = self._inner.intended_action if isinstance(self._inner, StatesIntention) else action
        if self._steps_left == 0:
            self._next_stretch(action)
        self._steps_left -= 1
        controls = self._controls.from_action(action)
        if self._kind != "none":
            controls = self._disturbed(controls)
        disturbed = self._controls.to_action(controls + self._rng.normal(size=controls.shape) * self._jitter)
        if isinstance(self._inner, TracksActions):
            self._inner.carried_out(disturbed)
        return disturbed

    def _disturbed(self, controls: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._kind == "hold":
            return self._held
        if self._kind == "drift":
            return self._held + self._offset
        if self._kind == "offset":
            return controls + self._offset
        if self._kind == "noise":
            return controls + self._noise.step()
        controls[1] = self._acceleration
        return controls

    def _start(self, seed: int) -> None:
        # A stream of its own: an inner behaviour that draws from the same seed must not be correlated with it.
        self._rng = np.random.default_rng((seed, 1))
        self._strength = self._rng.uniform(*self._disturbances.strength)
        self._disturbed_fraction = self._rng.uniform(*self._disturbances.fraction)
        self._jitter = self._rng.uniform(*self._disturbances.jitter)
        self._kind: Disturbance = "none"
        self._steps_left = 1 + int(self._rng.geometric(1 / 10))
        self._held = self._offset = np.zeros(self._controls.dim)
        self._acceleration = 0.0

    def _next_stretch(self, action: FloatArray) -> None:
        """Draw the next stretch; the mean length of those between disturbances follows from the fraction."""
        rng, mean_steps = self._rng, self._disturbances.mean_steps
        if self._kind != "none":
            self._kind = "none"
            between = mean_steps * (1 - self._disturbed_fraction) / self._disturbed_fraction
            self._steps_left = int(rng.geometric(min(1.0, 1 / between)))
            return
        dim = self._controls.dim
        self._kind = self._kinds[int(rng.integers(len(self._kinds)))]
        self._steps_left = int(rng.geometric(1 / mean_steps))
        self._held = self._controls.from_action(action)
        self._offset = np.zeros(dim)
        # Steering is the first control; a native format does not say which of its values matters most.
        self._offset[0 if self._controls.is_driving else int(rng.integers(dim))] = rng.normal() * self._strength
        self._noise = SmoothNoise(rng, np.full(dim, 0.7 * self._strength), correlation_steps=rng.uniform(1.0, 8.0))
        self._acceleration = float(rng.uniform(-0.3, 1.0))
