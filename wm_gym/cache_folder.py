"""The folder for what can be downloaded or computed again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER_VARIABLE = "WM_GYM_CACHE"


def cache_folder() -> Path:
    """The folder that the variable ``WM_GYM_CACHE`` names, else ``wm_gym`` in the user's cache folder."""
    return Path(os.environ.get(FOLDER_VARIABLE) or _users_cache_folder() / "wm_gym")


def _users_cache_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
