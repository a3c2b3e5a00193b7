import numpy as np
import pytest
import torch

import wm_gym.frames as frames_module
from wm_gym.clips import Clips
from wm_gym.losses import WorldModelLoss, temporal_weights, unroll
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel


def random_clips(batch: int = 3, length: int = 5) -> Clips:
    generator = torch.Generator().manual_seed(1)
    return Clips(
        torch.rand(batch, length, 3, 64, 64, generator=generator) * 2 - 1,
        torch.rand(batch, length - 1, 4, generator=generator),
        torch.randn(batch, length - 1, generator=generator),
        torch.zeros(batch, length - 1, dtype=torch.bool),
        torch.zeros(batch, length, 0),
    )


def test_shapes_of_the_five_verbs(tiny_model):
    frames = torch.zeros(2, 5, 3, 64, 64)
    assert tiny_model.encode(frames).shape == (2, 5, 16)
    state = tiny_model.initial_state(frames[:, 0])
    action = torch.zeros(2, 4)
    state = tiny_model.observe(state, action, frames[:, 1])
    imagined = tiny_model.imagine(state, action)
    assert imagined.reward.shape == imagined.continuation.shape == (2,)
    assert ((imagined.continuation >= 0) & (imagined.continuation <= 1)).all()
    assert tiny_model.features(imagined.state).shape == (2, tiny_model.feature_dim)
    assert tiny_model.decode(imagined.state).shape == (2, 3, 64, 64)


def test_observe_is_imagine_corrected_by_the_frame(tiny_model):
    frames = torch.rand(2, 2, 3, 64, 64)
    action = torch.rand(2, 4)
    start = tiny_model.initial_state(frames[:, 0])
    observed = tiny_model.observe(start, action, frames[:, 1])
    imagined = tiny_model.imagine(start, action).state
    torch.testing.assert_close(observed.latent, tiny_model.encode(frames[:, 1]))
    torch.testing.assert_close(observed.memory, imagined.memory)
    assert not torch.allclose(imagined.latent, observed.latent)


def test_actions_change_what_is_imagined(tiny_model):
    state = tiny_model.start_states.select(torch.tensor([0, 0]))
    actions = torch.tensor([[-1.0, 0, 0, 1], [1.0, 0, 0, 1]])
    imagined = tiny_model.imagine(state, actions)
    assert not torch.allclose(imagined.state.latent[0], imagined.state.latent[1])
    assert imagined.reward[0] != imagined.reward[1]


def test_gains_let_small_actions_be_seen(tiny_model, debug_config, driving_spec, tmp_path):
    dynamics = debug_config.model.dynamics.model_copy(update={"action_gains": (4.0, 16.0)})
    model = WorldModel(debug_config.model.model_copy(update={"dynamics": dynamics}), driving_spec).eval()
    action = torch.tensor([[0.05, 0.5, 0.5, 0.0]])  # scaled: 0.05 and zeros
    seen = model._scaled(action)
    expected = torch.tensor([[0.05, 0, 0, 0, np.tanh(0.2), 0, 0, 0, np.tanh(0.8), 0, 0, 0]], dtype=torch.float32)
    torch.testing.assert_close(seen, expected)
    state = LatentState(*(part[:1] for part in tiny_model.start_states))
    assert model.imagine(state, action).reward.shape == (1,)
    model.start_states = state
    model.save_pretrained(tmp_path / "model")
    assert WorldModel.from_pretrained(tmp_path / "model").config.dynamics.action_gains == (4.0, 16.0)
    # Models without gains keep the record, and so the fingerprint, that they had.
    assert "action_gains" not in debug_config.model.model_dump(mode="json")["dynamics"]


def test_a_batch_equals_its_rows(tiny_model):
    state = tiny_model.start_states
    action = torch.rand(state.batch_size, 4)
    together = tiny_model.imagine(state, action)
    for row in (0, 7):
        alone = tiny_model.imagine(state.select(torch.tensor([row])), action[row : row + 1])
        torch.testing.assert_close(alone.state.latent[0], together.state.latent[row])
        torch.testing.assert_close(alone.reward[0], together.reward[row])


def test_unroll_follows_observe_then_imagine(tiny_model):
    clips = random_clips()
    unrolled = unroll(tiny_model, clips, context=2)
    state = tiny_model.initial_state(clips.frames[:, 0])
    state = tiny_model.observe(state, clips.actions[:, 0], clips.frames[:, 1])
    for t in (1, 2, 3):
        state = tiny_model.imagine(state, clips.actions[:, t]).state
        torch.testing.assert_close(unrolled.predicted[:, t], state.latent)
        torch.testing.assert_close(unrolled.features[:, t], tiny_model.features(state))


