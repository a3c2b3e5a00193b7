"""Faults on demand: what a simulator does to people, when a test asks for it."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from typing import Any

from wm_gym.envs.carla_light.interference import Interference


@dataclass
class Faults(Interference):
    """What shall go wrong. Frames are the world's frame numbers; a negative one never comes.

    Attributes:
        version: Version that the server claims to have.
        die_at_frame: The process ends without a word when this frame is asked for.
        stall_at_frame: No frame is simulated any more once this one is asked for, until it is set to another.
        refuse_spawns: So many spawns from now on fail.
        refuse_blueprint: Only spawns of blueprints with this prefix fail.
        drop_image_every: Every n-th camera image is not sent; 0 for none.
        drop_images_from_frame: No camera image is sent from this frame on.
        delay_images_frames: Camera images are sent this many frames late.
        delay_images_s: Camera images are sent this many seconds late.
    """

    version: str = "0.9.16"
    die_at_frame: int = -1
    stall_at_frame: int = -1
    refuse_spawns: int = 0
    refuse_blueprint: str = ""
    drop_image_every: int = 0
    drop_images_from_frame: int = -1
    delay_images_frames: int = 0
    delay_images_s: float = 0.0

    def set(self, values: dict[str, Any]) -> None:
        """Change some of them."""
        known = {field.name for field in dataclasses.fields(self)}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"there is no fault {name!r}; use one of {sorted(known)}.")
            setattr(self, name, value)

    def before_frame(self, frame: int) -> None:
        """Die or stall if this frame is the one."""
        if 0 <= self.die_at_frame <= frame:
            os._exit(1)
        while 0 <= self.stall_at_frame <= frame:
            time.sleep(0.02)

    def refuses(self, blueprint: str) -> bool:
        """Whether this spawn fails."""
        if self.refuse_spawns > 0 and blueprint.startswith(self.refuse_blueprint):
            self.refuse_spawns -= 1
            return True
        return False

    def drops_image(self, frame: int) -> bool:
        """Whether the image of this frame is lost."""
        if 0 <= self.drop_images_from_frame <= frame:
            return True
        return self.drop_image_every > 0 and frame % self.drop_image_every == 0
