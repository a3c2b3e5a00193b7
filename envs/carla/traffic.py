"""Vehicles and pedestrians around the ego vehicle. Used in the client process only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_gym.envs.carla.client import perhaps_gone

if TYPE_CHECKING:
    import carla

CONTROLLER = "controller.ai.walker"
"""Blueprint of what leads a pedestrian over the navigation mesh."""

_WALKING_M_S = (1.0, 1.8)
_SIDEWALK_STEP_M = 2.0
_CLOSE_TO_EGO_M = 12.0


class Traffic:
    """The other road users of one episode.

    Vehicles are driven by CARLA's Traffic Manager. Pedestrians follow CARLA's navigation mesh where the town has one,
    else they walk along the sidewalks of the map.

    Args:
        client: The connection.
        world: The world.
        carla_map: Its map.
        vehicles: How many, at most.
        walkers: How many pedestrians, at most.
        four_wheeled_only: Whether bicycles and motorcycles are left out.
        role: Role name of everything spawned, by which it is found again.
        tick: Simulates a frame.
    """

    def __init__(
        self,
        client: carla.Client,
        world: carla.World,
        carla_map: carla.Map,
        vehicles: int,
        walkers: int,
        *,
        four_wheeled_only: bool,
        role: str,
        tick: Callable[[], int],
    ) -> None:
        self._tick = tick
        self._client = client
        self._world = world
        self._map = carla_map
        self.vehicles = vehicles
        self.walkers = walkers
        self._four_wheeled_only = four_wheeled_only
        self._role = role
        self.vehicle_ids: list[int] = []
        self.walker_ids: list[int] = []
        self._controller_ids: list[int] = []
        self._strollers: list[_Stroller] = []

    def spawn_vehicles(
        self, rng: np.random.Generator, manager: carla.TrafficManager | None, taken: carla.Location
    ) -> None:
        """Spawn vehicles on free spawn points and hand them to the Traffic Manager; some may not fit."""
        import carla

        if self.vehicles == 0 or manager is None:
            return
        blueprints = sorted(self._world.get_blueprint_library().filter("vehicle.*"), key=lambda found: found.id)
        if self._four_wheeled_only:
            blueprints = [found for found in blueprints if int(found.get_attribute("number_of_wheels")) == 4]
        points = [point for point in self._map.get_spawn_points() if point.location.distance(taken) > _CLOSE_TO_EGO_M]
        order = rng.permutation(len(points))[: self.vehicles]
        commands = []
        for index in order:
            blueprint = blueprints[int(rng.integers(len(blueprints)))]
            if blueprint.has_attribute("color"):
                colors = list(blueprint.get_attribute("color").recommended_values)
                blueprint.set_attribute("color", colors[int(rng.integers(len(colors)))])
            blueprint.set_attribute("role_name", self._role)
            commands.append(carla.command.SpawnActor(blueprint, points[index]))
        self.vehicle_ids = self._spawn(commands)
        port = manager.get_port()
        self._client.apply_batch_sync(
            [carla.command.SetAutopilot(number, True, port) for number in self.vehicle_ids], False
        )

    def spawn_walkers(self, rng: np.random.Generator) -> None:
        """Spawn pedestrians and send them on their way."""
        import carla

        if self.walkers == 0:
            return
        blueprints = sorted(self._world.get_blueprint_library().filter("walker.pedestrian.*"), key=lambda b: b.id)
        has_mesh = self._world.get_random_location_from_navigation() is not None
        if has_mesh:
            # Where they are and where they go is drawn by CARLA's client, whose generator is its own.
            self._world.set_pedestrians_seed(int(rng.integers(2**31)))
        commands, strolls = [], []
        for _ in range(self.walkers):
            blueprint = blueprints[int(rng.integers(len(blueprints)))]
            blueprint.set_attribute("role_name", self._role)
            speed = float(rng.uniform(*_WALKING_M_S))
            if has_mesh:
                location = self._world.get_random_location_from_navigation()
                stroll = None
            else:
                stroll = _Stroll.draw(self._map, rng, speed)
                location = stroll.start if stroll is not None else None
            if location is None:
                continue
            commands.append(carla.command.SpawnActor(blueprint, carla.Transform(location + carla.Location(z=1.0))))
            strolls.append((stroll, speed))
        responses = self._client.apply_batch_sync(commands, False)
        spawned = [
            (response.actor_id, stroll, speed)
            for response, (stroll, speed) in zip(responses, strolls, strict=True)
            if not response.error
        ]
        self.walker_ids = [number for number, _, _ in spawned]
        if has_mesh:
            self._start_controllers([(number, speed) for number, _, speed in spawned])
        else:
            self._strollers = [_Stroller(number, stroll) for number, stroll, _ in spawned if stroll is not None]

    def before_tick(self, snapshot: carla.WorldSnapshot) -> None:
        """Turn the pedestrians that follow sidewalks."""
        import carla

        if not self._strollers:
            return
        commands = []
        for stroller in self._strollers:
            state = snapshot.find(stroller.number)
            if state is not None:
                commands.append(stroller.command(carla, state.get_transform().location))
        self._client.apply_batch(commands)

    def commands_to_release(self, port: int | None) -> list[Any]:
        """Batch commands that take the vehicles back from the Traffic Manager."""
        import carla

        if port is None:
            return []
        return [carla.command.SetAutopilot(number, False, port) for number in self.vehicle_ids]

    def stop_controllers(self) -> None:
        """Stop the pedestrians' controllers, which CARLA wants before they are destroyed."""
        for controller in self._world.get_actors(self._controller_ids):
            with perhaps_gone():
                controller.stop()

    @property
    def actor_ids(self) -> list[int]:
        """Everything spawned, in the order in which it is to be destroyed."""
        return [*self._controller_ids, *self.walker_ids, *self.vehicle_ids]

    def _spawn(self, commands: list[Any]) -> list[int]:
        responses = self._client.apply_batch_sync(commands, False)
        return [int(response.actor_id) for response in responses if not response.error]

    def _start_controllers(self, walkers: list[tuple[int, float]]) -> None:
        import carla

        blueprint = self._world.get_blueprint_library().find(CONTROLLER)
        self._controller_ids = self._spawn(
            [carla.command.SpawnActor(blueprint, carla.Transform(), number) for number, _ in walkers]
        )
        self._tick()
        for controller, (_, speed) in zip(self._world.get_actors(self._controller_ids), walkers, strict=False):
            controller.start()
            target = self._world.get_random_location_from_navigation()
            if target is not None:
                controller.go_to_location(target)
            controller.set_max_speed(speed)


