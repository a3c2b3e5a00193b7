"""Behaviours by name, for collection and evaluation: random, autopilots, a simulator's own driver, trained agents."""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Iterable

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.agents.autopilots import make_autopilot
from wm_gym.bundle_location import BUNDLED, names_a_bundle
from wm_gym.data_collection.recording.behaviours import (
    SWERVES,
    Behaviour,
    BlindBehaviour,
    Corrected,
    Held,
    Noisy,
    SmoothRandom,
)
from wm_gym.envs.simulators import kind_of
from wm_gym.errors import ConfigError, SimulatorError, did_you_mean
from wm_gym.simulator import SimulatorSpec

BEHAVIOURS = ("random", "autopilot", "noisy", "swerving")
"""Names of the behaviours that need no trained agent and that every simulator with an autopilot has; ``"noisy"`` is the
autopilot at a varied pace, with disturbances, and ``"swerving"`` the autopilot at its best pace with short ones."""

SIMULATOR_BEHAVIOURS: dict[str, dict[str, str]] = {
    "racer": {"CarRacingDriving-v0": "wm_gym.agents.autopilots.car_racing:CarRacingRacer"},
    "patient": {"CarlaDriving-v0": "wm_gym.agents.autopilots.carla:PatientAutopilot"},
    "traffic-manager": {"CarlaDriving-v0": "wm_gym.agents.autopilots.carla_traffic_manager:TrafficManager"},
    "reckless": {"CarlaDriving-v0": "wm_gym.agents.autopilots.carla:RecklessAutopilot"},
    "noisy-traffic-manager": {"CarlaDriving-v0": "wm_gym.agents.autopilots.carla_traffic_manager:NoisyTrafficManager"},
}
"""Behaviours that only some simulators, and those that inherit from them, have: name, Gymnasium id, and
``"module:Class"``, made as ``Class()``."""

BLIND_BEHAVIOURS = ("random", "held(STEERING ACCELERATION)")
"""Behaviours that look at nothing, and therefore act in a dream as they do in a simulator."""

_HELD = re.compile(r"held\((?P<values>[^()]*)\)")
_VARIED = re.compile(r"(?P<how>noisy|swerving|sampled)\((?P<name>.+)\)")
_TEACHERS = "|".join((*BEHAVIOURS, *SIMULATOR_BEHAVIOURS))
_CORRECTED = re.compile(rf"corrected\((?P<learner>.+?)(?: by (?P<teacher>{_TEACHERS}))?\)")


def make_behaviour(name: str, spec: SimulatorSpec) -> Behaviour:
    """Make a behaviour for a simulator.

    Args:
        name: One of :data:`BEHAVIOURS` or :data:`SIMULATOR_BEHAVIOURS`, ``"bundled"`` for the agent that the package
            ships, the folder of a trained agent, or its repository on the Hub, ``"owner/name"``. ``"held(0.1 0.3)"``
            holds one action, steering and acceleration of a driving simulator or all values of its format.
            ``"noisy(NAME)"`` is any of them with disturbances, ``"swerving(NAME)"`` with short ones,
            ``"sampled(AGENT)"`` an agent that draws its actions from its policy, and means their mean, and
            ``"corrected(NAME)"`` any of them while the autopilot says what it would have done, which is recorded beside
            the action; ``"corrected(NAME by racer)"`` asks another of the known drivers.
        spec: The simulator that it will act in.

    Raises:
        ConfigError: ``name`` is neither a known name, nor a folder, nor of the form ``owner/name``, or the values to
            hold are no action.
        SimulatorError: The simulator has no autopilot or no such driver, or its frames or actions are not those of the
            agent.
        BundleError: The agent cannot be loaded.
    """
    if is_blind(name):
        return make_blind_behaviour(name, spec)
    if name in BEHAVIOURS:
        return _make_plain(name, spec)
    if varied := _VARIED.fullmatch(name):
        return _make_varied(varied["how"], varied["name"], spec)
    if corrected := _CORRECTED.fullmatch(name):
        learner, teacher = (make_behaviour(part, spec) for part in _learner_and_teacher(corrected))
        return Corrected(learner, teacher, spec.action)
    if name in SIMULATOR_BEHAVIOURS:
        return _make_simulator_behaviour(name, spec)
    return _make_agent(name, spec)


def make_blind_behaviour(name: str, spec: SimulatorSpec) -> BlindBehaviour:
    """Make a behaviour that looks at nothing.

    Args:
        name: One for which :func:`is_blind` is true.
        spec: The simulator that it will act in, or whose dream.

    Raises:
        ConfigError: The values to hold are no action.
    """
    return SmoothRandom(spec.action) if name == "random" else Held(_held_action(name, spec.action), name)


