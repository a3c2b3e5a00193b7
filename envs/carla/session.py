"""Everything that touches CARLA, in the order that CARLA needs. Used in the client process only.

What this module takes care of, each of it a known way of losing a server, a process or an afternoon:

* One client alone may tick a synchronous server; a server in use is refused, and what a dead client left is removed.
* The Traffic Manager ends the whole process when a vehicle that it drives is destroyed, or when the server dies. So
  vehicles are taken back from it before they are destroyed, and all of this runs in a process of its own.
* Sensors are stopped before they are destroyed, children before their parents, and the server's own settings are
  put back at the end.
* Every call to the server has a time limit.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wm_gym.envs.carla.client import ServerSilentError, connect, import_carla, perhaps_gone, server_calls
from wm_gym.envs.carla.config import RANDOM, CameraConfig
from wm_gym.envs.carla.episode_actors import DEFAULT_WHEELBASE_M, EpisodeActors
from wm_gym.envs.carla.messages import (
    MAIN_CAMERA,
    Closed,
    Drive,
    Driven,
    EpisodeStarted,
    Ready,
    SessionSettings,
    StartEpisode,
    Tick,
)
from wm_gym.envs.carla.metrics import collision_kind
from wm_gym.envs.carla.route import Route
from wm_gym.envs.carla.sensors import Camera, CollisionSensor, MissingImageError, camera_blueprint, mount, start_cameras
from wm_gym.envs.carla.state import EgoState
from wm_gym.envs.carla.ticking import Ticker, synchronous_manager
from wm_gym.envs.carla.town import Town, same_roads, short_name
from wm_gym.envs.carla.town_raster import TownRaster, cached_raster
from wm_gym.envs.carla.traffic import CONTROLLER, Traffic
from wm_gym.envs.carla.weather import CUSTOM, WEATHER_NAMES
from wm_gym.errors import ConfigError, SimulatorError, SimulatorLostError
from wm_gym.frames import Frame

if TYPE_CHECKING:
    import carla

ROLE = "wm_gym"
"""Start of the role name of everything that is spawned."""

_EGO_ROLE = "hero"
_SETTLE_TICKS = 10
"""Spawned vehicles fall onto their wheels first."""

_PATH_SPACING_M = 2.0
_MAX_SPAWN_TRIES = 20
_TRAFFIC_STREAM = 1
_SPAWN_ABOVE_M = (0.5, 1.0, 2.0)
"""Heights above the road to try at the start of a given route: a vehicle that touches the ground is refused."""
_MAX_IMAGE_RETRIES = 2
_IN_USE_WATCH_S = 1.0
_RASTER_S = 120.0
"""Longest time that the ground of a large town takes to draw, once."""
_KMH = 1 / 3.6


class CarlaSession:
    """A connection to one server, and the episode that runs on it.

    Args:
        settings: What to simulate and where.
        say_busy: Told before something that may take longer than usual, with how many seconds at most.

    Raises:
        SimulatorLostError: The server cannot be reached or does not answer.
        SimulatorError: It has another version, or another client drives it.
    """

    def __init__(self, settings: SessionSettings, say_busy: Callable[[float], None] = lambda seconds: None) -> None:
        self._carla = import_carla()
        self._say_busy = say_busy
        self._config = settings.config
        self._connection = settings.connection
        self._role = f"{ROLE}/{socket.gethostname()}/{os.getpid()}"
        self._client: carla.Client = connect(settings.connection, wait=settings.wait)
        self._episode: EpisodeActors | None = None
        self._manager: carla.TrafficManager | None = None
        self._original: carla.WorldSettings | None = None
        self._town: Town | None = None
        self._raster_sent: str | None = None
        self.is_silent = False
        """Whether the server has stopped answering, so that nothing can be cleaned up on it."""
        try:
            with self._server_calls():
                self._use_world(self._client.get_world())
                self._take_over()
                self._original = self._world.get_settings()
                if settings.was_asynchronous:
                    _make_asynchronous(self._original)
                self._make_synchronous()
                self._server_version: str = self._client.get_server_version()
        except Exception:
            self.close()
            raise

    @property
    def ready(self) -> Ready:
        """What to tell the environment."""
        assert self._original is not None
        return Ready(self._server_version, self._client.get_client_version(), not self._original.synchronous_mode)

    @property
    def _address(self) -> str:
        return f"{self._connection.host}:{self._connection.port}"

    # -- episodes ------------------------------------------------------------------------------------------------

    def start(self, request: StartEpisode) -> EpisodeStarted:
        """Begin an episode; ends the one before."""
        with self._server_calls():
            self._end_episode()
            rng = np.random.default_rng(request.seed)
            town = self._load_town(request.town or _choose(self._config.town, rng))
            weather = self._set_weather(request.weather, rng)
            given = self._given_route(request, town)
            self._episode = episode = self._spawn_episode(request, town, rng, given)
            ticks = [self._tick(episode) for _ in range(_SETTLE_TICKS)]
            images, _ = self._images(episode, ticks)
            episode.route = route = given or self._plan(request, town, episode, rng)
            return EpisodeStarted(
                town=town.name,
                weather=weather,
                route=route,
                stop_lines=town.stop_lines,
                max_steer_angle=episode.max_steer_angle,
                wheelbase=episode.wheelbase,
                half_length=episode.half_length,
                half_width=episode.half_width,
                num_vehicles=len(episode.traffic.vehicle_ids),
                num_walkers=len(episode.traffic.walker_ids),
                tick=ticks[-1],
                images=images,
                raster=self._raster(town),
            )

    def drive(self, request: Drive) -> Driven:
        """Hold one action; ends early at a collision."""
        episode = self._episode
        if episode is None:
            raise SimulatorError("there is no episode; reset the environment first.")
        with self._server_calls():
            if request.action is None and not episode.is_autopilot:
                self._hand_over(episode)
            control = None if request.action is None else self._vehicle_control(request.action)
            ticks: list[Tick] = []
            for _ in range(request.ticks):
                if control is not None:
                    self._apply(episode, control)
                ticks.append(self._tick(episode))
                if any(collision_kind(collision.other_type) for collision in ticks[-1].collisions):
                    break
            images, missed = self._images(episode, ticks)
            return Driven(tuple(ticks), images, missed)

    def close(self) -> Closed:
        """Destroy what was spawned and put the server's settings back; does nothing to a server that is silent."""
        is_clean = not self.is_silent
        for step in (self._end_episode, self._release_manager, self._restore_settings):
            if self.is_silent:
                return Closed(is_clean=False)
            try:
                with self._server_calls():
                    step()
            except SimulatorError:  # the other steps matter all the same
                is_clean = False
        return Closed(is_clean)

    # -- the server ----------------------------------------------------------------------------------------------

    def _use_world(self, world: carla.World) -> None:
        self._world = world
        self._ticker = Ticker(world, self._connection.timeout_s)

    def _release_manager(self) -> None:
        if self._manager is not None:
            self._ticker.watch(None)
            self._manager.set_synchronous_mode(False)

    def _shut_down_manager(self) -> None:
        """End the Traffic Manager, which does not survive another town; the next one gets another port."""
        self._ticker.watch(None)
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.set_synchronous_mode(False)
            manager.shut_down()

    def _restore_settings(self) -> None:
        if self._original is not None:
            self._world.apply_settings(self._original)

    def _take_over(self) -> None:
        """Refuse a server that another client drives; remove what a dead one left."""
        settings = self._world.get_settings()
        is_driven = settings.synchronous_mode and self._is_driven()
        if settings.synchronous_mode and not is_driven:
            self._ticker.tick()  # a client learns of the actors with its first frame
        actors = self._world.get_actors()
        leftovers = [actor for actor in actors if actor.attributes.get("role_name", "").startswith(ROLE + "/")]
        walkers = {actor.id for actor in leftovers if actor.type_id.startswith("walker.")}
        owners = {actor.attributes["role_name"] for actor in leftovers}
        living = [owner for owner in owners if _is_alive(owner)]
        if living or is_driven:
            who = f"process {living[0].rpartition('/')[2]} of wm_gym" if living else "another client"
            raise SimulatorError(
                f"the CARLA server at {self._address} is in use by {who}; stop that one, or give this one a server of "
                "its own."
            )
        if leftovers:
            parents = [actor.parent for actor in leftovers if actor.parent is not None]
            # The controllers of pedestrians can be given no role name, and do not end with their pedestrian.
            controllers = [
                actor for actor in actors.filter(CONTROLLER) if actor.parent is not None and actor.parent.id in walkers
            ]
            self._destroy([actor.id for actor in [*controllers, *leftovers, *parents]], tick=settings.synchronous_mode)
        if leftovers and settings.synchronous_mode:
            _make_asynchronous(settings)
            self._world.apply_settings(settings)

    def _is_driven(self) -> bool:
        """Whether a synchronous server's frames go on without us."""
        before = self._world.get_snapshot().frame
        time.sleep(_IN_USE_WATCH_S)
        return bool(self._world.get_snapshot().frame != before)

    def _make_synchronous(self) -> None:
        settings = self._world.get_settings()
        settings.synchronous_mode = True
        settings.fixed_delta_seconds = self._config.step_s
        settings.no_rendering_mode = not self._cameras
        # The physics engine integrates in smaller steps; CARLA asks for delta <= substep * number of substeps.
        settings.substepping = True
        settings.max_substep_delta_time = 0.01
        settings.max_substeps = max(10, int(np.ceil(self._config.step_s / 0.01)))
        self._world.apply_settings(settings)

    @property
    def _cameras(self) -> dict[str, CameraConfig]:
        main = {MAIN_CAMERA: self._config.camera} if self._config.view == "camera" else {}
        return {**main, **self._config.cameras}

    def _raster(self, town: Town) -> TownRaster | None:
        """The town's ground, where it is wanted and has not been sent yet."""
        if self._config.view != "birdview" or self._raster_sent == town.name:
            return None
        self._say_busy(_RASTER_S)
        raster = cached_raster(town.map)
        self._raster_sent = town.name
        return raster

    def _load_town(self, town: str | None) -> Town:
        if self._town is None:
            self._town = self._read_town()
        if town is not None and short_name(town) != self._town.name:
            available = sorted(short_name(name) for name in self._client.get_available_maps())
            found = same_roads(short_name(town), available)
            if found is None:
                raise ConfigError(
                    f"the CARLA server at {self._address} has no town {town!r}; it has {', '.join(available)}."
                )
            if found == self._town.name:
                return self._town
            town = town if found == short_name(town) else found
            self._shut_down_manager()
            self._say_busy(self._connection.load_timeout_s)
            self._client.set_timeout(self._connection.load_timeout_s)
            try:
                self._use_world(self._client.load_world(town, False))
            finally:
                self._client.set_timeout(self._connection.timeout_s)
            self._make_synchronous()
            self._town = self._read_town()
        return self._town

    def _read_town(self) -> Town:
        return Town(self._carla, self._world, self._config.route.spacing)

    def _set_weather(self, wanted: str | Mapping[str, float] | None, rng: np.random.Generator) -> str | None:
        if isinstance(wanted, Mapping):
            self._world.set_weather(self._carla.WeatherParameters(**wanted))
            return CUSTOM
        chosen = wanted or _choose(self._config.weather, rng, WEATHER_NAMES)
        if chosen is None:
            return None
        if chosen not in WEATHER_NAMES:
            raise ConfigError(f"{chosen!r} is no weather; use one of {', '.join(WEATHER_NAMES)}.")
        self._world.set_weather(getattr(self._carla.WeatherParameters, chosen))
        return chosen

    # -- actors --------------------------------------------------------------------------------------------------

    def _spawn_episode(
        self, request: StartEpisode, town: Town, rng: np.random.Generator, route: Route | None
    ) -> EpisodeActors:
        library = self._world.get_blueprint_library()
        ego = self._spawn_ego(library, request, town, rng, route)
        # A generator of its own, so that a seed means the same route under any traffic.
        traffic_rng = np.random.default_rng((request.seed, _TRAFFIC_STREAM))
        vehicles, walkers = self._config.traffic.drawn(traffic_rng)
        traffic = Traffic(
            self._client,
            self._world,
            town.map,
            vehicles,
            walkers,
            four_wheeled_only=self._config.traffic.four_wheeled_only,
            role=self._role,
            tick=self._ticker.tick,
        )
        episode = EpisodeActors(ego, traffic)
        self._episode = episode  # from here on, an end of any kind finds everything
        for name, config in self._cameras.items():
            sensor = self._world.spawn_actor(
                camera_blueprint(library, config, self._role), mount(self._carla, config), attach_to=ego
            )
            episode.cameras[name] = Camera(sensor, config, name)
        blueprint = library.find("sensor.other.collision")
        blueprint.set_attribute("role_name", self._role)
        episode.collisions = CollisionSensor(self._world.spawn_actor(blueprint, self._carla.Transform(), attach_to=ego))
        # What took an uncertain number of ticks comes first: from here on, equal seeds give equal episodes.
        connection = self._connection
        start_cameras(episode.cameras.values(), self._ticker.tick, connection.timeout_s + connection.image_timeout_s)
        self._world.reset_all_traffic_lights()
        episode.manager_seed = int(rng.integers(2**31))
        if traffic.vehicles > 0:
            self._prepare_manager(episode.manager_seed)
        episode.traffic.spawn_vehicles(traffic_rng, self._manager, ego.get_location())
        episode.traffic.spawn_walkers(traffic_rng)
        physics = ego.get_physics_control()
        episode.max_steer_angle = max((wheel.max_steer_angle for wheel in physics.wheels), default=70.0)
        episode.wheelbase = _wheelbase(physics)
        return episode

    def _spawn_ego(
        self,
        library: carla.BlueprintLibrary,
        request: StartEpisode,
        town: Town,
        rng: np.random.Generator,
        route: Route | None,
    ) -> carla.Vehicle:
        found = library.filter(self._config.vehicle)
        if len(found) == 0:
            raise ConfigError(f"the CARLA server has no vehicle {self._config.vehicle!r}; see its blueprint library.")
        blueprint = found[0]
        blueprint.set_attribute("role_name", _EGO_ROLE)
        points = town.spawn_points if route is None else self._start_of(route)
        if not points:
            raise SimulatorError(f"the town {town.name} has no spawn points; use another one.")
        if route is not None:
            order = list(range(len(points)))
        elif request.spawn_point is not None:
            order = [request.spawn_point]
        else:
            order = [int(index) for index in rng.permutation(len(points))[:_MAX_SPAWN_TRIES]]
        for index in order:
            if not 0 <= index < len(points):
                raise ConfigError(f"spawn_point={index} is not in 0 to {len(points) - 1}, which {town.name} has.")
            ego = self._world.try_spawn_actor(blueprint, points[index])
            if ego is not None:
                return ego
            self._client.get_server_version()  # a server that has died refuses as well; this call tells
        raise SimulatorError(
            f"the CARLA server refused to spawn {self._config.vehicle} at {len(order)} places of {town.name}; other "
            "vehicles may stand there: use a fresh server or less traffic."
        )

    def _start_of(self, route: Route) -> list[carla.Transform]:
        """Where a vehicle may be spawned to begin a given route: above its first point."""
        carla = self._carla
        (x, y), z = route.points[0], 0.0 if route.heights is None else route.heights[0]
        rotation = carla.Rotation(yaw=float(route.headings[0]))
        return [carla.Transform(carla.Location(float(x), float(y), float(z + up)), rotation) for up in _SPAWN_ABOVE_M]

    def _hand_over(self, episode: EpisodeActors) -> None:
        """Let the Traffic Manager drive the ego vehicle; once it has, actions of ours simply override it."""
        if episode.traffic.vehicles == 0:
            self._prepare_manager(episode.manager_seed)
        assert self._manager is not None
        episode.ego.set_autopilot(True, self._manager.get_port())
        # It knows nothing of our route; it keeps to a path that it is given, most of the way.
        self._manager.auto_lane_change(episode.ego, False)
        self._manager.set_path(episode.ego, self._path_ahead(episode))
        episode.is_autopilot = True

    def _path_ahead(self, episode: EpisodeActors) -> list[carla.Location]:
        """Places along the rest of the route, for the Traffic Manager."""
        assert episode.route is not None
        here = episode.ego.get_location()
        places = episode.route.places_ahead((here.x, here.y, here.z), _PATH_SPACING_M)
        return [self._carla.Location(float(x), float(y), float(z)) for x, y, z in places]

    def _prepare_manager(self, seed: int) -> None:
        if self._manager is None:
            port = self._connection.traffic_manager_port or _free_port()
            self._manager = synchronous_manager(self._client, port)
            self._ticker.watch(port)
        traffic = self._config.traffic
        self._manager.set_random_device_seed(seed)
        self._manager.global_percentage_speed_difference(traffic.speed_difference)
        self._manager.set_global_distance_to_leading_vehicle(traffic.following_distance)
        self._manager.set_hybrid_physics_mode(traffic.hybrid_physics_radius > 0)
        if traffic.hybrid_physics_radius > 0:
            self._manager.set_hybrid_physics_radius(traffic.hybrid_physics_radius)

    def _end_episode(self) -> None:
        """Take back and destroy all that the episode has; what another client has destroyed is no obstacle."""
        episode, self._episode = self._episode, None
        if episode is None:
            return
        for sensor in episode.sensors:
            with perhaps_gone():
                sensor.stop()
        episode.traffic.stop_controllers()
        port = self._manager.get_port() if self._manager is not None else None
        release = episode.traffic.commands_to_release(port)
        if port is not None and episode.is_autopilot:
            release.append(self._carla.command.SetAutopilot(episode.ego.id, False, port))
        if release:
            with perhaps_gone():
                self._client.apply_batch_sync(release, False)
        if episode.is_autopilot:
            # The Traffic Manager keeps an eye on the vehicle called hero, and asks for its size even when it is gone,
            # which ends the process; unless it has seen it once as a vehicle that is not its own.
            self._ticker.tick()
        self._destroy([sensor.id for sensor in episode.sensors] + episode.traffic.actor_ids + [episode.ego.id])

    def _destroy(self, ids: list[int], *, tick: bool = True) -> None:
        commands = [self._carla.command.DestroyActor(number) for number in dict.fromkeys(ids)]
        self._client.apply_batch_sync(commands, False)
        # Not with apply_batch_sync(..., True): that one keeps Python's lock while it waits for the tick, and when both
        # of the client's threads then stand before that lock with a picture, the tick never arrives.
        if tick:
            self._ticker.tick()

    # -- ticks ---------------------------------------------------------------------------------------------------

    def _tick(self, episode: EpisodeActors) -> Tick:
        episode.traffic.before_tick(self._world.get_snapshot())
        frame = self._ticker.tick()
        snapshot = self._world.get_snapshot()
        if snapshot.frame != frame:
            raise SimulatorError(
                f"the CARLA server at {self._address} simulated frame {snapshot.frame} instead of {frame}; another "
                "client ticks it: give this one a server of its own."
            )
        return self._read(episode, snapshot)

    def _images(self, episode: EpisodeActors, ticks: list[Tick]) -> tuple[dict[str, Frame], int]:
        """The pictures of the last tick, and how often they did not come: another tick then follows it in the list."""
        missed = 0
        while True:
            try:
                images = {
                    name: camera.picture(ticks[-1].frame, self._connection.image_timeout_s)
                    for name, camera in episode.cameras.items()
                }
            except MissingImageError:
                missed += 1
                if missed > _MAX_IMAGE_RETRIES:
                    raise
                ticks.append(self._tick(episode))
                continue
            late = episode.collisions.take() if episode.collisions is not None else ()
            ticks[-1] = replace(ticks[-1], collisions=(*ticks[-1].collisions, *late))
            return images, missed

    def _read(self, episode: EpisodeActors, snapshot: carla.WorldSnapshot) -> Tick:
        state = snapshot.find(episode.ego.id)
        if state is None:
            raise SimulatorLostError(f"the ego vehicle is gone from the CARLA server at {self._address}.")
        transform, velocity = state.get_transform(), state.get_velocity()
        location = transform.location
        yaw = float(np.radians(transform.rotation.yaw))
        ego = EgoState(
            x=location.x,
            y=location.y,
            z=location.z,
            yaw=transform.rotation.yaw,
            speed=float(velocity.x * np.cos(yaw) + velocity.y * np.sin(yaw)),
            velocity=(velocity.x, velocity.y),
            yaw_rate=state.get_angular_velocity().z,
        )
        town = self._town
        assert town is not None
        return Tick(
            frame=snapshot.frame,
            ego=ego,
            applied=_driving_action(episode.ego.get_control()),
            speed_limit=episode.ego.get_speed_limit() * _KMH,
            on_road=town.is_on_road(location),
            collisions=episode.collisions.take() if episode.collisions is not None else (),
            lights=town.light_states(),
            road_users=episode.road_users(self._world, snapshot, location),
            rear_lane=town.lane_at(transform.transform(self._carla.Location(x=-episode.half_length))),
        )

    def _apply(self, episode: EpisodeActors, control: carla.VehicleControl) -> None:
        if episode.is_autopilot:
            # Vehicle.apply_control() does not send a control twice in a row, but the Traffic Manager, which goes on
            # after every tick, has sent another one in between.
            self._client.apply_batch([self._carla.command.ApplyVehicleControl(episode.ego.id, control)])
        else:
            episode.ego.apply_control(control)

    def _vehicle_control(self, action: tuple[float, float, float, float]) -> carla.VehicleControl:
        steering, throttle, brake, gear = action
        control = self._carla.VehicleControl(throttle=throttle, steer=steering, brake=brake, reverse=gear < 0)
        if gear == 0:
            control.manual_gear_shift, control.gear = True, 0
        return control

    def _given_route(self, request: StartEpisode, town: Town) -> Route | None:
        """The route through the places that a request names, if it does."""
        if request.waypoints is None:
            return None
        return town.planner.plan_through([self._carla.Location(*place) for place in request.waypoints])

    def _plan(self, request: StartEpisode, town: Town, episode: EpisodeActors, rng: np.random.Generator) -> Route:
        start = episode.ego.get_location()
        if request.destination is not None:
            points = town.spawn_points
            if not 0 <= request.destination < len(points):
                raise ConfigError(f"destination={request.destination} is not in 0 to {len(points) - 1}.")
            return town.planner.plan(start, points[request.destination].location)
        route = self._config.route
        return town.planner.draw(start, rng, route.min_length, route.max_length)

    @contextmanager
    def _server_calls(self) -> Iterator[None]:
        """Turn what CARLA raises when a server dies or hangs into one error, and note that the server is silent."""
        try:
            with server_calls(self._address):
                yield
        except ServerSilentError:
            self.is_silent = True
            raise