class _Stroll:
    """A way along a sidewalk, walked to and fro: points ``(N, 2)``, ``N`` at least 2."""

    def __init__(self, points: list[Any], speed: float) -> None:
        self.start = points[0]
        self.speed = speed
        self.points = np.array([(point.x, point.y) for point in points])

    @classmethod
    def draw(cls, carla_map: carla.Map, rng: np.random.Generator, speed: float) -> _Stroll | None:
        """A random one; ``None`` where the map has no sidewalk nearby."""
        import carla

        spawn_points = carla_map.get_spawn_points()
        near = spawn_points[int(rng.integers(len(spawn_points)))].location
        waypoint = carla_map.get_waypoint(near, project_to_road=True, lane_type=carla.LaneType.Sidewalk)
        if waypoint is None:
            return None
        points = [waypoint.transform.location]
        for _ in range(30):
            following = waypoint.next(_SIDEWALK_STEP_M)
            if not following:
                break
            waypoint = following[0]
            points.append(waypoint.transform.location)
        return cls(points, speed) if len(points) > 1 else None


class _Stroller:
    """A pedestrian on its stroll."""

    def __init__(self, number: int, stroll: _Stroll) -> None:
        self.number = number
        self._stroll = stroll
        self._target = 1
        self._direction = 1

    def command(self, carla: Any, location: carla.Location) -> Any:
        points = self._stroll.points
        to_target = points[self._target] - (location.x, location.y)
        if float(np.hypot(*to_target)) < _SIDEWALK_STEP_M / 2:
            if not 0 <= self._target + self._direction < len(points):
                self._direction = -self._direction
            self._target += self._direction
            to_target = points[self._target] - (location.x, location.y)
        heading = math.atan2(to_target[1], to_target[0])
        direction = carla.Vector3D(math.cos(heading), math.sin(heading), 0.0)
        return carla.command.ApplyWalkerControl(self.number, carla.WalkerControl(direction, self._stroll.speed, False))