def is_held(name: str) -> bool:
    """Whether a name is that of an action that is held, as in ``"held(0.1 0.3)"``."""
    return _HELD.fullmatch(name) is not None


def is_blind(name: str) -> bool:
    """Whether a behaviour looks at nothing; see :data:`BLIND_BEHAVIOURS`."""
    return name == "random" or is_held(name)


def is_privileged(name: str) -> bool:
    """Whether a behaviour reads the simulator's state, of which no observation need tell.

    Every known name stands for such a behaviour but those of :data:`BLIND_BEHAVIOURS`; agents see observations alone,
    unless one of these corrects them, and with disturbances a behaviour is what it is without. Holds for the names
    that datasets record as well.
    """
    if varied := _VARIED.fullmatch(name):
        return is_privileged(varied["name"])
    if corrected := _CORRECTED.fullmatch(name):
        return any(map(is_privileged, _learner_and_teacher(corrected)))
    return name in (*BEHAVIOURS, *SIMULATOR_BEHAVIOURS) and not is_blind(name)


def check_names_agent(what: str, name: str, others: Iterable[str]) -> None:
    """Check that a name can be that of an agent: ``"bundled"``, a folder, or ``"owner/name"`` on the Hub.

    Args:
        what: What it names, in words.
        name: The name.
        others: What else could be named.

    Raises:
        ConfigError: It cannot.
    """
    if not names_a_bundle(name):
        raise ConfigError(
            f"{what} {name!r} is neither an agent's folder nor a known name"
            f"{did_you_mean(name, (*BEHAVIOURS, *SIMULATOR_BEHAVIOURS, BUNDLED))}; use {', '.join(others)}, {BUNDLED}, "
            "an agent's folder or owner/name on the Hub."
        )


def refuse_privileged(names: Iterable[str]) -> None:
    """Refuse behaviours that read the simulator's state.

    Raises:
        ConfigError: One of the names is that of such a behaviour.
    """
    for name in names:
        if is_privileged(name):
            raise ConfigError(
                f"the behaviour {name!r} reads the simulator's state, which --no-privileged rules out; use what sees "
                f"observations alone: {', '.join(BLIND_BEHAVIOURS)}, or an agent's folder."
            )


def _held_action(name: str, action: ActionFormat) -> FloatArray:
    found = _HELD.fullmatch(name)
    assert found is not None
    counts = {action.space(kind).shape[0]: kind for kind in action.names}
    try:
        values = [float(text) for text in found["values"].replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) not in counts or not all(map(math.isfinite, values)):
        raise ConfigError(
            f"{name!r} holds no action of this simulator; write {' or '.join(map(str, sorted(counts)))} numbers, as in "
            f"held({' '.join(['0'] * min(counts))})."
        )
    return action.to_stored(values, counts[len(values)])


def _make_plain(name: str, spec: SimulatorSpec) -> Behaviour:
    if name == "noisy":
        return Noisy(make_autopilot(spec.id, varied_pace=True), spec.action)
    if name == "swerving":
        return Noisy(make_autopilot(spec.id), spec.action, SWERVES, name="swerving")
    return make_autopilot(spec.id)


def _make_varied(how: str, name: str, spec: SimulatorSpec) -> Behaviour:
    if how == "sampled":
        return _make_agent(name, spec, sampled=True)
    inner = make_behaviour(name, spec)
    if how == "noisy":
        return Noisy(inner, spec.action)
    return Noisy(inner, spec.action, SWERVES, name=f"swerving({inner.name})")


def _learner_and_teacher(corrected: re.Match[str]) -> tuple[str, str]:
    return corrected["learner"], corrected["teacher"] or "autopilot"


def _make_agent(name: str, spec: SimulatorSpec, *, sampled: bool = False) -> Behaviour:
    check_names_agent("behaviour", name, BEHAVIOURS)
    # torch and Stable-Baselines3 are needed for trained agents only.
    from wm_gym.agents.bundles.driver import Driver, SampledDriver

    driver = SampledDriver.load(name, deterministic=False) if sampled else Driver.load(name)
    driver.check_simulator(spec)
    return driver


def _make_simulator_behaviour(name: str, spec: SimulatorSpec) -> Behaviour:
    entry_points = SIMULATOR_BEHAVIOURS[name]
    kind = kind_of(spec.id, entry_points)
    if kind is None:
        raise SimulatorError(
            f"the behaviour {name!r} belongs to {', '.join(entry_points)}, not to {spec.id}; use another one, such as "
            "'random'."
        )
    behaviour: Behaviour = pkgutil.resolve_name(entry_points[kind])()
    return behaviour
