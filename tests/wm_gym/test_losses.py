"""The loss of stochastic dynamics, and which terms are computed; test_world_model.py has the deterministic one's."""

import pytest
import torch
from torch import Tensor

from wm_gym.clips import Clips
from wm_gym.config import DynamicsConfig, LossConfig
from wm_gym.losses import WorldModelLoss, unroll
from wm_gym.world_model import WorldModel

CONTEXT = 2


@pytest.fixture
def stochastic_model(debug_config, driving_spec) -> WorldModel:
    torch.manual_seed(0)
    dynamics = DynamicsConfig(kind="rssm", hidden_dim=8, groups=4, classes=3)
    model = WorldModel(debug_config.model.model_copy(update={"dynamics": dynamics}), driving_spec).eval()
    for head in (model.reward_head, model.continuation_head):
        torch.nn.init.normal_(head.mlp[-1].weight, std=0.1)
    return model


@pytest.fixture
def clips() -> Clips:
    generator = torch.Generator().manual_seed(1)
    return Clips(
        torch.rand(3, 5, 3, 64, 64, generator=generator) * 2 - 1,
        torch.rand(3, 4, 4, generator=generator),
        torch.randn(3, 4, generator=generator),
        torch.zeros(3, 4, dtype=torch.bool),
        torch.zeros(3, 5, 0),
    )


