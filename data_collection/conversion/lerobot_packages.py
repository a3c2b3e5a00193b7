"""The packages of the extra ``lerobot``, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from wm_gym.errors import DatasetError


def pyarrow() -> Any:
    """The package ``pyarrow`` with its ``parquet``, which reads and writes tables.

    Raises:
        DatasetError: It is not installed.
    """
    _imported("pyarrow.parquet")
    return _imported("pyarrow")


def av() -> Any:
    """The package ``av``, which reads and writes videos; OpenCV reads no AV1, which LeRobot's are.

    Raises:
        DatasetError: It is not installed.
    """
    return _imported("av")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DatasetError(
            f"LeRobot's datasets need the package {name.partition('.')[0]}; install it with "
            "`pip install wm_gym[lerobot]`."
        ) from error
