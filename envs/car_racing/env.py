"""``CarRacingDriving-v0``: the embedded driving simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.box2d.car_racing import FPS
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.envs.arguments import check_count, check_frame_size, check_seed, choose_fields
from wm_gym.envs.car_racing.simulation import CarRacingSimulation
from wm_gym.errors import ConfigError
from wm_gym.frames import resize_frame
from wm_gym.observation import Observation, join_observation, observation_space
from wm_gym.vector import VectorField, bounded

TILE_REWARDS = 1000.0
"""What all tiles of a track pay together."""
FRAME_COST = 0.1
"""What every simulator frame costs."""
FASTEST_LAP_FRAMES = 300
"""No lap is shorter: Box2D moves nothing by more than 2 units a frame, and no track is shorter than 600 units."""
VECTOR_FIELDS = (
    VectorField(name="speed", unit="units/s", low=0.0, high=100.0),
    VectorField(name="yaw_rate", unit="rad/s", low=-4.0, high=4.0, mirror_sign=-1),
    VectorField(name="steering", unit="rad", low=-0.4, high=0.4, mirror_sign=-1),
)
"""What can be observed beside the frame."""


class CarRacingDrivingEnv(gym.Env[Any, Any], EzPickle):
    """
    ## Description
    A car on a random closed track, seen from above. Physics, track generator, rules and drawing are those of
    Gymnasium's `CarRacing-v3`; this environment adds the driving actions, the frame size and the action repeat, and
    draws only the frames that it returns. Equal seeds and actions give equal bytes, whatever was run before.

    ## Action Space
    With `action="driving"`, a `Box` of 4 float32 values:

    | value | range | meaning |
    | --- | --- | --- |
    | 0 | [-1, 1] | steering; positive turns right |
    | 1 | [0, 1] | throttle |
    | 2 | [0, 1] | brake; 0.9 and more blocks the wheels |
    | 3 | [-1, 1] | gear, rounded: -1 reverse, 0 neutral, 1 forward |

    With `action="steer_accel"`, a `Box` of 2 float32 values: steering and acceleration, both in [-1, 1]; negative
    acceleration brakes. Values outside their range are clipped.

    CarRacing has no gears: in reverse and in neutral the throttle has no effect, and nothing is said about it.

    ## Observation Space
    A `Box` of `(H, W, 3)` uint8, RGB: CarRacing's 96 x 96 frame with its instruments (speed, wheel speeds, steering
    and rotation), averaged over areas to `frame_size`.

    ## Rewards
    -0.1 for every simulator frame and +1000/N for every track tile visited first, N being the number of tiles;
    the rewards of the frames of one action are summed. With `action_repeat=4`, a whole lap in 732 frames (183
    actions) returns 1000 - 0.1 * 732 = 926.8. A frame in which the car leaves the playfield pays -100 instead.

    ## Starting State
    The car stands still on the centre line of a new track, pointing along it. The camera closes in during the first
    simulated second.

    ## Episode End
    Terminated when all tiles are visited, when the car first touches the tile of the start with more than
    `lap_complete_percent` of them visited, or when it leaves the playfield. Truncated after `max_frames` simulator
    frames. Both are looked at after each frame, so an action may be cut short. The second case never comes about with
    Gymnasium up to 1.4.0, where the car stands on that tile from the beginning: only visiting every tile finishes a
    lap.

    ## Information
    `info` has the same keys at `reset` and after every step. CarRacing's unit of length is its own; the car is about
    5 units long and the road about 13.3 wide, so that one unit is roughly a metre.

    | key | type | meaning |
    | --- | --- | --- |
    | `speed` | float | speed of the hull in units a second, never negative |
    | `off_road` | float | fraction of the wheels that touch no road tile, 0 to 1 |
    | `progress` | float | fraction of the tiles visited so far, 0 to 1 |
    | `lateral_offset` | float | distance of the hull from the centre line in units, positive to its right |
    | `lap_finished` | bool | whether this step finished the lap |
    | `frames` | float | simulator frames since `reset`, at 50 frames a second |
    | `num_tiles` | float | tiles of this track |

    ## Arguments
    * `action="driving"`: `"driving"` or `"steer_accel"`.
    * `frame_size=64`: height and width of the observation in pixels, one number or two; 96 is CarRacing's own.
    * `action_repeat=4`: simulator frames (1/50 s) for each action.
    * `max_frames=1000`: simulator frames after which the episode is truncated; it does not depend on `action_repeat`.
    * `lap_complete_percent=0.95`: passed on to Gymnasium; without effect there so far (see Episode End).
    * `domain_randomize=False`: new road and grass colours in each episode; `reset(options={"randomize": False})`
      keeps the last ones.
    * `vector=()`: names of numbers that are observed beside the frame, some of `"speed"` (units a second),
      `"yaw_rate"` (rad/s, positive to the right) and `"steering"` (rad, of the front wheels, positive to the right).
      The observation is then a `Dict` of `"image"` and `"vector"`.
    * `render_mode=None`: `"rgb_array"` (400 x 600 pixels) or `"human"` (a window that shows every simulator frame).

    ```python
    >>> import gymnasium as gym
    >>> env = gym.make("wm_gym:CarRacingDriving-v0", action="steer_accel")
    >>> frame, info = env.reset(seed=1)
    >>> frame.shape
    (64, 64, 3)

    ```

    ## Version History
    * v0: first version, over CarRacing-v3.
    """  # noqa: D205, D212 - the page template of Gymnasium's environments

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": FPS, "driving": True}  # noqa: RUF012
    action_format: ClassVar[ActionFormat] = ActionFormat.driving()

    def __init__(
        self,
        *,
        action: str | None = "driving",
        frame_size: int | tuple[int, int] = 64,
        action_repeat: int = 4,
        max_frames: int = 1000,
        lap_complete_percent: float = 0.95,
        domain_randomize: bool = False,
        vector: Sequence[str] = (),
        render_mode: str | None = None,
    ) -> None:
        EzPickle.__init__(
            self,
            action=action,
            frame_size=frame_size,
            action_repeat=action_repeat,
            max_frames=max_frames,
            lap_complete_percent=lap_complete_percent,
            domain_randomize=domain_randomize,
            vector=vector,
            render_mode=render_mode,
        )
        self.frame_size = check_frame_size(frame_size)
        self.action_repeat = check_count("action_repeat", action_repeat)
        self.max_frames = check_count("max_frames", max_frames)
        if not 0 < lap_complete_percent <= 1:
            raise ConfigError(f"lap_complete_percent={lap_complete_percent!r} is not a fraction above 0 and up to 1.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode={render_mode!r} is not offered; use None, 'rgb_array' or 'human'.")
        self.action_name = self.action_format.resolve(action)
        self.action_space = self.action_format.space(self.action_name)
        self.vector_fields = choose_fields({field.name: (field,) for field in VECTOR_FIELDS}, vector)
        self.observation_space = observation_space(self.frame_size, self.vector_fields)
        self.render_mode = render_mode
        # A video made of one frame per action plays at true speed with this rate.
        self.metadata = {**type(self).metadata, "render_fps": FPS / self.action_repeat}

        self.simulation = CarRacingSimulation(render_mode, lap_complete_percent, domain_randomize)
        self._frames = 0
        self._centre_line = np.zeros((0, 2))
        self._directions = np.zeros((0, 2))

    @property
    def step_s(self) -> float:
        """Simulated seconds between two actions."""
        return self.action_repeat / FPS

    @property
    def centre_line(self) -> NDArray[np.float64]:
        """The track's centre line in driving order: ``(num_tiles, 2)`` float64, map units, closed."""
        return self._centre_line

    def return_ceiling(self, steps: int) -> float:
        """The most that ``steps`` actions can return, whoever drives and wherever they begin.

        The tiles pay 1000 together, and collecting them all takes 300 frames at the least. An episode that ends with
        its lap pays for no further frame, so that longer ones cost no more.

        Raises:
            ConfigError: ``steps`` is below 1.
        """
        frames = check_count("steps", steps) * self.action_repeat
        return TILE_REWARDS - FRAME_COST * min(frames, self.max_frames, FASTEST_LAP_FRAMES)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode on a new track."""
        super().reset(seed=check_seed(seed))
        self.simulation.np_random = self.np_random
        self.simulation.reset(options=options)
        track = np.asarray(self.simulation.track)  # (num_tiles, 4): angle about the origin, heading, x, y
        self._centre_line = track[:, 2:4].copy()
        self._directions = np.stack((-np.sin(track[:, 1]), np.cos(track[:, 1])), axis=1)
        self._frames = 0
        return self._observe(), self._info(lap_finished=False)

    def step(self, action: FloatArray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold one action for ``action_repeat`` simulator frames."""
        if not np.all(np.isfinite(action)):
            raise ConfigError(f"the action {np.asarray(action).tolist()} is not finite; clip or check the policy.")
        steering, throttle, brake, gear = self.action_format.to_stored(action, self.action_name)
        controls = np.array((steering, throttle if gear > 0 else 0.0, brake), dtype=np.float32)
        reward, terminated, truncated, lap_finished = 0.0, False, False, False
        for _ in range(self.action_repeat):
            _, frame_reward, terminated, _, info = self.simulation.step(controls)
            self._frames += 1
            reward += float(frame_reward)
            truncated = not terminated and self._frames >= self.max_frames
            if terminated or truncated:
                lap_finished = info.get("lap_finished", False)
                break
        return self._observe(), reward, terminated, truncated, self._info(lap_finished=lap_finished)

    def render(self) -> Any:
        """The current scene at 400 x 600 pixels, uint8 RGB; ``None`` for a window."""
        if self.render_mode is None:
            gym.logger.warn("render() was called on an environment made without render_mode; use 'rgb_array'.")
            return None
        if self.render_mode == "human":
            return None  # The simulation shows every frame as it steps.
        return self.simulation.render()

    def close(self) -> None:
        """Close the window, if one is open."""
        self.simulation.close()

    def _observe(self) -> Any:
        frame = resize_frame(self.simulation.draw_observation(), *self.frame_size)
        car = self.simulation.car
        assert car is not None
        # CarRacing's angles grow to the left.
        values = {
            "speed": np.hypot(*car.hull.linearVelocity),
            "yaw_rate": -car.hull.angularVelocity,
            "steering": -car.wheels[0].joint.angle,
        }
        vector = bounded(self.vector_fields, [values[field.name] for field in self.vector_fields])
        return join_observation(Observation(frame, vector))

    def _info(self, *, lap_finished: bool) -> dict[str, Any]:
        simulation = self.simulation
        assert simulation.car is not None
        hull, wheels = simulation.car.hull, simulation.car.wheels
        num_tiles = len(simulation.track)
        return {
            "speed": float(np.hypot(*hull.linearVelocity)),
            "off_road": sum(not wheel.tiles for wheel in wheels) / len(wheels),
            "progress": simulation.tile_visited_count / num_tiles,
            "lateral_offset": self._lateral_offset(np.asarray(hull.position)),
            "lap_finished": bool(lap_finished),
            "frames": float(self._frames),
            "num_tiles": float(num_tiles),
        }

    def _lateral_offset(self, position: NDArray[np.float64]) -> float:
        to_car = position - self._centre_line  # (num_tiles, 2)
        nearest = int(np.argmin(np.einsum("nk,nk->n", to_car, to_car)))
        direction, offset = self._directions[nearest], to_car[nearest]
        return float(direction[1] * offset[0] - direction[0] * offset[1])
