"""Where something else may meddle with the server. By itself nothing does; the tests' faults come in here."""

from __future__ import annotations


class Interference:
    """What is asked before the server does something that could go wrong; this one lets everything go well.

    Attributes:
        version: Version that the server says it has.
        delay_images_frames: Camera images are sent this many frames late.
        delay_images_s: Camera images are sent this many seconds late.
    """

    version: str = "0.9.16"
    delay_images_frames: int = 0
    delay_images_s: float = 0.0

    def before_frame(self, frame: int) -> None:
        """Called before a frame is simulated."""

    def refuses(self, blueprint: str) -> bool:
        """Whether the spawn of this blueprint fails."""
        return False

    def drops_image(self, frame: int) -> bool:
        """Whether the camera images of this frame are lost."""
        return False
