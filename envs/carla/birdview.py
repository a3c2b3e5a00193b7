"""The bird's-eye view: what is around the ego vehicle, drawn from the map and the state of the world, with no camera.

The ego vehicle stands at a fixed place of the picture and heads up. Drawn are, one over the other: the ground
(:class:`~wm_gym.envs.carla.town_raster.Ground`) in greys; the route ahead as a white band, which beyond a stop line has
the colour of that line's light; the stop lines of all lights in their colours; vehicles with a brighter front,
pedestrians, and the ego vehicle. Roach (Zhang et al. 2021, arXiv 2108.08265) draws the same things as one channel each;
here they are colours of one RGB picture. Small things are drawn larger than they are, for coarse pictures.

Edges are blended by the part of a pixel that they cover, and each step treats left and right alike: in a mirrored world
(y and yaw with the other sign), the picture is the mirrored one.

Metres and degrees in CARLA's frame: left-handed (x forward, y right), yaw clockwise seen from above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.carla.config import BirdViewConfig
from wm_gym.envs.carla.messages import LightState
from wm_gym.envs.carla.route import Route
from wm_gym.envs.carla.state import EgoState, RoadUser
from wm_gym.envs.carla.stop_lines import StopLine, ahead
from wm_gym.envs.carla.town_raster import RASTER_MULTIPLE, Ground, TownRaster
from wm_gym.frames import Frame

FloatArray = NDArray[np.float64]


class Layer(IntEnum):
    """What is drawn on the ground; the later covers the earlier."""

    ROUTE = 0
    GREEN = 1
    YELLOW = 2
    RED = 3
    VEHICLE = 4
    VEHICLE_FRONT = 5
    PEDESTRIAN = 6
    EGO = 7


COLORS: dict[Layer, tuple[int, int, int]] = {
    Layer.ROUTE: (235, 235, 235),
    Layer.GREEN: (30, 230, 60),
    Layer.YELLOW: (255, 210, 0),
    Layer.RED: (255, 30, 30),
    Layer.VEHICLE: (0, 150, 190),
    Layer.VEHICLE_FRONT: (120, 250, 255),
    Layer.PEDESTRIAN: (255, 0, 255),
    Layer.EGO: (60, 60, 255),
}
"""RGB."""
LIGHT_LAYERS: dict[LightState, Layer] = {"red": Layer.RED, "yellow": Layer.YELLOW, "green": Layer.GREEN}
"""Lights that are off or unknown are drawn like none."""

_ROUTE_HALF_WIDTH_M = 1.0
_STOP_LINE_HALF_DEPTH_M = 0.4
_LEAST_HALF_WIDTH = 1.5
"""Pixels: the least that half the width of anything is drawn with."""
_ROUTE_OVERLAP_M = 0.3
"""By which the pieces of the route's band overlap, for the outside of bends."""
_ROUTE_REACH = 1.5
"""How far along the route the band is drawn, in heights of the picture."""
_BEYOND_LINE_M = 0.5
"""Where on a route, beyond a stop line, the next one is looked for."""
_FRONT_PART = 0.35
_LONGEST_HALF_M = 15.0
"""Boxes are cut off at this, so that one strange vehicle does not slow down every picture."""
_WINDOW_STEP = 3
"""Pixels by which the half sizes of the windows differ in which boxes are drawn."""
_SUBPIXELS = 32
"""OpenCV tells places between pixels apart to this part of one."""


