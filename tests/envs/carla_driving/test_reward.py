"""The reward's terms: what they measure, what they add up to, and that good driving is what pays."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wm_gym.envs.carla.config import CarlaConfig, RewardConfig
from wm_gym.envs.carla.reward import TERMS, StepFacts, reward_terms

KMH = 1 / 3.6
STANDING = StepFacts(seconds=1.0, progress_m=0.0, lane_offset_m=0.0, speed=0.0, speed_limit=50 * KMH, jerk=0.0)
DRIVING = replace(STANDING, progress_m=50 * KMH, lane_offset_m=0.1, speed=50 * KMH)


def reward(facts: StepFacts, config: RewardConfig | None = None) -> float:
    return sum(reward_terms(facts, config or RewardConfig()).values())


facts = st.builds(
    StepFacts,
    seconds=st.floats(0.01, 2),
    progress_m=st.floats(-20, 60),
    lane_offset_m=st.floats(-10, 10),
    speed=st.floats(-10, 60),
    speed_limit=st.floats(5, 40),
    jerk=st.floats(-500, 500),
    new_collisions=st.integers(0, 3),
    left_road=st.booleans(),
    new_red_lights=st.integers(0, 2),
    route_done=st.booleans(),
)
configs = st.builds(RewardConfig, **{name: st.floats(-300, 300) for name in TERMS})


def test_terms_are_the_fields_of_the_configuration():
    assert ["preset", *TERMS] == list(RewardConfig.model_fields)
    assert tuple(reward_terms(DRIVING, RewardConfig())) == TERMS


@given(facts=facts, config=configs)
def test_the_reward_is_the_weighted_sum_of_what_happened(facts, config):
    expected = config.progress * facts.progress_m + config.time * facts.seconds
    expected += config.lane_deviation * abs(facts.lane_offset_m) * facts.seconds
    if abs(facts.speed) > facts.speed_limit:
        expected += config.speed * (abs(facts.speed) - facts.speed_limit) * facts.seconds
    if abs(facts.jerk) > 5:
        expected += config.comfort * (abs(facts.jerk) - 5) * facts.seconds
    expected += config.collision * facts.new_collisions + config.red_light * facts.new_red_lights
    if facts.left_road:
        expected += config.off_road
    if facts.route_done:
        expected += config.route_done
    terms = reward_terms(facts, config)
    assert sum(terms.values()) == pytest.approx(expected, abs=1e-6)
    assert all(type(value) is float for value in terms.values())


@given(facts=facts, parts=st.integers(2, 10))
def test_shorter_steps_give_the_same_sum(facts, parts):
    facts = replace(facts, new_collisions=0, left_road=False, new_red_lights=0, route_done=False)
    part = replace(facts, seconds=facts.seconds / parts, progress_m=facts.progress_m / parts)
    assert parts * reward(part) == pytest.approx(reward(facts), abs=1e-6)


def test_the_worked_example():
    assert reward(DRIVING) == pytest.approx(13.3, abs=0.1)
    assert 60 * reward(DRIVING) == pytest.approx(800, abs=1)
    assert reward(STANDING) == -0.5
    braking = replace(STANDING, seconds=0.2, jerk=-60.0)
    assert reward_terms(braking, RewardConfig())["comfort"] == pytest.approx(-0.2, abs=0.03)
    event = replace(STANDING, new_collisions=1, new_red_lights=1, left_road=True)
    seconds = {name: -value / 13.3 for name, value in reward_terms(event, RewardConfig()).items()}
    assert seconds["collision"] == pytest.approx(15, abs=0.5)
    assert seconds["red_light"] == pytest.approx(11, abs=0.5)
    assert seconds["off_road"] == pytest.approx(7.5, abs=0.5)


@pytest.mark.parametrize("excess", [1, 5, 20])
@pytest.mark.parametrize("limit", [30, 50, 120])
def test_speeding_never_pays(limit, excess):
    at_limit = replace(DRIVING, speed_limit=limit * KMH, speed=limit * KMH, progress_m=limit * KMH)
    fast = (limit + excess) * KMH
    assert reward(replace(at_limit, speed=fast, progress_m=fast)) < reward(at_limit)


def test_mistakes_cost_more_than_the_second_earns():
    for mistake in ({"new_collisions": 1}, {"left_road": True}, {"new_red_lights": 1}):
        assert reward(replace(DRIVING, **mistake)) < reward(STANDING) - 50


def test_driving_back_and_forth_earns_nothing():
    forth, back = replace(DRIVING, progress_m=10.0, speed=10.0), replace(DRIVING, progress_m=-10.0, speed=-10.0)
    assert reward(forth) + reward(back) < 0


COMPLETION = RewardConfig(preset="route_completion")


def test_route_completion_pays_per_cent_of_the_route():
    assert reward(replace(DRIVING, completed=0.02), COMPLETION) == pytest.approx(2.0)
    assert reward(replace(DRIVING, completed=0.0, progress_m=-3.0), COMPLETION) == 0.0
    assert reward(replace(STANDING, route_done=True), COMPLETION) == 0.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"outside_lane": True}, 0.0),
        ({"speed": 50 * KMH + 2.23 / 2}, 1.0),
        ({"speed": 70 * KMH}, 0.0),
        ({"jerk": -31.0}, 1.0),
        ({"time_to_collision_s": 0.9}, 1.0),
        ({"speed": 50 * KMH + 2.23 / 2, "jerk": 31.0, "time_to_collision_s": 0.9}, 0.25),
        ({"new_collisions": 1}, 1.0),
        ({"left_road": True, "outside_lane": True}, -1.0),
        ({"new_red_lights": 1}, 1.0),
    ],
)
def test_infractions_take_from_route_completion(change, expected):
    facts = replace(DRIVING, completed=0.02, **change)
    assert reward(facts, COMPLETION) == pytest.approx(expected)
    assert tuple(reward_terms(facts, COMPLETION)) == TERMS


def test_a_preset_is_named_alone_and_takes_no_weights():
    settings = {"reward": "route_completion"}
    assert CarlaConfig(**settings).reward == COMPLETION
    with pytest.raises(ValidationError, match=r"has no weights, but collision is given"):
        RewardConfig(preset="route_completion", collision=-10.0)
