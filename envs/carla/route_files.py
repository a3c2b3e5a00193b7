"""Route files of CARLA's leaderboard, longest6, Bench2Drive and their like: XML that says which ways to drive.

Two forms are in use. Old files list ``<waypoint x y z>`` in a ``<route id town>`` (leaderboard 1.0, longest6); new ones
have ``<waypoints><position x y z/>`` and may have ``<weathers>`` and ``<scenarios>`` (leaderboard 2.x, Bench2Drive).
Places are metres in CARLA's frame, far apart; the planner of :mod:`wm_gym.envs.carla.route` fills in the way.

Such a file comes from anywhere. It is read with a bounded size and depth, and one with a document type, which alone can
define entities, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from wm_gym.envs.carla.weather import WEATHER_PARAMETERS
from wm_gym.errors import ConfigError, did_you_mean
from wm_gym.plain_files import read_text

DEFAULT_WEATHER = {"cloudiness": 50.0, "sun_altitude_angle": 70.0}
"""The leaderboard's weather for routes that name none, and where a weather leaves these two out."""

_BYTES = 32 * 2**20
_DEPTH = 32
_REMEDY = "give a route file of CARLA's leaderboard"
_FARTHEST_M = 1e6
"""A place may be so far from the origin; CARLA's largest map is some 10 km wide."""


@dataclass(frozen=True)
class FileRoute:
    """One route of a file.

    Attributes:
        route_id: Its ``id``.
        town: Name of its town.
        places: Two or more places (x, y, z in metres) on the way.
        weather: Numbers of :data:`~wm_gym.envs.carla.weather.WEATHER_PARAMETERS` by name: the first one, where a route
            names several that the leaderboard would change over along the way.
        num_weathers: How many it names.
        num_scenarios: Scenarios that it would trigger; they are not simulated.
    """

    route_id: str
    town: str
    places: tuple[tuple[float, float, float], ...]
    weather: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_WEATHER))
    num_weathers: int = 0
    num_scenarios: int = 0

    def reset_options(self, *, weather: bool = True) -> dict[str, Any]:
        """The options of ``CarlaDriving-v0``'s ``reset`` that drive this route.

        Args:
            weather: With the route's weather, or with the environment's own.
        """
        options: dict[str, Any] = {"town": self.town, "waypoints": [list(place) for place in self.places]}
        return {**options, "weather": dict(self.weather)} if weather else options


def read_routes(path: str | Path) -> list[FileRoute]:
    """The routes of a file, in its order.

    Raises:
        ConfigError: The file cannot be read, is no such XML, or a route of it lacks its id, town or places.
    """
    text = read_text(Path(path), error=ConfigError, remedy=_REMEDY, limit=_BYTES)
    root = _parse(text, str(path))
    found = [_route(element, str(path)) for element in root.iter("route")]
    if not found:
        raise ConfigError(f"{str(path)!r} has no <route>; {_REMEDY}.")
    seen: set[str] = set()
    for route in found:
        if route.route_id in seen:
            raise ConfigError(
                f"{str(path)!r} has two routes with the id {route.route_id!r}; give each an id of its own."
            )
        seen.add(route.route_id)
    return found


def choose_routes(
    routes: Sequence[FileRoute], *, ids: str | None = None, towns: Iterable[str] | None = None
) -> list[FileRoute]:
    """Some of the routes, in the file's order.

    Args:
        routes: All of them.
        ids: Ids and ranges of them in the file's order, such as ``"0,3,8-12"``, or ``None`` for all.
        towns: Names of towns, or ``None`` for all.

    Raises:
        ConfigError: There is no such route or town, or none is left.
    """
    chosen = list(routes)
    if ids is not None:
        wanted = _wanted([route.route_id for route in routes], ids)
        chosen = [route for route in routes if route.route_id in wanted]
    if towns is not None:
        names = list(towns)
        known = sorted({route.town for route in routes})
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"no route of the file is in {name!r}{did_you_mean(name, known)}; its towns are {', '.join(known)}."
                )
        chosen = [route for route in chosen if route.town in names]
    if not chosen:
        raise ConfigError("none of the routes with these ids is in one of these towns; leave one of the two out.")
    return chosen


