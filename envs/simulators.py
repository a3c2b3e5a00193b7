"""Simulators by name: the short names, and any Gymnasium id with image observations and continuous actions.

Every environment from :func:`make_simulator` gives frames, uint8 ``(H, W, 3)``, or a ``Dict`` of such an ``"image"``
and a ``"vector"`` ``(V,)`` float32, and takes a one-dimensional ``Box`` of float32 actions. What the vector's entries
are, an environment says by its attribute ``vector_fields``; without it they are numbered. Driving simulators
(``metadata["driving"]``) take action format, frame size and action repeat as arguments of their own; any other
environment is wrapped so that it behaves alike.

A simulator that runs on a server names the arguments that say where it runs, not what it simulates, in
``metadata["unrecorded"]``: its connection. They reach the environment, but no record. One where standing still can be
right says so by ``metadata["may_stand"]``; one that can be met in other scenes, which recordings may mix, names the
arguments that choose them in ``metadata["scene"]``.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator, registry
from gymnasium.utils import RecordConstructorArgs

from wm_gym.actions import ActionFormat, FloatArray, is_driving
from wm_gym.envs.arguments import check_seed
from wm_gym.errors import SimulatorError, did_you_mean
from wm_gym.frames import resize_frame
from wm_gym.observation import Observation, join_observation, observation_space, split_observation
from wm_gym.simulator import SimulatorSpec
from wm_gym.vector import Fields, VectorField

SIMULATORS: dict[str, str] = {"car-racing": "CarRacingDriving-v0", "carla": "CarlaDriving-v0"}
"""Short names and the Gymnasium ids behind them."""


class Simulator(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """An environment together with the record that makes it again.

    Attributes:
        simulator: The record.
    """

    def __init__(self, env: gym.Env[Any, Any], simulator: SimulatorSpec) -> None:
        RecordConstructorArgs.__init__(self, simulator=simulator)
        gym.Wrapper.__init__(self, env)
        self.simulator = simulator


class NativeSimulator(Simulator):
    """A simulator that is not a driving one: resized frames, float32 actions, optional action repeat.

    Args:
        env: An environment with observations as above and a bounded one-dimensional ``Box`` of actions.
        simulator: Its record, with the frame size wanted.
        action_repeat: How many of the environment's steps one action lasts; rewards are summed, and the last frame
            and ``info`` are returned. An episode that ends within ends the action too.
    """

    def __init__(self, env: gym.Env[Any, Any], simulator: SimulatorSpec, action_repeat: int) -> None:
        RecordConstructorArgs.__init__(self, simulator=simulator, action_repeat=action_repeat)
        super().__init__(env, simulator)
        self.action_repeat = action_repeat
        self.observation_space = observation_space(simulator.frame_size, simulator.vector)
        self.action_space = simulator.action.space()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observed, info = self.env.reset(seed=check_seed(seed), options=options)
        return self._resized(observed), info

    def step(self, action: FloatArray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold one action for ``action_repeat`` steps of the environment."""
        native = self.simulator.action.to_stored(action)
        if np.issubdtype(self.env.action_space.dtype, np.integer):
            native = np.rint(native)
        native = native.astype(self.env.action_space.dtype)
        total = 0.0
        for _ in range(self.action_repeat):
            observed, reward, terminated, truncated, info = self.env.step(native)
            total += float(np.asarray(reward).item())  # [0.5] is no number, but what some environments give
            if terminated or truncated:
                break
        return self._resized(observed), total, bool(terminated), bool(truncated), info

    def _resized(self, observed: Any) -> Any:
        image, vector = split_observation(observed)
        return join_observation(Observation(resize_frame(image, *self.simulator.frame_size), vector))