def gradients(model: WorldModel, value: Tensor) -> set[str]:
    """Names of the parameters that the value has a gradient to."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {name for name, grad in zip(names, found, strict=True) if grad is not None and grad.abs().sum() > 0}


def past_the_end(clips: Clips, steps: int) -> Clips:
    """The clips with their first episode over after 4 steps less ``steps``; what comes then is anything."""
    is_real = torch.ones(3, 4, dtype=torch.bool)
    is_real[0, 4 - steps :] = False
    return clips._replace(is_real=is_real)


@pytest.mark.parametrize("kind", ["rssm", "gru"])
def test_what_comes_after_an_episodes_end_teaches_no_step(debug_config, driving_spec, clips, kind):
    torch.manual_seed(0)
    dynamics = DynamicsConfig(kind=kind, hidden_dim=8, groups=4, classes=3, num_layers=1)
    model = WorldModel(debug_config.model.model_copy(update={"dynamics": dynamics}), driving_spec).eval()
    weights = LossConfig(
        reconstruction=0, perceptual=0, prediction=0.5, reward=2.0, continuation=3.0, kl_dynamics=0.3, free_nats=0
    )
    weights = weights.model_copy(update={"consistency": 1.0 if kind == "gru" else 0.0})
    padded = past_the_end(clips, 2)
    other = padded._replace(
        rewards=padded.rewards.clone(), terminated=padded.terminated.clone(), frames=padded.frames.clone()
    )
    other.rewards[0, 2:], other.terminated[0, 2:], other.frames[0, 3:] = 7.0, True, 0.3
    loss = WorldModelLoss(weights, CONTEXT)
    (_, first), (_, second) = loss(model, padded), loss(model, other)
    for name in first.keys() - {"regularisation"}:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=0, msg=name)
    _, whole = loss(model, clips)
    assert first["reward"] != whole["reward"]
    # All real: the same as without the mask.
    _, same = loss(model, past_the_end(clips, 0))
    for name in whole:
        torch.testing.assert_close(same[name], whole[name], rtol=1e-6, atol=0, msg=name)


def test_a_mean_over_processes_is_that_of_one_whatever_their_clips_lack(stochastic_model, clips):
    weights = LossConfig(perceptual=0, reconstruction=0, prediction=0, reward=2.0, free_nats=0)
    padded = past_the_end(clips._replace(**{n: getattr(clips, n)[:2] for n in clips._fields[:5]}), 3)
    padded = padded._replace(is_real=padded.is_real[:2])
    loss = WorldModelLoss(weights, CONTEXT)
    _, both = loss(stochastic_model, padded)
    halves = []
    for row in (slice(0, 1), slice(1, 2)):
        part = padded._replace(**{name: getattr(padded, name)[row] for name in (*clips._fields[:5], "is_real")})
        halves.append(loss(stochastic_model, part)[1])
    for name in ("reward", "continuation", "kl_dynamics"):
        torch.testing.assert_close(both[name], (halves[0][name] + halves[1][name]) / 2, rtol=1e-5, atol=0, msg=name)


def test_stochastic_loss_worked_out_by_hand(stochastic_model, clips):
    model = stochastic_model
    weights = LossConfig(
        perceptual=0, squared=0.7, prediction=0.5, reward=2.0, kl_dynamics=0.3, kl_representation=0.2, free_nats=0
    )
    total, terms = WorldModelLoss(weights, CONTEXT)(model, clips)
    with torch.no_grad():
        state = model.initial_state(clips.frames[:, 0])
        observed, divergence, features = [state], [], []
        for t in range(4):
            state = model.observe(state, clips.actions[:, t], clips.frames[:, t + 1])
            observed.append(state)
            features.append(model.features(state))
            divergence.append(model.dynamics.divergence(state, model.encode(clips.frames[:, t + 1])).dynamics)
        state, prediction = observed[CONTEXT - 1], 0.0
        for t, weight in zip((1, 2, 3), (4 / 3, 5 / 3, 2.0), strict=True):
            state = model.imagine(state, clips.actions[:, t]).state
            prediction += weight * (model.decode(state) - clips.frames[:, t + 1]).abs().mean() / 3
        errors = torch.stack([model.decode(state) - clips.frames[:, t] for t, state in enumerate(observed)])
        kl = torch.stack(divergence).mean()
        stacked = torch.stack(features, dim=1)
        expected = (
            errors.abs().mean()
            + 0.7 * errors.square().mean()
            + 0.5 * prediction
            + 0.01 * torch.stack([state.latent for state in observed]).square().mean()
            + 2.0 * model.reward_head.losses(stacked, clips.rewards).mean()
            + model.continuation_head.losses(stacked, clips.terminated).mean()
            + (0.3 + 0.2) * kl
        )
    torch.testing.assert_close(terms["kl_dynamics"], kl)
    torch.testing.assert_close(terms["prediction"], prediction)
    torch.testing.assert_close(total.detach(), expected)
    assert "consistency" not in terms


def test_the_termination_head_learns_from_imagined_steps_and_nothing_else_does(stochastic_model, clips):
    model = stochastic_model
    clips = clips._replace(terminated=torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) < 0.5)
    loss = WorldModelLoss(LossConfig(perceptual=0, imagined_continuation=2.0), CONTEXT)
    total, terms = loss(model, clips)
    with torch.no_grad():
        state = model.initial_state(clips.frames[:, 0])
        errors = []
        for t in range(4):
            imagined = model.imagine(state, clips.actions[:, t]).continuation
            errors.append(-torch.where(clips.terminated[:, t], 1 - imagined, imagined).log())
            state = model.observe(state, clips.actions[:, t], clips.frames[:, t + 1])
    torch.testing.assert_close(terms["imagined_continuation"], torch.stack(errors).mean())
    without, _ = WorldModelLoss(LossConfig(perceptual=0), CONTEXT)(model, clips)
    torch.testing.assert_close(total - without, 2 * terms["imagined_continuation"])
    parameters = dict(model.named_parameters())
    kept = [torch.autograd.grad(value, parameters.values(), allow_unused=True) for value in (total, without)]
    changed = {
        name
        for name, first, second in zip(parameters, *kept, strict=True)
        if first is not None and not torch.equal(first, second)
    }
    assert changed and all(name.startswith("continuation_head.") for name in changed)


def test_free_nats_bound_each_step_and_stop_its_gradient(stochastic_model, clips):
    divergence = unroll(stochastic_model, clips, CONTEXT).divergence.dynamics.detach()
    assert divergence.shape == (3, 4)
    between = float(divergence.median())
    weights = LossConfig(perceptual=0, prediction=0, free_nats=between)
    _, terms = WorldModelLoss(weights, CONTEXT)(stochastic_model, clips)
    torch.testing.assert_close(terms["kl_dynamics"], divergence.clamp(min=between).mean())

    generous = LossConfig(perceptual=0, prediction=0, kl_dynamics=1, kl_representation=1, free_nats=1e3)
    total, terms = WorldModelLoss(generous, CONTEXT)(stochastic_model.train(), clips)
    assert terms["kl_dynamics"] == terms["kl_representation"] == 1e3
    assert not any("dynamics.prior" in name for name in gradients(stochastic_model, total))


def test_the_kl_terms_count_with_the_share_that_is_given(stochastic_model, clips):
    weights = LossConfig(perceptual=0, prediction=0, kl_dynamics=0.3, kl_representation=0.2, free_nats=0)
    loss, model = WorldModelLoss(weights, CONTEXT), stochastic_model.train()
    model.dynamics.draw.eval()

    def given(share):
        draws = loss.draw(clips)._replace(kl_share=None if share is None else torch.tensor(share))
        return loss.given(model, clips, draws)

    (none, terms), (half, _), (whole, _) = given(0.0), given(0.5), given(1.0)
    kl = 0.3 * terms["kl_dynamics"] + 0.2 * terms["kl_representation"]
    assert kl > 0, "the terms are told without their weight"
    torch.testing.assert_close(whole - none, kl)
    torch.testing.assert_close(half - none, kl / 2)
    assert torch.equal(whole, given(None)[0])
    assert not any("dynamics.prior" in name for name in gradients(model, none))
    assert any("dynamics.prior" in name for name in gradients(model, half))


def test_which_parameters_each_divergence_trains(stochastic_model, clips):
    model = stochastic_model.train()
    divergence = unroll(model, clips, CONTEXT, with_open_loop=False).divergence
    prior, posterior = "dynamics.prior.3.weight", "dynamics.posterior.3.weight"
    # The last step's posterior leads nowhere but into its own divergence; earlier ones also make the past.
    last = gradients(model, divergence.dynamics[:, 0].sum())
    assert {prior, posterior} <= last  # the first frame's posterior is the past of step 0
    model.dynamics.draw.eval()  # draws let no gradient through
    divergence = unroll(model, clips, CONTEXT, with_open_loop=False).divergence
    dynamics = gradients(model, divergence.dynamics[:, 0].sum())
    assert prior in dynamics and posterior not in dynamics and not any("encoder" in name for name in dynamics)
    divergence = unroll(model, clips, CONTEXT, with_open_loop=False).divergence
    representation = gradients(model, divergence.representation[:, 0].sum())
    assert posterior in representation and prior not in representation
    assert any("encoder" in name for name in representation)


def test_open_loop_trains_the_prior(stochastic_model, clips):
    model = stochastic_model.train()
    weights = {"perceptual": 0, "reward": 0, "continuation": 0, "kl_dynamics": 0, "kl_representation": 0}
    trained = {}
    for prediction in (0.0, 1.0):
        loss = WorldModelLoss(LossConfig(**weights, prediction=prediction), CONTEXT)
        trained[prediction] = gradients(model, loss(model, clips)[0])
    assert trained[1.0] - trained[0.0] == {name for name in trained[1.0] if "dynamics.prior" in name} != set()


@pytest.mark.parametrize("kind", ["gru", "rssm"])
def test_terms_of_weight_0_are_not_computed(kind, tiny_model, stochastic_model, clips, monkeypatch):
    model = {"gru": tiny_model, "rssm": stochastic_model}[kind]
    decoded, imagined = [], []
    decode, imagine = model.decoder.forward, model.imagine_state
    monkeypatch.setattr(model.decoder, "forward", lambda latent: decoded.append(len(latent)) or decode(latent))
    monkeypatch.setattr(model, "imagine_state", lambda *args: imagined.append(1) or imagine(*args))

    def run(**weights) -> set[str]:
        decoded.clear(), imagined.clear()
        return set(WorldModelLoss(LossConfig(perceptual=0, **weights), CONTEXT)(model, clips)[1])

    always = {"regularisation", "reward", "continuation"}
    always |= {"kl_dynamics", "kl_representation"} if kind == "rssm" else set()
    assert run(prediction=0, reconstruction=0, consistency=0) == always
    assert decoded == []
    assert len(imagined) == (0 if kind == "rssm" else 4)
    assert run(prediction=0, consistency=0) == always | {"reconstruction"}
    assert sum(decoded) == 3 * 5
    assert run(prediction=0, consistency=0, squared=1) == always | {"reconstruction", "squared"}
    assert run(reconstruction=0, consistency=0) == always | {"prediction"}
    assert sum(decoded) == 3 * 3
    assert run() == always | {"prediction", "reconstruction"} | ({"consistency"} if kind == "gru" else set())
    # What the termination head of deterministic dynamics sees is imagined as it is.
    asked = run(prediction=0, reconstruction=0, consistency=0, imagined_continuation=1)
    assert asked == always | ({"imagined_continuation"} if kind == "rssm" else set())
    assert len(imagined) == (1 if kind == "rssm" else 4)


def test_the_loss_repeats_with_the_global_seed(stochastic_model, clips):
    model = stochastic_model.train()
    loss = WorldModelLoss(LossConfig(perceptual=0), CONTEXT)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(float(loss(model, clips)[0].detach()))
    assert values[0] == values[1] != values[2]


def test_gradient_checkpointing_draws_the_same(stochastic_model, clips):
    model, results = stochastic_model.train(), []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        WorldModelLoss(LossConfig(perceptual=0), CONTEXT, gradient_checkpointing=checkpointed)(model, clips)[
            0
        ].backward()
        results.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*results)
