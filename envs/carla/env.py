"""``CarlaDriving-v0``: CARLA as a driving environment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.config import parse_config
from wm_gym.envs.arguments import check_choice, check_frame_size, check_reset_options
from wm_gym.envs.carla.birdview import BirdView, EpisodeView
from wm_gym.envs.carla.client import check_carla, probe
from wm_gym.envs.carla.client_handle import ClientEndedError, ClientProcess, clean_up
from wm_gym.envs.carla.config import CarlaConfig, ConnectionConfig
from wm_gym.envs.carla.drive import Drive as DriveState
from wm_gym.envs.carla.messages import MAIN_CAMERA, Drive, EpisodeStarted, SessionSettings, StartEpisode
from wm_gym.envs.carla.observed_vector import observed_vector, vector_fields
from wm_gym.envs.carla.route import Route, RouteState
from wm_gym.envs.carla.server import CarlaServer, launch_command
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.envs.carla.weather import WEATHER_PARAMETERS
from wm_gym.errors import ConfigError, SimulatorLostError
from wm_gym.frames import Frame
from wm_gym.observation import Observation, join_observation, observation_space

ADDRESS_VARIABLE = "WM_GYM_CARLA"
"""Environment variable with the server's ``HOST:PORT``, for where neither is given."""

_RESTARTS_IN_A_RESET = 3
_NEW_CLIENTS_IN_A_RESET = 1
"""CARLA's library can crash while it loads a town: the server goes on, and nothing was driven yet."""
_MAX_SEED = 2**31
_RESET_OPTIONS = ("town", "weather", "spawn_point", "destination", "waypoints")


