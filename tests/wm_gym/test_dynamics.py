"""The three kinds of dynamics: what all share, and what is each one's own."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from wm_gym.clips import Clips
from wm_gym.config import Config, DynamicsConfig, load_config
from wm_gym.envs import DreamVecEnv
from wm_gym.errors import ConfigError
from wm_gym.losses import WorldModelLoss
from wm_gym.metrics import open_loop_metrics
from wm_gym.models.blocks import inverse_cdf
from wm_gym.models.dynamics import DYNAMICS, Dynamics, make_dynamics
from wm_gym.models.dynamics.rssm import categorical_kl
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

BATCH, LATENT, ACTION, HIDDEN = 3, 6, 4, 8
GROUPS, CLASSES, CONTEXT = 5, 4, 4
KINDS = {
    "gru": DynamicsConfig(kind="gru", hidden_dim=HIDDEN, num_layers=2, mlp_ratio=1.0),
    "rssm": DynamicsConfig(kind="rssm", hidden_dim=HIDDEN, groups=GROUPS, classes=CLASSES),
    "transformer": DynamicsConfig(
        kind="transformer", hidden_dim=HIDDEN, num_layers=2, num_heads=2, context_length=CONTEXT, mlp_ratio=1.0
    ),
}
MEMORY = {"gru": (2, HIDDEN), "rssm": (1, HIDDEN + GROUPS * CLASSES), "transformer": (CONTEXT, HIDDEN + 1)}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def dynamics_of(kind: str, **changes) -> Dynamics:
    torch.manual_seed(0)
    dynamics = make_dynamics(KINDS[kind].model_copy(update=changes), LATENT, ACTION).eval()
    # What starts at zero would hide whatever comes before it.
    torch.nn.init.normal_(dynamics.output[-1].weight, std=0.5)
    return dynamics


def latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, LATENT, generator=torch.Generator().manual_seed(seed))


def actions(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(*shape, ACTION, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def config_of(kind: str) -> Config:
    config = load_config("debug")
    return config.model_copy(update={"model": config.model.model_copy(update={"dynamics": KINDS[kind]})})


def model_of(kind: str, spec) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(config_of(kind).model, spec)


def random_clips(batch: int = 2, length: int = 6) -> Clips:
    generator = torch.Generator().manual_seed(3)
    return Clips(
        torch.rand(batch, length, 3, 64, 64, generator=generator) * 2 - 1,
        torch.rand(batch, length - 1, 4, generator=generator),
        torch.randn(batch, length - 1, generator=generator),
        torch.zeros(batch, length - 1, dtype=torch.bool),
        torch.zeros(batch, length, 0),
    )


def test_all_kinds_are_tested():
    assert set(KINDS) == set(DYNAMICS)


class TestEveryKind:
    @every_kind
    def test_shapes(self, kind):
        dynamics = dynamics_of(kind)
        start = dynamics.initial(latents(BATCH))
        imagined = dynamics.imagine(start, actions(BATCH), torch.rand(BATCH, dynamics.noise_dim))
        corrected = dynamics.correct(imagined, latents(BATCH, seed=5))
        for state in (start, imagined, corrected):
            assert state.latent.shape == (BATCH, LATENT)
            assert state.memory.shape == (BATCH, *MEMORY[kind])
            assert dynamics.features(state).shape == (BATCH, dynamics.feature_dim)

    @every_kind
    def test_observing_is_imagining_then_correcting(self, kind):
        dynamics = dynamics_of(kind)
        start, seen = dynamics.initial(latents(BATCH)), latents(BATCH, seed=5)
        observed = dynamics.observe(start, actions(BATCH), seen)
        corrected = dynamics.correct(dynamics.imagine(start, actions(BATCH)), seen)
        torch.testing.assert_close(tuple(observed), tuple(corrected))

    @every_kind
    def test_evaluation_without_noise_is_deterministic(self, kind):
        dynamics = dynamics_of(kind)
        start = dynamics.initial(latents(BATCH))
        first, second = (dynamics.imagine(start, actions(BATCH)) for _ in range(2))
        assert torch.equal(first.latent, second.latent) and torch.equal(first.memory, second.memory)

    @every_kind
    def test_training_repeats_with_the_global_seed(self, kind):
        dynamics = dynamics_of(kind).train()
        results = []
        for _ in range(2):
            torch.manual_seed(7)
            state = dynamics.initial(latents(BATCH))
            for t in range(3):
                state = dynamics.observe(state, actions(BATCH, seed=t), latents(BATCH, seed=t))
            results.append(dynamics.imagine(state, actions(BATCH)).latent)
        assert torch.equal(*results)

    @every_kind
    def test_the_past_matters_beyond_the_latest_frame(self, kind):
        dynamics = dynamics_of(kind)
        features = []
        for seed in (1, 2):
            state = dynamics.initial(latents(BATCH, seed=seed))
            for t in range(2):
                state = dynamics.observe(state, actions(BATCH, seed=t), latents(BATCH, seed=10 + t))
            features.append(dynamics.features(state))
        assert not torch.allclose(*features)

    @every_kind
    def test_a_batch_equals_its_rows(self, kind):
        dynamics = dynamics_of(kind)
        start, noise = dynamics.initial(latents(BATCH)), torch.rand(BATCH, dynamics.noise_dim)
        together = dynamics.imagine(start, actions(BATCH), noise)
        alone = dynamics.imagine(start.select(torch.tensor([1])), actions(BATCH)[1:2], noise[1:2])
        torch.testing.assert_close(alone.latent[0], together.latent[1])
        torch.testing.assert_close(alone.memory[0], together.memory[1])

    @every_kind
    def test_a_saved_model_is_the_same_model(self, kind, driving_spec, tmp_path):
        model = model_of(kind, driving_spec).eval()
        with torch.no_grad():
            model.start_states = model.initial_state(random_clips(4).frames[:, 0])
        loaded = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "model"))
        assert loaded.fingerprint == model.fingerprint
        assert loaded.config == model.config
        state, noise = loaded.start_states, torch.rand(4, model.noise_dim)
        expected, imagined = (each.imagine(state, torch.zeros(4, 4), noise) for each in (model, loaded))
        assert torch.equal(expected.state.latent, imagined.state.latent)
        # Half precision keeps one-hot vectors and flags exactly, and the rest nearly.
        torch.testing.assert_close(state.memory, model.start_states.memory, rtol=1e-3, atol=1e-3)

    @every_kind
    def test_every_parameter_is_trained(self, kind, driving_spec):
        model = model_of(kind, driving_spec)
        WorldModelLoss(config_of(kind).loss, context=2)(model, random_clips())[0].backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []

    @every_kind
    def test_mixed_precision_works(self, kind, driving_spec):
        model = model_of(kind, driving_spec)
        with torch.autocast("cpu", torch.bfloat16):
            total, terms = WorldModelLoss(config_of(kind).loss, context=2)(model, random_clips())
        total.backward()
        assert all(torch.isfinite(value) for value in (total, *terms.values()))
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    @every_kind
    def test_a_short_training_lowers_the_loss(self, kind, driving_spec):
        model, clips = model_of(kind, driving_spec), random_clips()
        # Bright or dark all over, and rewards that follow: there is something to learn in a few updates.
        side = torch.tensor([-0.8, 0.8])
        clips = clips._replace(
            frames=clips.frames * 0.1 + side.view(2, 1, 1, 1, 1), rewards=side.view(2, 1).expand(2, 5)
        )
        loss = WorldModelLoss(config_of(kind).loss, context=2)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        curve = []
        for update in range(20):
            torch.manual_seed(update)
            total, _ = loss(model, clips)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            curve.append(float(total.detach()))
        assert curve[-1] < 0.7 * curve[0]

    @every_kind
    def test_open_loop_metrics_repeat_with_their_noise(self, kind, driving_spec):
        model = model_of(kind, driving_spec).eval()
        first, second = (
            open_loop_metrics(model, random_clips(), 2, torch.Generator().manual_seed(4)) for _ in range(2)
        )
        assert first == second
        assert np.isfinite(list(first["psnr"].values())).all()

    @every_kind
    def test_reconstruction_is_measured_on_the_observed_state(self, kind, driving_spec):
        model, clips = model_of(kind, driving_spec).eval(), random_clips()
        state = model.initial_state(clips.frames[:, 0])
        state = model.observe(state, clips.actions[:, 0], clips.frames[:, 1])
        error = (model.decode(state) - clips.frames[:, 1]).square().mean((1, 2, 3))
        expected = float((10 * torch.log10(4 / error)).mean().detach())
        assert open_loop_metrics(model, clips, 2)["psnr_reconstruction"] == pytest.approx(expected, abs=1e-4)

    @every_kind
    def test_dreams_step_and_repeat(self, kind, driving_spec):
        model = model_of(kind, driving_spec).eval()
        with torch.no_grad():
            model.start_states = model.initial_state(random_clips(4).frames[:, 0])
        observations = []
        for _ in range(2):
            dream = DreamVecEnv(3, model, horizon=20, termination="never")
            dream.seed(5)
            seen = [dream.reset()]
            for t in range(6):
                driven = np.full((3, *dream.action_space.shape), 0.1 * t, np.float32)
                seen.append(dream.step(driven)[0])
            observations.append(np.stack(seen))
        assert observations[0].shape == (7, 3, model.feature_dim)
        np.testing.assert_array_equal(*observations)

    def test_only_stochastic_dynamics_have_a_divergence(self):
        assert [kind for kind in sorted(KINDS) if dynamics_of(kind).is_stochastic] == ["rssm"]
        dynamics = dynamics_of("gru")
        with pytest.raises(NotImplementedError, match="deterministic"):
            dynamics.divergence(dynamics.initial(latents(1)), latents(1))

    def test_what_a_kind_does_not_use_is_no_part_of_the_model(self, driving_spec):
        plain = model_of("gru", driving_spec)
        other = plain.config.model_copy(update={"dynamics": KINDS["gru"].model_copy(update={"groups": 7})})
        torch.manual_seed(0)
        assert WorldModel(other, driving_spec).fingerprint == plain.fingerprint
        assert set(KINDS["gru"].model_dump()) == {"kind", "hidden_dim", "num_layers", "mlp_ratio"}
        for config in KINDS.values():
            assert DynamicsConfig(**config.model_dump()) == config

    @pytest.mark.parametrize("preset", ["tiny_gru", "tiny_transformer"])
    def test_the_tiny_presets_differ_in_dynamics_weights_and_the_latent_phase_alone(self, preset):
        plain, other = load_config("tiny"), load_config(preset)
        own = {name: getattr(plain.training, name) for name in ("latent", "keep", "beginning_share")}
        assert other.training.model_copy(update=own) == plain.training
        assert other.model.model_copy(update={"dynamics": plain.model.dynamics}) == plain.model
        assert preset == f"tiny_{other.model.dynamics.kind}"

    @pytest.mark.parametrize("preset", ["tiny", "tiny_gru", "tiny_transformer"])
    def test_start_states_of_the_presets_stay_small(self, preset, driving_spec):
        with torch.device("meta"):
            model = WorldModel(load_config(preset).model, driving_spec)
            state = model.initial_state(torch.zeros(1, 3, 64, 64))
        assert state.latent.numel() + state.memory.numel() < 2500


class TestRSSM:
    def one_hots(self, state: LatentState) -> torch.Tensor:
        return state.memory[:, 0, HIDDEN:].unflatten(-1, (GROUPS, CLASSES))

    @pytest.mark.parametrize("is_training", [False, True])
    def test_z_is_one_class_of_each_group(self, is_training):
        dynamics = dynamics_of("rssm").train(is_training)
        start = dynamics.initial(latents(BATCH))
        imagined = dynamics.imagine(start, actions(BATCH))
        for state in (start, imagined, dynamics.correct(imagined, latents(BATCH))):
            z = self.one_hots(state).detach()
            assert set(z.flatten().tolist()) == {0.0, 1.0}
            torch.testing.assert_close(z.sum(-1), torch.ones(BATCH, GROUPS))

    def test_features_are_h_and_z_and_the_latent_a_read_out_of_them(self):
        dynamics = dynamics_of("rssm")
        state = dynamics.imagine(dynamics.initial(latents(BATCH)), actions(BATCH))
        torch.testing.assert_close(dynamics.features(state), state.memory[:, 0])
        torch.testing.assert_close(dynamics.output(dynamics.features(state)), state.latent)

    def test_draws_follow_the_prior(self):
        dynamics = dynamics_of("rssm")
        number = 20_000
        start = dynamics.initial(latents(1))
        many = start.select(torch.zeros(number, dtype=torch.int64))
        noise = torch.rand(number, GROUPS, generator=torch.Generator().manual_seed(0))
        drawn = self.one_hots(dynamics.imagine(many, actions(1).expand(number, -1), noise)).mean(0)
        hidden = dynamics.imagine(start, actions(1)).memory[:, 0, :HIDDEN]
        logits = dynamics.prior(hidden).unflatten(-1, (GROUPS, CLASSES))
        expected = 0.99 * logits.softmax(-1) + 0.01 / CLASSES
        torch.testing.assert_close(drawn, expected[0].detach(), atol=0.015, rtol=0)
        # Groups are drawn from their own numbers: no two of them move together.
        z = self.one_hots(dynamics.imagine(many, actions(1).expand(number, -1), noise))
        joint = (z[:, 0, 0] * z[:, 1, 0]).mean()
        torch.testing.assert_close(joint, drawn[0, 0] * drawn[1, 0], atol=0.015, rtol=0)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_draws_at_a_temperature_follow_a_power_of_the_prior(self, temperature):
        dynamics = dynamics_of("rssm")
        start, number = dynamics.initial(latents(1)), 20_000
        hidden = dynamics.imagine(start, actions(1)).memory[:, 0, :HIDDEN]
        learnt = 0.99 * dynamics.prior(hidden).unflatten(-1, (GROUPS, CLASSES)).softmax(-1) + 0.01 / CLASSES
        expected = learnt[0].detach() ** (1 / temperature)
        dynamics.set_temperature(temperature)
        noise = torch.rand(number, GROUPS, generator=torch.Generator().manual_seed(0))
        many = start.select(torch.zeros(number, dtype=torch.int64))
        drawn = self.one_hots(dynamics.imagine(many, actions(1).expand(number, -1), noise)).mean(0)
        torch.testing.assert_close(drawn, expected / expected.sum(-1, keepdim=True), atol=0.015, rtol=0)

    def test_inverse_cdf_at_its_edges(self):
        probabilities = torch.tensor([0.25, 0.5, 0.0, 0.25]).expand(6, -1)
        uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1.0])
        drawn = inverse_cdf(probabilities, uniform)
        assert drawn.argmax(-1).tolist() == [0, 0, 1, 1, 3, 3]
        assert drawn.sum(-1).tolist() == [1] * 6
        assert drawn.min() == 0

    def test_noise_alone_decides_the_draw(self):
        dynamics = dynamics_of("rssm").train()
        start = dynamics.initial(latents(BATCH))
        noise = torch.rand(BATCH, GROUPS, dtype=torch.float64)
        first, again = (dynamics.imagine(start, actions(BATCH), noise) for _ in range(2))
        other = dynamics.imagine(start, actions(BATCH), (noise + 0.5) % 1)
        assert torch.equal(first.memory, again.memory)
        assert not torch.equal(first.memory, other.memory)

    def test_without_noise_evaluation_takes_the_mode(self):
        dynamics = dynamics_of("rssm")
        imagined = dynamics.imagine(dynamics.initial(latents(BATCH)), actions(BATCH))
        logits = dynamics.prior(imagined.memory[:, 0, :HIDDEN]).unflatten(-1, (GROUPS, CLASSES))
        assert torch.equal(self.one_hots(imagined).argmax(-1), logits.argmax(-1))

    def test_the_gradient_goes_straight_through_the_draw(self):
        dynamics = dynamics_of("rssm").train()
        seen = latents(BATCH).requires_grad_()
        dynamics.initial(seen).memory[:, 0, HIDDEN:].square().sum().backward()
        assert seen.grad.abs().sum() > 0
        dynamics.zero_grad()
        dynamics.imagine(dynamics.initial(latents(BATCH)), actions(BATCH)).latent.sum().backward()
        assert dynamics.prior[-1].weight.grad.abs().sum() > 0

    def test_kl_agrees_with_torch(self):
        logits = torch.randn(2, BATCH, GROUPS, CLASSES)
        first, second = (Categorical(logits=each) for each in logits)
        expected = kl_divergence(first, second).sum(-1)
        torch.testing.assert_close(categorical_kl(first.probs, second.probs), expected)

    def test_divergence_is_between_posterior_and_prior_of_the_step(self):
        dynamics = dynamics_of("rssm")
        seen = latents(BATCH, seed=5)
        observed = dynamics.observe(dynamics.initial(latents(BATCH)), actions(BATCH), seen)
        hidden = observed.memory[:, 0, :HIDDEN]
        embedded = torch.cat((hidden, dynamics.embedding_norm(seen)), dim=-1)
        prior, posterior = (
            Categorical(0.99 * net(x).unflatten(-1, (GROUPS, CLASSES)).softmax(-1) + 0.01 / CLASSES)
            for net, x in ((dynamics.prior, hidden), (dynamics.posterior, embedded))
        )
        expected = kl_divergence(posterior, prior).sum(-1)
        divergence = dynamics.divergence(observed, seen)
        torch.testing.assert_close(divergence.dynamics, expected)
        torch.testing.assert_close(divergence.representation, expected)

    @pytest.mark.parametrize(
        ("term", "moved", "held"),
        [("dynamics", "prior", "posterior"), ("representation", "posterior", "prior")],
    )
    def test_each_divergence_moves_one_side(self, term, moved, held):
        dynamics = dynamics_of("rssm").train()
        seen = latents(BATCH, seed=5).requires_grad_()
        # The step's own posterior must be out of the path: gradients through the past are legitimate.
        observed = dynamics.observe(dynamics.initial(latents(BATCH)), actions(BATCH), seen.detach())
        observed = LatentState(*(part.detach() for part in observed))
        getattr(dynamics.divergence(observed, seen), term).sum().backward()
        assert getattr(dynamics, moved)[-1].weight.grad.abs().sum() > 0
        assert getattr(dynamics, held)[-1].weight.grad is None
        assert (seen.grad is not None) == (moved == "posterior")

    def test_frames_after_the_context_do_not_reach_the_prediction(self, driving_spec):
        model, clips = model_of("rssm", driving_spec).train(), random_clips()
        frames = clips.frames.clone().requires_grad_()
        state = model.initial_state(frames[:, 0])
        state = model.observe(state, clips.actions[:, 0], frames[:, 1])
        model.imagine_state(state, clips.actions[:, 1]).latent.sum().backward()
        assert frames.grad[:, :2].abs().sum() > 0
        assert frames.grad[:, 2:].abs().sum() == 0


class TestTransformer:
    def roll(self, dynamics: Dynamics, state: LatentState, steps: int, first: int = 0) -> LatentState:
        for t in range(first, first + steps):
            state = dynamics.observe(state, actions(BATCH, seed=t), latents(BATCH, seed=20 + t))
        return state

    def test_a_fresh_episode_has_no_past(self):
        dynamics = dynamics_of("transformer")
        start = dynamics.initial(latents(BATCH))
        garbage = start.memory.clone()
        garbage[..., :-1] = torch.randn(BATCH, CONTEXT, HIDDEN) * 100
        garbage[1, 2] = torch.tensor([float("nan")] * HIDDEN + [0.0])
        for steps in (1, 2, 3):
            clean, dirty = (
                self.roll(dynamics, LatentState(start.latent, memory), steps - 1) for memory in (start.memory, garbage)
            )
            clean, dirty = (dynamics.imagine(state, actions(BATCH)) for state in (clean, dirty))
            torch.testing.assert_close(dirty.latent, clean.latent)

    def test_stepping_equals_attention_over_the_whole_sequence(self):
        dynamics = dynamics_of("transformer")
        state, features, tokens = dynamics.initial(latents(BATCH)), [], []
        for t in range(CONTEXT):
            tokens.append(dynamics.input(dynamics.film(state.latent, actions(BATCH, seed=t))))
            state = dynamics.observe(state, actions(BATCH, seed=t), latents(BATCH, seed=20 + t))
            features.append(dynamics.features(state)[:, LATENT:])
        # The reference: one pass over all tokens, each layer computed in full, written out by hand.
        x = torch.stack(tokens, dim=1)
        distance = torch.arange(CONTEXT).view(-1, 1) - torch.arange(CONTEXT)
        for layer in dynamics.layers:
            normed = layer.norm(x)
            query, (key, value) = layer.query(normed), layer.key_value(normed).chunk(2, dim=-1)
            heads = []
            for head, columns in enumerate(torch.arange(HIDDEN).chunk(2)):
                logits = query[..., columns] @ key[..., columns].transpose(1, 2) / len(columns) ** 0.5
                logits = logits + dynamics.distance_bias[head][distance.clamp(min=0)]
                heads.append(logits.masked_fill(distance < 0, -torch.inf).softmax(-1) @ value[..., columns])
            x = x + layer.merge(torch.cat(heads, dim=-1))
            x = x + layer.mlp(x)
        torch.testing.assert_close(torch.stack(features, dim=1), dynamics.norm(x), rtol=1e-4, atol=1e-5)

    def test_the_window_forgets_older_steps(self):
        dynamics = dynamics_of("transformer")
        pasts = [self.roll(dynamics, dynamics.initial(latents(BATCH, seed=seed)), 1) for seed in (1, 2)]
        remembered, forgotten = (
            [dynamics.features(self.roll(dynamics, past, steps, first=1)) for past in pasts]
            for steps in (CONTEXT - 1, CONTEXT)
        )
        assert not torch.allclose(*remembered)
        torch.testing.assert_close(*forgotten)

    def test_dropout_acts_in_training_alone(self):
        dynamics = dynamics_of("transformer", dropout=0.5)
        start = dynamics.initial(latents(BATCH))
        assert torch.equal(*(dynamics.imagine(start, actions(BATCH)).latent for _ in range(2)))
        dynamics.train()
        assert not torch.equal(*(dynamics.imagine(start, actions(BATCH)).latent for _ in range(2)))

    def test_a_context_of_one_step_works(self):
        dynamics = dynamics_of("transformer", context_length=1)
        assert self.roll(dynamics, dynamics.initial(latents(BATCH)), 3).memory.shape == (BATCH, 1, HIDDEN + 1)

    def test_heads_must_divide_the_width(self):
        with pytest.raises(ConfigError, match="num_heads=7 must divide hidden_dim=128"):
            load_config("tiny_transformer", ["model.dynamics.num_heads=7"])
