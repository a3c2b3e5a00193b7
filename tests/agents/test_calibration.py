import numpy as np
import pytest

from wm_gym.agents.evaluation.calibration import calibrate_ends, calibrate_rewards


def test_calibrated_rewards_have_no_calibration_error_though_single_steps_are_off(rng):
    predicted = rng.uniform(-1, 7, 20_000).astype(np.float32)
    real = (predicted + rng.choice([-2.0, 2.0], 20_000)).astype(np.float32)
    found = calibrate_rewards(predicted, real)
    assert found.absolute_error == pytest.approx(2.0, abs=1e-3)
    assert found.expected_calibration_error < 0.1
    assert found.correlation == pytest.approx(np.corrcoef(predicted, real)[0, 1], abs=1e-6)
    assert [group.count for group in found.bins] == [2000] * 10
    assert [group.mean_predicted for group in found.bins] == pytest.approx(np.arange(10) * 0.8 - 0.6, abs=0.1)


def test_the_calibration_error_is_in_units_of_reward_and_sees_what_correlation_does_not():
    real = np.arange(100, dtype=np.float32)
    assert calibrate_rewards(real + 3, real).expected_calibration_error == pytest.approx(3.0)
    found = calibrate_rewards(2 * real, real)
    assert found.correlation == pytest.approx(1.0)
    assert found.expected_calibration_error == pytest.approx(real.mean())


def test_equal_predictions_share_a_bin():
    predicted = np.repeat(np.float32([0.0, 5.0]), (90, 10))
    real = np.tile(np.float32([0.0, 1.0]), 50)  # half of each group, in an order that must not matter
    found = calibrate_rewards(predicted, real)
    assert [(b.mean_predicted, b.mean_real, b.count) for b in found.bins] == [(0.0, 0.5, 90), (5.0, 0.5, 10)]
    assert found.expected_calibration_error == pytest.approx(0.9 * 0.5 + 0.1 * 4.5)


def test_fewer_steps_than_bins_and_numbers_that_are_not_finite():
    found = calibrate_rewards(np.float32([1, np.nan, 2, np.inf]), np.float32([1, 9, 4, 9]))
    assert (found.steps, found.absolute_error) == (2, 1.0)
    assert sum(group.count for group in found.bins) == 2
    assert calibrate_rewards(np.float32([7]), np.float32([5])).correlation is None
    assert calibrate_rewards(np.float32([np.nan]), np.float32([5])) is None


def test_ends_are_counted_and_their_probabilities_compared():
    continuation = np.float32([0.95, 0.95, 0.95, 0.95, 0.25, 0.25, 0.05, 1.0, 0.0])
    terminated = np.array([0, 0, 0, 1, 1, 0, 1, 0, 1], bool)
    found = calibrate_ends(continuation, terminated)
    assert (found.steps, found.num_real, found.num_predicted) == (9, 4, 4)
    assert (found.precision, found.recall) == (0.75, 0.75)
    assert found.brier == pytest.approx((3 * 0.05**2 + 0.95**2 + 0.25**2 + 0.75**2 + 0.05**2) / 9, rel=1e-5)
    assert [(b.low, b.count, b.frequency) for b in found.bins] == [(0.0, 5, 0.2), (0.7, 2, 0.5), (0.9, 2, 1.0)]
    assert found.bins[1].mean_predicted == pytest.approx(0.75)


def test_without_an_end_precision_and_recall_are_unknown():
    found = calibrate_ends(np.full(5, 0.99, np.float32), np.zeros(5, bool))
    assert (found.precision, found.recall, found.num_real, found.num_predicted) == (None, None, 0, 0)
    assert found.brier == pytest.approx(1e-4, rel=1e-3)
    assert calibrate_ends(np.zeros(0, np.float32), np.zeros(0, bool)) is None