def make_simulator(
    name: str,
    *,
    action: str | None = None,
    frame_size: tuple[int, int] | int | None = None,
    action_repeat: int | None = None,
    render_mode: str | None = None,
    connection: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """Make a simulator.

    Args:
        name: A short name of :data:`SIMULATORS`, or any Gymnasium id, also with the module that registers it
            (``"module:Id-v0"``).
        action: What an action means: ``None`` for the format in which datasets store it, or ``"steer_accel"`` for
            driving simulators.
        frame_size: Height and width of the frames, one number or two; ``None`` for the simulator's own.
        action_repeat: Simulator frames for each action; ``None`` for the simulator's own (1 where it has none).
        render_mode: As for ``gym.make``.
        connection: Further arguments of the simulator that must be of its connection.
        **kwargs: Further arguments of the simulator; JSON values, so that datasets and models can record them. Those
            of the connection are not recorded.

    Returns:
        An environment with observations as above and a one-dimensional float32 ``Box`` of actions.

    Raises:
        SimulatorError: The name is unknown, a dependency is missing, an argument is not one of the simulator's (or of
            its connection), or its observations or actions do not fit.
        ConfigError: An argument has a value out of its range.

    Example:
        >>> env = make_simulator("car-racing", frame_size=96)
        >>> frame, info = env.reset(seed=1)
    """
    env_id = SIMULATORS.get(name, name)
    recorded, unrecorded = split_connection(name, kwargs, connection or {})
    if action_repeat is not None:
        recorded["action_repeat"] = action_repeat
    _check_json(name, recorded)
    if _metadata(name).get("driving", False):
        own = {**recorded, **unrecorded}
        if action is not None:
            own["action"] = action
        if frame_size is not None:
            own["frame_size"] = frame_size
        env = _make(env_id, own, render_mode)
        return Simulator(env, _describe_driving(env, env_id, recorded))

    if action not in (None, "native"):
        raise SimulatorError(
            f"{name} is not a driving simulator, so action={action!r} cannot be used with it; leave it out."
        )
    repeat = 1 if action_repeat is None else action_repeat
    if repeat < 1:
        raise SimulatorError(f"action_repeat={action_repeat!r} must be at least 1.")
    env = _make(env_id, {**kwargs, **unrecorded}, render_mode)
    try:
        simulator = _describe_native(env, env_id, recorded, frame_size, repeat)
    except SimulatorError:
        env.close()
        raise
    return NativeSimulator(env, simulator, repeat)


def make_simulator_from_spec(
    simulator: SimulatorSpec,
    *,
    action: str | None = None,
    render_mode: str | None = None,
    connection: Mapping[str, Any] | None = None,
) -> gym.Env[Any, Any]:
    """Make the simulator of a dataset, model or agent again.

    Args:
        simulator: Its record.
        action: What an action means, as for :func:`make_simulator`.
        render_mode: As for ``gym.make``.
        connection: Where the simulator runs, as for :func:`make_simulator`; a record does not say.

    Raises:
        SimulatorError: As :func:`make_simulator`, or the simulator's actions are no longer those of the record.
    """
    kwargs = simulator.kwargs
    if not simulator.vector and _metadata(simulator.id).get("vector_by_default", False):
        kwargs = {"vector": [], **kwargs}
    env = make_simulator(
        simulator.id,
        action=action,
        frame_size=simulator.frame_size,
        render_mode=render_mode,
        connection=connection,
        **kwargs,
    )
    misfit = simulator.misfit(describe_simulator(env), "the record says")
    if misfit is not None:
        env.close()
        raise SimulatorError(f"{misfit}; install the version that it was recorded with.")
    return env


def describe_simulator(env: gym.Env[Any, Any]) -> SimulatorSpec:
    """The record of a simulator: enough to make it again with :func:`make_simulator_from_spec`.

    Args:
        env: An environment from :func:`make_simulator`, or a driving one from ``gym.make``; further wrappers around
            it are not recorded.

    Raises:
        SimulatorError: The environment is another one.
    """
    layer = env
    while True:
        if isinstance(layer, Simulator):
            return layer.simulator
        if not isinstance(layer, gym.Wrapper):
            break
        layer = layer.env
    spec = env.unwrapped.spec
    if spec is None or not is_driving(env):
        raise SimulatorError(f"{env} is neither from make_simulator nor a registered driving simulator; make it there.")
    left_out = ("action", "frame_size", "render_mode", *env.unwrapped.metadata.get("unrecorded", ()))
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in left_out}
    _check_json(spec.id, kwargs)
    return _describe_driving(env, spec.id, kwargs)


def resolve_simulator(
    simulator: str | SimulatorSpec, kwargs: Mapping[str, Any], connections: Sequence[Mapping[str, Any]]
) -> tuple[SimulatorSpec, list[dict[str, Any]]]:
    """The record of the simulator asked for, and where each of its instances runs.

    Makes the first one, so that what is wrong with it shows early.

    Args:
        simulator: Short name, Gymnasium id or record.
        kwargs: Arguments as for :func:`make_simulator`, which differ from a record's; those of the connection hold for
            all instances.
        connections: Further arguments of the connection for each instance.

    Raises:
        SimulatorError: As :func:`make_simulator`.
    """
    if not isinstance(simulator, SimulatorSpec):
        env = make_simulator(simulator, connection=connections[0], **kwargs)
    elif not kwargs:
        env = make_simulator_from_spec(simulator, connection=connections[0])
    else:
        wanted = {"frame_size": simulator.frame_size, **simulator.kwargs, **kwargs}
        env = make_simulator(simulator.id, connection=connections[0], **wanted)
    with closing(env):
        spec = describe_simulator(env)
    common = split_connection(spec.id, kwargs)[1]
    return spec, [{**common, **connection} for connection in connections]


