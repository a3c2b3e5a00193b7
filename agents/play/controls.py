"""What a hand does at the wheel, and the action that it means in a simulator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wm_gym.actions import ActionFormat, FloatArray


@dataclass(frozen=True)
class HandControls:
    """Wheel and pedals, whatever moves them.

    Attributes:
        steering: -1 (left) to 1 (right).
        throttle: 0 to 1.
        brake: 0 to 1.
        reverse: Whether the reverse gear is in; simulators without gears ignore it.
    """

    steering: float = 0.0
    throttle: float = 0.0
    brake: float = 0.0
    reverse: bool = False

    @property
    def is_neutral(self) -> bool:
        """Whether nothing is moved."""
        return self.steering == self.throttle == self.brake == 0.0

    def to_action(self, action: ActionFormat) -> FloatArray:
        """The action ``(A,)`` float32 in the stored format, within its bounds.

        For a simulator that is not a driving one, the wheel moves the first value. The throttle raises the second one;
        the brake lowers it where it can become negative, and raises the third one where it cannot.
        """
        if action.kind == "driving":
            return action.to_stored((self.steering, self.throttle, self.brake, -1.0 if self.reverse else 1.0))
        brakes_by_second = action.dim < 3 or action.low[min(1, action.dim - 1)] < 0
        second = self.throttle - self.brake if brakes_by_second else self.throttle
        pushes = np.zeros(action.dim)
        wanted = (self.steering, second, 0.0 if brakes_by_second else self.brake)[: action.dim]
        pushes[: len(wanted)] = wanted
        # A push of 0 is the value 0, of 1 the upper bound, of -1 the lower one.
        return action.to_stored(np.where(pushes >= 0, pushes * action.high, -pushes * action.low))
