from collections import Counter

import pytest

from wm_gym.data_collection.recording.plan import HELD_OUT_FROM, CollectionPlan, parse_behaviours
from wm_gym.errors import DatasetError


def test_seeds_are_distinct_and_below_the_held_out_ones():
    plan = CollectionPlan(3, {"a": 1.0})
    seeds = [plan[i].seed for i in range(20_000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < HELD_OUT_FROM for seed in seeds)


def test_plan_depends_on_seed_and_index_only():
    mix = {"a": 0.5, "b": 0.5}
    assert [CollectionPlan(3, mix)[i] for i in range(50)] == [CollectionPlan(3, mix)[i] for i in range(50)]
    assert [CollectionPlan(3, mix)[i].seed for i in range(5)] != [CollectionPlan(4, mix)[i].seed for i in range(5)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("episodes", [10, 100, 1000])
def test_shares_follow_the_weights(seed, episodes):
    weights = {"noisy": 0.7, "random": 0.2, "autopilot": 0.1}
    counts = Counter(CollectionPlan(seed, weights)[i].behaviour for i in range(episodes))
    for name, weight in weights.items():
        assert abs(counts[name] - weight * episodes) <= 2.5


def test_every_tenth_episode_has_the_same_mix():
    plan = CollectionPlan(0, {"a": 0.9, "b": 0.1})
    counts = Counter(plan[i].behaviour for i in range(9, 2000, 10))
    assert 15 <= counts["b"] <= 25


@pytest.mark.parametrize("seed", [-1, HELD_OUT_FROM])
def test_held_out_seeds_are_refused(seed):
    with pytest.raises(DatasetError, match="held out"):
        CollectionPlan(seed, {"a": 1.0})


def test_mixes():
    assert parse_behaviours("noisy:7,random:2, autopilot:1") == {"noisy": 0.7, "random": 0.2, "autopilot": 0.1}
    assert parse_behaviours("random") == {"random": 1.0}
    assert parse_behaviours("a,b") == {"a": 0.5, "b": 0.5}
    assert parse_behaviours("C:\\agents\\best,b:1") == {"C:\\agents\\best": 0.5, "b": 0.5}


@pytest.mark.parametrize("text", ["", "a:0", "a:-1", "a:x", "a:nan", "a:inf", "a,a", "a,,b", ":1"])
def test_bad_mixes_are_refused(text):
    with pytest.raises(DatasetError):
        parse_behaviours(text)