def _make_asynchronous(settings: carla.WorldSettings) -> None:
    settings.synchronous_mode = False
    settings.fixed_delta_seconds = None


def _choose(names: str | list[str] | None, rng: np.random.Generator, every: tuple[str, ...] = ()) -> str | None:
    if names == RANDOM and every:
        names = list(every)
    if isinstance(names, list):
        return names[int(rng.integers(len(names)))] if names else None
    return names


def _driving_action(control: carla.VehicleControl) -> tuple[float, float, float, float]:
    gear = -1.0 if control.reverse else (0.0 if control.manual_gear_shift and control.gear == 0 else 1.0)
    return float(control.steer), float(control.throttle), float(control.brake), gear


def _wheelbase(physics: carla.VehiclePhysicsControl) -> float:
    """Distance of the axles in metres; CARLA gives the wheels' positions in centimetres."""
    if len(physics.wheels) < 3:
        return DEFAULT_WHEELBASE_M
    front, rear = physics.wheels[0].position, physics.wheels[2].position
    length = float(np.hypot(front.x - rear.x, front.y - rear.y)) / 100.0
    return length if length > 0.5 else DEFAULT_WHEELBASE_M


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_alive(owner: str) -> bool:
    """Whether the process behind a role name may still run; one on another machine may."""
    _, host, pid = owner.split("/", 2)
    if host != socket.gethostname() or not pid.isdigit():
        return True
    if int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
