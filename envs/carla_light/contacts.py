"""What happens when a vehicle drives into something: both are pushed apart, and neither bounces.

A vehicle slides along a wall, and a lorry pushes a car out of its way, as in CARLA, where vehicles that merely touch do
not stand for ever. Contacts are between boxes seen from above and turn nobody. Of the motion towards each other nothing
is left; of that along the contact, friction takes its share (Coulomb's law for an impulse).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from wm_gym.envs.carla_light.actors import Actor
from wm_gym.envs.carla_light.geometry import way_out
from wm_gym.envs.carla_light.layout import Pose

_FRICTION = 0.3
"""Of body against body or wall, which is less than a tyre's on the road."""
_SLACK_M = 1e-3
"""Left between what was pushed apart, so that it does not count as touching."""


def push_apart(actor: Actor, pose: Pose, other: Actor, is_free: Callable[[Actor, Pose], bool]) -> None:
    """Place an actor that would drive into another one, and the other one, and change how they move.

    Args:
        actor: What moves.
        pose: Where it would be, were the other one not there.
        other: What is in its way.
        is_free: Whether an actor would touch nothing at a pose.
    """
    way = way_out(pose, actor.blueprint.extent, other.pose, other.blueprint.extent)
    if way is None or actor.kind != "vehicle":
        actor.stop()
        return
    depth = math.hypot(*way)
    if depth == 0.0:
        actor.stop()
        return
    out_x, out_y = way[0] / depth, way[1] / depth
    depth += _SLACK_M
    part = _part_of_push(actor, other)
    if part < 1.0:
        aside = _moved(other.pose, -out_x, -out_y, (1.0 - part) * depth)
        if is_free(other, aside):
            other.pose = aside
        else:
            part = 1.0
    beside = _moved(pose, out_x, out_y, part * depth)
    if not is_free(actor, beside):
        actor.stop()
        return
    actor.pose = beside
    closing = (other.velocity[0] - actor.velocity[0]) * out_x + (other.velocity[1] - actor.velocity[1]) * out_y
    if closing > 0.0:
        _push(actor, out_x, out_y, part * closing)
        if part < 1.0:
            _push(other, -out_x, -out_y, (1.0 - part) * closing)


def _part_of_push(actor: Actor, other: Actor) -> float:
    """How much of the way, and of the change of speed, is the actor's: all of it, if the other one cannot give way.

    Masses are taken in proportion to the boxes' volumes.
    """
    if other.kind != "vehicle" or not other.simulates_physics:
        return 1.0
    own, others = math.prod(actor.blueprint.extent), math.prod(other.blueprint.extent)
    return others / (own + others)


def _moved(pose: Pose, x: float, y: float, metres: float) -> Pose:
    return pose._replace(x=pose.x + metres * x, y=pose.y + metres * y)


def _push(actor: Actor, x: float, y: float, change: float) -> None:
    """Change a velocity by ``change`` m/s in a direction, and let friction slow the motion across it."""
    forward = actor.velocity[0] + change * x, actor.velocity[1] + change * y
    across = forward[1] * x - forward[0] * y
    slowed = math.copysign(min(abs(across), _FRICTION * change), across)
    actor.velocity = (forward[0] + slowed * y, forward[1] - slowed * x, actor.velocity[2])
