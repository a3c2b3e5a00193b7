"""Readers of routes recorded in CARLA: those of TransFuser and carla_garage, and those of Bench2Drive.

Speed, the route's command and the target point are the observation's vector; the target point is in metres forward
and to the right of the vehicle.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wm_gym.actions import DRIVING_NAMES
from wm_gym.data_collection.conversion.column_names import column_name
from wm_gym.data_collection.conversion.pictures import IMAGE_SUFFIXES, natural_order
from wm_gym.data_collection.conversion.recording import Recording, RowCollector, number
from wm_gym.plain_files import JSON_BYTES, NotPlainError, parse_json, read_bytes
from wm_gym.vector import VectorField

_TRANSFUSER_STEP_S = 0.5
_GARAGE_STEP_S = 0.25
_BENCH2DRIVE_STEP_S = 0.1
_COMMANDS = ("left", "right", "straight", "lane_follow", "change_lane_left", "change_lane_right")
_FOLLOW = 4  # CARLA's number for it; -1 (in some versions 0) stands for no command
FIELDS = (
    # As CarlaDriving-v0 has them.
    VectorField(name="speed", unit="m/s", low=-10.0, high=40.0),
    VectorField.of_classes("command", _COMMANDS, mirrored=(1, 0, 2, 3, 5, 4)),
    VectorField(name="target_forward", unit="m", low=-100.0, high=100.0),
    VectorField(name="target_right", unit="m", low=-100.0, high=100.0, mirror_sign=-1),
)
_Record = Mapping[str, Any]


def read_transfuser(folder: Path) -> Recording:
    """A route of TransFuser (2 records a second) or carla_garage (4): ``measurements/`` beside ``rgb/``.

    Raises:
        DatasetError: It has no record that can be used.
    """
    is_garage = False

    def numbers(record: _Record) -> dict[str, Any]:
        nonlocal is_garage
        if "target_point" in record:
            is_garage = True
            forward, right = _pair(record["target_point"])
        else:  # north and east; the compass turns clockwise from north
            own = (number(record.get("x")), number(record.get("y")), number(record.get("theta")))
            forward, right = _seen_from(own, record, "x_command", "y_command")
        return {
            "command": _command(record.get("command")),
            # Both are what the expert decides, one of hazards and one of its speed; either brakes.
            "brake": max(number(record.get("brake")), number(record.get("control_brake", 0.0))),
            "gear": 1.0,
            "target_forward": forward,
            "target_right": right,
        }

    collector = _read(folder, folder / "measurements", folder / "rgb", numbers)
    return collector.finish(step_s=_GARAGE_STEP_S if is_garage else _TRANSFUSER_STEP_S, fields=FIELDS)


def read_bench2drive(folder: Path) -> Recording:
    """A clip of Bench2Drive (10 records a second): ``anno/`` beside ``camera/rgb_front/``.

    A record has the control that led to its frame, so that a row takes the action of the record behind it.

    Raises:
        DatasetError: It has no record that can be used.
    """

    def numbers(record: _Record) -> dict[str, Any]:
        forward, right = _seen_from(_bench2drive_pose(record), record, "x_command_near", "y_command_near")
        return {
            "command": _command(record.get("command_near")),
            "gear": -1.0 if record.get("reverse") is True else 1.0,
            "target_forward": forward,
            "target_right": right,
        }

    collector = _read(folder, folder / "anno", folder / "camera" / "rgb_front", numbers)
    recording = collector.finish(step_s=_BENCH2DRIVE_STEP_S, fields=FIELDS)
    # Where the record behind is missing, an episode ends, and the row's action is of no use.
    led_on = {name: np.append(recording.columns[name][1:], recording.columns[name][-1:]) for name in DRIVING_NAMES}
    return replace(recording, columns={**recording.columns, **led_on})


def _bench2drive_pose(record: _Record) -> tuple[float, float, float]:
    """Place and yaw of the car in CARLA's axes.

    Those of its box are exact; ``x`` and ``y`` are those of a noisy GPS behind its middle, and the compass may fail.
    """
    boxes = record.get("bounding_boxes")
    for box in boxes if isinstance(boxes, list) else ():
        if isinstance(box, dict) and box.get("class") == "ego_vehicle":
            rotation = box.get("rotation")  # pitch, roll, yaw
            yaw = number(rotation[2]) if isinstance(rotation, list) and len(rotation) == 3 else math.nan
            pose = (*_pair(box.get("location")), math.radians(yaw))
            if all(map(math.isfinite, pose)):
                return pose
    # CARLA's axes are a quarter turn from north.
    return number(record.get("x")), number(record.get("y")), number(record.get("theta")) - math.pi / 2


def _read(folder: Path, records: Path, pictures: Path, numbers: Callable[[_Record], dict[str, Any]]) -> RowCollector:
    """The records that have an image of the same name; a record's number is its place."""
    collector = RowCollector(str(folder), (*DRIVING_NAMES, *(entry.name for entry in FIELDS)))
    by_name = {path.stem: path for path in pictures.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    for path in natural_order(records.iterdir()):
        stem = path.name.partition(".")[0]
        if not path.name.endswith((".json", ".json.gz")) or not stem.isdecimal():
            continue
        try:
            record = parse_json(_json_text(path))
        except NotPlainError:
            record = None
        if not isinstance(record, dict):
            collector.leave_out("broken")
            continue
        plain = {column_name(name): value for name, value in record.items() if isinstance(value, int | float)}
        steering = plain.pop("steer", None)
        picture = by_name.get(stem)
        collector.add(
            int(stem), picture, {**plain, "steering": steering, **numbers(record)}, sought=f"{pictures}/{stem}"
        )
    return collector


def _json_text(path: Path) -> bytes:
    content = read_bytes(path, JSON_BYTES)
    if path.suffix != ".gz":
        return content
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(content, JSON_BYTES)
    except zlib.error as error:
        raise NotPlainError("is damaged: it is no gzip file") from error
    if not unpacker.eof:
        raise NotPlainError("is damaged: it is cut short or too large")
    return text


def _command(value: Any) -> float:
    """The class of CARLA's number of a command; NaN for one that there is not."""
    command = number(value)
    if command in (-1, 0):
        command = _FOLLOW
    return command - 1 if command in range(1, len(_COMMANDS) + 1) else math.nan


def _pair(value: Any) -> tuple[float, float]:
    return (number(value[0]), number(value[1])) if isinstance(value, list) and len(value) >= 2 else (math.nan, math.nan)


def _seen_from(pose: tuple[float, float, float], record: _Record, x: str, y: str) -> tuple[float, float]:
    """A point of a record as metres forward and to the right; the heading turns from the first axis to the second."""
    own_x, own_y, heading = pose
    first, second = number(record.get(x)) - own_x, number(record.get(y)) - own_y
    cos, sin = math.cos(heading), math.sin(heading)
    return first * cos + second * sin, second * cos - first * sin
