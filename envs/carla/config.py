"""Settings of ``CarlaDriving-v0``: typed, checked before anything is started, and written into datasets and models."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from wm_gym.envs.carla.observed_vector import DEFAULT_NAMES, vector_fields
from wm_gym.envs.carla.weather import WEATHER_NAMES
from wm_gym.errors import ConfigError

RANDOM = "random"
"""Where a name is asked for: draw one for each episode."""

ROUTE_START_S = 5.0
ROUTE_S_PER_M = 0.8
"""The time for a route, as leaderboard 1.0 gives it: enough for red lights on the way."""


_BIRDVIEW_HEIGHT_M = 60.0


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CameraConfig(_Section):
    """A camera mounted on the vehicle; position in metres from its centre (x forward, y right, z up)."""

    kind: Literal["rgb", "semantic"] = Field(default="rgb", description="Picture, or semantic tags as colours.")
    width: int = Field(default=256, ge=8, description="Pixels.")
    height: int = Field(default=256, ge=8, description="Pixels.")
    fov: float = Field(default=90.0, gt=0, lt=180, description="Horizontal field of view in degrees.")
    x: float = Field(default=1.5, description="Forward, in metres.")
    y: float = Field(default=0.0, description="To the right, in metres.")
    z: float = Field(default=2.0, description="Up, in metres.")
    pitch: float = Field(default=-8.0, ge=-90, le=90, description="Degrees; negative looks down.")
    yaw: float = Field(default=0.0, description="Degrees; positive looks to the right.")
    roll: float = Field(default=0.0, description="Degrees.")


class BirdViewConfig(_Section):
    """The bird's-eye view."""

    width: int = Field(default=128, ge=16, le=1024, description="Pixels.")
    height: int = Field(default=128, ge=16, le=1024, description="Pixels.")
    metres_per_pixel: float | None = Field(
        default=None, ge=0.05, le=4, description="Metres a pixel; None shows 60 m from the bottom to the top."
    )
    ego_from_bottom: float = Field(
        default=0.2, ge=0, le=1, description="Part of the picture's height below the centre of the ego vehicle."
    )

    @property
    def scale(self) -> float:
        """Metres a pixel."""
        return _BIRDVIEW_HEIGHT_M / self.height if self.metres_per_pixel is None else self.metres_per_pixel

    @property
    def ahead_m(self) -> float:
        """Metres from the centre of the ego vehicle to the upper edge of the picture."""
        return (1 - self.ego_from_bottom) * self.height * self.scale


class TrafficConfig(_Section):
    """Other road users."""

    vehicles: NonNegativeInt | list[NonNegativeInt] = Field(
        default=0, description="Vehicles driven by the Traffic Manager, or numbers to draw from for each episode."
    )
    walkers: NonNegativeInt | list[NonNegativeInt] = Field(
        default=0, description="Pedestrians, or numbers to draw from for each episode."
    )
    four_wheeled_only: bool = Field(default=True, description="No bicycles and motorcycles.")
    speed_difference: float = Field(
        default=20.0, lt=100, description="Per cent that vehicles stay below the limit; negative ones exceed it."
    )
    following_distance: float = Field(default=2.5, ge=0, description="Metres kept to the vehicle ahead.")
    hybrid_physics_radius: float = Field(
        default=0.0, ge=0, description="Metres around the ego vehicle with full physics; 0 for everywhere."
    )

    @field_validator("vehicles", "walkers", mode="wrap")
    @classmethod
    def _check_numbers(cls, given: Any, parse: ValidatorFunctionWrapHandler) -> Any:
        with suppress(ValidationError):
            if (numbers := parse(given)) != []:
                return numbers
        raise ValueError(f"{given!r} is no number of 0 or more, nor a list of such numbers")

    def drawn(self, rng: np.random.Generator) -> tuple[int, int]:
        """The vehicles and the pedestrians of an episode; where there is one number alone, nothing is drawn."""
        vehicles, walkers = (
            numbers if isinstance(numbers, int) else numbers[int(rng.integers(len(numbers)))]
            for numbers in (self.vehicles, self.walkers)
        )
        return vehicles, walkers


