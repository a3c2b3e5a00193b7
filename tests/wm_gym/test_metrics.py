import numpy as np
import pytest
import torch
from torchmetrics.functional.regression import r2_score

from wm_gym.clips import Clips
from wm_gym.metrics import (
    explained_variance,
    held_wheel_metrics,
    open_loop_metrics,
    psnr,
    reward_metrics,
    ssim,
    termination_metrics,
)


def test_psnr_is_the_mean_over_frames_of_the_textbook_formula():
    rng = np.random.default_rng(0)
    target = rng.uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)
    predicted = np.clip(target + rng.normal(0, [[[[0.1]]], [[[0.2]]], [[[0.05]]]], target.shape), -1, 1).astype(
        np.float32
    )
    squared = ((predicted - target) ** 2).mean((1, 2, 3))
    expected = (10 * np.log10(2.0**2 / squared)).mean()
    assert psnr(torch.from_numpy(predicted), torch.from_numpy(target)) == pytest.approx(expected, rel=1e-4)


def test_ssim_of_equal_and_of_unrelated_frames():
    frames = torch.rand(2, 3, 32, 32) * 2 - 1
    assert ssim(frames, frames) == pytest.approx(1.0)
    assert abs(ssim(frames, torch.rand(2, 3, 32, 32) * 2 - 1)) < 0.2


def test_reward_error_and_correlation_of_sums():
    predicted = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 3.0]])
    real = torch.tensor([[1.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    measured = reward_metrics(predicted, real, [1, 2])
    assert measured["absolute_error"] == {1: 0.0, 2: pytest.approx((1 + 1 + 2) / 3)}
    assert measured["correlation"][2] == pytest.approx(np.corrcoef([3, 0, 6], [2, 1, 4])[0, 1])


def test_correlation_of_constant_rewards_is_none():
    assert reward_metrics(torch.zeros(3, 1), torch.ones(3, 1), [1])["correlation"][1] is None


def test_termination_precision_and_recall():
    continuation = torch.tensor([[0.9, 0.2], [0.3, 0.9], [0.9, 0.1]])
    terminated = torch.tensor([[False, True], [False, False], [False, True]])
    measured = termination_metrics(continuation, terminated)
    assert measured == {"precision": pytest.approx(2 / 3), "recall": 1.0, "num_real": 2, "num_predicted": 3}
    nothing = termination_metrics(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    assert nothing["precision"] is None
    assert nothing["recall"] is None


def test_open_loop_predicts_from_context_alone(tiny_model):
    """Frames after the context are only compared with, never looked at."""
    clips = Clips(
        torch.rand(4, 8, 3, 64, 64) * 2 - 1,
        torch.rand(4, 7, 4),
        torch.randn(4, 7),
        torch.zeros(4, 7, dtype=torch.bool),
        torch.zeros(4, 8, 0),
    )
    changed = clips._replace(frames=torch.cat((clips.frames[:, :3], torch.zeros(4, 5, 3, 64, 64)), dim=1))
    original, other = (open_loop_metrics(tiny_model, batch, context=3) for batch in (clips, changed))
    assert original["reward"] == other["reward"]
    assert original["psnr"] != other["psnr"]
    assert sorted(original["psnr"]) == [1, 5]
    assert np.isfinite(original["psnr_reconstruction"])


def test_repeating_the_last_frame_is_measured_as_the_dream_is(tiny_model):
    frames = torch.rand(2, 7, 3, 64, 64) * 2 - 1
    clips = Clips(
        frames, torch.rand(2, 6, 4), torch.randn(2, 6), torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, 7, 0)
    )
    measured = open_loop_metrics(tiny_model, clips, context=3)
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        expected = {ahead: measure(frames[:, 2], frames[:, 2 + ahead]) for ahead in measured[name]}
        assert measured[f"{name}_copy"] == pytest.approx(expected)


def test_explained_variance_is_that_of_statistics():
    target = torch.rand(8, 3, 16, 16)
    near = target + 0.1 * torch.randn(8, 3, 16, 16)
    reference = r2_score(near.flatten(1), target.flatten(1), multioutput="variance_weighted")
    assert explained_variance(near, target) == pytest.approx(float(reference), abs=1e-5)
    assert explained_variance(target, target) == 1
    assert explained_variance(target.mean(0).expand_as(target), target) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(near, target[:1].expand_as(target)) is None


def test_equal_frames_count_60_db():
    frames = torch.rand(2, 3, 16, 16)
    assert psnr(frames, frames) == pytest.approx(60.0)


@pytest.mark.parametrize(("follows_the_wheel", "lost"), [(True, 0.0), (False, 0.3)])
def test_a_held_wheel_costs_nothing_where_the_road_follows_it(tiny_model, monkeypatch, follows_the_wheel, lost):
    rewards = torch.tensor([[1.0], [0.0], [3.0], [2.0]]).expand(4, 27)
    clips = Clips(
        torch.rand(4, 28, 3, 64, 64) * 2 - 1,
        torch.rand(4, 27, 4),
        rewards,
        torch.zeros(4, 27, dtype=torch.bool),
        torch.zeros(4, 28, 0),
    )

    def imagine(state, action, noise=None):
        assert action[:, 1:].tolist() == [[pytest.approx(0.15), 0, 1]] * len(action)
        reward = 1 - (0.0 if follows_the_wheel else 1.0) * action[:, 0].abs()
        return state, reward, torch.full_like(reward, 0.5)

    monkeypatch.setattr(tiny_model, "imagine", imagine)
    measured = held_wheel_metrics(tiny_model, clips, context=3, seed=0)
    assert measured["steps"] == 20
    assert measured["recorded"] == 20 * (1 + 3 + 2) / 3  # of all but the worst: the median is the lower one of two
    assert measured["returns"][0.0] == pytest.approx(2.0, abs=1e-4)  # every other dream has ended after each step
    assert measured["lost"] == pytest.approx(lost, abs=1e-4)
