"""What a camera sees of a town: a plain perspective picture in flat colours, drawn polygon by polygon.

The ground is flat, so its polygons are painted layer upon layer: grass, sidewalk, road, paint. What stands on it are
boxes, painted from the farthest to the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.carla_light.geometry import corners, rotation
from wm_gym.envs.carla_light.layout import (
    DASH_GAP,
    DASH_LENGTH,
    POLE_HALF_M,
    POLE_HEIGHT_M,
    Marking,
    Pose,
    Town,
    TrafficLight,
)

# CARLA's semantic tags of what is drawn.
ROAD = 1
SIDEWALK = 2
BUILDING = 3
POLE = 6
TRAFFIC_LIGHT = 7
TERRAIN = 10
SKY = 11
PEDESTRIAN = 12
CAR = 14
ROAD_LINE = 24

Color = tuple[int, int, int]
Points = NDArray[np.float64]
Image = NDArray[np.uint8]

_ASPHALT = (88, 90, 94)
_PAVEMENT = (166, 162, 154)
_GRASS = (98, 134, 72)
_MEADOWS = ((108, 143, 76), (90, 124, 68))
"""Patches of other grass, without which the ground would show no motion."""
_HORIZON = (206, 220, 232)
_ZENITH = (98, 150, 212)
_FOG = (196, 201, 206)
_SHADOW = (58, 60, 63)
_GLASS = (52, 62, 74)
_STEEL = (70, 74, 78)

_POLE_HEIGHT = 2.6
_FLOOR_HEIGHT = 3.2
_WINDOW_HEIGHT = 1.3

_NEAR = 0.1
"""Metres; nothing nearer to the camera's plane is drawn."""
_MARGIN = 1.3
"""Polygons are cut at this multiple of half the picture's size, so that cut edges stay outside."""
_UNCUT = 6.0
"""Polygons that stay within this multiple of half the picture's size need no cut."""
_PIECE = 8.0
"""Longest piece of a painted line, in metres."""
_SHIFT = 4
"""Fractional bits of the pixel coordinates that OpenCV is given."""
_FADES = (0.2, 0.45, 0.75)
"""Thickness in pixels from which a painted line is drawn with a third, two thirds and all of its colour."""
_THIN_PAINT = 0.15
"""Metres; markings are left out where a line of this width is thinner than the first of ``_FADES``."""
_SUN = np.array((0.45, -0.35, 0.82))
_FOG_DENSITY = 0.06
"""Of full fog, per metre."""
_LEVELS = 4096
"""Steps from straight down to straight up in the tables of the backdrop's colours."""


@dataclass(frozen=True)
class Box:
    """A vehicle, a walker or the like.

    Attributes:
        pose: Centre of the bottom face.
        extent: Half sizes in metres along its own axes.
        color: RGB, 0 to 255.
        tag: CARLA's semantic tag.
    """

    pose: Pose
    extent: tuple[float, float, float]
    color: Color
    tag: int


def traffic_light_head(light: TrafficLight, color: Color) -> Box:
    """The head on top of a traffic light's pole, in the colour it shows."""
    pose = Pose(light.pose.x, light.pose.y, _POLE_HEIGHT, yaw=light.pose.yaw)
    return Box(pose, (0.2, 0.35, 0.55), color, TRAFFIC_LIGHT)