class CarlaDrivingEnv(gym.Env[Any, Any], EzPickle):
    """
    ## Description
    A car in CARLA follows a route through a town, in synchronous mode with a fixed step. The route is drawn for each
    episode on the map's own waypoints; other vehicles and pedestrians, weather and town may be drawn too. A server has
    to be running (`host`, `port`), or is started by the environment (`launch`).

    CARLA's client runs in a process of its own: it can neither hang nor end the process that uses the environment. At
    the end of either process, whatever the reason, all actors are destroyed and the server's settings are put back.

    ## Action Space
    With `action="driving"`, a `Box` of 4 float32 values:

    | value | range | meaning |
    | --- | --- | --- |
    | 0 | [-1, 1] | steering; positive turns right |
    | 1 | [0, 1] | throttle |
    | 2 | [0, 1] | brake |
    | 3 | [-1, 1] | gear, rounded: -1 reverse, 0 neutral, 1 forward (CARLA's automatic gearbox) |

    With `action="steer_accel"`, a `Box` of 2 float32 values: steering and acceleration, both in [-1, 1]; negative
    acceleration brakes. Values outside their range are clipped.

    ## Observation Space
    A `Dict`: `"image"`, a `Box` of `(H, W, 3)` uint8, RGB, the picture of `camera`; and `"vector"`, a `Box` of float32
    numbers, those that the argument `vector` names, in its order. With `vector=()` the picture alone. The picture always
    belongs to the tick that the action ended with: one that does not come is waited for, then the tick is repeated, and
    after that an error says so.

    ## Rewards
    A sum of weighted terms: progress along the route, deviation from the lane, speed above the limit, comfort,
    collision, off road, red light, end of the route, time. See `wm_gym.envs.carla.reward` for what they measure and a
    worked number; the weights are `reward`.

    ## Starting State
    The car stands on one of the map's spawn points.

    ## Episode End
    Terminated by a collision, off the road, at the end of the route, after driving backwards along it, when stuck, or
    far from the route; `end` has the thresholds, which are those of the CARLA leaderboard 2.x. Truncated after
    `end["max_s"]` simulated seconds, by default 5 s and 0.8 s for each metre of the route, and, with `restart`, when the
    server was lost (`info["simulator_lost"]`): such an end says nothing about the driving.

    ## Information
    `info` has the same keys at `reset` and after every step; numbers, but for those from `applied_action` on.

    | key | meaning |
    | --- | --- |
    | `speed`, `speed_limit` | m/s |
    | `progress` | fraction of the route, 0 to 1 |
    | `lateral_offset`, `heading_error` | metres and degrees from the route, positive to the right |
    | `off_road` | whether the car's centre is off the road |
    | `collisions`, `red_lights` | how many so far |
    | `reward_progress`, `reward_collision`, ... | the terms of the reward |
    | `route_completion`, `driving_score`, `collisions_vehicle_per_km`, ... | see `wm_gym.envs.carla.metrics` |
    | `route_length` | metres |
    | `missed_images` | ticks that were repeated so far, because a picture did not come |
    | `frame` | simulator frames since `reset` |
    | `simulator_lost` | whether the server was lost in this step |
    | `applied_action` | `(4,)` float32: what the pedals and the wheel did during the step |
    | `end` | why the episode ended: `"collision"`, `"off_road"`, `"red_light"`, `"route_done"`, `"wrong_way"`, `"stuck"`, `"deviation"`, `"time"`, `"simulator_lost"`, or `""` |
    | `lost_reason` | why the server was lost, in one sentence, or `""` |
    | `infractions` | one line for each infraction so far: kind, what, where, when |
    | `town`, `weather` | names |
    | `cameras` | frames of the cameras besides the first, by name |

    ## Arguments
    * `action="driving"`, `frame_size=None`: one number or two, instead of the width and height of the picture.
    * `view="camera"`, or `"birdview"`: a picture from above that the package draws from the map and the state of the
      world: road, markings, the route (beyond a stop line in its light's colour), stop lines, vehicles, pedestrians and
      the ego vehicle. The server then renders nothing, if there are no `cameras`, and may run without a GPU
      (`-nullrhi`). `birdview` has its size, metres a pixel and where the ego vehicle stands.
    * What is simulated: `town`, `weather`, `vehicle`, `action_repeat`, `step_s`, `camera`, `cameras`, `traffic`,
      `route`, `reward`, `end`: the fields of `wm_gym.envs.carla.config.CarlaConfig`; groups are dictionaries.
    * `vector`: names of what is told in numbers, by default those a car with a route planner knows: `"speed"`,
      `"speed_limit"` (m/s), `"steering"`, `"acceleration"` (m/s^2), `"command"` (left, right, straight, lane_follow,
      change_lane_left, change_lane_right: that of the next junction or lane change from 25 m before it),
      `"route_points"` (metres forward and to the right of ten points of the route, 5 to 50 m ahead) and
      `"distance_left"` (m). On request also what only the simulator knows: `"light_state"` (none, red, yellow, green,
      off), `"light_distance"` (m), `"vehicle_ahead"` (whether there is a vehicle on the next 60 m of the route, its
      distance in m and its speed in m/s, or else their upper bounds), and the older `"vehicle_distance"` and
      `"vehicle_speed"` (without a vehicle: 60 and the own speed). A value that the server does not give is an error.
    * How to reach a server: `host`, `port` (or the variable `WM_GYM_CARLA=HOST:PORT`), `timeout_s`, `launch`,
      `restart`, ...: the fields of `wm_gym.envs.carla.config.ConnectionConfig`. No dataset and no model records them.

    Options of `reset`: `town`; `weather`, a preset or a dictionary of `carla.WeatherParameters`; `spawn_point` and
    `destination` (numbers of the map's spawn points); or, instead of these two, `waypoints`, two or more places `(x, y)`
    or `(x, y, z)` in metres through which the route leads.

    ```python
    import gymnasium as gym
    import wm_gym

    env = gym.make("CarlaDriving-v0", town="Town03", weather="random", traffic={"vehicles": 30}, frame_size=256)
    frame, info = env.reset(seed=1)
    ```

    ## Version History
    * v0: first version, for CARLA 0.9.15 and 0.9.16.
    """  # noqa: D205, D212, E501 - the page template of Gymnasium's environments

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "driving": True,
        # Records from before there was a vector do not say that they have none.
        "vector_by_default": True,
        # Who waits at a red light does right.
        "may_stand": True,
        # Arguments that say what is met: recordings that differ in these are of one task.
        "scene": ("town", "weather", "traffic", "route"),
        # Arguments that say where to simulate, not what; datasets and models leave them out.
        "unrecorded": tuple(ConnectionConfig.model_fields),
    }
    action_format: ClassVar[ActionFormat] = ActionFormat.driving()

    def __init__(
        self,
        *,
        action: str | None = "driving",
        frame_size: int | tuple[int, int] | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        EzPickle.__init__(self, action=action, frame_size=frame_size, render_mode=render_mode, **settings)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode={render_mode!r} is not offered; use None or 'rgb_array'.")
        self.config, self.connection = split_settings(settings, frame_size)
        check_carla()
        self._server = CarlaServer(self.connection) if self.connection.launch is not None else None
        if self._server is not None:
            launch_command(self.connection, container="check")
        self.action_name = self.action_format.resolve(action)
        self.action_space = self.action_format.space(self.action_name)
        self.vector_fields = vector_fields(self.config.vector)
        """What the entries of the observation's vector are."""
        self.observation_space = observation_space(self.config.frame_size, self.vector_fields)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "render_fps": 1.0 / self.config.control_s}

        self.traffic_manager_drives = False
        """Whether CARLA's Traffic Manager drives instead of the actions given to ``step``; may change at any step."""
        self._client: ClientProcess | None = None
        self._was_lost = False
        self._started: EpisodeStarted | None = None
        self._drive: DriveState | None = None
        self._frame: Frame = np.zeros((*self.config.frame_size, 3), np.uint8)
        self._birdview: BirdView | None = None
        self._episode_view: EpisodeView | None = None
        self._cameras: dict[str, Frame] = {}
        self._missed_images = 0

    # -- what a driver may look at ---------------------------------------------------------------------------------

    @property
    def step_s(self) -> float:
        """Simulated seconds between two actions."""
        return self.config.control_s

    @property
    def route(self) -> Route:
        """The way to drive."""
        return self._running.route

    @property
    def route_state(self) -> RouteState:
        """Where the car is on its route."""
        return self._running.route_state

    @property
    def ego_state(self) -> EgoState:
        """Pose and speed of the car."""
        return self._running.tick.ego

    @property
    def speed_limit(self) -> float:
        """In m/s."""
        return self._running.tick.speed_limit

    @property
    def max_steer_angle(self) -> float:
        """Angle of the wheels at full lock, in degrees."""
        return self._episode.max_steer_angle

    @property
    def wheelbase(self) -> float:
        """Distance of the axles, in metres."""
        return self._episode.wheelbase

    @property
    def applied_action(self) -> FloatArray:
        """What the pedals and the wheel did during the last tick: ``(4,)`` float32, in the driving format."""
        return np.asarray(self._running.tick.applied, dtype=np.float32)

    def road_users(self) -> tuple[RoadUser, ...]:
        """Vehicles and pedestrians around the car."""
        return self._running.tick.road_users

    def light_ahead(self) -> tuple[float, str] | None:
        """Metres from the car's front to the next stop line of its route with a traffic light, and its colour.

        A line that the car is over is the next one, with negative metres, until the rear is well past it.
        """
        return self._running.light_ahead()

    @property
    def _running(self) -> DriveState:
        if self._drive is None:
            raise ConfigError("there is no episode; call reset() first.")
        return self._drive

    @property
    def _episode(self) -> EpisodeStarted:
        if self._started is None:
            raise ConfigError("there is no episode; call reset() first.")
        return self._started

    # -- Gymnasium ---------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Raises:
            SimulatorLostError: The server cannot be reached, or was lost (with ``restart``: again and again), or
                CARLA's client crashed twice.
            SimulatorError: The server cannot be used.
            ConfigError: A town or a spawn point does not exist.
        """
        super().reset(seed=seed)
        chosen = _checked(check_reset_options(options, _RESET_OPTIONS))
        request = StartEpisode(seed=int(self.np_random.integers(_MAX_SEED)), **chosen)
        self._drive = None
        self._started = started = self._start(request)
        self._drive = DriveState(started, self.config)
        self._missed_images = 0
        self._look_from_above(started)
        self._keep_images(started.images)
        return self._observe(), self._info()

    def step(self, action: FloatArray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold one action for ``action_repeat`` ticks.

        Raises:
            SimulatorLostError: The server was lost, and ``restart`` is not set.
        """
        if not np.all(np.isfinite(action)):
            raise ConfigError(f"the action {np.asarray(action).tolist()} is not finite; clip or check the policy.")
        drive = self._running
        if self._client is None:
            raise SimulatorLostError("the CARLA server was lost; call reset() to start again.")
        stored = self.action_format.to_stored(action, self.action_name)
        steering, throttle, brake, gear = (float(value) for value in stored)
        held = None if self.traffic_manager_drives else (steering, throttle, brake, gear)
        try:
            driven = self._client.drive(Drive(held, self.config.action_repeat))
        except SimulatorLostError as error:
            self._drop_client(was_lost=True)
            if not self.connection.restart:
                raise self._explain(error) from error
            gym.logger.warn(f"{error} The episode is cut, and the next one starts afresh.")
            return self._observe(), 0.0, False, True, self._info(lost_reason=str(error))
        reward = drive.add(driven.ticks)
        self._missed_images += driven.missed_images
        self._keep_images(driven.images)
        terminated, truncated = drive.terminated, drive.truncated
        return self._observe(), reward, terminated, truncated, self._info()

    def render(self) -> Any:
        """The last frame: ``(H, W, 3)`` uint8 RGB."""
        if self.render_mode is None:
            gym.logger.warn("render() was called on an environment made without render_mode; use 'rgb_array'.")
            return None
        return self._frame

    def close(self) -> None:
        """Destroy the actors, put the server's settings back, and stop a server that the environment started."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if self._server is not None:
            self._server.stop()
        else:
            clean_up(self.connection)

    # -- the server --------------------------------------------------------------------------------------------------

    def _start(self, request: StartEpisode) -> EpisodeStarted:
        """Begin an episode, on a new server or connection where that is needed and allowed."""
        server, recycle = self._server, self.connection.recycle_episodes
        if server is not None and recycle and server.episodes >= recycle:
            self._drop_client(was_lost=False)
        tries = 1 + (_RESTARTS_IN_A_RESET if self.connection.restart else _NEW_CLIENTS_IN_A_RESET)
        while True:
            tries -= 1
            try:
                started = self._connected().start_episode(request)
                break
            except SimulatorLostError as error:
                explained = self._explain(error)
                if self._client is None and self._server is None:
                    # Nobody answers, after the full wait if it was a server that was lost: it is gone, or never was.
                    raise explained from error
                has_crashed = (
                    isinstance(error, ClientEndedError) and probe(self.connection.host, self.connection.port) is None
                )
                self._drop_client(was_lost=True)
                if tries == 0 or not (self.connection.restart or has_crashed):
                    raise explained from error
                gym.logger.warn(f"{explained} Trying again.")
        if server is not None:
            server.episodes += 1
        return started

    def _connected(self) -> ClientProcess:
        if self._client is None:
            if self._server is not None:
                self._server.start()
            self._client = ClientProcess(
                SessionSettings(
                    self.config,
                    self.connection,
                    wait=self._server is not None or self._was_lost,
                    server_group=self._server.group if self._server is not None else None,
                )
            )
            self._was_lost = False
        return self._client

    def _drop_client(self, *, was_lost: bool) -> None:
        """End the client process, and a server of ours with it."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if self._server is not None:
            self._server.stop()
        self._was_lost = was_lost

    def _explain(self, error: SimulatorLostError) -> SimulatorLostError:
        return SimulatorLostError(str(error) + (self._server.last_words() if self._server is not None else ""))

    # -- observations ------------------------------------------------------------------------------------------------

    def _look_from_above(self, started: EpisodeStarted) -> None:
        """Prepare the bird's-eye view of an episode, where that is what is observed."""
        if self.config.view != "birdview":
            return
        if started.raster is not None:
            self._birdview = BirdView(self.config.birdview, started.raster)
        self._episode_view = EpisodeView.of(started.route, started.stop_lines, started.half_length, started.half_width)

    def _keep_images(self, images: Mapping[str, Frame]) -> None:
        if self._birdview is None or self._episode_view is None:
            self._frame = images[MAIN_CAMERA]
        else:
            drive = self._running
            distance, tick = drive.route_state.distance, drive.tick
            self._frame = self._birdview.draw(self._episode_view, tick.ego, distance, tick.road_users, tick.lights)
        self._cameras = {name: image for name, image in images.items() if name != MAIN_CAMERA}

    def _observe(self) -> Any:
        return join_observation(Observation(self._frame, observed_vector(self.config.vector, self._running)))

    def _info(self, *, lost_reason: str = "") -> dict[str, Any]:
        drive = self._running
        return {
            **drive.info(),
            "missed_images": float(self._missed_images),
            "simulator_lost": bool(lost_reason),
            "lost_reason": lost_reason,
            "applied_action": self.applied_action,
            "end": "simulator_lost" if lost_reason else drive.end,
            "town": self._episode.town,
            "weather": self._episode.weather or "",
            "cameras": dict(self._cameras),
        }


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a reset, those of a route file's forms checked here, before the server is asked."""
    checked = dict(options)
    if checked.get("waypoints") is not None:
        for name in ("spawn_point", "destination"):
            if checked.get(name) is not None:
                raise ConfigError(f"the reset options waypoints and {name} exclude each other; leave one of them out.")
        checked["waypoints"] = _places(checked["waypoints"])
    weather = checked.get("weather")
    if isinstance(weather, Mapping):
        for name, value in weather.items():
            check_choice("weather parameter", name, WEATHER_PARAMETERS)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"the weather parameter {name}={value!r} must be a finite number.")
    return checked


