"""Which towns a server offers: small ones of its own, and OpenDRIVE maps from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wm_gym.envs.carla_light.layout import Town
from wm_gym.envs.carla_light.small_towns import TOWN_NAMES, make_town
from wm_gym.errors import ConfigError

_ENDING = ".xodr"


class Towns:
    """The towns of a server.

    Args:
        wanted: Names of the small towns, OpenDRIVE files, and folders of such files. A file's town has the file's name
            and takes the place of a small town of that name. The server begins in the first.

    Raises:
        ConfigError: There is no such town or file.
    """

    def __init__(self, wanted: Sequence[str] = ()) -> None:
        self._files: dict[str, Path] = {}
        self._read: dict[str, Town] = {}
        names = [name for text in wanted for name in self._add(text)]
        self.first = names[0] if names else TOWN_NAMES[0]
        """Name of the town that the server begins in."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be loaded."""
        return tuple(dict.fromkeys((*self._files, *TOWN_NAMES)))

    def load(self, name: str) -> Town:
        """The town of that name; its file is read once.

        Raises:
            KeyError: There is none.
            ConfigError: The file cannot be read, or is no OpenDRIVE map.
            SimulatorError: CARLA's client, which reads maps, is not installed.
        """
        file = self._files.get(name)
        if file is None:
            if name not in TOWN_NAMES:
                raise KeyError(name)
            return make_town(name)
        if name not in self._read:
            from wm_gym.envs.carla_light.map_file import read_town

            self._read[name] = read_town(file)
        return self._read[name]

    def _add(self, text: str) -> list[str]:
        """Remember the files that a text stands for; returns the names of the towns."""
        if text in TOWN_NAMES:
            return [text]
        path = Path(text).expanduser()
        if path.is_dir():
            files = sorted(path.glob(f"*{_ENDING}"))
            if not files:
                raise ConfigError(f"the folder {text} has no OpenDRIVE files (*{_ENDING}).")
        elif path.is_file():
            files = [path]
        else:
            raise ConfigError(
                f"there is no town {text!r}; use {' or '.join(TOWN_NAMES)}, an OpenDRIVE file ({_ENDING}), or a folder "
                "of them."
            )
        for file in files:
            self._files[file.stem] = file.resolve()
        return [file.stem for file in files]
