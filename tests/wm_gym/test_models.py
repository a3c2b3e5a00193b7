import pytest
import torch

from wm_gym.config import HeadsConfig, load_config
from wm_gym.models.blocks import ResidualBlock
from wm_gym.models.dynamics import make_dynamics
from wm_gym.models.heads import ContinuationHead, RewardHead, symexp, symlog
from wm_gym.simulator import SimulatorSpec
from wm_gym.world_model import WorldModel


def counts(name: str, spec: SimulatorSpec) -> dict[str, float]:
    with torch.device("meta"):
        model = WorldModel(load_config(name).model, spec)
    return {part: number / 1e6 for part, number in model.num_parameters().items()}


def test_parameter_counts_meet_the_guides_budgets(driving_spec):
    spec = driving_spec.model_copy(update={"frame_size": (256, 256)})
    base, compact, large = (counts(name, spec) for name in ("base", "compact", "large"))
    print("parameters in millions:", {"base": base, "compact": compact, "large": large})
    assert 8 <= base["encoder"] <= 10
    assert 12 <= base["dynamics"] <= 15
    assert 8 <= base["decoder"] <= 10
    assert 28 <= base["total"] <= 35
    assert 9 <= compact["total"] <= 11
    assert 90 <= large["total"] <= 110


def test_guide_shapes_inside_the_base_model(driving_spec):
    config = load_config("base").model
    model = WorldModel(config, driving_spec.model_copy(update={"frame_size": (256, 256)}))
    frames = torch.zeros(1, 3, 256, 256)
    with torch.no_grad():
        stem = model.encoder.stem(frames)
        assert stem.shape == (1, 64, 64, 64)
        shapes = []
        for block in model.encoder.stages:
            stem = block(stem)
            shapes.append(tuple(stem.shape[1:]))
        assert shapes == [(128, 64, 64)] * 2 + [(256, 32, 32)] * 2 + [(512, 16, 16)] * 2
        latent = model.encode(frames)
        assert latent.shape == (1, 256)
        base = model.decoder.widen(model.decoder.expand(latent).view(1, *model.decoder.base_shape))
        assert base.shape == (1, 512, 16, 16)
        image = model.decode_latent(latent)
    assert image.shape == (1, 3, 256, 256)
    assert image.abs().max() <= 1


@pytest.mark.parametrize(("stride", "inner_ratio"), [(1, 1.0), (2, 1.0), (2, 0.5)])
def test_residual_block_shapes(stride, inner_ratio):
    block = ResidualBlock(8, 16, stride, inner_ratio)
    assert block(torch.randn(2, 8, 12, 10)).shape == (2, 16, 12 // stride, 10 // stride)


def test_symlog_inverts():
    values = torch.tensor([-100.0, -0.4, 0.0, 3.2, 1000.0])
    torch.testing.assert_close(symexp(symlog(values)), values, rtol=1e-4, atol=1e-5)
    assert symlog(torch.tensor(1.0)) == pytest.approx(0.6931472)


def test_two_hot_targets_have_the_rewards_mean():
    head = RewardHead(4, HeadsConfig())
    rewards = torch.tensor([-100.0, -0.4, 0.0, 2.9, 3.3, 390.0])
    target = head.two_hot(rewards)
    torch.testing.assert_close(target.sum(-1), torch.ones(6))
    assert ((target > 0).sum(-1) <= 2).all()
    torch.testing.assert_close((target * head.bins).sum(-1), rewards, rtol=1e-4, atol=1e-4)


def test_reward_head_learns_the_mean_of_a_pulse_not_its_median():
    torch.manual_seed(0)
    head = RewardHead(1, HeadsConfig(hidden_dim=8))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    rewards = torch.tensor([-0.4, -0.4, -0.4, 6.0])  # mean 1.2, median -0.4
    features = torch.ones(4, 1)
    assert abs(float(head.mean(features[:1]).detach())) < 1e-3
    for _ in range(300):
        optimizer.zero_grad()
        head.losses(features, rewards).mean().backward()
        optimizer.step()
    assert float(head.mean(features[:1]).detach()) == pytest.approx(1.2, abs=0.1)


def test_rewards_beyond_the_bins_count_as_the_last_bin():
    head = RewardHead(2, HeadsConfig(reward_limit=2.0))
    assert head.two_hot(torch.tensor([1e6]))[0, -1] == 1


def test_continuation_starts_at_going_on_and_learns_ends():
    torch.manual_seed(0)
    head = ContinuationHead(1, HeadsConfig(hidden_dim=8))
    features = torch.tensor([[-1.0], [1.0]])
    assert (head.probability(features) > 0.95).all()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        head.losses(features, torch.tensor([True, False])).mean().backward()
        optimizer.step()
    probability = head.probability(features)
    assert probability[0] < 0.1
    assert probability[1] > 0.9


def test_unknown_dynamics_is_refused(debug_config):
    config = debug_config.model.dynamics.model_copy(update={"kind": "grru"})
    with pytest.raises(ValueError, match="did you mean 'gru'"):
        make_dynamics(config, 8, 4)
