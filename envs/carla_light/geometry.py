"""Poses in CARLA's frame: metres and degrees, left-handed (x forward, y right, z up), yaw clockwise seen from above."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wm_gym.envs.carla_light.layout import Pose

_IN_PLACE = Pose(0.0, 0.0)


def rotation(pose: Pose) -> NDArray[np.float64]:
    """The matrix ``(3, 3)`` that turns vectors of the pose's frame into the world's, as CARLA defines it."""
    cp, sp = math.cos(math.radians(pose.pitch)), math.sin(math.radians(pose.pitch))
    cy, sy = math.cos(math.radians(pose.yaw)), math.sin(math.radians(pose.yaw))
    cr, sr = math.cos(math.radians(pose.roll)), math.sin(math.radians(pose.roll))
    return np.array(
        (
            (cp * cy, cy * sp * sr - sy * cr, -cy * sp * cr - sy * sr),
            (cp * sy, sy * sp * sr + cy * cr, -sy * sp * cr + cy * sr),
            (sp, -cp * sr, cp * cr),
        )
    )


def attach(parent: Pose, relative: Pose) -> Pose:
    """World pose of something mounted rigidly on ``parent``."""
    if relative == _IN_PLACE:
        return parent
    x, y, z = rotation(parent) @ (relative.x, relative.y, relative.z)
    turned = rotation(parent) @ rotation(relative)
    return Pose(
        x=parent.x + float(x),
        y=parent.y + float(y),
        z=parent.z + float(z),
        pitch=math.degrees(math.asin(min(1.0, max(-1.0, turned[2, 0])))),
        yaw=math.degrees(math.atan2(turned[1, 0], turned[0, 0])),
        roll=math.degrees(math.atan2(-turned[2, 1], turned[2, 2])),
    )


def corners(pose: Pose, extent: Sequence[float]) -> NDArray[np.float64]:
    """The four corners ``(4, 2)`` of a box seen from above."""
    yaw = math.radians(pose.yaw)
    forward = np.array((math.cos(yaw), math.sin(yaw))) * extent[0]
    right = np.array((-math.sin(yaw), math.cos(yaw))) * extent[1]
    centre = np.array((pose.x, pose.y))
    return np.stack(
        (centre + forward + right, centre + forward - right, centre - forward - right, centre - forward + right)
    )


def boxes_overlap(first: Pose, first_extent: Sequence[float], second: Pose, second_extent: Sequence[float]) -> bool:
    """Whether two boxes overlap as seen from above, by separating axes. Extents are half sizes in metres."""
    x, y = second.x - first.x, second.y - first.y
    yaw, turn = math.radians(first.yaw), math.radians(second.yaw - first.yaw)
    cos, sin = math.cos(yaw), math.sin(yaw)
    turned_cos, turned_sin = math.cos(turn), math.sin(turn)
    part_cos, part_sin = abs(turned_cos), abs(turned_sin)
    along, across = x * cos + y * sin, y * cos - x * sin
    length, width, other_length, other_width = first_extent[0], first_extent[1], second_extent[0], second_extent[1]
    return (
        abs(along) <= length + other_length * part_cos + other_width * part_sin
        and abs(across) <= width + other_length * part_sin + other_width * part_cos
        and abs(along * turned_cos + across * turned_sin) <= other_length + length * part_cos + width * part_sin
        and abs(across * turned_cos - along * turned_sin) <= other_width + length * part_sin + width * part_cos
    )


def way_out(
    first: Pose, first_extent: Sequence[float], second: Pose, second_extent: Sequence[float]
) -> tuple[float, float] | None:
    """The shortest way in metres that brings the first box out of the second, seen from above.

    ``None`` where they do not overlap.
    """
    x, y = first.x - second.x, first.y - second.y
    least, way = math.inf, (0.0, 0.0)
    for yaw in (first.yaw, first.yaw + 90.0, second.yaw, second.yaw + 90.0):
        axis_x, axis_y = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
        apart = x * axis_x + y * axis_y
        depth = _half_size(first, first_extent, yaw) + _half_size(second, second_extent, yaw) - abs(apart)
        if depth < 0:
            return None
        if depth < least:
            outwards = math.copysign(depth, apart)
            least, way = depth, (outwards * axis_x, outwards * axis_y)
    return way


def _half_size(pose: Pose, extent: Sequence[float], yaw: float) -> float:
    """Half the size of a box in a direction, degrees."""
    turned = math.radians(pose.yaw - yaw)
    return extent[0] * abs(math.cos(turned)) + extent[1] * abs(math.sin(turned))


def contains(pose: Pose, extent: Sequence[float], x: float, y: float) -> bool:
    """Whether a point lies in a box seen from above."""
    yaw = math.radians(pose.yaw)
    dx, dy = x - pose.x, y - pose.y
    along, across = dx * math.cos(yaw) + dy * math.sin(yaw), -dx * math.sin(yaw) + dy * math.cos(yaw)
    return abs(along) <= extent[0] and abs(across) <= extent[1]
