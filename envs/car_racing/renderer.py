"""Drawing of CarRacing's road and grass: the pixels of Gymnasium's own renderer, from fewer operations.

Gymnasium rotates, scales and offers to SDL every polygon of the map for every frame. Here numpy finds the polygons that
may meet the screen and transforms those only; they are drawn in the same order, by the same drawing calls and with the
same integer coordinates, and a polygon that is left out has no pixel on the screen. Each number that was written is
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pygame
from gymnasium.envs.box2d.car_racing import GRASS_DIM, PLAYFIELD, WINDOW_H, WINDOW_W
from numpy.typing import NDArray
from pygame import gfxdraw

Colour = Sequence[float] | NDArray[Any]
RoadPolygons = Sequence[tuple[Sequence[tuple[float, float]], Colour]]

_MARGIN_PX = 4.0
"""Polygons this near to the screen are still drawn: antialiased edges reach a pixel beyond their vertices."""
_TEXT_SIZE = 42


def _grass_polygons() -> NDArray[np.float64]:
    """Vertices ``(100, 4, 2)`` of the lighter grass squares, in the order in which Gymnasium draws them."""
    corners = [
        [
            (GRASS_DIM * x + GRASS_DIM, GRASS_DIM * y + 0),
            (GRASS_DIM * x + 0, GRASS_DIM * y + 0),
            (GRASS_DIM * x + 0, GRASS_DIM * y + GRASS_DIM),
            (GRASS_DIM * x + GRASS_DIM, GRASS_DIM * y + GRASS_DIM),
        ]
        for x in range(-20, 20, 2)
        for y in range(-20, 20, 2)
    ]
    return np.asarray(corners, dtype=np.float64)


class Camera:
    """The map-to-screen transform of one frame: rotate about the origin, scale, shift.

    Args:
        angle: Rotation in radians.
        zoom: Pixels per map unit.
        position: Map position that lies at the screen's centre column and at a quarter of its height.
    """

    def __init__(self, angle: float, zoom: float, position: tuple[float, float]) -> None:
        # Vector2 computes cosine and sine itself and treats multiples of a right angle apart: asking it for the unit
        # vector gives its very numbers, so that the numpy transform below is bit-equal to rotating each vertex.
        self._cos, self._sin = pygame.math.Vector2(1.0, 0.0).rotate_rad(angle)
        self.angle = angle
        self.zoom = zoom
        shift = pygame.math.Vector2((-position[0] * zoom, -position[1] * zoom)).rotate_rad(angle)
        self.shift = (WINDOW_W / 2 + shift[0], WINDOW_H / 4 + shift[1])

    def to_screen(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map coordinates ``(..., 2)`` to screen coordinates ``(..., 2)`` in pixels, y upwards."""
        x, y = points[..., 0], points[..., 1]
        screen = np.empty_like(points)
        screen[..., 0] = (self._cos * x - self._sin * y) * self.zoom + self.shift[0]
        screen[..., 1] = (self._sin * x + self._cos * y) * self.zoom + self.shift[1]
        return screen

    def sees_only_field(self) -> bool:
        """Whether the whole screen shows the playfield, with nothing of the void around it."""
        corners = np.array([(0, 0), (WINDOW_W, 0), (0, WINDOW_H), (WINDOW_W, WINDOW_H)], dtype=np.float64)
        x, y = ((corners - self.shift) / self.zoom).T
        inside = PLAYFIELD - _MARGIN_PX / self.zoom
        return bool(
            np.all(np.abs(self._cos * x + self._sin * y) < inside)
            and np.all(np.abs(self._cos * y - self._sin * x) < inside)
        )


class RoadRenderer:
    """Draws background, grass and road; keeps the vertex arrays of the current map."""

    _FIELD = np.array(
        [(PLAYFIELD, PLAYFIELD), (PLAYFIELD, -PLAYFIELD), (-PLAYFIELD, -PLAYFIELD), (-PLAYFIELD, PLAYFIELD)]
    )

    def __init__(self) -> None:
        self._grass = _grass_polygons()
        self._set_road([])

    def _set_road(self, road: RoadPolygons) -> None:
        vertices = np.asarray([vertices for vertices, _ in road], np.float64).reshape(-1, 4, 2)
        self._vertices = np.concatenate((self._grass, vertices))  # (polygons, 4, 2)
        self._centres = self._vertices.mean(axis=1)
        self._radii = np.linalg.norm(self._vertices - self._centres[:, None], axis=2).max(axis=1)
        self._road_polygons = road

    def draw(
        self,
        surface: pygame.Surface,
        camera: Camera,
        road: RoadPolygons,
        background_colour: Colour,
        grass_colour: Colour,
    ) -> None:
        """Draw one frame's ground on ``surface`` (1000 x 800).

        Args:
            surface: Where to draw.
            camera: The frame's transform.
            road: CarRacing's ``road_poly``: vertices and colour of each polygon. The vertices of one list are fixed;
                colours may change between frames (a tile loses its shade once it was touched).
            background_colour: RGB, 0 to 255.
            grass_colour: RGB, 0 to 255.
        """
        if road is not self._road_polygons:
            self._set_road(road)

        # Floats are cut, not rounded, where SDL takes them.
        background = [int(c) for c in background_colour]
        grass = [int(c) for c in grass_colour]
        if camera.sees_only_field():
            surface.fill(background)
        else:
            surface.fill((0, 0, 0))
            _draw_polygon(surface, camera.to_screen(self._FIELD).tolist(), background)

        # A polygon is drawn if the circle around it meets the screen.
        centres = camera.to_screen(self._centres)  # (polygons, 2)
        reach = self._radii * camera.zoom + _MARGIN_PX
        x, y = centres[:, 0], centres[:, 1]
        visible = np.flatnonzero((x >= -reach) & (x <= WINDOW_W + reach) & (y >= -reach) & (y <= WINDOW_H + reach))
        screen = camera.to_screen(self._vertices[visible])  # (visible, 4, 2)
        num_grass = len(self._grass)
        for index, polygon in zip(visible.tolist(), screen.tolist(), strict=True):
            colour = grass if index < num_grass else [int(c) for c in road[index - num_grass][1]]
            _draw_polygon(surface, polygon, colour)


def _draw_polygon(surface: pygame.Surface, points: Any, colour: Sequence[int]) -> None:
    gfxdraw.aapolygon(surface, points, colour)
    gfxdraw.filled_polygon(surface, points, colour)


@lru_cache(maxsize=2048)
def render_number(text: str) -> pygame.Surface:
    """White text on black, as CarRacing writes its reward; the surface is shared and must not be drawn upon."""
    # The font is not kept: it would break once anybody in the process calls pygame.quit(). Surfaces outlive that.
    pygame.font.init()
    font = pygame.font.Font(pygame.font.get_default_font(), _TEXT_SIZE)
    return font.render(text, True, (255, 255, 255), (0, 0, 0))