# --- What there is to draw --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ground:
    """Polygons on the ground, sorted by layer.

    Attributes:
        polygons: ``(N, 4, 2)`` metres; triangles repeat a corner.
        centers: ``(N, 2)``.
        radii: ``(N,)``, of the circles around them.
        sizes: ``(N,)`` metres; a polygon is left out where this is less than a pixel.
        starts: Index of the first polygon of each layer, and ``N``.
        colors: RGB of each layer.
        tags: Semantic tag of each layer.
        are_paint: Whether the layer is paint, which fades where it is thinner than a pixel.
    """

    polygons: Points
    centers: Points
    radii: Points
    sizes: Points
    starts: tuple[int, ...]
    colors: tuple[Color, ...]
    tags: tuple[int, ...]
    are_paint: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class _Solids:
    """Faces of boxes, those of one object together and in the order in which they are painted.

    Attributes:
        faces: ``(F, 4, 3)`` metres, in the world.
        normals: ``(F, 3)``, outwards.
        colors: ``(F, 3)`` RGB, shaded.
        tags: ``(F,)`` semantic.
        discs: ``(F, 3)`` x, y and radius of the disc on the ground that holds the object.
        sizes: ``(F,)`` metres; a face is left out where this is less than a pixel.
    """

    faces: Points
    normals: Points
    colors: Points
    tags: NDArray[np.int64]
    discs: Points
    sizes: Points

    @cached_property
    def centers(self) -> Points:
        """Middles of the faces ``(F, 3)``."""
        return self.faces.mean(axis=1)

    @cached_property
    def radii(self) -> Points:
        """Of the balls ``(F,)`` that hold the faces."""
        return np.linalg.norm(self.faces[:, 0] - self.centers, axis=1)

    def take(self, indices: NDArray[np.intp]) -> _Solids:
        """Some of the faces."""
        return _Solids(*(getattr(self, each.name)[indices] for each in fields(self)))

    @staticmethod
    def joined(parts: Sequence[_Solids]) -> _Solids:
        """All faces of ``parts``."""
        if len(parts) == 1:
            return parts[0]
        return _Solids(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(_Solids)))


@cache
def _scene(town: Town) -> tuple[_Ground, _Solids]:
    return _ground(town), _Solids.joined((_buildings(town), _cuboids(_poles(town))))


def _ground(town: Town) -> _Ground:
    layers: list[tuple[Color, int, bool, Sequence[Points]]] = [
        *((color, TERRAIN, False, patches) for color, patches in zip(_MEADOWS, _meadows(town), strict=True)),
        (_PAVEMENT, SIDEWALK, False, town.sidewalk_polygons),
        (_ASPHALT, ROAD, False, town.road_polygons),
        *((_ASPHALT, ROAD, False, layer) for layer in town.junction_polygons),
    ]
    # Dashes and solid lines may cross; OpenCV leaves holes where polygons of one call overlap.
    for color, dashed in sorted({(marking.color, marking.dashed) for marking in town.markings}):
        lines = [marking for marking in town.markings if (marking.color, marking.dashed) == (color, dashed)]
        layers.append((color, ROAD_LINE, True, [quad for line in lines for quad in _painted(line)]))
    colors, tags, are_paint, groups = zip(*layers, strict=True)
    counts = [len(group) for group in groups]
    polygons = np.stack([_four(polygon) for group in groups for polygon in group])
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    radii = 0.5 * np.linalg.norm(high - low, axis=1)
    sizes = np.where(np.repeat(are_paint, counts), _THIN_PAINT / _FADES[0], 2 * radii)
    starts = (0, *np.cumsum(counts).tolist())
    return _Ground(polygons, 0.5 * (low + high), radii, sizes, starts, colors, tags, are_paint)


def _four(polygon: Points) -> Points:
    """A triangle or a quadrilateral as ``(4, 2)``."""
    return polygon if len(polygon) == 4 else np.concatenate((polygon, polygon[-1:]))


def _meadows(town: Town) -> list[list[Points]]:
    """Quadrilaterals ``(4, 2)`` for each colour of ``_MEADOWS``, scattered about the town."""
    rng = np.random.default_rng(len(town.name))
    corners = np.concatenate(town.sidewalk_polygons or town.road_polygons)
    cell = 12.0
    xs, ys = (np.arange(low - 60, high + 60, cell) for low, high in zip(corners.min(0), corners.max(0), strict=True))
    patches: list[list[Points]] = [[] for _ in _MEADOWS]
    for x in xs:
        for y in ys:
            kind = int(rng.integers(2 * len(_MEADOWS)))
            quad = np.array(((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9))) + rng.uniform(-0.1, 0.1, (4, 2))
            if kind < len(_MEADOWS):
                patches[kind].append((x, y) + cell * quad)
    return patches


