"""Speed limits of an OpenDRIVE map: the records of its roads, and the signs beside them."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.carla_light.layout import Points

Numbers = NDArray[np.int64]

_KMH = {"km/h": 1.0, "mph": 1.609344, "m/s": 3.6}
_SIGN = "274"
"""The type of a speed limit's sign, by CARLA and by the Vienna Convention's German catalogue."""


def speed_limits(root: ElementTree.Element, roads: Numbers, stations: Points, lanes: Numbers) -> Points:
    """The limits at places on lanes.

    Args:
        root: The map.
        roads: ``(N,)`` ids of the roads.
        stations: ``(N,)`` metres along them.
        lanes: ``(N,)`` ids of the lanes.

    Returns:
        ``(N,)`` km/h: of the last sign on the road that the traffic has passed, else of the road's record, and not a
        number where there is neither: there the limit of the road before goes on.
    """
    limits = np.full(len(roads), np.nan)
    for road in root.iter("road"):
        on_road = roads == int(road.attrib["id"])
        if not on_road.any():
            continue
        for s, kmh in _records(road):
            limits[on_road & (stations >= s)] = kmh
        for side, s, kmh in _signs(road):
            passed = stations >= s if side < 0 else stations <= s
            limits[on_road & (np.sign(lanes) == side) & passed] = kmh
    return limits


def _records(road: ElementTree.Element) -> Iterator[tuple[float, float]]:
    """Metres along the road and km/h of the records, in their order along the road."""
    for kind in sorted(road.findall("type"), key=lambda kind: float(kind.get("s", 0.0))):
        speed = kind.find("speed")
        kmh = None if speed is None else _kmh(speed.get("max"), speed.get("unit"), default="m/s")
        if kmh is not None:
            yield float(kind.get("s", 0.0)), kmh


def _signs(road: ElementTree.Element) -> Iterator[tuple[int, float, float]]:
    """Side, metres along the road and km/h of the signs, in the order in which the traffic passes them.

    The side is -1 for the lanes with negative ids, which lead along the road, and 1 for those that lead back.
    """
    found = []
    for signal in road.iterfind("signals/signal"):
        kmh = _kmh(signal.get("value"), signal.get("unit"), default="km/h")
        if signal.get("type") == _SIGN and kmh is not None:
            found.append((float(signal.attrib["s"]), kmh, signal.get("orientation")))
    for side, opposite in ((-1, "-"), (1, "+")):
        for s, kmh, orientation in sorted(found, key=lambda sign: -side * sign[0]):
            if orientation != opposite:
                yield side, s, kmh


def _kmh(value: str | None, unit: str | None, *, default: str) -> float | None:
    """A speed in km/h; ``None`` where the map gives no number, such as "no limit"."""
    try:
        speed = float(value or "")
    except ValueError:
        return None
    return speed * _KMH.get(unit or default, _KMH[default]) if 0 < speed < np.inf else None
