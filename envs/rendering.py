"""What ``render`` does with decoded frames: pictures of a chosen size, or a window."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.arguments import check_choice, check_count
from wm_gym.errors import ConfigError
from wm_gym.frames import Frame, resize_frame

_MIN_WINDOW_HEIGHT = 512  # small frames are enlarged to about this, so that a window can be looked at


class FrameRenderer:
    """Pictures of frames for one environment, and a window that shows them; the first frame opens it.

    Args:
        render_mode: ``None``, ``"rgb_array"`` or ``"human"``.
        render_size: Height, or height and width, of the pictures in pixels; ``None`` is the frames' own size, and a
            legible one in a window.
        frame_size: Height and width of the frames.
        fps: Frames a second; :meth:`show` waits so that it is not exceeded.

    Raises:
        ConfigError: The mode is unknown or the size is not positive.
    """

    def __init__(
        self,
        render_mode: str | None,
        render_size: int | tuple[int, int] | None,
        frame_size: tuple[int, int],
        fps: float,
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, ("rgb_array", "human"))
        self._size = _picture_size(render_size, frame_size, enlarge=render_mode == "human")
        self._fps = fps
        self._screen: Any = None
        self._clock: Any = None

    def pictures(self, frames: NDArray[np.uint8]) -> list[Frame]:
        """``(K, H, W, 3)`` uint8 frames as ``K`` pictures, each in memory of its own."""
        return [np.array(resize_frame(frame, *self._size)) for frame in frames]

    def show(self, frames: NDArray[np.uint8]) -> None:
        """Show ``(K, H, W, 3)`` uint8 frames in the window, in a grid where there are several."""
        import pygame

        picture = tile(self.pictures(frames))
        height, width = picture.shape[:2]
        if self._screen is None:
            pygame.display.init()
            pygame.display.set_caption("dream")
            self._clock = pygame.time.Clock()
        if self._screen is None or self._screen.get_size() != (width, height):
            self._screen = pygame.display.set_mode((width, height))
        pygame.event.pump()  # the desktop takes a window that never reads its events for a hung one
        self._screen.blit(pygame.surfarray.make_surface(np.swapaxes(picture, 0, 1)), (0, 0))
        pygame.display.flip()
        self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window, if it is open."""
        if self._screen is not None:
            import pygame

            pygame.display.quit()
        self._screen = self._clock = None

    def __getstate__(self) -> dict[str, Any]:
        # A window belongs to its process: a copied or unpickled environment opens its own.
        return {**self.__dict__, "_screen": None, "_clock": None}


def tile(images: list[Frame]) -> Frame:
    """Lay pictures of one size out in a grid that is as square as they allow; empty places are black."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    grid = np.zeros((rows * columns, height, width, channels), np.uint8)
    grid[: len(images)] = images
    # (rows columns) h w c -> (rows h) (columns w) c
    return (
        grid.reshape(rows, columns, height, width, channels)
        .transpose(0, 2, 1, 3, 4)
        .reshape(rows * height, columns * width, channels)
    )


def _picture_size(
    render_size: int | tuple[int, int] | None, frame_size: tuple[int, int], enlarge: bool
) -> tuple[int, int]:
    height, width = frame_size
    if render_size is None:
        factor = max(1, round(_MIN_WINDOW_HEIGHT / height)) if enlarge else 1
        return height * factor, width * factor
    size: tuple[Any, Any]
    if isinstance(render_size, (int, np.integer)):
        size = (render_size, max(1, round(render_size * width / height)))
    elif isinstance(render_size, (tuple, list)) and len(render_size) == 2:
        size = (render_size[0], render_size[1])
    else:
        raise ConfigError(f"render_size takes a height or (height, width) in pixels, but {render_size!r} was given.")
    return check_count("render_size", size[0]), check_count("render_size", size[1])
