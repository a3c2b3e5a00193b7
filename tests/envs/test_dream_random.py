import numpy as np
import pytest
from gymnasium.utils import seeding

from wm_gym.envs.slot_random import SlotRandom, StreamAhead, draw_key, mix64


def test_hash_gives_the_published_splitmix64_sequence():
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * golden
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix64(states).tolist() == expected


def test_a_slots_numbers_depend_on_its_key_and_event_only():
    many, one = SlotRandom(5), SlotRandom(1)
    many.seed([10, 11, 12, 13, 14])
    one.seed([13])
    for _ in range(3):
        np.testing.assert_array_equal(many.uniform(4)[3], one.uniform(4)[0])
        many.advance()
        one.advance(np.array([0]))
    many.advance(np.array([True, True, True, False, True]))
    np.testing.assert_array_equal(many.below(1000, np.array([3])), one.below(1000, np.array([0])))


def test_first_lane_does_not_depend_on_how_many_follow():
    random = SlotRandom(3)
    random.seed([0, 1, 2])
    np.testing.assert_array_equal(random.uniform(1)[:, 0], random.uniform(33)[:, 0])


def test_seed_gives_the_key_of_a_gymnasium_generator_and_none_goes_on():
    random = SlotRandom(2)
    random.seed([7, 8])
    reference = SlotRandom(2)
    reference.set_key(0, draw_key(seeding.np_random(7)[0]))
    reference.set_key(1, draw_key(seeding.np_random(8)[0]))
    np.testing.assert_array_equal(random.uniform(2), reference.uniform(2))
    random.advance()
    before = random.uniform(2)
    random.seed([None, 8])
    np.testing.assert_array_equal(random.uniform(2)[0], before[0])
    np.testing.assert_array_equal(random.uniform(2)[1], reference.uniform(2)[1])


def test_numbers_are_uniform_and_unrelated_between_slots_events_and_lanes():
    random = SlotRandom(64)
    random.seed(list(range(64)))
    blocks = []
    for _ in range(128):
        blocks.append(random.uniform(32))
        random.advance()
    numbers = np.stack(blocks).astype(np.float64)  # (event, slot, lane)
    assert numbers.dtype == np.float64 and numbers.min() >= 0 and numbers.max() < 1
    # 262,144 numbers: the standard error of the mean is 0.0006, of a correlation 0.002
    assert abs(numbers.mean() - 1 / 2) < 0.003
    assert abs(numbers.var() - 1 / 12) < 0.003
    centred = numbers - 0.5
    for shifted in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1], centred[..., 1:] * centred[..., :-1]):
        assert abs(shifted.mean() * 12) < 0.012
    counts = np.histogram(numbers, bins=16, range=(0, 1))[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.05


def test_below_reaches_every_number_about_equally_often():
    random = SlotRandom(4000)
    random.seed(list(range(4000)))
    counts = np.bincount(random.below(5, np.arange(4000)), minlength=5)
    assert counts.shape == (5,)
    assert np.abs(counts - 800).max() < 130


@pytest.mark.parametrize("num_lanes", [1, 33, 20_000])
def test_numbers_made_ahead_are_those_of_a_slot(num_lanes):
    ahead, slot = StreamAhead(num_lanes), SlotRandom(1)
    for key, num_events in ((2**64 - 5, 70), (3, 200)):
        ahead.set_key(key)
        slot.set_key(0, key)
        for event in range(num_events):
            if event % 7 == 3:  # an event that takes a whole number, as a reset does
                assert ahead.below(1000) == slot.below(1000, np.array([0]))[0]
            else:
                np.testing.assert_array_equal(ahead.uniform(), slot.uniform(num_lanes)[0])
            ahead.advance()
            slot.advance()
