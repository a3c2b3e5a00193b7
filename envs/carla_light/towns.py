"""Which towns a server offers."""

from __future__ import annotations

from collections.abc import Sequence

from wm_gym.envs.carla_light.layout import Town
from wm_gym.envs.carla_light.small_towns import TOWN_NAMES, make_town
from wm_gym.errors import ConfigError


class Towns:
    """The towns of a server: two small ones of its own.

    Args:
        wanted: Names of towns; the server begins in the first of them.

    Raises:
        ConfigError: There is no such town.
    """

    def __init__(self, wanted: Sequence[str] = ()) -> None:
        for name in wanted:
            if name not in TOWN_NAMES:
                raise ConfigError(f"there is no town {name!r}; use one of {', '.join(TOWN_NAMES)}.")
        self.first = wanted[0] if wanted else TOWN_NAMES[0]
        """Name of the town that the server begins in."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be loaded."""
        return TOWN_NAMES

    def load(self, name: str) -> Town:
        """The town of that name.

        Raises:
            KeyError: There is none.
        """
        if name not in self.names:
            raise KeyError(name)
        return make_town(name)