def _painted(marking: Marking) -> Iterator[Points]:
    """Quadrilaterals ``(4, 2)`` of paint along a marking."""
    points = marking.points
    steps = np.diff(points, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    along = np.concatenate(([0.0], np.cumsum(lengths)))
    directions = np.vstack((steps / lengths[:, None], steps[-1:] / lengths[-1]))
    directions[1:-1] += directions[:-2]  # in a bend, the paint's edges are cut half-way between the two directions
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    begins = np.arange(0.0, along[-1] - 0.1, DASH_LENGTH + DASH_GAP if marking.dashed else _PIECE)
    ends = np.minimum(begins + (DASH_LENGTH if marking.dashed else _PIECE), along[-1])
    for begin, end in zip(begins, ends, strict=True):
        inner = along[(along > begin + 0.05) & (along < end - 0.05)]
        stations = np.array((begin, *inner, end))
        middle, heading = (np.stack([np.interp(stations, along, v) for v in a.T], axis=1) for a in (points, directions))
        side = 0.5 * marking.width * np.stack((-heading[:, 1], heading[:, 0]), axis=1)
        near, far = middle - side, middle + side
        yield from np.stack((near[:-1], near[1:], far[1:], far[:-1]), axis=1)


_CORNERS = np.array([(x, y, z) for z in (0, 1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], np.float64)
"""Of a box: x and y from -1 to 1, z from 0 to 1."""
_FACES = np.array(((1, 2, 6, 5), (3, 0, 4, 7), (2, 3, 7, 6), (0, 1, 5, 4), (4, 5, 6, 7), (3, 2, 1, 0)))
_NORMALS = np.array(((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)), np.float64)


def _cuboids(boxes: Sequence[Box]) -> _Solids:
    """The faces of boxes; cars are a body and a cabin."""
    parts = [part for box in boxes for part in _parts(box)]
    owners = np.repeat(np.arange(len(boxes)), [2 if box.tag == CAR else 1 for box in boxes])
    rotations = np.array([rotation(box.pose) for box in boxes]).reshape(-1, 3, 3)[owners]
    origins = np.array([(box.pose.x, box.pose.y, box.pose.z) for box in boxes]).reshape(-1, 3)[owners]
    sizes = np.array([(part.sizes, part.offset) for part in parts]).reshape(-1, 2, 3)
    vertices = _CORNERS * sizes[:, None, 0] + sizes[:, None, 1]  # (parts, 8, 3)
    vertices = np.einsum("pij,pcj->pci", rotations, vertices) + origins[:, None]
    normals = np.einsum("pij,fj->pfi", rotations, _NORMALS)
    tags = np.array([box.tag for box in boxes], np.int64)[owners]
    colors = np.array([part.color for part in parts], np.float64).reshape(-1, 1, 3)
    shades = np.where((tags == TRAFFIC_LIGHT)[:, None, None], 1.0, _shade(normals))  # lamps shine by themselves
    radii = np.array([math.hypot(*box.extent[:2]) for box in boxes])[owners]
    per_face = np.repeat(np.arange(len(parts)), len(_FACES))
    return _Solids(
        faces=vertices[:, _FACES].reshape(-1, 4, 3),
        normals=normals.reshape(-1, 3),
        colors=(colors * shades).reshape(-1, 3),
        tags=tags[per_face],
        discs=np.column_stack((origins[:, :2], radii))[per_face],
        sizes=2 * np.array([max(part.sizes) for part in parts])[per_face],
    )


@dataclass(frozen=True)
class _Part:
    """A box within a box: half length, half width and full height; where its bottom is; RGB."""

    sizes: tuple[float, float, float]
    offset: tuple[float, float, float]
    color: Color


def _parts(box: Box) -> list[_Part]:
    length, width, height = box.extent[0], box.extent[1], 2 * box.extent[2]
    if box.tag != CAR:
        return [_Part((length, width, height), (0, 0, 0), box.color)]
    return [
        _Part((length, width, 0.58 * height), (0, 0, 0), box.color),
        _Part((0.55 * length, 0.85 * width, 0.42 * height), (-0.1 * length, 0, 0.58 * height), _GLASS),
    ]


def _shade(normals: Points) -> Points:
    """Brightness ``(..., 1)`` of faces under the sun."""
    return 0.58 + 0.42 * np.clip(normals @ _SUN, 0.0, 1.0)[..., None]


def _poles(town: Town) -> list[Box]:
    lights = [Box(light.pose, (0.08, 0.08, _POLE_HEIGHT / 2), _STEEL, POLE) for light in town.lights]
    half, height = POLE_HALF_M, POLE_HEIGHT_M
    return [*lights, *(Box(foot, (half, half, height / 2), _STEEL, POLE) for foot in town.poles)]


def _buildings(town: Town) -> _Solids:
    houses = [
        Box(Pose(b.x, b.y, yaw=b.yaw), (b.half_x, b.half_y, b.height / 2), b.color, BUILDING) for b in town.buildings
    ]
    return _with_windows(_cuboids(houses))


def _with_windows(walls: _Solids) -> _Solids:
    """Add a band of windows on every floor, right after the wall it is in."""
    faces, sources, are_windows = [], [], []
    for index, (wall, normal) in enumerate(zip(walls.faces, walls.normals, strict=True)):
        bands = list(_bands(wall)) if abs(normal[2]) < 0.5 else []
        faces += [wall, *bands]
        sources += [index] * (1 + len(bands))
        are_windows += [False] + [True] * len(bands)
    source, is_window = np.array(sources, np.int64), np.array(are_windows, bool)
    return _Solids(
        faces=np.array(faces).reshape(-1, 4, 3),
        normals=walls.normals[source],
        colors=np.where(is_window[:, None], _shade(walls.normals[source]) * _GLASS, walls.colors[source]),
        tags=walls.tags[source],
        discs=walls.discs[source],
        sizes=np.where(is_window, _WINDOW_HEIGHT, walls.sizes[source]),
    )


def _bands(wall: Points) -> Iterator[Points]:
    """Quadrilaterals ``(4, 3)`` within an upright wall whose corners are two at the bottom and the two above them."""
    height = wall[2, 2] - wall[0, 2]
    for floor in range(int(height / _FLOOR_HEIGHT)):
        bottom = (floor * _FLOOR_HEIGHT + 1.0) / height
        top = bottom + _WINDOW_HEIGHT / height
        band = [
            wall[0] + across * (wall[1] - wall[0]) + up * (wall[3] - wall[0])
            for across, up in ((0.1, bottom), (0.9, bottom), (0.9, top), (0.1, top))
        ]
        yield np.stack(band)


# --- Perspective ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A pinhole camera.

    Attributes:
        position: ``(3,)`` metres.
        axes: ``(3, 3)``, rows: forward, right and up, in the world.
        focal: Pixels.
    """

    position: Points
    axes: Points
    focal: float
    width: int
    height: int

    @classmethod
    def of(cls, camera: Pose, fov: float, width: int, height: int) -> _View:
        focal = 0.5 * width / math.tan(math.radians(0.5 * fov))
        return cls(np.array((camera.x, camera.y, camera.z)), rotation(camera).T, focal, width, height)

    def to_camera(self, points: Points) -> Points:
        """Points ``(..., 2)`` of the ground or ``(..., 3)`` of the world as depth, right and up, in metres."""
        dimensions = points.shape[-1]
        return _product(points, self.axes[:, :dimensions]) - self.axes @ self.position

    def planes(self, margin: float) -> Points:
        """Near plane and sides ``(5, 4)`` of what is seen; ``plane[:3] @ point + plane[3]`` is positive inside."""
        across, up = margin * 0.5 * self.width / self.focal, margin * 0.5 * self.height / self.focal
        return np.array(
            ((1, 0, 0, -_NEAR), (across, 1, 0, 0), (across, -1, 0, 0), (up, 0, 1, 0), (up, 0, -1, 0)), np.float64
        )

    def may_see(self, centers: Points, radii: Points, sizes: Points) -> NDArray[np.intp]:
        """Indices of the balls with centres ``(N, 2)`` or ``(N, 3)`` that meet what is seen.

        Those are left out in which something of ``sizes`` metres ``(N,)`` is less than a pixel.
        """
        points = self.to_camera(centers)
        planes = self.planes(1.0)
        distances = _product(points, planes[:, :3]) + planes[:, 3]
        seen = np.all(distances > -radii[:, None] * np.linalg.norm(planes[:, :3], axis=1), axis=1)
        return np.flatnonzero(seen & (points[:, 0] - radii < self.focal * sizes))

    def project(self, polygons: Points) -> tuple[NDArray[np.intp], list[NDArray[np.int32]], Points]:
        """Outlines of convex quadrilaterals ``(N, 4, 2)`` of the ground or ``(N, 4, 3)`` of the world in the picture.

        Returns:
            Indices ``(K,)`` of the polygons that are seen; for each of them its vertices ``(M, 2)`` in ``_SHIFT``
            fixed-point pixels, zero being the centre of the pixel in the top left corner; and its thickness ``(K,)`` in
            pixels, infinite where it had to be cut.
        """
        points = self.to_camera(polygons)
        planes = self.planes(1.0)
        distances = _product(points, planes[:, :3]) + planes[:, 3]  # (N, 4, 5)
        seen = np.flatnonzero(np.all(np.any(distances > 0.0, axis=1), axis=1))
        points = points[seen]
        wide = self.planes(_UNCUT)
        is_whole = np.all(_product(points, wide[:, :3]) + wide[:, 3] >= 0.0, axis=(1, 2))
        pixels = self.pixels(np.where(is_whole[:, None, None], points, 1.0))
        outlines = list(_fixed_point(pixels))
        is_drawn = np.ones(len(seen), bool)
        for index, outline in zip(
            np.flatnonzero(~is_whole), _cut(points[~is_whole], self.planes(_MARGIN)), strict=True
        ):
            outlines[index] = _fixed_point(self.pixels(outline))
            is_drawn[index] = len(outline) > 0
        thickness = np.where(is_whole, _thickness(pixels), np.inf)
        if not is_drawn.all():
            outlines = [outline for outline, drawn in zip(outlines, is_drawn, strict=True) if drawn]
        return seen[is_drawn], outlines, thickness[is_drawn]

    def pixels(self, points: Points) -> Points:
        """Where points ``(..., 3)`` in the camera's frame are seen ``(..., 2)``; the corner of the picture is zero."""
        scaled = points[..., 1:] * (self.focal / points[..., :1])
        return np.stack((0.5 * self.width + scaled[..., 0], 0.5 * self.height - scaled[..., 1]), axis=-1)


def _product(points: Points, rows: Points) -> Points:
    """Products ``(..., R)`` of points ``(..., D)`` with rows ``(R, D)``; one multiplication, where ``@`` makes many."""
    return (points.reshape(-1, points.shape[-1]) @ rows.T).reshape(*points.shape[:-1], len(rows))


def _fixed_point(pixels: Points) -> NDArray[np.int32]:
    return np.rint((pixels - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _thickness(quads: Points) -> Points:
    """Area ``(N,)`` of quadrilaterals ``(N, 4, 2)`` by their greatest length."""
    first, second = quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]
    area = 0.5 * np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    return area / np.maximum(np.hypot(*first.T), 1e-9)


def _cut(polygons: Points, planes: Points) -> list[Points]:
    """The parts ``(M', 3)`` of convex polygons ``(N, M, 3)`` on the positive side of all planes; perhaps empty.

    All polygons are cut by one plane at a time, as Sutherland and Hodgman do it.
    """
    counts = np.full(len(polygons), polygons.shape[1])
    for plane in planes:
        distance = polygons @ plane[:3] + plane[3]
        inside = distance >= 0.0
        if inside.all():
            continue
        # Polygons with fewer vertices than others repeat their last one, and so remain what they are.
        width = polygons.shape[1]
        following = (np.arange(width) + 1) % width
        crosses = inside != inside[:, following]
        share = np.where(crosses, distance, 0.0) / np.where(crosses, distance - distance[:, following], 1.0)
        crossing = polygons + share[..., None] * (polygons[:, following] - polygons)
        vertices = np.stack((polygons, crossing), axis=2).reshape(-1, 2 * width, 3)
        kept = np.stack((inside, crosses), axis=2).reshape(-1, 2 * width)
        counts = np.where(counts > 0, kept.sum(axis=1), 0)
        order = np.argsort(~kept, axis=1, kind="stable")
        slots = np.clip(counts - 1, 0, np.arange(max(counts.max(), 1))[:, None]).T
        polygons = vertices[np.arange(len(vertices))[:, None], np.take_along_axis(order, slots, axis=1)]
    return [polygon[:count] for polygon, count in zip(polygons, counts, strict=True)]


# --- Painting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Light:
    """How bright the day is, from 0 to 1, and what share of a colour the fog leaves over a distance."""

    brightness: float = 1.0
    fog: float = 0.0

    def fogged(self, colors: Points, distances: Points) -> Points:
        """Colours ``(N, 3)`` as they look from distances ``(N,)`` in metres."""
        kept = np.exp(-self.fog * _FOG_DENSITY * distances)[:, None]
        return self.brightness * (kept * colors + (1.0 - kept) * _FOG)


def _bgra(rgb: Sequence[float] | Points) -> tuple[float, float, float, float]:
    red, green, blue = rgb
    return float(blue), float(green), float(red), 255.0


def _mixed(color: Color, other: Color, share: float) -> Points:
    """A colour with ``share`` of another."""
    return (1.0 - share) * np.array(color, np.float64) + share * np.array(other, np.float64)


@lru_cache(maxsize=8)
def _rays(width: int, height: int, focal: float) -> NDArray[np.float32]:
    """Unit vectors ``(height, width, 3)`` forward, right and up through the pixels' centres."""
    right, down = np.meshgrid(np.arange(width) + 0.5 - 0.5 * width, np.arange(height) + 0.5 - 0.5 * height)
    rays = np.stack((np.full_like(right, focal), right, -down), axis=-1)
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)


def _steepness(view: _View) -> NDArray[np.intp]:
    """How steeply up each pixel looks ``(height, width)``: 0 for straight down, up to ``_LEVELS - 1``."""
    up = (0.5 * (_LEVELS - 1) * view.axes[:, 2]).astype(np.float32)
    return (_rays(view.width, view.height, view.focal) @ up + np.float32(0.5 * _LEVELS)).astype(np.intp)


@lru_cache(maxsize=8)
def _backdrop_table(light: _Light) -> Image:
    """BGRA ``(_LEVELS, 4)`` of grass and sky by steepness."""
    up = np.linspace(-1.0, 1.0, _LEVELS)
    haze = np.exp(-np.abs(up) / 0.05)[:, None]
    grass = np.array(_GRASS) + 0.35 * haze * np.subtract(_HORIZON, _GRASS)
    sky = np.array(_ZENITH) + np.exp(-np.abs(up) / 0.3)[:, None] * np.subtract(_HORIZON, _ZENITH)
    # The sky has no distance; low in it there is more air.
    sky = light.fogged(sky, 100.0 / (np.abs(up) + 0.05))
    rgb = np.where(up[:, None] < 0.0, light.brightness * grass, sky)
    table = np.full((_LEVELS, 4), 255, np.uint8)
    table[:, :3] = np.rint(rgb[:, ::-1])
    return table


def _look_up(table: Image, steepness: NDArray[np.intp]) -> Image:
    """Rows of a table ``(_LEVELS, 4)`` as a picture ``(height, width, 4)``."""
    return table.view(np.uint32)[:, 0][steepness].view(np.uint8).reshape(*steepness.shape, 4)


def _lay_fog(image: Image, view: _View, light: _Light, steepness: NDArray[np.intp]) -> None:
    """Fog over the ground, by the distance at which a pixel's ray meets it."""
    down = np.maximum(-np.linspace(-1.0, 1.0, _LEVELS), 1e-6)
    kept = np.exp(-light.fog * _FOG_DENSITY * max(view.position[2], 0.0) / down)
    kept[_LEVELS // 2 :] = 1.0  # the sky has its fog already
    foggy = np.flatnonzero(np.any(steepness[:, [0, -1]] < _LEVELS // 2, axis=1))
    if len(foggy):
        rows = slice(foggy[0], foggy[-1] + 1)
        share = kept.astype(np.float32)[steepness[rows]][..., None]
        fog = light.brightness * np.array(_FOG[::-1], np.float32)
        image[rows, :, :3] = np.rint(fog + share * (image[rows, :, :3] - fog))


_LayerColors = Sequence[Sequence[Sequence[float] | None]]
"""For each layer of the ground, the colour (or nothing) of polygons from each thickness of ``_FADES`` on."""


@lru_cache(maxsize=8)
def _ground_colors(colors: tuple[Color, ...], brightness: float) -> _LayerColors:
    return [[_bgra(brightness * _mixed(_ASPHALT, color, share)) for share in (1 / 3, 2 / 3, 1.0)] for color in colors]


def _near(boxes: Sequence[Box], view: _View) -> list[Box]:
    """The boxes that may be seen, or of which the shadow may."""
    if not boxes:
        return []
    poses = np.array([(box.pose.x, box.pose.y, box.pose.z) for box in boxes])
    extents = np.array([box.extent for box in boxes])
    radii = 1.2 * np.linalg.norm(extents * (1, 1, 2), axis=1)
    return [boxes[index] for index in view.may_see(poses, radii, 4 * extents.max(axis=1))]


@dataclass(frozen=True)
class _Brush:
    """Paints one picture.

    Attributes:
        line_type: OpenCV's, ``cv2.LINE_AA`` for smooth edges.
    """

    image: Image
    view: _View
    line_type: int

    def fill(self, outlines: Sequence[NDArray[np.int32]], color: Sequence[float]) -> None:
        """Fill polygons that do not overlap one another."""
        if outlines:
            cv2.fillPoly(self.image, outlines, color, self.line_type, _SHIFT)

    def ground(self, ground: _Ground, colors: _LayerColors) -> None:
        """Paint the layers of the ground."""
        if self.view.position[2] <= 0.0:
            return
        near = self.view.may_see(ground.centers, ground.radii, ground.sizes)
        seen, outlines, thickness = self.view.project(ground.polygons[near])
        borders = np.searchsorted(near[seen], ground.starts).tolist()
        grades = np.searchsorted(_FADES, thickness, side="right")
        for layer, (begin, end) in enumerate(pairwise(borders)):
            if not ground.are_paint[layer]:
                grades[begin:end] = len(_FADES)
            for grade, color in enumerate(colors[layer], 1):
                if color is not None:
                    chosen = begin + np.flatnonzero(grades[begin:end] == grade)
                    self.fill([outlines[index] for index in chosen], color)

    def solids(self, parts: Sequence[_Solids], colors: Callable[[_Solids], list[Sequence[float]]]) -> None:
        """Paint the faces that are turned to the camera, the farthest first, in the colours that ``colors`` gives."""
        solids = _Solids.joined([part.take(self._facing(part)) for part in parts])
        # Of two discs that do not overlap, one with the smaller power of the camera is never behind the other.
        away = solids.discs[:, :2] - self.view.position[:2]
        power = np.einsum("ij,ij->i", away, away) - solids.discs[:, 2] ** 2
        solids = solids.take(np.argsort(-power, kind="stable"))
        seen, outlines, _ = self.view.project(solids.faces)
        for outline, color in zip(outlines, colors(solids.take(seen)), strict=True):
            cv2.fillConvexPoly(self.image, outline, color, self.line_type, _SHIFT)

    def _facing(self, solids: _Solids) -> NDArray[np.intp]:
        near = self.view.may_see(solids.centers, solids.radii, solids.sizes)
        away = solids.centers[near] - self.view.position
        return near[np.einsum("ij,ij->i", away, solids.normals[near]) < 0.0]

    def shadows(self, boxes: Sequence[Box], color: Sequence[float]) -> None:
        """Paint the ground below boxes that stand on it."""
        standing = [box for box in boxes if abs(box.pose.z) < 1.0]
        if standing and self.view.position[2] > 0.0:
            grown = [corners(box.pose, (1.06 * box.extent[0], 1.12 * box.extent[1])) for box in standing]
            for outline in self.view.project(np.stack(grown))[1]:
                cv2.fillConvexPoly(self.image, outline, color, self.line_type, _SHIFT)


def render_rgb(  # noqa: PLR0917 - as the settings of CARLA's camera
    town: Town,
    camera: Pose,
    fov: float,
    width: int,
    height: int,
    boxes: Sequence[Box],
    *,
    brightness: float = 1.0,
    fog: float = 0.0,
) -> Image:
    """The picture of a camera.

    Args:
        town: Where the camera is.
        camera: It looks along x of its pose, with z up and y to the right.
        fov: Horizontal field of view in degrees.
        width: Pixels.
        height: Pixels.
        boxes: What stands in the town.
        brightness: 1 for noon, 0 for black.
        fog: 0 for none, 1 for thick fog.

    Returns:
        BGRA ``(height, width, 4)`` uint8, alpha 255.
    """
    view, light = _View.of(camera, fov, width, height), _Light(brightness, fog)
    ground, solids = _scene(town)
    boxes = _near(boxes, view)
    steepness = _steepness(view)
    brush = _Brush(_look_up(_backdrop_table(light), steepness), view, cv2.LINE_AA)
    brush.ground(ground, _ground_colors(ground.colors, brightness))
    brush.shadows(boxes, _bgra(brightness * np.array(_SHADOW)))
    if fog > 0.0:
        _lay_fog(brush.image, view, light, steepness)

    def colors(solids: _Solids) -> list[Sequence[float]]:
        distances = np.linalg.norm(solids.centers - view.position, axis=1)
        return [_bgra(color) for color in light.fogged(solids.colors, distances).tolist()]

    brush.solids((solids, _cuboids(boxes)) if boxes else (solids,), colors)
    return brush.image


def render_semantic(  # noqa: PLR0917
    town: Town, camera: Pose, fov: float, width: int, height: int, boxes: Sequence[Box]
) -> Image:
    """What is where in the picture of a camera; arguments as for ``render_rgb``.

    Returns:
        BGRA ``(height, width, 4)`` uint8: the semantic tag as red, blue and green 0, alpha 255.
    """
    view = _View.of(camera, fov, width, height)
    ground, solids = _scene(town)
    boxes = _near(boxes, view)
    table = np.zeros((_LEVELS, 4), np.uint8)
    table[:, 2:] = TERRAIN, 255
    table[_LEVELS // 2 :, 2] = SKY
    brush = _Brush(_look_up(table, _steepness(view)), view, cv2.LINE_8)
    brush.ground(ground, [[None, _bgra((tag, 0, 0)), _bgra((tag, 0, 0))] for tag in ground.tags])
    brush.solids(
        (solids, _cuboids(boxes)) if boxes else (solids,),
        lambda solids: [_bgra((tag, 0, 0)) for tag in solids.tags.tolist()],
    )
    return brush.image
