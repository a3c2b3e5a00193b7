"""The leaderboard's metrics, against its formulas written out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_gym.envs.carla.metrics import CollisionFilter, DrivingRecord, collision_kind

RATES = {
    "collisions_pedestrian_per_km",
    "collisions_vehicle_per_km",
    "collisions_static_per_km",
    "red_lights_per_km",
    "off_road_per_km",
    "route_deviations_per_km",
    "blocked_per_km",
}
SCORES = {
    "route_completion",
    "infraction_penalty",
    "driving_score",
    "infraction_penalty_2_1",
    "driving_score_2_1",
}
counts = st.integers(0, 4)


@pytest.mark.parametrize(
    ("type_id", "kind"),
    [
        ("walker.pedestrian.0012", "pedestrian"),
        ("vehicle.tesla.model3", "vehicle"),
        ("vehicle.bh.crossbike", "vehicle"),
        ("static.pole", "static"),
        ("static.prop.vendingmachine", "static"),
        ("traffic.traffic_light", "static"),
        ("", "static"),
        ("static.sidewalk", None),
    ],
)
def test_kinds_of_collisions(type_id, kind):
    assert collision_kind(type_id) == kind


def test_a_clean_drive_to_the_end():
    record = DrivingRecord(500.0)
    for distance in range(0, 500, 5):
        record.add_step(distance)
    record.add_step(498.0, route_done=True)
    metrics = record.metrics()
    assert set(metrics) == RATES | SCORES | {"km"}
    assert metrics["route_completion"] == metrics["driving_score"] == 100
    assert metrics["infraction_penalty"] == metrics["infraction_penalty_2_1"] == 1
    assert metrics["driving_score_2_1"] == 100
    assert metrics["km"] == 0.5
    assert all(metrics[name] == 0 for name in RATES)


@given(pedestrians=counts, vehicles=counts, static=counts, red=counts, part=st.floats(0, 1))
def test_driving_score_is_completion_times_the_product_of_coefficients(pedestrians, vehicles, static, red, part):
    record = DrivingRecord(800.0)
    record.add_step(800.0 * part)
    for kind, count in (("pedestrian", pedestrians), ("vehicle", vehicles), ("static", static)):
        for _ in range(count):
            record.add_collision(kind)
    for _ in range(red):
        record.add_red_light()
    metrics = record.metrics()
    penalty = math.prod((0.5,) * pedestrians + (0.6,) * vehicles + (0.65,) * static + (0.7,) * red)
    assert metrics["infraction_penalty"] == pytest.approx(penalty)
    assert metrics["driving_score"] == pytest.approx(100 * part * penalty)
    points = 1.0 * pedestrians + 0.7 * vehicles + 0.6 * static + 0.4 * red
    assert metrics["infraction_penalty_2_1"] == pytest.approx(1 / (1 + points))
    assert metrics["driving_score_2_1"] == pytest.approx(100 * part / (1 + points))
    km = max(0.8 * part, 0.001)
    assert metrics["km"] == pytest.approx(km)
    assert metrics["collisions_vehicle_per_km"] == pytest.approx(vehicles / km)
    assert metrics["red_lights_per_km"] * metrics["km"] == pytest.approx(red)


@given(st.lists(st.tuples(st.floats(-50, 400), st.booleans()), max_size=40), counts, counts)
def test_scores_stay_in_their_ranges(steps, collisions, red):
    record = DrivingRecord(300.0)
    for distance, off_road in steps:
        record.add_step(distance, off_road=off_road)
    for _ in range(collisions):
        record.add_collision("vehicle")
    for _ in range(red):
        record.add_red_light()
    metrics = record.metrics()
    assert 0 <= metrics["driving_score"] <= metrics["route_completion"] <= 100
    assert 0 < metrics["infraction_penalty"] <= 1
    assert all(metrics[name] >= 0 and math.isfinite(metrics[name]) for name in RATES)


def test_distance_off_the_road_does_not_count():
    record = DrivingRecord(100.0)
    for distance in range(1, 61):
        record.add_step(distance, off_road=20 < distance <= 30 or 40 < distance <= 45)
    metrics = record.metrics()
    assert metrics["route_completion"] == pytest.approx(60 - 10 - 5)
    assert metrics["km"] == pytest.approx(0.06)
    assert metrics["off_road_per_km"] == pytest.approx(2 / 0.06)


def test_driving_a_part_again_counts_once():
    record = DrivingRecord(100.0)
    for distance in (10, 30, 20, 5, 30, 31):
        record.add_step(distance)
    assert record.metrics()["route_completion"] == pytest.approx(31)


def test_ends_of_a_drive_are_counted_without_a_penalty():
    record = DrivingRecord(1000.0)
    record.add_step(500.0)
    record.add_route_deviation()
    record.add_blocked()
    metrics = record.metrics()
    assert metrics["route_deviations_per_km"] == metrics["blocked_per_km"] == pytest.approx(2)
    assert metrics["infraction_penalty"] == 1


def test_a_drive_that_never_starts_has_finite_rates():
    record = DrivingRecord(100.0)
    record.add_collision("static")
    metrics = record.metrics()
    assert metrics["driving_score"] == 0
    assert metrics["collisions_static_per_km"] == 1000


def test_a_route_needs_a_length():
    with pytest.raises(ValueError, match="cannot be driven"):
        DrivingRecord(0.0)


def collisions_of(events):
    """The times at which events ``(seconds, x, actor, speed)`` begin a new collision; the vehicle drives along x."""
    collisions, found, last = CollisionFilter(), [], 0.0
    for seconds, x, actor, speed in events:
        for between in (0.25, 0.5, 0.75, 1.0):
            collisions.move((last + between * (x - last), 0.0))
        last = x
        if actor is not None and collisions.is_new(actor, seconds, speed):
            found.append(seconds)
    return found


def test_a_contact_that_lasts_is_one_collision():
    scraping = [(0.05 * tick, 0.005 * tick, 7, 0.1) for tick in range(400)]  # 20 s and 2 m along one actor
    assert collisions_of(scraping) == [0.0]


def test_the_same_actor_counts_again_after_five_seconds_and_five_metres():
    assert collisions_of([(0.0, 0.0, 7, 5.0), (4.9, 30.0, 7, 5.0)]) == [0.0]  # too soon
    assert collisions_of([(0.0, 0.0, 7, 5.0), (5.1, 4.9, 7, 5.0)]) == [0.0]  # too near
    assert collisions_of([(0.0, 0.0, 7, 5.0), (5.1, 5.1, 7, 5.0)]) == [0.0, 5.1]


def test_another_actor_counts_at_once_but_not_within_five_metres():
    assert collisions_of([(0.0, 0.0, 7, 5.0), (1.0, 5.1, 8, 5.0)]) == [0.0, 1.0]
    assert collisions_of([(0.0, 0.0, 7, 5.0), (1.0, 4.9, 8, 5.0)]) == [0.0]


def test_a_place_that_was_left_is_forgotten():
    assert collisions_of([(0.0, 0.0, 7, 5.0), (3.0, 9.0, None, 0.0), (6.0, 1.0, 7, 5.0)]) == [0.0, 6.0]


def test_a_vehicle_that_stands_is_not_to_blame():
    assert collisions_of([(0.0, 0.0, 7, 0.05), (1.0, 0.0, 7, 0.2)]) == [1.0]