def split_connection(
    name: str, kwargs: Mapping[str, Any], connection: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the arguments of a simulator into those that a record keeps, and those of its connection.

    Args:
        name: Short name or Gymnasium id.
        kwargs: Arguments as for :func:`make_simulator`.
        connection: Further ones, which must be of the connection.

    Raises:
        SimulatorError: The name is unknown, a dependency is missing, or the simulator's connection has no such
            argument, or it runs without a server.
    """
    names = _metadata(name).get("unrecorded", ())
    env_id = SIMULATORS.get(name, name)
    foreign = [key for key in connection or {} if key not in names]
    if foreign and not names:
        raise SimulatorError(f"{env_id} runs without a server, so {foreign[0]!r} cannot be set for it; leave it out.")
    if foreign:
        raise SimulatorError(
            f"{foreign[0]!r} is no setting of the connection to {env_id}{did_you_mean(foreign[0], names)}; give it "
            "with the simulator's other arguments, which datasets and models record."
        )
    recorded = {key: value for key, value in kwargs.items() if key not in names}
    return recorded, {**{key: kwargs[key] for key in kwargs if key in names}, **(connection or {})}


def has_connection(name: str) -> bool:
    """Whether a simulator runs on a server, so that an environment needs one for itself; raises as above."""
    return bool(_metadata(name).get("unrecorded"))


def may_stand(name: str) -> bool:
    """Whether standing still can be right in a simulator, as at a red light; raises as above."""
    return bool(_metadata(name).get("may_stand", False))


def scene_settings(name: str) -> tuple[str, ...]:
    """Keyword arguments that choose what is met (towns, traffic), and not what is observed or paid.

    None where the simulator does not say, or what it needs is not installed.
    """
    try:
        return tuple(_metadata(name).get("scene", ()))
    except SimulatorError:
        return ()


def kind_of(name: str, known: Iterable[str]) -> str | None:
    """Which of some simulators another one is, or inherits from.

    Args:
        name: Short name or Gymnasium id, also with the module that registers it.
        known: Gymnasium ids of this package.

    Returns:
        One of ``known``, or ``None``.

    Raises:
        SimulatorError: ``name`` is unknown, or a dependency is missing.
    """
    env_id = SIMULATORS.get(name, name)
    candidates = list(known)
    if env_id in candidates:
        return env_id
    ancestors = getattr(_creator(env_id), "__mro__", ())
    found = {_creator_or_none(candidate): candidate for candidate in candidates}
    return next((found[ancestor] for ancestor in ancestors if ancestor in found), None)


def return_ceiling(simulator: SimulatorSpec, steps: int) -> float | None:
    """The most that a task can give in ``steps`` steps by its own rules, whoever drives.

    A simulator says so by a method ``return_ceiling(steps)``; only one that has it is made, for a moment.

    Args:
        simulator: Its record.
        steps: Number of actions.

    Returns:
        The return, or ``None`` where the simulator does not say.

    Raises:
        ConfigError: ``steps`` is below 1.
        SimulatorError: The simulator is unknown or cannot be made.
    """
    if not callable(getattr(_creator(simulator.id), "return_ceiling", None)):
        return None
    with closing(make_simulator_from_spec(simulator)) as env:
        return float(env.unwrapped.return_ceiling(steps))  # type: ignore[attr-defined]


def _describe_driving(env: gym.Env[Any, Any], env_id: str, kwargs: Mapping[str, Any]) -> SimulatorSpec:
    height, width = frame_shape(env, env_id)
    return SimulatorSpec(
        id=env_id,
        kwargs=dict(kwargs),
        frame_size=(height, width),
        action=ActionFormat.driving(),
        step_s=float(getattr(env.unwrapped, "step_s", 0.0)),
        vector=_vector_fields(env, env_id),
    )


def _describe_native(
    env: gym.Env[Any, Any],
    env_id: str,
    kwargs: Mapping[str, Any],
    frame_size: tuple[int, int] | int | None,
    action_repeat: int,
) -> SimulatorSpec:
    size = frame_shape(env, env_id)
    if frame_size is not None:
        size = (frame_size, frame_size) if isinstance(frame_size, int) else (int(frame_size[0]), int(frame_size[1]))
        if min(size) < 8:
            raise SimulatorError(f"frame_size={frame_size!r} is too small; use at least 8 pixels each way.")
    space = env.action_space
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
        raise SimulatorError(
            f"{env_id} takes actions in {space}, but continuous ones are needed: a Box with one dimension; "
            "choose another simulator or one of its options with continuous actions."
        )
    if not space.is_bounded():
        raise SimulatorError(
            f"{env_id} takes actions in {space}, but finite bounds are needed; register a version wrapped in "
            "gymnasium.wrappers.ClipAction or RescaleAction."
        )
    # Gymnasium has no field for simulated time; environments of the Gymnasium family draw one frame per step.
    frames_per_s = float(env.metadata.get("render_fps") or 0)
    return SimulatorSpec(
        id=env_id,
        kwargs=dict(kwargs),
        frame_size=size,
        action=ActionFormat.native(space),
        step_s=action_repeat / frames_per_s if frames_per_s > 0 else 0.0,
        vector=_vector_fields(env, env_id),
    )


def frame_shape(env: gym.Env[Any, Any], env_id: str) -> tuple[int, int]:
    """Height and width of the frames that an environment gives.

    Raises:
        SimulatorError: It gives something else.
    """
    space = env.observation_space
    if isinstance(space, spaces.Dict) and set(space.spaces) == {"image", "vector"}:
        space = space["image"]
    is_frame = (
        isinstance(space, spaces.Box)
        and space.dtype == np.dtype(np.uint8)
        and len(space.shape) == 3
        and space.shape[2] == 3
    )
    if not is_frame:
        raise SimulatorError(
            f"{env_id} observes {space}, but frames are needed: uint8 (H, W, 3), or a Dict of such "
            "an 'image' and a 'vector'; register a version wrapped in "
            "gymnasium.wrappers.AddRenderObservation."
        )
    assert space.shape is not None
    return int(space.shape[0]), int(space.shape[1])


def _vector_fields(env: gym.Env[Any, Any], env_id: str) -> Fields:
    """The fields of the vector that an environment gives; none where it gives frames alone."""
    if not isinstance(env.observation_space, spaces.Dict):
        return ()
    space = env.observation_space["vector"]
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded()):
        raise SimulatorError(
            f"{env_id} gives vectors in {space}, but a one-dimensional Box with finite bounds is needed; register a "
            "version that clips or scales them."
        )
    named: Fields | None = getattr(env.unwrapped, "vector_fields", None)
    if named is not None:
        return named
    bounds = zip(space.low.tolist(), space.high.tolist(), strict=True)
    return tuple(VectorField(name=f"vector_{place}", low=low, high=high) for place, (low, high) in enumerate(bounds))


def _metadata(name: str) -> Mapping[str, Any]:
    """What the class behind a short name or Gymnasium id says about itself; imports its module."""
    metadata: Mapping[str, Any] | None = getattr(_creator(SIMULATORS.get(name, name)), "metadata", None)
    return metadata or {}


def _creator(env_id: str) -> Any:
    """The class or function behind a Gymnasium id, or ``None``; imports its module."""
    module, _, plain_id = env_id.rpartition(":")
    try:
        if module:
            _import(module)
        spec = gym.spec(plain_id)
        return load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except (gym.error.Error, ImportError) as error:
        raise _unavailable(env_id, error) from error


def _import(module: str) -> None:
    """Import a module that is installed, or lies in the current folder, which an installed command does not search."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if error.name != module.partition(".")[0] or here in sys.path or getattr(sys.flags, "safe_path", False):
            raise
        sys.path.append(here)
        importlib.invalidate_caches()
        importlib.import_module(module)


def _creator_or_none(env_id: str) -> Any:
    try:
        return _creator(env_id)
    except SimulatorError:  # not registered, or what it needs is missing: nothing here can inherit from it
        return None


def _make(env_id: str, kwargs: Mapping[str, Any], render_mode: str | None) -> gym.Env[Any, Any]:
    # Not every environment has the argument, which is one of Gymnasium's customs and not of its interface.
    given = dict(kwargs) if render_mode is None else {**kwargs, "render_mode": render_mode}
    try:
        return gym.make(env_id, disable_env_checker=True, **given)
    except gym.error.DependencyNotInstalled as error:
        raise _unavailable(env_id, error) from error
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None and "takes no arguments" not in str(error):
            raise
        name = next(iter(given)) if unexpected is None else unexpected[1]
        raise SimulatorError(f"{env_id} has no argument {name!r}; see its documentation for those it has.") from error


def _unavailable(env_id: str, error: Exception) -> SimulatorError:
    if isinstance(error, gym.error.Error) and not isinstance(error, gym.error.DependencyNotInstalled):
        near = did_you_mean(env_id.rpartition(":")[2], (*SIMULATORS, *registry))
        return SimulatorError(
            f"no simulator is called {env_id!r}{near}; use {', '.join(SIMULATORS)} or the id of a Gymnasium "
            "environment, with the module that registers it in front (module:Id-v0) where it is not Gymnasium's own."
        )
    reason = " ".join(str(error).split()).rstrip(".")
    remedy = "" if ";" in reason else "; install what is missing and try again"
    return SimulatorError(f"{env_id} cannot be loaded: {reason}{remedy}.")


def _check_json(name: str, kwargs: Mapping[str, Any]) -> None:
    try:
        json.dumps(kwargs)
    except TypeError as error:
        raise SimulatorError(
            f"the arguments {sorted(kwargs)} of {name} must be JSON values (numbers, text, lists, dictionaries), "
            f"because datasets and models record them: {error}."
        ) from error