def _wanted(known: list[str], ids: str) -> set[str]:
    """The ids that a text such as ``"0,3,8-12"`` names."""
    wanted: set[str] = set()
    for part in (part.strip() for part in ids.split(",")):
        if part in known:  # an id may have a dash in it
            wanted.add(part)
            continue
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        for name in (first, last) if dash else (part,):
            if name not in known:
                raise ConfigError(
                    f"the file has no route {name!r}{did_you_mean(name, known)}; its ids are {_shortened(known)}, to "
                    "be given as in 0,3,8-12."
                )
        if known.index(last) < known.index(first):
            raise ConfigError(f"the range of routes {part!r} ends before it begins; write it as {last}-{first}.")
        wanted.update(known[known.index(first) : known.index(last) + 1])
    return wanted


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:5])} to {names[-1]} ({len(names)} in all)"


# --- XML --------------------------------------------------------------------------------------------------------------


def _parse(text: str, name: str) -> Element:
    """The root element of an XML text."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEPTH:
            raise ConfigError(f"{name!r} has elements in each other {depth} deep; {_REMEDY}.")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> NoReturn:
        raise ConfigError(
            f"{name!r} has a document type (<!DOCTYPE ...>), which no route file needs and which may stand for a text "
            "of any size; take it out if you trust the file."
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise ConfigError(f"{name!r} is no XML in line {error.lineno}: {reason}; {_REMEDY}.") from error
    return builder.close()


def _route(element: Element, name: str) -> FileRoute:
    route_id = (element.get("id") or "").strip()
    if not route_id:
        raise ConfigError(f"{name!r} has a <route> without id; {_REMEDY}.")

    def fail(what: str) -> NoReturn:
        raise ConfigError(f"route {route_id} of {name!r} {what}; {_REMEDY}.")

    town = (element.get("town") or element.get("map") or "").strip()
    if not town:
        fail("names no town")
    inside = element.find("waypoints")
    places = [*element.findall("waypoint"), *(() if inside is None else (*inside.iter("position"),))]
    if len(places) < 2:
        fail(f"has {len(places) or 'no'} waypoints, but two or more are needed")
    weather, num_weathers = _weather(element, fail)
    return FileRoute(
        route_id=route_id,
        town=town,
        places=tuple(_place(place, fail) for place in places),
        weather=weather,
        num_weathers=num_weathers,
        num_scenarios=sum(1 for _ in element.iter("scenario")),
    )


def _place(element: Element, fail: Callable[[str], NoReturn]) -> tuple[float, float, float]:
    x, y, z = (_number(element, axis, fail, "0" if axis == "z" else None) for axis in ("x", "y", "z"))
    if max(map(abs, (x, y, z))) > _FARTHEST_M:
        fail(f"has a waypoint at ({x:g}, {y:g}, {z:g}), which is on no map")
    return x, y, z


def _weather(route: Element, fail: Callable[[str], NoReturn]) -> tuple[dict[str, float], int]:
    """The weather at the start of a route, and how many it names."""
    found = list(route.iter("weather"))
    if not found:
        return dict(DEFAULT_WEATHER), 0
    first = min(found, key=lambda element: _number(element, "route_percentage", fail, "0"))
    # Attributes of other kinds, such as a weather's own id, say nothing of the sky.
    given = {name: _number(first, name, fail) for name in WEATHER_PARAMETERS if name in first.attrib}
    return {**DEFAULT_WEATHER, **given}, len(found)


def _number(element: Element, name: str, fail: Callable[[str], NoReturn], default: str | None = None) -> float:
    text = element.get(name, default)
    try:
        value = math.nan if text is None else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        fail(f"has a <{element.tag}> with {name}={text!r}, which is no finite number")
    return value
