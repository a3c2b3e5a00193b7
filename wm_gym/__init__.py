"""World models for driving as Gymnasium environments. Importing this package registers its environments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wm_gym._version import __version__
from wm_gym.envs.registration import register_envs

if TYPE_CHECKING:
    from wm_gym.world_model import WorldModel

__all__ = ["WorldModel", "__version__"]

register_envs()


def __getattr__(name: str) -> Any:
    # torch takes seconds to import and is not needed to list or to make a simulator.
    if name == "WorldModel":
        from wm_gym.world_model import WorldModel

        return WorldModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
