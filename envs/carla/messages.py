"""What the environment and the process that talks to CARLA say to each other: plain data, no CARLA objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from wm_gym.envs.carla.config import CarlaConfig, ConnectionConfig
from wm_gym.envs.carla.route import Route
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.envs.carla.stop_lines import StopLine
from wm_gym.envs.carla.town_raster import TownRaster
from wm_gym.frames import Frame

MAIN_CAMERA = ""
"""Name of the camera that gives the observation."""

CALLS_IN_A_CLOSE = 3
"""Calls to the server in the course of cleaning up that may take their time limit: all but a few are quick."""

LightState = Literal["red", "yellow", "green", "off", "unknown"]


@dataclass(frozen=True)
class SessionSettings:
    """What the client process needs to know; sent to it once.

    Attributes:
        config: What to simulate.
        connection: Where the server is.
        was_asynchronous: The server's own settings are known to be asynchronous, whatever it says now: a client that
            crashed has left it synchronous.
        wait: Wait for a server that is starting, instead of giving up at once.
        server_group: Process group of a server that the environment started: to be ended with the environment.
    """

    config: CarlaConfig
    connection: ConnectionConfig
    wait: bool = False
    was_asynchronous: bool = False
    server_group: int | None = None


@dataclass(frozen=True)
class StartEpisode:
    """Begin an episode.

    Attributes:
        seed: Everything random follows from it: spawn point, route, traffic, town and weather where drawn.
        town: Town to load, or ``None`` for the configured ones.
        weather: Preset, or numbers of :data:`~wm_gym.envs.carla.weather.WEATHER_PARAMETERS` by name, or ``None`` for
            the configured ones.
        spawn_point: Number of the map's spawn point, or ``None`` to draw one.
        destination: Number of the spawn point where the route ends, or ``None`` to draw one.
        waypoints: Two or more places (x, y, z in metres) through which the route leads and at the first of which the
            vehicle starts, or ``None``.
    """

    seed: int
    town: str | None = None
    weather: str | Mapping[str, float] | None = None
    spawn_point: int | None = None
    destination: int | None = None
    waypoints: tuple[tuple[float, float, float], ...] | None = None


@dataclass(frozen=True)
class Drive:
    """Simulate one action.

    Attributes:
        action: The driving action ``(4,)``; ``None`` leaves the wheel to the Traffic Manager.
        ticks: How many ticks it lasts at most; a collision ends it early.
    """

    action: tuple[float, float, float, float] | None
    ticks: int


@dataclass(frozen=True)
class Close:
    """Destroy the actors, restore the server's settings, and end."""


Request = StartEpisode | Drive | Close


@dataclass(frozen=True)
class Collision:
    """Something that the ego vehicle ran into.

    Attributes:
        frame: When.
        other_id: The other actor's number.
        other_type: Its blueprint, or its kind for things that are no actors (``"static.building"``).
        impulse: Size of the impulse in N s.
    """

    frame: int
    other_id: int
    other_type: str
    impulse: float


@dataclass(frozen=True)
class Tick:
    """What one tick showed, apart from pictures.

    Attributes:
        frame: The simulator's frame number.
        ego: The ego vehicle.
        applied: The action that its pedals and wheel held during the tick, in the driving format.
        speed_limit: In m/s.
        on_road: Whether the vehicle's centre is on a lane that vehicles may use.
        rear_lane: Ids of the road and the lane in which its rear end is, or ``None`` where that is not known.
        collisions: What it hit in this tick.
        lights: State of every traffic light with a stop line, by its number.
        road_users: Vehicles and pedestrians around it.
    """

    frame: int
    ego: EgoState
    applied: tuple[float, float, float, float]
    speed_limit: float
    on_road: bool
    collisions: tuple[Collision, ...]
    lights: dict[int, LightState]
    road_users: tuple[RoadUser, ...]
    rear_lane: tuple[int, int] | None = None


@dataclass(frozen=True)
class EpisodeStarted:
    """Answer to :class:`StartEpisode`.

    Attributes:
        town: Name of the town.
        weather: Preset, ``"custom"`` for one given by its parameters, or ``None`` where the server's was left.
        route: The way to drive.
        stop_lines: Of the town's traffic lights.
        max_steer_angle: Of the wheels at full lock, in degrees.
        wheelbase: In metres.
        half_length: Of the ego vehicle, in metres.
        half_width: Of the ego vehicle, in metres.
        num_vehicles: Vehicles that could be spawned.
        num_walkers: Pedestrians that could be spawned.
        tick: The first tick.
        images: Of the cameras, ``(H, W, 3)`` uint8.
        raster: The town's ground, with the first episode in it that is seen from above.
    """

    town: str
    weather: str | None
    route: Route
    stop_lines: tuple[StopLine, ...]
    max_steer_angle: float
    wheelbase: float
    half_length: float
    half_width: float
    num_vehicles: int
    num_walkers: int
    tick: Tick
    images: dict[str, Frame] = field(repr=False)
    raster: TownRaster | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Driven:
    """Answer to :class:`Drive`: a tick for each that was simulated, and the last one's pictures ``(H, W, 3)`` uint8.

    Attributes:
        missed_images: Ticks that were repeated because a picture did not come.
    """

    ticks: tuple[Tick, ...]
    images: dict[str, Frame] = field(repr=False)
    missed_images: int = 0


@dataclass(frozen=True)
class Ready:
    """First word of the client process: it is connected."""

    server_version: str
    client_version: str
    was_asynchronous: bool


@dataclass(frozen=True)
class Closed:
    """Answer to :class:`Close`.

    Attributes:
        is_clean: Whether everything was destroyed and put back.
    """

    is_clean: bool


@dataclass(frozen=True)
class Busy:
    """Sent before an answer that takes longer than usual.

    Attributes:
        seconds: How long it may take at most.
    """

    seconds: float


@dataclass(frozen=True)
class Failed:
    """Something went wrong.

    Attributes:
        message: One sentence.
        error: Class of the error.
        is_lost: Whether the server does not answer as it should, so that the connection is of no use any more.
        is_clean: Whether everything was destroyed and put back all the same.
    """

    message: str
    error: str
    is_lost: bool
    is_clean: bool = False


Reply = Ready | EpisodeStarted | Driven | Closed | Busy | Failed
