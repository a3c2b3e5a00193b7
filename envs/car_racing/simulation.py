"""Gymnasium's CarRacing, drawn only when asked, and independent of the episodes before."""

from __future__ import annotations

from typing import Any

import Box2D
import numpy as np
import pygame
from gymnasium.envs.box2d import car_racing
from gymnasium.envs.box2d.car_racing import CarRacing, FrictionDetector

from wm_gym.envs.car_racing.renderer import Camera, RoadRenderer, render_number
from wm_gym.frames import Frame


class CarRacingSimulation(CarRacing):
    """CarRacing's physics, track and rules, unchanged, with two differences in how it runs.

    * A step draws nothing. :meth:`draw_observation` gives the pixels that the last step of ``CarRacing-v3`` would
      have returned, so frames that nobody looks at cost nothing.
    * Every episode has a Box2D world of its own. Gymnasium keeps one world for all episodes, whose internal lists
      depend on what was in it before; here an episode depends on its seed and actions alone.
    """

    def __init__(
        self, render_mode: str | None = None, lap_complete_percent: float = 0.95, domain_randomize: bool = False
    ) -> None:
        super().__init__(
            render_mode=render_mode, lap_complete_percent=lap_complete_percent, domain_randomize=domain_randomize
        )
        self._ground = RoadRenderer()
        self._canvas: pygame.Surface | None = None
        self._clock: pygame.time.Clock | None = None
        self._reward_shown = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame | None, dict[str, Any]]:
        """Start an episode as CarRacing does; the observation is ``None`` (see :meth:`draw_observation`)."""
        self._destroy()
        self.contactListener_keepref = FrictionDetector(self, self.lap_complete_percent)
        self.world = Box2D.b2World((0, 0), contactListener=self.contactListener_keepref)
        return super().reset(seed=seed, options=options)

    def draw_observation(self) -> Frame:
        """The 96 x 96 observation of the last step: ``(96, 96, 3)`` uint8, equal to that of ``CarRacing-v3``."""
        surface = self._draw(self._reward_shown, with_skid_marks=False)
        return self._to_frame(surface, (car_racing.STATE_W, car_racing.STATE_H))

    def _render(self, mode: str) -> Any:
        if mode == "state_pixels":
            # CarRacing draws its observation before it books the step's -0.1: remember the number it would write.
            self._reward_shown = self.reward
            return None
        if "t" not in self.__dict__:
            return None  # Nothing to show before the first reset.
        surface = self._draw(self.reward, with_skid_marks=True)
        if mode == "human":
            self._show(surface)
            return None
        return self._to_frame(surface, (car_racing.VIDEO_W, car_racing.VIDEO_H))

    def _draw(self, reward: float, *, with_skid_marks: bool) -> pygame.Surface:
        """Draw the scene and the instruments at the full 1000 x 800 pixels."""
        if self._canvas is None:
            self._canvas = pygame.Surface((car_racing.WINDOW_W, car_racing.WINDOW_H), depth=32)
            self.surf: Any = pygame.Surface((car_racing.WINDOW_W, car_racing.WINDOW_H), depth=32)
        assert self.car is not None
        hull = self.car.hull
        # The camera closes in during the first second.
        scale = car_racing.SCALE
        zoom = 0.1 * scale * max(1 - self.t, 0) + car_racing.ZOOM * scale * min(self.t, 1)
        camera = Camera(-hull.angle, zoom, (hull.position[0], hull.position[1]))
        self._ground.draw(self._canvas, camera, self.road_poly, self.bg_color, self.grass_color)
        self.car.draw(self._canvas, camera.zoom, camera.shift, camera.angle, with_skid_marks)

        # Turn upside down, into memory that is kept: (W, H) uint32 pixels.
        pygame.surfarray.pixels2d(self.surf)[...] = pygame.surfarray.pixels2d(self._canvas)[:, ::-1]
        self._render_indicators(car_racing.WINDOW_W, car_racing.WINDOW_H)
        text = render_number(f"{reward:04.0f}")
        place = text.get_rect()
        place.center = (60, car_racing.WINDOW_H - car_racing.WINDOW_H * 2.5 / 40.0)
        self.surf.blit(text, place)
        return self.surf

    def _to_frame(self, surface: pygame.Surface, size: tuple[int, int]) -> Frame:
        """Shrink a surface to ``size`` (width, height): ``(H, W, 3)`` uint8."""
        pixels = pygame.surfarray.pixels3d(pygame.transform.smoothscale(surface, size))  # (W, H, 3)
        return np.ascontiguousarray(pixels.transpose(1, 0, 2))

    def _show(self, surface: pygame.Surface) -> None:
        """Show a drawn scene in the window, at 50 frames a second."""
        if self.screen is None:
            pygame.display.init()
            self.screen = pygame.display.set_mode((car_racing.WINDOW_W, car_racing.WINDOW_H))
        if self._clock is None:
            self._clock = pygame.time.Clock()
        pygame.event.pump()
        self._clock.tick(self.metadata["render_fps"])
        self.screen.fill(0)
        self.screen.blit(surface, (0, 0))
        pygame.display.flip()

    def close(self) -> None:
        """Close the window, if one is open."""
        if self.screen is not None:
            pygame.display.quit()
            self.screen = None
            self.isopen = False