def _places(waypoints: Any) -> tuple[tuple[float, float, float], ...]:
    try:
        given = [tuple(float(value) for value in place) for place in waypoints]
    except (TypeError, ValueError):
        given = []
    if len(given) < 2 or any(len(place) not in (2, 3) or not all(map(math.isfinite, place)) for place in given):
        raise ConfigError("the reset option waypoints must be two or more places (x, y) or (x, y, z) in metres.")
    return tuple((place[0], place[1], place[2] if len(place) == 3 else 0.0) for place in given)


def split_settings(
    settings: Mapping[str, Any], frame_size: int | tuple[int, int] | None = None
) -> tuple[CarlaConfig, ConnectionConfig]:
    """Sort and check the arguments of the environment: what to simulate, and where.

    Raises:
        ConfigError: One of them is unknown, of the wrong type or out of range.
    """
    connection = {name: value for name, value in settings.items() if name in ConnectionConfig.model_fields}
    simulated = {name: value for name, value in settings.items() if name not in connection}
    if frame_size is not None:
        height, width = check_frame_size(frame_size)
        view = "birdview" if simulated.get("view") == "birdview" else "camera"
        simulated[view] = {**simulated.get(view, {}), "height": height, "width": width}
    origin = "CarlaDriving-v0"
    if "host" not in connection and "port" not in connection and os.environ.get(ADDRESS_VARIABLE):
        connection.update(parse_address(os.environ[ADDRESS_VARIABLE]))
    return parse_config(CarlaConfig, simulated, origin=origin), parse_config(
        ConnectionConfig, connection, origin=origin
    )


def parse_address(text: str) -> dict[str, Any]:
    """Read ``HOST:PORT`` or ``HOST``: the arguments ``host`` and ``port``.

    Raises:
        ConfigError: It is neither.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        return {"host": text.strip(), "port": 2000}
    if not host or not port.isdigit() or not 0 < int(port) < 65534:
        raise ConfigError(f"{text!r} is no address of a CARLA server; write HOST:PORT, as in localhost:2000.")
    return {"host": host, "port": int(port)}
