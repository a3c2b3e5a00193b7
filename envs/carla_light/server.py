"""The server: CARLA's calls, answered from the simulated world."""

from __future__ import annotations

import hashlib
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from wm_gym.envs.carla_light import wire
from wm_gym.envs.carla_light.actors import pack_pose, unpack_pose
from wm_gym.envs.carla_light.blueprints import BLUEPRINTS
from wm_gym.envs.carla_light.interference import Interference
from wm_gym.envs.carla_light.navigation import navigation_mesh
from wm_gym.envs.carla_light.physics_control import physics_control
from wm_gym.envs.carla_light.towns import Towns
from wm_gym.envs.carla_light.world import WORLD_STREAM, Settings, SpawnError, World

_COMMANDS = (
    "SpawnActor",
    "DestroyActor",
    "ApplyVehicleControl",
    "ApplyVehicleAckermannControl",
    "ApplyWalkerControl",
    "ApplyVehiclePhysicsControl",
    "ApplyTransform",
    "ApplyWalkerState",
    "ApplyTargetVelocity",
    "ApplyTargetAngularVelocity",
    "ApplyImpulse",
    "ApplyForce",
    "ApplyAngularImpulse",
    "ApplyTorque",
    "SetSimulatePhysics",
    "SetEnableGravity",
    "SetAutopilot",
    "ShowDebugTelemetry",
    "SetVehicleLightState",
    "ApplyLocation",
    "ConsoleCommand",
    "SetTrafficLightState",
)
"""Names of batch commands in the order of the client's variant."""


