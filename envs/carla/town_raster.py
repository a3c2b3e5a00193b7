"""A town's ground as a picture from above: rastered from its map once, and kept on the disk.

:func:`raster_town` and :func:`cached_raster` use CARLA's map and run in the client process; what they return is plain
data for any process.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from wm_gym.cache_folder import cache_folder
from wm_gym.envs.carla.client import import_carla
from wm_gym.errors import SimulatorError
from wm_gym.files import write_atomically

if TYPE_CHECKING:
    import carla

FloatArray = NDArray[np.float64]
Surface = NDArray[np.uint8]

RASTER_MULTIPLE = 64
"""Height and width of a raster are multiples of this, so that it can be made smaller by any power of two up to this."""

_PIXELS_PER_METRE = 4
"""Town04, CARLA's largest town among 01 to 10, takes 14 MB then."""
_FORMAT = 2
"""To be raised with every change of the drawing, or of the file."""
_SPACING_M = 1.0
"""Between the places of a lane that are joined by straight pieces: at most 3 cm off in the tightest turns."""
_MARGIN_M = 16.0
"""Around the outermost lanes."""
_FINER = 2
"""How much finer than the raster it is drawn."""
_LINE_M = 0.4
"""Paint is 0.1 to 0.2 m wide, but a coarse picture would not show that."""
_DASH_M, _GAP_M = 3.0, 3.0
_DAMAGED = (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, BadZipFile, zlib.error)
"""What NumPy raises for files that are none of its own, or damaged."""
_SHIFT = 6
"""Bits of a pixel's fraction in the coordinates given to OpenCV."""


class Ground(IntEnum):
    """Greys of what is on the ground, in the order in which it is drawn: the later covers the earlier."""

    NOTHING = 10
    BESIDE = 35
    """Sidewalks, shoulders and other lanes beside the road that vehicles should not use."""
    ROAD = 85
    """Lanes that count as road for ``off_road``."""
    BROKEN_LINE = 150
    SOLID_LINE = 185


@dataclass(frozen=True, eq=False)
class TownRaster:
    """A town's ground from above, in CARLA's frame: a row has one y, a column one x.

    Where roads cross at different heights, as on bridges, they overlap.

    Attributes:
        surface: ``(H, W)`` uint8, the greys of :class:`Ground`, mixed where a pixel has parts of several; H and W are
            multiples of ``RASTER_MULTIPLE``.
        pixels_per_metre: Of the surface.
        origin: x and y of the corner of the first pixel, metres: pixel ``[row, column]`` is centred at
            ``origin + (column + 0.5, row + 0.5) / pixels_per_metre``.
    """

    surface: Surface
    pixels_per_metre: float
    origin: tuple[float, float]


def raster_town(carla_map: carla.Map, pixels_per_metre: int = _PIXELS_PER_METRE) -> TownRaster:
    """Draw a town's lanes and the markings between them; takes about a second for a large town.

    Args:
        carla_map: The map.
        pixels_per_metre: Of the raster.

    Raises:
        SimulatorError: The map has no driving lanes.
    """
    road, beside, lines = _read_strips(carla_map)
    if not road:
        raise SimulatorError(f"the map {carla_map.name!r} has no driving lanes, so no view of it can be drawn.")
    edges = np.concatenate([strip.reshape(-1, 2) for strip in road])
    low = np.floor(edges.min(axis=0) - _MARGIN_M)
    size = np.ceil((edges.max(axis=0) + _MARGIN_M - low) * pixels_per_metre / RASTER_MULTIPLE) * RASTER_MULTIPLE
    fine = np.full((_FINER * int(size[1]), _FINER * int(size[0])), int(Ground.NOTHING), np.uint8)

    def pixels(points: FloatArray) -> NDArray[np.int32]:
        # OpenCV's integer coordinates are the centres of pixels.
        return np.rint(((points - low) * pixels_per_metre * _FINER - 0.5) * 2**_SHIFT).astype(np.int32)

    drawn = {Ground.BESIDE: beside, Ground.ROAD: road}
    drawn |= {ground: [_widened(line, _LINE_M) for line in lines[ground]] for ground in lines}
    for ground, strips in sorted(drawn.items()):
        for strip in strips:
            left, right = pixels(strip[:, 0]), pixels(strip[:, 1])
            # Piece by piece: a whole strip may cross itself on the inside of a tight turn, and would get holes there.
            for quad in np.stack((left[:-1], left[1:], right[1:], right[:-1]), axis=1):
                cv2.fillConvexPoly(fine, quad, int(ground), shift=_SHIFT)
    # Edges are smooth so: no stairs in a picture that is finer than the raster, or turned.
    drawn_smaller = cv2.resize(fine, (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA)
    surface = np.asarray(drawn_smaller, np.uint8)
    return TownRaster(surface, float(pixels_per_metre), (float(low[0]), float(low[1])))


def _widened(line: FloatArray, width: float) -> FloatArray:
    """The edges ``(n, 2, 2)`` of a strip around a line ``(n, 2)``."""
    along = np.gradient(line, axis=0)
    normal = np.stack((-along[:, 1], along[:, 0]), axis=1)
    normal *= width / 2 / np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6)[:, None]
    return np.stack((line - normal, line + normal), axis=1)


