"""When a lost simulator is tried again, and when it is given up."""

import pytest

from wm_gym.data_collection.recording.worker_pool import MAX_RETRIES, Losses, connection_of_each
from wm_gym.errors import ConfigError, SimulatorLostError


def lose(losses, place, task):
    return losses.add(place, task, "it is gone.", f"task {task}")


def test_a_worker_is_given_up_after_losses_in_a_row():
    losses = Losses(2)
    for task in (7, 8):  # a finished task in between says that the simulator is back
        assert [lose(losses, 0, task) for _ in range(MAX_RETRIES)] == [False] * MAX_RETRIES
        losses.finished(0)
    assert losses.in_a_row(0) == 0
    assert [lose(losses, 0, task) for task in range(MAX_RETRIES + 1)] == [False] * MAX_RETRIES + [True]
    assert losses.given_up == [
        "worker 1 of 2 was given up, because its simulator was lost 3 times in a row: it is gone."
    ]


def test_the_last_worker_given_up_is_the_end():
    losses = Losses(2)
    for _ in range(MAX_RETRIES + 1):
        lose(losses, 1, 3)
    for _ in range(MAX_RETRIES):
        assert not lose(losses, 0, 3)
    with pytest.raises(SimulatorLostError, match=r"^task 3: the simulator was lost 3 times in a row: it is gone; what"):
        lose(losses, 0, 3)
    assert losses.total == 2 * (MAX_RETRIES + 1)


def test_a_task_that_costs_sound_simulators_is_the_end():
    losses = Losses(4)
    for place in range(MAX_RETRIES):
        lose(losses, place, 5)
        losses.finished(place)
    with pytest.raises(SimulatorLostError, match="task 5"):
        lose(losses, 3, 5)


def test_workers_that_are_gone_are_no_fault_of_the_task():
    losses = Losses(5)
    for place in range(4):
        assert [lose(losses, place, 5) for _ in range(MAX_RETRIES + 1)][-1]
    assert not lose(losses, 4, 5)


def test_each_worker_has_its_own_connection():
    assert connection_of_each(2, None) == [{}, {}]
    assert connection_of_each(1, [{"port": 1}, {"port": 2}]) == [{"port": 1}, {"port": 2}]
    assert connection_of_each(2, [{"port": 1}, {"port": 2}]) == [{"port": 1}, {"port": 2}]
    with pytest.raises(ConfigError, match="workers=2 does not fit 1 server"):
        connection_of_each(2, [{}])
