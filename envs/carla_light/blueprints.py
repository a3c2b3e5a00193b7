"""The blueprints that there are: ids, tags and attributes as in CARLA 0.9.16."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_BOOL, _INT, _FLOAT, _STRING, _COLOR = range(1, 6)


@dataclass(frozen=True)
class Attribute:
    """An attribute of a blueprint; fixed where it has no choices and ``is_modifiable`` is false."""

    name: str
    kind: int
    value: str
    recommended: tuple[str, ...] = ()
    is_modifiable: bool = True

    def pack(self) -> list[Any]:
        """CARLA's ``ActorAttribute``."""
        return [self.name, self.kind, self.value, list(self.recommended), self.is_modifiable, False]


@dataclass(frozen=True)
class Blueprint:
    """A kind of actor.

    Attributes:
        id: For example ``"vehicle.lincoln.mkz_2020"``.
        extent: Half its size in metres.
        attributes: What may be set.
    """

    id: str
    extent: tuple[float, float, float]
    attributes: tuple[Attribute, ...] = field(default=())

    @property
    def tags(self) -> str:
        """Comma-separated words that CARLA finds blueprints by."""
        return ",".join(self.id.split("."))

    def pack(self, uid: int) -> list[Any]:
        """CARLA's ``ActorDefinition``."""
        return [uid, self.id, self.tags, [attribute.pack() for attribute in self.attributes]]


def _vehicle(name: str, wheels: int, extent: tuple[float, float, float], base_type: str) -> Blueprint:
    colors = ("17,37,103", "180,44,43", "137,0,0", "255,255,255", "30,30,30")
    attributes = (
        Attribute("role_name", _STRING, "autopilot", ("autopilot", "scenario", "ego_vehicle")),
        Attribute("color", _COLOR, colors[0], colors),
        Attribute("number_of_wheels", _INT, str(wheels), is_modifiable=False),
        Attribute("base_type", _STRING, base_type, is_modifiable=False),
        Attribute("generation", _INT, "2", is_modifiable=False),
        Attribute("sticky_control", _BOOL, "true"),
        Attribute("object_type", _STRING, "", is_modifiable=False),
        Attribute("special_type", _STRING, "", is_modifiable=False),
        Attribute("has_lights", _BOOL, "true", is_modifiable=False),
    )
    return Blueprint(f"vehicle.{name}", extent, attributes)


def _walker(number: int) -> Blueprint:
    attributes = (
        Attribute("role_name", _STRING, "pedestrian"),
        Attribute("is_invincible", _BOOL, "true"),
        Attribute("speed", _FLOAT, "0.0", ("0.0", "1.7", "3.0")),
        Attribute("gender", _STRING, "female", is_modifiable=False),
        Attribute("age", _STRING, "adult", is_modifiable=False),
        Attribute("generation", _INT, "2", is_modifiable=False),
    )
    return Blueprint(f"walker.pedestrian.{number:04d}", (0.19, 0.19, 0.93), attributes)


def _camera(kind: str) -> Blueprint:
    attributes = (
        Attribute("role_name", _STRING, "front", ("front", "back", "left", "right")),
        Attribute("image_size_x", _INT, "800"),
        Attribute("image_size_y", _INT, "600"),
        Attribute("fov", _FLOAT, "90.0"),
        Attribute("sensor_tick", _FLOAT, "0.0"),
        Attribute("gamma", _FLOAT, "2.2"),
        Attribute("motion_blur_intensity", _FLOAT, "0.45"),
        Attribute("enable_postprocess_effects", _BOOL, "true"),
    )
    return Blueprint(f"sensor.camera.{kind}", (0.0, 0.0, 0.0), attributes)


def _event_sensor(kind: str) -> Blueprint:
    return Blueprint(
        f"sensor.other.{kind}", (0.0, 0.0, 0.0), (Attribute("role_name", _STRING, "front", ("front", "back")),)
    )


BLUEPRINTS: dict[str, Blueprint] = {
    blueprint.id: blueprint
    for blueprint in (
        _vehicle("lincoln.mkz_2020", 4, (2.45, 0.92, 0.74), "car"),
        _vehicle("tesla.model3", 4, (2.40, 1.08, 0.74), "car"),
        _vehicle("audi.tt", 4, (2.09, 0.99, 0.69), "car"),
        _vehicle("carlamotors.firetruck", 4, (4.23, 1.44, 1.91), "truck"),
        _vehicle("diamondback.century", 2, (0.82, 0.19, 0.86), "bicycle"),
        *(_walker(number) for number in (1, 2, 3)),
        Blueprint("controller.ai.walker", (0.0, 0.0, 0.0), ()),
        _camera("rgb"),
        _camera("semantic_segmentation"),
        _event_sensor("collision"),
        _event_sensor("lane_invasion"),
        Blueprint("static.prop.streetbarrier", (0.6, 0.2, 0.5), (Attribute("role_name", _STRING, "prop"),)),
    )
}
"""Blueprints by id."""