# --- The map's lanes --------------------------------------------------------------------------------------------------


def _read_strips(carla_map: carla.Map) -> tuple[list[FloatArray], list[FloatArray], dict[Ground, list[FloatArray]]]:
    """The edges ``(n, 2, 2)`` of lanes that are road and of those beside it, and the lines ``(n, 2)`` of each kind."""
    types = import_carla().LaneType
    drivable = types.Driving | types.Bidirectional | types.Parking
    lanes: dict[tuple[int, int, int], dict[int, carla.Waypoint]] = defaultdict(dict)
    for waypoint in carla_map.generate_waypoints(_SPACING_M):
        _add(lanes, waypoint)
        for side in ("get_left_lane", "get_right_lane"):
            beside = getattr(waypoint, side)()
            # Driving lanes come by themselves; beyond the road's middle, left and right change places.
            while beside is not None and beside.lane_type != types.Driving and beside.lane_id * waypoint.lane_id > 0:
                _add(lanes, beside)
                beside = getattr(beside, side)()
    road: list[FloatArray] = []
    others: list[FloatArray] = []
    lines: dict[Ground, list[FloatArray]] = {Ground.BROKEN_LINE: [], Ground.SOLID_LINE: []}
    for samples in lanes.values():
        waypoints = [samples[key] for key in sorted(samples)]
        edges = _edges(waypoints)
        if waypoints[0].lane_type & drivable:
            road.append(edges)
            if not waypoints[0].is_junction:  # there, markings of all ways through would cross
                _add_lines(lines, waypoints, edges)
        elif waypoints[0].lane_type != types.NONE:
            others.append(edges)
    return road, others, lines


def _add(lanes: dict[tuple[int, int, int], dict[int, carla.Waypoint]], waypoint: carla.Waypoint) -> None:
    key = waypoint.road_id, waypoint.section_id, waypoint.lane_id
    lanes[key][round(100 * waypoint.s)] = waypoint


def _edges(waypoints: list[carla.Waypoint]) -> FloatArray:
    """Left and right edge ``(n + 2, 2, 2)`` of a lane, seen in its own direction, in the order of its waypoints.

    The waypoints end up to a spacing before the lane does, so both ends are drawn out by that.
    """
    transforms = [waypoint.transform for waypoint in waypoints]
    centre = np.array([(transform.location.x, transform.location.y) for transform in transforms], dtype=np.float64)
    yaw = np.radians([transform.rotation.yaw for transform in transforms])
    half = np.array([waypoint.lane_width for waypoint in waypoints], dtype=np.float64) / 2
    right = half[:, None] * np.stack((-np.sin(yaw), np.cos(yaw)), axis=1)
    edges = np.stack((centre - right, centre + right), axis=1)
    along = _SPACING_M * np.stack((np.cos(yaw), np.sin(yaw)), axis=1)
    if waypoints[0].lane_id > 0:  # it leads against the road's coordinate
        along = -along
    return np.concatenate((edges[:1] - along[0], edges, edges[-1:] + along[-1]))