class LightServer:
    """A server that a real CARLA client can connect to.

    Args:
        host: Address to listen on.
        port: RPC port; the stream port is the next one. 0 chooses both.
        towns: What can be loaded.
        interference: What shall go wrong.
        has_navigation: Whether towns have a navigation mesh for pedestrians.

    Raises:
        OSError: A port is taken.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        towns: Towns | None = None,
        interference: Interference | None = None,
        *,
        has_navigation: bool = False,
    ) -> None:
        self.has_navigation = has_navigation
        self.interference = interference or Interference()
        # Both ports are taken before a town is read, which can take seconds.
        self._rpc = wire.RpcServer(host, port, self._answer)
        self._streams = wire.StreamServer(host, port + 1 if port else 0)
        self.world = World(towns or Towns(), self._streams, self.interference)
        self.port = self._rpc.port
        self._stopped = threading.Event()
        self._traffic_managers: dict[int, list[Any]] = {}
        self._calls = self._make_calls()
        self.unknown_calls: list[str] = []

    def start(self) -> None:
        """Serve in the background."""
        self._streams.start()
        self._rpc.start()
        threading.Thread(target=self.world.run, args=(self._stopped.is_set,), daemon=True).start()

    def close(self) -> None:
        """Hang up on everyone."""
        self._stopped.set()
        self._rpc.close()
        self._streams.close()

    def _answer(self, method: str, arguments: list[Any]) -> Any:
        call = self._calls.get(method)
        if call is None:
            self.unknown_calls.append(method)
            print(f"carla-light: unknown call {method}", file=sys.stderr, flush=True)
            return wire.failure(f"the light CARLA server does not know {method}")
        try:
            return call(*arguments)
        except SpawnError as error:
            return wire.failure(str(error))
        except KeyError as error:
            return wire.failure(f"unable to find actor {error}")
        except Exception as error:  # a defect of the server: say it, and keep the client from waiting
            traceback.print_exc()
            return wire.failure(f"the light CARLA server failed in {method}: {error!r}")

    def _make_calls(self) -> dict[str, Callable[..., Any]]:
        world = self.world

        def value(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *arguments: wire.success(function(*arguments))

        def command(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                with world.lock:
                    function(*arguments)
                return wire.done()

            return call

        def nothing(*_: Any) -> Any:
            return wire.done()

        calls: dict[str, Callable[..., Any]] = {
            "version": value(lambda: self.interference.version),
            "get_episode_info": value(lambda: [world.episode, wire.stream_token(WORLD_STREAM, self._streams.port)]),
            "get_sensor_token": value(lambda stream: wire.stream_token(stream, self._streams.port)),
            "get_map_info": value(self._map_info),
            "get_map_data": value(lambda: world.town.opendrive),
            "get_available_maps": value(lambda: [f"/Game/Carla/Maps/{name}" for name in world.towns.names]),
            "get_navigation_mesh": value(lambda: b""),
            "get_required_files": value(self._required_files),
            "request_file": value(lambda name: self._navigation_mesh()),
            "load_new_episode": self._load,
            "get_actor_definitions": value(
                lambda: [blueprint.pack(uid) for uid, blueprint in enumerate(BLUEPRINTS.values(), start=1)]
            ),
            "get_spectator": value(lambda: world.pack(world.spectator)),
            "get_episode_settings": value(self._settings),
            "set_episode_settings": value(self._set_settings),
            "get_weather_parameters": value(lambda: world.weather),
            "set_weather_parameters": command(lambda weather: setattr(world, "weather", weather)),
            "get_actors_by_id": value(self._actors),
            "get_actor_bounding_box": value(lambda actor: world.actor(actor).pack_box()),
            "get_physics_control": value(lambda actor: physics_control(world.actor(actor))),
            "get_vehicle_light_state": value(lambda actor: 0),
            "get_vehicle_light_states": value(lambda: []),
            "get_light_boxes": value(lambda actor: []),
            "get_group_traffic_lights": value(world.lights_of_junction),
            "query_lights_state": value(lambda *_: []),
            "get_all_level_BBs": value(lambda tag=255, *_: world.level_boxes(tag)),
            "get_environment_objects": value(lambda *_: []),
            "spawn_actor": self._spawn,
            "spawn_actor_with_parent": self._spawn,
            "destroy_actor": value(world.destroy),
            "set_actor_location": command(self._set_location),
            "set_actor_transform": command(lambda actor, pose: world.set_pose(actor, unpack_pose(pose))),
            "set_actor_target_velocity": command(self._set_velocity),
            "set_actor_target_angular_velocity": nothing,
            "set_actor_simulate_physics": command(self._set_physics),
            "set_actor_collisions": nothing,
            "set_actor_enable_gravity": nothing,
            "set_actor_autopilot": nothing,
            "apply_control_to_vehicle": command(world.control_vehicle),
            "apply_control_to_walker": command(world.control_walker),
            "apply_physics_control": nothing,
            "set_vehicle_light_state": nothing,
            "set_traffic_light_state": command(self._set_light),
            "freeze_traffic_light": command(lambda light, frozen: setattr(world.actor(light), "is_frozen", frozen)),
            "freeze_all_traffic_lights": command(self._freeze_lights),
            "reset_all_traffic_lights": command(world.reset_lights),
            "apply_batch": self._batch,
            "tick_cue": value(world.tick),
            "is_traffic_manager_running": value(lambda port: port in self._traffic_managers),
            "get_traffic_manager_running": value(lambda port: self._traffic_managers.get(port, ["", 0])),
            "add_traffic_manager_running": value(self._add_traffic_manager),
            "destroy_traffic_manager": value(lambda port: self._traffic_managers.pop(port, None) is not None),
        }
        return calls

    def add_calls(self, calls: dict[str, Callable[..., Any]]) -> None:
        """Answer further calls: from names to functions whose values are sent back."""
        for name, function in calls.items():
            self._calls[name] = lambda *arguments, function=function: wire.success(function(*arguments))

    def _map_info(self) -> list[Any]:
        town = self.world.town
        return [f"Carla/Maps/{town.name}", [pack_pose(pose) for pose in town.spawn_points]]

    def _navigation_mesh(self) -> bytes:
        return navigation_mesh(self.world.town) if self.has_navigation else b""

    def _required_files(self, folder: str = "", *_: Any) -> list[str]:
        """The client keeps files by their names, which therefore follow from what is in them."""
        if not self.has_navigation or folder not in ("", "Nav"):
            return []
        digest = hashlib.sha256(self._navigation_mesh()).hexdigest()[:16]
        return [f"Carla/Maps/Nav/{self.world.town.name}-{digest}.bin"]

    def _load(self, name: str, *_: Any) -> Any:
        if name.rpartition("/")[2] not in self.world.towns.names:
            return [[True, [f"map not found: {name}"]]]
        with self.world.lock:
            if _[:1] != (False,):
                self.world.settings = Settings()
            self.world.load(name)
        return wire.done()

    def _settings(self) -> list[Any]:
        return self.world.settings.pack()

    def _set_settings(self, values: list[Any]) -> int:
        with self.world.lock:
            self.world.settings = Settings.unpack(values)
            return self.world.frame

    def _actors(self, ids: list[int]) -> list[Any]:
        with self.world.lock:
            return [self.world.pack(self.world.actors[number]) for number in ids if number in self.world.actors]

    def _spawn(self, description: list[Any], pose: list[Any], parent: int = 0, *_: Any) -> Any:
        _, blueprint, attributes = description
        return wire.success(self.world.pack(self.world.spawn(blueprint, attributes, unpack_pose(pose), parent)))

    def _set_location(self, actor: int, location: list[float]) -> None:
        pose = self.world.actor(actor).pose
        self.world.set_pose(actor, unpack_pose([location, [pose.pitch, pose.yaw, pose.roll]]))

    def _set_velocity(self, actor: int, velocity: list[float]) -> None:
        self.world.actor(actor).velocity = (velocity[0], velocity[1], velocity[2])

    def _set_physics(self, actor: int, enabled: bool) -> None:
        self.world.actor(actor).simulates_physics = enabled

    def _set_light(self, light: int, state: int) -> None:
        self.world.actor(light).light_state = state

    def _freeze_lights(self, frozen: bool) -> None:
        for light in self.world.traffic_lights:
            light.is_frozen = frozen

    def _add_traffic_manager(self, address: list[Any]) -> bool:
        host, port = address
        if port in self._traffic_managers:
            return False
        self._traffic_managers[port] = [host, port]
        return True

    def _batch(self, commands: list[Any], do_tick: bool) -> list[Any]:
        responses = [self._run_command(*command[0]) for command in commands]
        if do_tick:
            self.world.tick()
        return responses

    def _run_command(self, number: int, arguments: Any, parent: int = 0) -> list[Any]:
        """One command of a batch; the answer is CARLA's ``CommandResponse``: the actor's number or an error."""
        name = _COMMANDS[number]
        world = self.world
        try:
            with world.lock:
                if name == "SpawnActor":
                    return self._run_spawn(arguments, parent)
                if name == "ConsoleCommand":
                    return [[1, 0]]
                actor, *rest = arguments
                actor = actor or parent
                if name == "DestroyActor":
                    if not world.destroy(actor):
                        return [[0, ["unable to destroy actor: not found"]]]
                elif name == "ApplyVehicleControl":
                    world.control_vehicle(actor, *rest)
                elif name == "ApplyWalkerControl":
                    world.control_walker(actor, *rest)
                elif name in ("ApplyTransform", "ApplyWalkerState"):
                    world.set_pose(actor, unpack_pose(rest[0]), *rest[1:])
                elif name == "ApplyTargetVelocity":
                    self._set_velocity(actor, *rest)
                elif name == "SetSimulatePhysics":
                    self._set_physics(actor, *rest)
                else:
                    world.actor(actor)
                return [[1, actor]]
        except SpawnError as error:
            return [[0, [str(error)]]]
        except KeyError as error:
            return [[0, [f"unable to find actor {error}"]]]

    def _run_spawn(self, arguments: list[Any], parent: int) -> list[Any]:
        description, pose, own_parent, *_, do_after = arguments
        mounted_on = own_parent[1] if own_parent[0] else parent
        actor = self.world.spawn(description[1], description[2], unpack_pose(pose), mounted_on)
        for after in do_after:
            number, arguments = after[0]
            self._run_command(number, arguments, actor.id)
        return [[1, actor.id]]
