"""The reward of ``CarlaDriving-v0``: a sum of named, weighted terms.

A term is a weight of :class:`~wm_gym.envs.carla.config.RewardConfig` times what the term of that name measures:

| term | measures |
| --- | --- |
| `progress` | metres gained along the route; negative backwards |
| `lane_deviation` | metres between the vehicle and the centre of its lane, times seconds |
| `speed` | m/s above the speed limit, times seconds |
| `comfort` | m/s^3 of jerk above ``COMFORTABLE_JERK``, times seconds |
| `collision` | new collisions |
| `off_road` | 1 in the step in which the vehicle leaves the road |
| `red_light` | red lights run in this step |
| `route_done` | 1 in the step in which the route ends |
| `time` | seconds |

The rates are multiplied by the seconds of a step, so that an episode's sum does not depend on how long a step is.

With the default weights, for a limit of 50 km/h (13.9 m/s):

* A minute at the limit, 0.1 m off the lane's centre, earns 833 for progress, -3 for the deviation and -30 for the
  time: 800, or 13.3 a second; the end of the route brings 100 more.
* A minute of standing still costs 30, or 0.5 a second.
* Each m/s above the limit gains 1 a second by progress and costs 2, so that speeding never pays.
* A collision costs as much as 15 seconds of good driving, running a red light as much as 11 (waiting must not cost
  more than the penalty), leaving the road 7.5; and, where it ends the episode, what would have been earned afterwards.
* A full braking to a stop, with a peak of 60 m/s^3 for 0.2 s, costs 0.2 for comfort.

The preset ``route_completion`` is the reward of CaRL (Jaeger et al. 2025, "CaRL: Learning Scalable Planning Policies
with Simple Rewards", arXiv 2504.17838): the per cent of the route that a step gains, times a factor for each soft
infraction; a hard infraction (a collision, a red light run, leaving the road) costs ``HARD_INFRACTION`` and ends the
episode. So a route without any earns 100, however long it is or takes. The terms ``lane_deviation``, ``speed``,
``comfort`` and ``time`` (for the time to a collision) say what the factors took away. Outside the route's lane nothing
is gained. Of CaRL's other factors, comfort goes by the jerk alone, the time to a collision by what is ahead on the
route, and an infraction counts as long as it lasts, not for some time afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wm_gym.envs.carla.config import RewardConfig

COMFORTABLE_JERK = 5.0
"""m/s^3: what ISO 15622 allows an adaptive cruise control at low speed."""

SOFT_FACTOR = 0.5
"""What discomfort and a near collision each leave of the reward (CaRL, as the following figures)."""
OVERSPEED_M_S = 2.23
"""So far above the limit nothing is left of it."""
UNCOMFORTABLE_JERK = 30.0
"""m/s^3."""
TIME_TO_COLLISION_S = 1.0
"""Seconds below which a collision is near."""
HARD_INFRACTION = 1.0
"""Per cent of the route that one costs, beside all that is left."""

TERMS = (
    "progress",
    "lane_deviation",
    "speed",
    "comfort",
    "collision",
    "off_road",
    "red_light",
    "route_done",
    "time",
)
"""Names of the terms, which are the fields of :class:`~wm_gym.envs.carla.config.RewardConfig`."""


@dataclass(frozen=True)
class StepFacts:
    """What happened in one step of the environment.

    Attributes:
        seconds: Simulated time of the step.
        progress_m: Metres gained along the route.
        lane_offset_m: Metres from the lane's centre to the vehicle's; the side does not matter.
        speed: m/s, never negative or else the direction of travel, which does not matter either.
        speed_limit: m/s.
        jerk: Change of the acceleration in m/s^3; the sign does not matter.
        new_collisions: Collisions that began in this step.
        left_road: Whether the vehicle left the road in this step.
        new_red_lights: Red lights that it ran in this step.
        route_done: Whether it came to the end of its route in this step.
        completed: Part of the route (0 to 1) that was reached in this step for the first time.
        time_to_collision_s: Seconds until it would meet what is ahead of it.
        outside_lane: Whether its centre is outside the lane of its route.
    """

    seconds: float
    progress_m: float
    lane_offset_m: float
    speed: float
    speed_limit: float
    jerk: float
    new_collisions: int = 0
    left_road: bool = False
    new_red_lights: int = 0
    route_done: bool = False
    completed: float = 0.0
    time_to_collision_s: float = math.inf
    outside_lane: bool = False


def reward_terms(facts: StepFacts, config: RewardConfig) -> dict[str, float]:
    """The weighted terms of one step, in the order of :data:`TERMS`; the reward is their sum."""
    if config.preset == "route_completion":
        return _completion_terms(facts)
    measured = {
        "progress": facts.progress_m,
        "lane_deviation": abs(facts.lane_offset_m) * facts.seconds,
        "speed": max(0.0, abs(facts.speed) - facts.speed_limit) * facts.seconds,
        "comfort": max(0.0, abs(facts.jerk) - COMFORTABLE_JERK) * facts.seconds,
        "collision": facts.new_collisions,
        "off_road": facts.left_road,
        "red_light": facts.new_red_lights,
        "route_done": facts.route_done,
        "time": facts.seconds,
    }
    return {name: float(getattr(config, name) * measured[name]) for name in TERMS}


def _completion_terms(facts: StepFacts) -> dict[str, float]:
    """The terms of ``route_completion``: what is gained, and what each factor takes from what the ones before left."""
    factors = {
        "lane_deviation": 0.0 if facts.outside_lane else 1.0,
        "speed": min(1.0, max(0.0, 1 - (abs(facts.speed) - facts.speed_limit) / OVERSPEED_M_S)),
        "comfort": SOFT_FACTOR if abs(facts.jerk) > UNCOMFORTABLE_JERK else 1.0,
        "time": SOFT_FACTOR if facts.time_to_collision_s < TIME_TO_COLLISION_S else 1.0,
    }
    left = 100 * facts.completed
    terms = dict.fromkeys(TERMS, 0.0) | {"progress": left}
    for name, factor in factors.items():
        terms[name] = (factor - 1) * left
        left *= factor
    hard = {"collision": facts.new_collisions, "off_road": facts.left_road, "red_light": facts.new_red_lights}
    return terms | {name: -HARD_INFRACTION * count for name, count in hard.items()}