@dataclass(frozen=True, eq=False)
class EpisodeView:
    """What stays the same in an episode's pictures; made by :meth:`of`.

    Attributes:
        route_places: ``(n + 1,)`` metres along the route of the ends of the pieces that it is drawn as.
        route_boxes: The boxes of these pieces, ``(n, 6)``.
        route_lines: ``(n,)``: which of ``lines_on_route`` was crossed last before each piece, counted from 1; 0 for
            none.
        lines_on_route: Where the route crosses stop lines: metres along it, and the light's number; in its order.
        line_lights: The light's number of each of the town's stop lines.
        line_boxes: The boxes that these are drawn as, ``(n, 6)``.
        ego_extent: Half length and half width of the ego vehicle, metres.
    """

    route_places: FloatArray
    route_boxes: FloatArray
    route_lines: NDArray[np.int64]
    lines_on_route: tuple[tuple[float, int], ...]
    line_lights: tuple[int, ...]
    line_boxes: FloatArray
    ego_extent: tuple[float, float]

    @classmethod
    def of(cls, route: Route, lines: Iterable[StopLine], half_length: float, half_width: float) -> EpisodeView:
        """From the route, the town's stop lines, and half the ego vehicle's length and width in metres."""
        lines = tuple(lines)
        starts, ends = (np.array([getattr(line, end) for line in lines]).reshape(-1, 2) for end in ("start", "end"))
        lines_on_route = _lines_on_route(lines, route)
        crossings = np.array([place for place, _ in lines_on_route])
        places = np.sort(np.concatenate((route.distances, crossings)))
        places = places[np.append(np.diff(places) > 1e-6, True)]  # a piece without length has no direction
        points = np.stack([np.interp(places, route.distances, route.points[:, axis]) for axis in (0, 1)], axis=1)
        return cls(
            route_places=places,
            route_boxes=_along(points[:-1], points[1:], _ROUTE_HALF_WIDTH_M),
            route_lines=np.searchsorted(crossings, places[:-1] + 1e-6),
            lines_on_route=lines_on_route,
            line_lights=tuple(line.light_id for line in lines),
            line_boxes=_along(starts, ends, _STOP_LINE_HALF_DEPTH_M),
            ego_extent=(half_length, half_width),
        )