class RouteConfig(_Section):
    """The way to drive, drawn for each episode unless it is given by ``reset(options=...)``."""

    min_length: float = Field(default=200.0, gt=0, description="Metres.")
    max_length: float = Field(default=1000.0, gt=0, description="Metres; longer routes are cut.")
    spacing: float = Field(default=1.0, gt=0, le=5, description="Metres between the points of a route.")

    @model_validator(mode="after")
    def _check(self) -> RouteConfig:
        if self.max_length < self.min_length:
            raise ValueError(f"max_length={self.max_length} is below min_length={self.min_length}")
        return self


class RewardConfig(_Section):
    """A preset, and the weights of its terms; see :mod:`wm_gym.envs.carla.reward` for what they multiply.

    The preset's name alone stands for it: ``reward="route_completion"``.
    """

    preset: Literal["weighted", "route_completion"] = Field(
        default="weighted",
        description="weighted: the sum of the terms below. route_completion: per cent of the route, less for soft "
        "infractions, and hard ones end the drive; it has no weights.",
    )
    progress: float = Field(default=1.0, description="For each metre along the route.")
    lane_deviation: float = Field(default=-0.5, description="For each metre off the lane's centre, a second.")
    speed: float = Field(default=-2.0, description="For each m/s above the limit, a second.")
    comfort: float = Field(default=-0.02, description="For each m/s^3 of jerk above 5 m/s^3, a second.")
    collision: float = Field(default=-200.0, description="Once for each collision.")
    off_road: float = Field(default=-100.0, description="Once, when the vehicle leaves the road.")
    red_light: float = Field(default=-150.0, description="Once for each red light that is run.")
    route_done: float = Field(default=100.0, description="Once, at the end of the route.")
    time: float = Field(default=-0.5, description="For each second.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"preset": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> RewardConfig:
        weights = self.model_fields_set - {"preset"}
        defaults = type(self).model_fields
        changed = sorted(name for name in weights if getattr(self, name) != defaults[name].default)
        if self.preset != "weighted" and changed:
            raise ValueError(f"preset={self.preset} has no weights, but {', '.join(changed)} is given; leave that out")
        return self


class EndConfig(_Section):
    """What ends an episode."""

    collision: bool = Field(default=True, description="Terminate at a collision.")
    collision_impulse: float = Field(
        default=0.0, ge=0, description="Impulse in N s below which a collision does not terminate; 0 for any collision."
    )
    off_road: bool = Field(default=True, description="Terminate when the vehicle's centre leaves the road.")
    red_light: bool | None = Field(
        default=None,
        description="Terminate when a red light is run; None does so with the reward route_completion alone.",
    )
    wrong_way_m: float = Field(default=5.0, ge=0, description="Terminate after so many metres backwards; 0 never.")
    stuck_s: float = Field(default=180.0, ge=0, description="Terminate after so long without moving; 0 never.")
    max_deviation_m: float = Field(
        default=30.0, ge=0, description="Terminate when the vehicle is so far from its route; 0 never."
    )
    max_s: float | None = Field(
        default=None,
        ge=0,
        description="Truncate after so many simulated seconds; 0 never. None gives route_start_s, and route_s_per_m "
        "for each metre of the route.",
    )
    route_start_s: float = Field(default=ROUTE_START_S, ge=0, description="Simulated seconds for any route.")
    route_s_per_m: float = Field(
        default=ROUTE_S_PER_M, gt=0, description="Simulated seconds for each metre of the route."
    )

    def time_limit_s(self, route_length: float) -> float:
        """Simulated seconds for a route of so many metres; infinite where there is no limit."""
        if self.max_s is None:
            return self.route_start_s + self.route_s_per_m * route_length
        return self.max_s or math.inf


class ConnectionConfig(_Section):
    """How to reach a server. It decides nothing about what is simulated, so no dataset and no model records it."""

    host: str = Field(default="localhost", description="Where the server runs.")
    port: int = Field(default=2000, ge=1, le=65533, description="RPC port; CARLA uses the next two as well.")
    timeout_s: float = Field(default=10.0, gt=0, description="Longest wait for an answer, a tick or a frame.")
    image_timeout_s: float = Field(
        default=3.0, gt=0, description="Longest wait for a picture before the tick is repeated (twice at most)."
    )
    connect_timeout_s: float = Field(
        default=60.0, gt=0, description="Longest wait for a server that starts or comes back."
    )
    load_timeout_s: float = Field(default=120.0, gt=0, description="Longest wait for another town.")
    traffic_manager_port: int = Field(default=0, ge=0, le=65535, description="0 chooses a free one.")
    launch: str | list[str] | None = Field(
        default=None,
        description=(
            "None attaches to a running server. Otherwise the server is started and supervised: the path of "
            "CarlaUE4.sh, 'docker' or 'docker:IMAGE', 'light' or 'light:TOWN' for the package's own, or "
            "a command line as a list, with {port} in it."
        ),
    )
    launch_options: list[str] = Field(
        default_factory=list, description="Further options for the server, such as -quality-level=Low."
    )
    restart: bool = Field(
        default=False,
        description=(
            "After the server is lost, end the episode as truncated and start or wait for the server again at the "
            "next reset, instead of raising an error."
        ),
    )
    recycle_episodes: int = Field(
        default=0, ge=0, description="Restart a launched server after so many episodes (it leaks memory); 0 never."
    )
    version_check: bool = Field(default=True, description="Refuse a server of another version than the client's.")


class CarlaConfig(_Section):
    """Everything that ``gym.make("CarlaDriving-v0", ...)`` takes, but the connection."""

    town: str | list[str] | None = Field(
        default=None, description="Town, towns to draw from, or None for the one that the server has loaded."
    )
    weather: str | list[str] | None = Field(
        default="ClearNoon", description="Preset, presets to draw from, 'random' for any of them, None to leave it."
    )
    vehicle: str = Field(default="vehicle.lincoln.mkz_2020", description="Blueprint of the ego vehicle.")
    action_repeat: int = Field(default=1, ge=1, description="Ticks for each action.")
    step_s: float = Field(default=0.05, gt=0, le=0.1, description="Simulated seconds of a tick.")
    vector: tuple[str, ...] = Field(
        default=DEFAULT_NAMES,
        description="What is observed in numbers beside the picture: names of wm_gym.envs.carla.observed_vector; empty "
        "for the picture alone.",
    )
    view: Literal["camera", "birdview"] = Field(
        default="camera",
        description="What the observed picture is: that of the camera, or a bird's-eye view, which is drawn from the "
        "map and needs no rendering by the server.",
    )
    birdview: BirdViewConfig = BirdViewConfig()
    camera: CameraConfig = CameraConfig()
    cameras: dict[str, CameraConfig] = Field(
        default_factory=dict, description="More cameras by name; their frames are in info['cameras']."
    )
    traffic: TrafficConfig = TrafficConfig()
    route: RouteConfig = RouteConfig()
    reward: RewardConfig = RewardConfig()
    end: EndConfig = EndConfig()

    @field_validator("vector")
    @classmethod
    def _check_vector(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            vector_fields(names)
        except ConfigError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return names

    @field_validator("weather")
    @classmethod
    def _check_weather(cls, weather: str | list[str] | None) -> str | list[str] | None:
        for name in [weather] if isinstance(weather, str) else (weather or []):
            if name not in (*WEATHER_NAMES, RANDOM):
                raise ValueError(f"{name!r} is no weather; use 'random' or one of {', '.join(WEATHER_NAMES)}")
        return weather

    @property
    def ends_at_red_light(self) -> bool:
        """Whether running a red light terminates an episode."""
        asked = self.end.red_light
        return self.reward.preset == "route_completion" if asked is None else asked

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the observed picture."""
        view = self.birdview if self.view == "birdview" else self.camera
        return view.height, view.width

    @property
    def control_s(self) -> float:
        """Simulated seconds between two actions."""
        return self.step_s * self.action_repeat