def test_temporal_weights_are_the_guides():
    torch.testing.assert_close(temporal_weights(4, 2.0), torch.tensor([1.5, 2.0, 2.5, 3.0]))


def test_loss_is_the_weighted_sum_worked_out_by_hand(tiny_model, debug_config):
    clips = random_clips()
    weights = debug_config.loss.model_copy(update={"consistency": 0.5, "reward": 2.0, "temporal": 1.0})
    total, terms = WorldModelLoss(weights, context=2)(tiny_model, clips)
    with torch.no_grad():
        latents = tiny_model.encode(clips.frames)
        unrolled = unroll(tiny_model, clips, 2)
        reconstruction = (tiny_model.decode_latent(latents.flatten(0, 1)) - clips.frames.flatten(0, 1)).abs().mean()
        per_step = [
            (tiny_model.decode_latent(unrolled.predicted[:, t]) - clips.frames[:, t + 1]).abs().mean()
            for t in (1, 2, 3)
        ]
        prediction = sum(weight * error for weight, error in zip((4 / 3, 5 / 3, 2.0), per_step, strict=True)) / 3
        expected = (
            reconstruction
            + prediction
            + 0.01 * latents.square().mean()
            + 0.5 * (unrolled.predicted - latents[:, 1:]).square().mean()
            + 2.0 * tiny_model.reward_head.losses(unrolled.features, clips.rewards).mean()
            + tiny_model.continuation_head.losses(unrolled.features, clips.terminated).mean()
        )
    torch.testing.assert_close(terms["prediction"], prediction)
    torch.testing.assert_close(total.detach(), expected)


def test_the_observed_frames_may_vary(tiny_model, debug_config):
    """The number is drawn with the call's generator; without one, as in validation, it is always the same."""
    clips = random_clips()
    varied = WorldModelLoss(debug_config.loss, context=2, context_range=(1, 3))
    fixed = {
        context: float(WorldModelLoss(debug_config.loss, context)(tiny_model, clips)[1]["prediction"])
        for context in (1, 2, 3)
    }
    drawn = [
        float(varied(tiny_model, clips, torch.Generator().manual_seed(seed))[1]["prediction"]) for seed in range(12)
    ]
    assert {min(fixed, key=lambda context: abs(fixed[context] - value)) for value in drawn} == {1, 2, 3}
    assert all(min(abs(value - other) for other in fixed.values()) < 1e-6 for value in drawn)
    assert float(varied(tiny_model, clips)[1]["prediction"]) == fixed[2]


def test_gradient_checkpointing_changes_nothing_but_memory(tiny_model, debug_config):
    clips = random_clips()
    gradients = []
    for checkpointed in (False, True):
        tiny_model.zero_grad()
        loss = WorldModelLoss(debug_config.loss, context=2, gradient_checkpointing=checkpointed)
        loss(tiny_model, clips)[0].backward()
        gradients.append([p.grad.clone() for p in tiny_model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_every_parameter_is_trained(tiny_model, debug_config):
    WorldModelLoss(debug_config.loss, context=2)(tiny_model, random_clips())[0].backward()
    assert [name for name, p in tiny_model.named_parameters() if p.grad is None] == []


def test_state_selection():
    state = LatentState(torch.arange(6.0).view(3, 2), torch.arange(12.0).view(3, 2, 2))
    other = LatentState(-state.latent, -state.memory)
    chosen = state.where(torch.tensor([True, False, True]), other)
    torch.testing.assert_close(chosen.latent[1], other.latent[1])
    torch.testing.assert_close(chosen.memory[0], state.memory[0])
    assert state.select(torch.tensor([2])).latent.tolist() == [[4.0, 5.0]]
    assert LatentState.cat([state, other]).batch_size == 6


def test_frames_round_trip_exactly():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 48)[..., None].repeat(1, 1, 1, 3)
    torch.testing.assert_close(frames_module.tensor_to_frames(frames_module.frames_to_tensor(levels)), levels)


def test_resizing_keeps_thin_lines_visible():
    frame = np.zeros((96, 96, 3), np.uint8)
    frame[:, 50] = 255
    small = frames_module.resize_frame(frame, 32, 32)
    assert small.shape == (32, 32, 3)
    assert small.max() > 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu(tiny_model: WorldModel):
    state = tiny_model.start_states
    action = torch.rand(state.batch_size, 4)
    on_cpu = tiny_model.imagine(state, action)
    on_gpu = tiny_model.to("cuda").imagine(state.to("cuda"), action.to("cuda"))
    torch.testing.assert_close(on_gpu.reward.cpu(), on_cpu.reward, rtol=1e-3, atol=1e-4)