def _add_lines(lines: dict[Ground, list[FloatArray]], waypoints: list[carla.Waypoint], edges: FloatArray) -> None:
    """Add the markings along both edges of a lane, broken ones as their dashes."""
    types = import_carla().LaneMarkingType
    kinds: dict[Any, Ground] = {
        types.Broken: Ground.BROKEN_LINE,
        types.BottsDots: Ground.BROKEN_LINE,
        types.Solid: Ground.SOLID_LINE,
        types.SolidSolid: Ground.SOLID_LINE,
        types.SolidBroken: Ground.SOLID_LINE,
        types.BrokenSolid: Ground.SOLID_LINE,
        types.BrokenBroken: Ground.BROKEN_LINE,
    }
    for side, name in enumerate(("left_lane_marking", "right_lane_marking")):
        points = edges[:, side]
        painted = []
        for waypoint in waypoints:
            kind = kinds.get(getattr(waypoint, name).type)
            is_gap = kind == Ground.BROKEN_LINE and waypoint.s % (_DASH_M + _GAP_M) >= _DASH_M
            painted.append(None if is_gap else kind)
        begin = 0
        for end in range(1, len(painted) + 1):
            if end == len(painted) or painted[end] != painted[begin]:
                kind = painted[begin]
                if kind is not None:
                    # The first and the last of the points are those drawn out beyond the waypoints.
                    lines[kind].append(points[begin + 1 if begin > 0 else 0 : end + 2])
                begin = end


# --- The cache --------------------------------------------------------------------------------------------------------


def cached_raster(
    carla_map: carla.Map, pixels_per_metre: int = _PIXELS_PER_METRE, folder: str | Path | None = None
) -> TownRaster:
    """The raster of a town from the disk, where it was drawn before; else drawn, and kept for the next time.

    Args:
        carla_map: The map; the file is found by the map's content, not by its name.
        pixels_per_metre: Of the raster.
        folder: Where the files are; ``None`` for ``towns`` in :func:`~wm_gym.cache_folder.cache_folder`. A folder that
            cannot be written costs the time to draw, no more.

    Raises:
        SimulatorError: The map has no driving lanes.
    """
    described = f"{_FORMAT} {pixels_per_metre} {carla_map.to_opendrive()}"
    name = hashlib.sha256(described.encode()).hexdigest()
    path = (Path(folder) if folder is not None else cache_folder() / "towns") / f"{name}.npz"
    raster = _load(path)
    if raster is None:
        raster = raster_town(carla_map, pixels_per_metre)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: _save(raster, temporary))
    return raster


def _save(raster: TownRaster, path: Path) -> None:
    with path.open("wb") as file:  # to a file by its name, NumPy adds an ending
        np.savez_compressed(
            file,
            surface=raster.surface,
            pixels_per_metre=np.float64(raster.pixels_per_metre),
            origin=np.array(raster.origin, np.float64),
        )


def _load(path: Path) -> TownRaster | None:
    """The raster in a file, or ``None`` where there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            surface, origin = arrays["surface"], arrays["origin"]
            raster = TownRaster(surface, float(arrays["pixels_per_metre"]), (float(origin[0]), float(origin[1])))
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        NotImplementedError,
        BadZipFile,
        zlib.error,
    ):
        return None
    is_sound = (
        surface.dtype == np.uint8
        and surface.ndim == 2
        and surface.size > 0
        and surface.min() >= Ground.NOTHING
        and all(side % RASTER_MULTIPLE == 0 for side in surface.shape)
        and raster.pixels_per_metre > 0
        and all(math.isfinite(value) for value in (raster.pixels_per_metre, *raster.origin))
    )
    return raster if is_sound else None
