"""The packages of the extra ``lerobot``, imported when they are needed."""

from __future__ import annotations

from typing import Any

from wm_gym.errors import DatasetError


def pyarrow() -> Any:
    """The package ``pyarrow`` with its ``parquet``, which reads and writes tables.

    Raises:
        DatasetError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise _missing("pyarrow") from error
    return pyarrow


def av() -> Any:
    """The package ``av``, which reads and writes videos; OpenCV reads no AV1, which LeRobot's are.

    Raises:
        DatasetError: It is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise _missing("av") from error
    return av


def _missing(name: str) -> DatasetError:
    return DatasetError(f"LeRobot's datasets need the package {name}; install it with `pip install wm_gym[lerobot]`.")
