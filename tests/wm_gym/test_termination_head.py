"""The end of a training: the termination head alone."""

import numpy as np
import pytest
import torch

from wm_gym.clips import Clips
from wm_gym.config import load_config
from wm_gym.errors import TrainingError
from wm_gym.observation import Observation
from wm_gym.rollouts import follow
from wm_gym.state import LatentState
from wm_gym.training import termination_head
from wm_gym.training.termination_head import NEAR_STEPS, recorded_steps, train_termination_head
from wm_gym.world_model import WorldModel


class Episodes:
    """Episodes that full throttle ends, if ``ends`` says so for them, and nothing else."""

    def __init__(self, lengths, ends=True):
        rng = np.random.default_rng(3)
        self.lengths = np.array(lengths, np.int64)
        self.frames = [rng.integers(0, 256, (length + 1, 64, 64, 3), np.uint8) for length in lengths]
        self.actions = [np.tile(np.float32([0, 0.1, 0, 1]), (length, 1)) for length in lengths]
        self.terminated = [np.zeros(length, np.bool_) for length in lengths]
        for actions, terminated in zip(self.actions, self.terminated, strict=True):
            actions[-1, 1] = 1.0
            terminated[-1] = ends

    def episode_lengths(self):
        return self.lengths

    def read_clips(self, draws, length):
        ((position, first),) = draws
        assert (first, length) == (0, self.lengths[position] + 1)
        return Clips(
            self.frames[position][None],
            self.actions[position][None],
            np.zeros((1, length - 1), np.float32),
            self.terminated[position][None],
            np.zeros((1, length, 0), np.float32),
        )


@pytest.fixture(params=["rssm", "gru"])
def model(request, driving_spec):
    torch.manual_seed(0)
    changes = [f"model.dynamics.kind={request.param}", "model.dynamics.groups=4", "model.dynamics.action_gains=[4]"]
    return WorldModel(load_config("debug", changes).model, driving_spec).eval()


def parameters(model, *, of_head):
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.startswith("continuation_head") == of_head
    }


def test_ends_are_learnt_from_the_step_that_they_come_of_and_nothing_else_changes(model, monkeypatch):
    monkeypatch.setattr(termination_head, "_LEARNING_RATE", 0.01)  # of a head that begins at zero
    source = Episodes([12, 9, 15, 11, 14, 10])
    steps = recorded_steps(model, source, seed=0)
    before = parameters(model, of_head=False), parameters(model, of_head=True)
    train_termination_head(model, source, 1500, seed=0, progress=False)
    after = parameters(model, of_head=False), parameters(model, of_head=True)
    assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
    with torch.no_grad():
        noise = torch.rand(len(steps.actions), model.noise_dim)
        imagined = model.imagine_state(steps.before, steps.actions, noise)
        goes_on = model.continuation_head.probability(model.features(imagined))
    assert goes_on[steps.terminated].max() < 0.5 < goes_on[~steps.terminated].min()
    model.load_state_dict({**model.state_dict(), **before[1]})
    train_termination_head(model, source, 1500, seed=0, progress=False)
    assert all(torch.equal(value, after[1][name]) for name, value in parameters(model, of_head=True).items())


def test_episodes_followed_together_are_followed_as_each_alone(model):
    source = Episodes([12, 9, 15])
    steps = recorded_steps(model, source, seed=0)
    first = 0
    for position in (1, 0, 2):  # by length
        length = source.lengths[position]
        clip = source.read_clips([(position, 0)], length + 1)
        states = follow(model, Observation(clip.frames[0], clip.vectors[0]), clip.actions[0])
        rows = slice(first, first + length)
        before = LatentState.cat(states[:-1])
        torch.testing.assert_close(steps.before.memory[rows], before.memory, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            steps.observed.memory[rows], LatentState.cat(states[1:]).memory, atol=1e-5, rtol=1e-4
        )
        assert torch.equal(steps.actions[rows], torch.from_numpy(source.actions[position]))
        assert torch.equal(steps.terminated[rows], torch.from_numpy(source.terminated[position]))
        first += length
    assert first == len(steps.actions)


def test_steps_near_ends_of_the_task_are_kept_where_there_are_too_many(model, monkeypatch):
    monkeypatch.setattr(termination_head, "_MOST_STEPS", 30)
    ending, cut = Episodes([40, 5, 60]), Episodes([40, 5, 60], ends=False)
    steps = recorded_steps(model, ending, seed=0)
    assert steps.terminated.sum() == 3
    assert steps.is_near.sum() == NEAR_STEPS + 5 + NEAR_STEPS
    assert 21 < len(steps.terminated) < 70  # of 105, about 30 of which would be kept without the 21 near an end
    assert not recorded_steps(model, cut, seed=0).is_near.any()


def test_without_ends_nothing_is_learnt(model):
    before = parameters(model, of_head=True)
    train_termination_head(model, Episodes([6, 7], ends=False), 5, seed=0, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in parameters(model, of_head=True).items())


def test_a_model_that_is_not_finite_is_named(model):
    with torch.no_grad():
        model.continuation_head.mlp[0].weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="termination_steps=0"):
        train_termination_head(model, Episodes([6, 7]), 5, seed=0, progress=False)
