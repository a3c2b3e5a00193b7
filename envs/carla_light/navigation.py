"""The navigation mesh of a town's sidewalks, in the binary format that CARLA's client reads.

CARLA keeps it as Recast's samples do: a header, then tiles as Detour has them in memory (one here). Detour's axes are
x, up, y of CARLA's. See ``DetourNavMesh.h`` of Recast Navigation for the structures.
"""

from __future__ import annotations

import struct
from functools import cache

import numpy as np

from wm_gym.envs.carla_light.layout import Town

_SET_MAGIC, _SET_VERSION = int.from_bytes(b"MSET", "big"), 1
_TILE_MAGIC, _TILE_VERSION = int.from_bytes(b"DNAV", "big"), 7
_MAX_POLYGONS = 1 << 14
_TILE_REF = 1 << 14
"""Number of the tile's version, above the bits for the polygon; 0 would mean no tile."""
_SIDEWALK_AREA, _SIDEWALK_FLAG = 1, 0x02
_HEIGHT, _RADIUS, _CLIMB = 1.8, 0.3, 0.3
_MAX_CORNERS = 6
_NO_LINK = 0xFFFFFFFF


@cache
def navigation_mesh(town: Town) -> bytes:
    """The mesh of a town's sidewalks: pedestrians walk within them, and from one to the next that touches it."""
    vertices: dict[tuple[float, float], int] = {}
    polygons = []
    for points in town.sidewalk_polygons:
        corners = [vertices.setdefault((round(x, 3), round(y, 3)), len(vertices)) for x, y in points.tolist()]
        corners = [corner for index, corner in enumerate(corners) if corner != corners[index - 1]]
        if len(corners) >= 3:
            polygons.append(_clockwise(corners, list(vertices)))
    assert len(polygons) < _MAX_POLYGONS
    edges: dict[frozenset[int], list[int]] = {}
    for number, corners in enumerate(polygons):
        for index, corner in enumerate(corners):
            edges.setdefault(frozenset((corner, corners[index - 1])), []).append(number)
    links = sum(len(sharing) for sharing in edges.values())

    places = np.array([(x, 0.0, y) for x, y in vertices], dtype="<f4")
    packed_polygons, details, triangles = b"", b"", b""
    for number, corners in enumerate(polygons):
        following = [*corners[1:], corners[0]]
        beside = []
        for corner, after in zip(corners, following, strict=True):
            others = [other for other in edges[frozenset((corner, after))] if other != number]
            beside.append(others[0] + 1 if others else 0)
        packed_polygons += struct.pack(
            f"<I{_MAX_CORNERS}H{_MAX_CORNERS}HHBB",
            _NO_LINK,
            *_filled(corners),
            *_filled(beside),
            _SIDEWALK_FLAG,
            len(corners),
            _SIDEWALK_AREA,
        )
        last = len(corners) - 2
        # The last number has two bits for each edge: 1 where it is an edge of the polygon, too.
        fan = [(0, i, i + 1, (i == 1) | 1 << 2 | (i == last) << 4) for i in range(1, last + 1)]
        details += struct.pack("<IIBBxx", 0, len(triangles) // 4, 0, len(fan))
        triangles += b"".join(struct.pack("<4B", *triangle) for triangle in fan)
    room = np.array((1.0, 3.0, 1.0))
    low, high = places.min(axis=0) - room, places.max(axis=0) + room
    header = struct.pack(
        "<5iI9i3f3f3ff",
        _TILE_MAGIC, _TILE_VERSION, 0, 0, 0, 0,
        len(polygons), len(places), links, len(polygons), 0, len(triangles) // 4, 0, 0, len(polygons),
        _HEIGHT, _RADIUS, _CLIMB, *low, *high, 1.0,
    )  # fmt: skip
    tile = header + places.tobytes() + packed_polygons + bytes(12 * links) + details + triangles
    width, depth = float(high[0] - low[0]), float(high[2] - low[2])
    start = struct.pack("<3i3f2f2i", _SET_MAGIC, _SET_VERSION, 1, *low, width, depth, 1, _MAX_POLYGONS)
    return start + struct.pack("<Ii", _TILE_REF, len(tile)) + tile


def _clockwise(corners: list[int], places: list[tuple[float, float]]) -> list[int]:
    """In the order in which Detour counts an area as positive."""
    xs, ys = np.array([places[corner] for corner in corners]).T
    area = float(np.sum(xs * np.roll(ys, -1) - ys * np.roll(xs, -1)))
    return corners if area < 0 else corners[::-1]


def _filled(values: list[int]) -> list[int]:
    return [*values, *[0] * (_MAX_CORNERS - len(values))]