class BirdView:
    """Draws one town.

    Args:
        config: What the picture shows.
        raster: The town.
    """

    def __init__(self, config: BirdViewConfig, raster: TownRaster) -> None:
        self.config = config
        # Averaged until the picture's pixels are one to two of the ground's: then reading between four of these misses
        # nothing, and thin lines become faint instead of flickering.
        ratio = config.scale * raster.pixels_per_metre / 2
        factor = min(2 ** math.ceil(math.log2(max(ratio, 1.0))), RASTER_MULTIPLE)
        rows, columns = raster.surface.shape
        size = columns // factor, rows // factor
        self._ground = cv2.resize(raster.surface, size, interpolation=cv2.INTER_AREA)
        self._ground_per_metre = raster.pixels_per_metre / factor
        self._ground_centre = (
            raster.origin[0] + columns / 2 / raster.pixels_per_metre,
            raster.origin[1] + rows / 2 / raster.pixels_per_metre,
        )
        # Of the picture's rows and columns: pixels ahead of the ego vehicle's centre, and to its right.
        self._ahead = (1 - config.ego_from_bottom) * config.height - 0.5 - np.arange(config.height)
        self._right = np.arange(config.width) - (config.width - 1) / 2

    def draw(
        self,
        episode: EpisodeView,
        ego: EgoState,
        distance: float,
        users: Sequence[RoadUser],
        lights: Mapping[int, LightState],
    ) -> Frame:
        """Draw a picture.

        Args:
            episode: The route, the stop lines and the size of the ego vehicle.
            ego: The ego vehicle.
            distance: Where on its route it is, metres from the route's start. The band begins at the last of the
                route's points that lies behind.
            users: Vehicles and pedestrians around it.
            lights: State of the traffic lights by their number.

        Returns:
            ``(H, W, 3)`` uint8 RGB.
        """
        drawn = (
            _route_boxes(episode, distance, self.config, lights),
            _line_boxes(episode, lights),
            _user_boxes(ego, episode.ego_extent, users),
        )
        boxes, layers = zip(*drawn, strict=True)
        picture = np.repeat(self._draw_ground(ego).reshape(-1, 1).astype(np.float32), 3, axis=1)
        for layer, coverage in self._coverage(ego, np.concatenate(boxes), np.concatenate(layers)):
            covered = np.flatnonzero(coverage > 0)
            below = picture[covered]
            picture[covered] = below + coverage[covered, None] * (np.array(COLORS[layer], np.float32) - below)
        return np.rint(picture).astype(np.uint8).reshape(self.config.height, self.config.width, 3)

    def _draw_ground(self, ego: EgoState) -> NDArray[np.uint8]:
        cos, sin = _direction(ego)
        step = self.config.scale * self._ground_per_metre
        x = (ego.x - self._ground_centre[0]) * self._ground_per_metre
        y = (ego.y - self._ground_centre[1]) * self._ground_per_metre
        # Places in the ground's picture: a part that a row of the view decides, and one that a column does. Each is
        # rounded to what OpenCV tells apart, from the middle, so that the two sides are alike.
        of_rows = np.stack((x + step * cos * self._ahead, y + step * sin * self._ahead))
        of_columns = np.stack((-step * sin * self._right, step * cos * self._right))
        middle = (np.array(self._ground.shape[::-1]) - 1) / 2
        of_rows = (np.rint(of_rows * _SUBPIXELS) / _SUBPIXELS + middle[:, None]).astype(np.float32)
        of_columns = (np.rint(of_columns * _SUBPIXELS) / _SUBPIXELS).astype(np.float32)
        columns, rows = of_rows[:, :, None] + of_columns[:, None, :]
        nothing = int(Ground.NOTHING)
        drawn = cv2.remap(
            self._ground, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=nothing
        )
        return np.asarray(drawn, np.uint8)

    def _coverage(
        self, ego: EgoState, boxes: FloatArray, layers: NDArray[np.int64]
    ) -> Iterable[tuple[Layer, NDArray[np.float32]]]:
        """For each layer that has boxes in the picture, the part ``(H * W,)`` of each pixel that they cover."""
        cos, sin = _direction(ego)
        scale, top, left = self.config.scale, self._ahead[0], self._right[0]
        height, width = self.config.height, self.config.width
        # In pixels from here on: places ahead of the ego vehicle's centre and to its right.
        offset_x, offset_y = (boxes[:, 0] - ego.x) / scale, (boxes[:, 1] - ego.y) / scale
        ahead_of, right_of = cos * offset_x + sin * offset_y, cos * offset_y - sin * offset_x
        half_lengths, half_widths = boxes[:, 4] / scale, np.maximum(boxes[:, 5] / scale, _LEAST_HALF_WIDTH)
        half_lengths = np.maximum(half_lengths, np.where(layers == Layer.PEDESTRIAN, _LEAST_HALF_WIDTH, 0.0))
        reach = np.hypot(half_lengths + 0.5, half_widths + 0.5)
        from_middle = np.abs(ahead_of - (top - (height - 1) / 2))
        seen = (from_middle < height / 2 + reach) & (np.abs(right_of) < width / 2 + reach)
        if not seen.any():
            return
        # A box changes the pixels of a square window only; windows of about the same size are filled in one go.
        sides = 2 * _WINDOW_STEP * np.ceil((reach + 1) / _WINDOW_STEP).astype(np.int64)
        border = int(sides[seen].max())
        wide = width + 2 * border
        present = np.flatnonzero(np.bincount(layers[seen]))
        masks = np.zeros((len(present), height + 2 * border, wide), np.float32)
        for side in np.flatnonzero(np.bincount(sides[seen])).tolist():
            chosen = np.flatnonzero(seen & (sides == side))
            window = np.arange(side) - (side // 2 - 1)
            row = np.floor(top - ahead_of[chosen]).astype(np.int64)[:, None] + window
            column = np.floor(right_of[chosen] - left).astype(np.int64)[:, None] + window
            to_row = (top - row - ahead_of[chosen, None]).astype(np.float32)[:, :, None]
            to_column = (left + column - right_of[chosen, None]).astype(np.float32)[:, None, :]
            box = boxes[chosen]
            along = (cos * box[:, 2] + sin * box[:, 3]).astype(np.float32)[:, None, None]
            across = (cos * box[:, 3] - sin * box[:, 2]).astype(np.float32)[:, None, None]
            parts = _within(half_lengths[chosen], to_row * along + to_column * across)
            parts *= _within(half_widths[chosen], to_column * along - to_row * across)
            start = np.searchsorted(present, layers[chosen])[:, None] * (height + 2 * border) + row + border
            index = start[:, :, None] * wide + (column + border)[:, None, :]
            np.maximum.at(masks.reshape(-1), index.reshape(-1), parts.reshape(-1))
        for layer, mask in zip(present, masks, strict=True):
            yield Layer(int(layer)), mask[border : border + height, border : border + width].reshape(-1)


# --- What there is to draw: boxes of x, y, direction in x and in y, half length and half width; and their layers ------

Boxes = tuple[FloatArray, NDArray[np.int64]]


def _route_boxes(
    episode: EpisodeView, distance: float, config: BirdViewConfig, lights: Mapping[int, LightState]
) -> Boxes:
    places = episode.route_places
    first = max(int(np.searchsorted(places, distance, side="right")) - 1, 0)
    last = int(np.searchsorted(places, distance + _ROUTE_REACH * config.height * config.scale))
    boxes = episode.route_boxes[first:last].copy()
    # Pieces that overlap by less than half a pixel would leave the pixels between them half covered by each.
    boxes[:, 4] += max(_ROUTE_OVERLAP_M, config.scale / 2)
    layers = [Layer.ROUTE] * (1 + len(episode.lines_on_route))
    for index, (place, light) in enumerate(episode.lines_on_route, start=1):
        if place > distance:
            layers[index] = LIGHT_LAYERS.get(lights.get(light, "unknown"), Layer.ROUTE)
    return boxes, np.array(layers, np.int64)[episode.route_lines[first:last]]


def _line_boxes(episode: EpisodeView, lights: Mapping[int, LightState]) -> Boxes:
    layers = [LIGHT_LAYERS.get(lights.get(light, "unknown"), -1) for light in episode.line_lights]
    found = np.array(layers, np.int64)
    return episode.line_boxes[found >= 0], found[found >= 0]


def _user_boxes(ego: EgoState, ego_extent: tuple[float, float], users: Sequence[RoadUser]) -> Boxes:
    kinds = {"vehicle": Layer.VEHICLE, "pedestrian": Layer.PEDESTRIAN}
    found = [(ego.x, ego.y, ego.yaw, *ego_extent, Layer.EGO)]
    found += [(user.x, user.y, user.yaw, user.half_length, user.half_width, kinds[user.kind]) for user in users]
    x, y, yaw, half_length, half_width, layers = np.array(found, np.float64).T
    radians, half_length = np.radians(yaw), np.minimum(half_length, _LONGEST_HALF_M)
    boxes = np.stack((x, y, np.cos(radians), np.sin(radians), half_length, half_width), axis=1)
    fronts = boxes[layers == Layer.VEHICLE]
    fronts[:, 0:2] += (1 - _FRONT_PART) * fronts[:, 4:5] * fronts[:, 2:4]
    fronts[:, 4] *= _FRONT_PART
    of_fronts = np.full(len(fronts), Layer.VEHICLE_FRONT, np.int64)
    return np.concatenate((boxes, fronts)), np.concatenate((layers.astype(np.int64), of_fronts))


def _along(starts: FloatArray, ends: FloatArray, half_width: float) -> FloatArray:
    """Boxes ``(n, 6)`` along pieces of lines from ``(n, 2)`` to ``(n, 2)``."""
    steps = ends - starts
    lengths = np.hypot(steps[:, 0], steps[:, 1])[:, None]
    widths = np.full_like(lengths, half_width)
    return np.concatenate(((starts + ends) / 2, steps / lengths, lengths / 2, widths), axis=1)


def _lines_on_route(lines: Sequence[StopLine], route: Route) -> tuple[tuple[float, int], ...]:
    found: list[tuple[float, int]] = []
    distance = 0.0
    while (following := ahead(lines, route, distance, math.inf)) is not None:
        line, gap = following
        found.append((distance + gap, line.light_id))
        distance += gap + _BEYOND_LINE_M
    return tuple(found)


def _within(halves: FloatArray, offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    """The part of pixels ``(n, h, w)`` at distances from the middle line that lies within half the extents ``(n,)``."""
    parts = halves.astype(np.float32)[:, None, None] + np.float32(0.5) - np.abs(offsets)
    return np.clip(parts, 0, 1, out=parts)


def _direction(ego: EgoState) -> tuple[float, float]:
    radians = math.radians(ego.yaw)
    return math.cos(radians), math.sin(radians)
