"""One episode: from the ticks of the simulator to reward, ends and metrics."""

from __future__ import annotations

import math
from typing import Any, Literal

from wm_gym.envs.carla.config import CarlaConfig
from wm_gym.envs.carla.messages import EpisodeStarted, Tick
from wm_gym.envs.carla.metrics import CollisionFilter, DrivingRecord, collision_kind
from wm_gym.envs.carla.reward import TERMS, TIME_TO_COLLISION_S, StepFacts, reward_terms
from wm_gym.envs.carla.road_ahead import first_on_route
from wm_gym.envs.carla.route import Route, RouteState, RouteTracker
from wm_gym.envs.carla.state import EgoState
from wm_gym.envs.carla.stop_lines import ahead, crossed

End = Literal["", "collision", "off_road", "red_light", "route_done", "wrong_way", "stuck", "deviation", "time"]

_ROUTE_DONE_PART = 0.99
_ROUTE_DONE_M = 10.0
"""A route is done beyond this part of it and within so many metres of its end."""
_MOVING_M_S = 0.1
_LOOK_AHEAD_M = 60.0
_PASSED_M = 3.0
"""A stop line is the next one until the rear is so many metres past it: a light is run by the rear, and in that very
moment it must be plain which one."""


class Drive:
    """Follows one episode.

    Args:
        started: How it began.
        config: Weights and thresholds.

    Attributes:
        tick: The last tick.
        route_state: Where the vehicle is on its route.
        end: Why the episode has ended, or ``""``.
    """

    def __init__(self, started: EpisodeStarted, config: CarlaConfig) -> None:
        self.tick: Tick = started.tick
        self._first_frame = started.tick.frame
        self.end: End = ""
        self._config = config
        self._lines = started.stop_lines
        self._half_length = started.half_length
        self._tracker = RouteTracker(started.route)
        self.route_state: RouteState = self._locate(started.tick.ego)
        self._record = DrivingRecord(started.route.length)
        self._collision_filter = CollisionFilter()
        self._max_s = config.end.time_limit_s(started.route.length)
        self._is_done = False
        self._last_red_light: int | None = None
        self._seconds = 0.0
        self._stuck_s = 0.0
        self._travelled_m = self._farthest_m = 0.0
        self._reached_m = self.route_state.distance
        self._acceleration = (0.0, 0.0)
        self._collisions = 0
        self._hardest_impulse = 0.0
        self._red_lights = 0
        self._infractions: list[str] = []
        self._terms = dict.fromkeys(TERMS, 0.0)

    @property
    def route(self) -> Route:
        """The way to drive."""
        return self._tracker.route

    @property
    def terminated(self) -> bool:
        """Whether the task has ended."""
        return self.end not in ("", "time")

    @property
    def truncated(self) -> bool:
        """Whether the time is over."""
        return self.end == "time"

    def light_ahead(self) -> tuple[float, str] | None:
        """Metres from the vehicle's front to the next stop line of the route, and the colour of its light.

        The metres are negative from when the front is over the line until the rear is well past it.
        """
        behind = self._half_length + _PASSED_M
        begin = self.route_state.distance - behind
        found = ahead(self._lines, self.route, begin, _LOOK_AHEAD_M + self._half_length + behind)
        if found is None:
            return None
        line, distance = found
        return distance - behind - self._half_length, self.tick.lights.get(line.light_id, "unknown")

    @property
    def acceleration(self) -> float:
        """In m/s^2 along the heading, over the last tick."""
        yaw = math.radians(self.tick.ego.yaw)
        return self._acceleration[0] * math.cos(yaw) + self._acceleration[1] * math.sin(yaw)

    def add(self, ticks: tuple[Tick, ...]) -> float:
        """Add the ticks of one action; returns their reward."""
        self._terms = dict.fromkeys(TERMS, 0.0)
        for tick in ticks:
            for name, value in self._add_tick(tick).items():
                self._terms[name] += value
        return sum(self._terms.values())

    def info(self) -> dict[str, Any]:
        """What ``info`` says about the episode."""
        state = self.route_state
        return {
            "speed": math.hypot(*self.tick.ego.velocity),
            "speed_limit": self.tick.speed_limit,
            "progress": min(1.0, max(0.0, state.distance / self.route.length)),
            "lateral_offset": state.lateral_offset,
            "heading_error": state.heading_error,
            "off_road": not self.tick.on_road,
            "collisions": float(self._collisions),
            "red_lights": float(self._red_lights),
            **{f"reward_{name}": value for name, value in self._terms.items()},
            **self._record.metrics(),
            "route_length": self.route.length,
            "frame": float(self.tick.frame - self._first_frame),
            "infractions": "\n".join(self._infractions),
        }

    def _note(self, infraction: str, what: str) -> None:
        """Keep what happened, where and when, for people to read."""
        ego = self.tick.ego
        self._infractions.append(f"{infraction}: {what} at ({ego.x:.1f}, {ego.y:.1f}) after {self._seconds:.1f} s")

    def _add_tick(self, tick: Tick) -> dict[str, float]:
        before, self.tick = self.tick, tick
        # A repeated tick, after a picture that did not come, lasts as long as any other.
        seconds = self._config.step_s * max(1, tick.frame - before.frame)
        self._seconds += seconds
        state_before, self.route_state = self.route_state, self._locate(tick.ego)
        was_done, self._is_done = self._is_done, self._is_done or self._has_arrived(tick.ego)
        collisions = self._count_collisions(before, tick)
        red_lights = self._count_red_lights(before, tick)
        reached_before, self._reached_m = self._reached_m, max(self._reached_m, self.route_state.distance)
        facts = StepFacts(
            seconds=seconds,
            progress_m=self.route_state.distance - state_before.distance,
            completed=(self._reached_m - reached_before) / self.route.length,
            lane_offset_m=self.route_state.lateral_offset,
            speed=math.hypot(*tick.ego.velocity),
            speed_limit=tick.speed_limit,
            jerk=self._jerk(before.ego, tick.ego, seconds),
            new_collisions=collisions,
            left_road=before.on_road and not tick.on_road,
            new_red_lights=red_lights,
            route_done=self._is_done and not was_done,
            time_to_collision_s=self._time_to_collision(tick),
            outside_lane=abs(self.route_state.lateral_offset) > self.route.width_at(self.route_state.distance) / 2,
        )
        self._record.add_step(self.route_state.distance, off_road=not tick.on_road, route_done=self._is_done)
        self._set_end(tick, seconds, collisions=collisions, red_lights=red_lights)
        return reward_terms(facts, self._config.reward)

    def _locate(self, ego: EgoState) -> RouteState:
        return self._tracker.update(ego.x, ego.y, ego.yaw)

    def _has_arrived(self, ego: EgoState) -> bool:
        route = self.route
        to_end = math.dist((ego.x, ego.y), route.points[-1])
        return to_end < _ROUTE_DONE_M and self.route_state.distance > _ROUTE_DONE_PART * route.length

    def _count_collisions(self, before: Tick, after: Tick) -> int:
        new = 0
        self._hardest_impulse = 0.0
        self._collision_filter.move((after.ego.x, after.ego.y))
        for collision in after.collisions:
            kind = collision_kind(collision.other_type)
            if kind is None:
                continue
            self._hardest_impulse = max(self._hardest_impulse, collision.impulse)
            speed = math.hypot(*before.ego.velocity)
            if self._collision_filter.is_new(collision.other_id, self._seconds, speed):
                self._record.add_collision(kind)
                self._note(f"collision_{kind}", f"with {collision.other_type}")
                new += 1
        self._collisions += new
        return new

    def _count_red_lights(self, before: Tick, after: Tick) -> int:
        run = 0
        for line in crossed(self._lines, self._rear(before.ego), self._rear(after.ego), after.ego.yaw):
            # A line is wider than its lane; what counts is the lane that the vehicle comes from.
            in_lane = before.rear_lane is None or line.lane in (before.rear_lane, after.rear_lane)
            is_red = before.lights.get(line.light_id) == "red"
            if in_lane and is_red and line.light_id != self._last_red_light:
                self._last_red_light = line.light_id
                self._record.add_red_light()
                self._note("red_light", f"light {line.light_id} was run")
                run += 1
        self._red_lights += run
        return run

    def _rear(self, ego: EgoState) -> tuple[float, float]:
        yaw = math.radians(ego.yaw)
        return ego.x - self._half_length * math.cos(yaw), ego.y - self._half_length * math.sin(yaw)

    def _jerk(self, before: EgoState, after: EgoState, seconds: float) -> float:
        old = self._acceleration
        new = ((after.velocity[0] - before.velocity[0]) / seconds, (after.velocity[1] - before.velocity[1]) / seconds)
        self._acceleration = new
        return math.hypot(new[0] - old[0], new[1] - old[1]) / seconds

    def _time_to_collision(self, tick: Tick) -> float:
        """Seconds until the front meets the next road user on the route, both keeping their speed; or infinity."""
        if self._config.reward.preset != "route_completion" or not tick.road_users:
            return math.inf
        speed = math.hypot(*tick.ego.velocity)
        sight = self._half_length + speed * TIME_TO_COLLISION_S
        found = first_on_route(self.route, self.route_state.distance, sight, tick.ego, tick.road_users)
        if found is None or found[1] >= speed:
            return math.inf
        return max(0.0, found[0] - self._half_length) / (speed - found[1])

    def _set_end(self, tick: Tick, seconds: float, *, collisions: int, red_lights: int) -> None:
        """The first reason counts."""
        if self.end:
            return
        end, state = self._config.end, self.route_state
        self._stuck_s = 0.0 if math.hypot(*tick.ego.velocity) > _MOVING_M_S else self._stuck_s + seconds
        self._travelled_m += tick.ego.speed * math.cos(math.radians(state.heading_error)) * seconds
        self._farthest_m = max(self._farthest_m, self._travelled_m)
        if end.collision and self._is_collision_an_end(collisions):
            self.end = "collision"
        elif end.off_road and not tick.on_road:
            self.end = "off_road"
        elif red_lights and self._config.ends_at_red_light:
            self.end = "red_light"
        elif self._is_done:
            self.end = "route_done"
        elif end.wrong_way_m and self._farthest_m - self._travelled_m > end.wrong_way_m:
            self.end = "wrong_way"
        elif end.max_deviation_m and abs(state.lateral_offset) > end.max_deviation_m:
            self.end = "deviation"
            self._record.add_route_deviation()
            self._note("route_deviation", f"{abs(state.lateral_offset):.1f} m away from the route")
        elif end.stuck_s and self._stuck_s >= end.stuck_s:
            self.end = "stuck"
            self._record.add_blocked()
            self._note("blocked", f"stood for {self._stuck_s:.0f} s")
        elif self._seconds >= self._max_s - 1e-6:
            self.end = "time"

    def _is_collision_an_end(self, new_collisions: int) -> bool:
        """Whether this tick's contacts are hard enough; a contact may become harder while it lasts."""
        least = self._config.end.collision_impulse
        return self._hardest_impulse >= least if least else new_collisions > 0
