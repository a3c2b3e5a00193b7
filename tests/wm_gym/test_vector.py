"""Observations with a vector, through the world model: fields, encoder, head, loss, mirroring, dreams."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pydantic import ValidationError

from wm_gym.actions import ActionFormat
from wm_gym.clips import Clips
from wm_gym.config import load_config
from wm_gym.envs import DreamVecEnv
from wm_gym.errors import SimulatorError
from wm_gym.losses import WorldModelLoss
from wm_gym.metrics import open_loop_metrics
from wm_gym.models.vector import VectorFields
from wm_gym.observation import Observation, join_observation, observation_space, split_observation
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.training.clips import mirror
from wm_gym.vector import VectorField, bounded, mirror_vectors
from wm_gym.world_model import WorldModel

FIELDS = (
    VectorField(name="speed", unit="m/s", low=0.0, high=20.0),
    VectorField.of_classes("command", ("left", "straight", "right"), mirrored=(2, 1, 0)),
    VectorField(name="offset", unit="m", low=-5.0, high=5.0, mirror_sign=-1),
)
VECTORS = torch.tensor([[0.0, 0.0, -5.0], [5.0, 1.0, 0.0], [20.0, 2.0, 2.5]])


def model_of(kind="rssm"):
    torch.manual_seed(0)
    config = load_config("debug", [f"model.dynamics.kind={kind}", "model.dynamics.groups=4"]).model
    simulator = SimulatorSpec(id="x", frame_size=(64, 64), action=ActionFormat.driving(), vector=FIELDS)
    return WorldModel(config, simulator).eval()


def random_clips(batch=4, length=6):
    generator = torch.Generator().manual_seed(1)
    return Clips(
        torch.rand(batch, length, 3, 64, 64, generator=generator) * 2 - 1,
        torch.rand(batch, length - 1, 4, generator=generator),
        torch.randn(batch, length - 1, generator=generator),
        torch.zeros(batch, length - 1, dtype=torch.bool),
        VECTORS[torch.randint(0, 3, (batch, length), generator=generator)],
    )


def test_networks_see_scaled_numbers_and_one_column_a_class():
    expanded = VectorFields(FIELDS).expand(VECTORS)
    wanted = [[-1.0, -1.0, 1, 0, 0], [-0.5, 0.0, 0, 1, 0], [1.0, 0.5, 0, 0, 1]]
    torch.testing.assert_close(expanded, torch.tensor(wanted))
    torch.testing.assert_close(VectorFields(FIELDS).collapse(expanded), VECTORS)


def test_mirroring_twice_is_nothing_and_once_turns_left_to_right():
    mirrored = mirror_vectors(FIELDS, VECTORS.numpy())
    np.testing.assert_array_equal(mirrored, [[0, 2, 5], [5, 1, 0], [20, 0, -2.5]])
    np.testing.assert_array_equal(mirror_vectors(FIELDS, mirrored), VECTORS.numpy())
    frames = np.zeros((1, 1, 2, 2, 3), np.uint8)
    frames[..., 0, :] = 9
    clips = Clips(frames, np.ones((1, 0, 4), np.float32), None, None, VECTORS[None, :1].numpy().copy())
    mirror(clips, np.array([True]), FIELDS)
    assert clips.frames[0, 0, 0, 1, 0] == 9
    np.testing.assert_array_equal(clips.vectors[0, 0], [0, 2, 5])


def test_a_record_without_a_vector_reads_as_before():
    plain = SimulatorSpec(id="x", frame_size=(8, 8), action=ActionFormat.driving())
    assert "vector" not in plain.model_dump_json()
    with_vector = SimulatorSpec(id="x", frame_size=(8, 8), action=ActionFormat.driving(), vector=FIELDS)
    assert SimulatorSpec.model_validate_json(with_vector.model_dump_json()) == with_vector


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 1.0, "high": 1.0},
        {"low": 0.0, "high": float("inf")},
        {"low": 0.0, "high": 5.0, "classes": ("a", "b")},
        {"low": 0.0, "high": 1.0, "classes": ("a", "b"), "mirrored_classes": (0, 0)},
    ],
)
def test_fields_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        VectorField(name="x", **wrong)


def test_an_observation_is_a_dict_only_where_there_is_a_vector():
    image, vector = np.zeros((8, 8, 3), np.uint8), np.zeros(3, np.float32)
    assert join_observation(split_observation(image)) is image
    assert split_observation({"image": image, "vector": vector}).vector is not None
    assert isinstance(observation_space((8, 8), ()), spaces.Box)
    both = observation_space((8, 8), FIELDS)
    assert both.contains(join_observation(Observation(image, bounded(FIELDS, [99, 1, -99]))))
    np.testing.assert_array_equal(bounded(FIELDS, [99, 1, -99]), [20, 1, -5])


@pytest.mark.parametrize("kind", ["gru", "rssm", "transformer"])
def test_the_vector_is_encoded_and_its_loss_reaches_the_encoder(kind):
    model = model_of(kind).train()
    clips = random_clips()
    other = clips._replace(vectors=VECTORS[torch.zeros(4, 6, dtype=torch.long)])
    assert not torch.equal(model.encode(clips.observations), model.encode(other.observations))
    weights = load_config("debug").loss
    loss = WorldModelLoss(weights, context=3)
    total, terms = loss(model, clips)
    rest = WorldModelLoss(weights.model_copy(update={"vector": 0.0}), context=3)
    if kind == "gru":  # the others draw anew
        torch.testing.assert_close(total - rest(model, clips)[0], weights.vector * terms["vector"])
    total.backward()
    assert model.encoder.vector.mlp[0].weight.grad.abs().sum() > 0
    assert model.vector_head.mlp[0].weight.grad.abs().sum() > 0


def test_the_head_s_loss_is_square_error_and_cross_entropy():
    head = model_of().vector_head
    features = torch.randn(3, head.mlp[0].in_features, generator=torch.Generator().manual_seed(0))
    predicted = head.mlp(features)
    scaled = torch.tensor([[-1.0, -1.0], [-0.5, 0.0], [1.0, 0.5]])
    square = ((predicted[:, :2] - scaled) ** 2).sum(1)
    cross = -torch.log_softmax(predicted[:, 2:], 1)[torch.arange(3), torch.arange(3)]
    torch.testing.assert_close(head.loss(features, VECTORS), (square + cross).mean())


@pytest.mark.slow
def test_a_model_learns_to_tell_the_vector():
    """From pictures of noise: what the features say of the vector can only come from the vector."""
    model, clips = model_of("gru"), random_clips(8)
    model.train()
    loss = WorldModelLoss(load_config("debug").loss.model_copy(update={"prediction": 0.0}), context=5)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        total, _ = loss(model, clips)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    model.eval()
    states = model.filter(model.encode(clips.observations), clips.actions).states
    told = model.decode_vector(states).unflatten(0, (6, 8)).transpose(0, 1)
    assert (told[..., 1] == clips.vectors[..., 1]).float().mean() > 0.95
    assert (told[..., 0] - clips.vectors[..., 0]).abs().mean() < 2.0
    measured = open_loop_metrics(model, clips, context=3)["vector"]
    assert set(measured) == {"speed", "command", "offset"}


def test_a_missing_vector_is_named():
    model = model_of()
    with pytest.raises(SimulatorError, match=r"sees 3 numbers beside each frame \(speed, command, offset\), but 0"):
        model.encode(torch.zeros(1, 3, 64, 64))
    state = model.initial_state(Observation(torch.zeros(2, 3, 64, 64), VECTORS[:2]))
    assert model.decode_vector(state).shape == (2, 3)


def with_start_states(model):
    observed = Observation(torch.rand(16, 3, 64, 64) * 2 - 1, VECTORS[torch.arange(16) % 3])
    with torch.no_grad():
        model.start_states = LatentState(*(part.clone() for part in model.initial_state(observed)))
    return model


def test_dreams_show_what_the_simulator_shows():
    model = with_start_states(model_of())
    env = gym.make("DreamDriving-v0", model=model, observation="image", horizon=3)
    observed, _ = env.reset(seed=0)
    assert env.observation_space.contains(observed)
    assert env.observation_space == observation_space((64, 64), FIELDS)
    venv = gym.make_vec("DreamDriving-v0", num_envs=4, model=model, observation="image", horizon=3)
    for step in range(5):
        batch, _ = venv.reset(seed=0) if step == 0 else venv.step(np.zeros((4, 4), np.float32))[::4]
        assert venv.observation_space.contains(batch)
    np.testing.assert_array_equal(venv.reset(seed=0)[0]["vector"][0], observed["vector"])
    sb3 = DreamVecEnv(4, model=model, observation="image", horizon=2, termination="never")
    first = sb3.reset()
    sb3.step(np.zeros((4, 4), np.float32))
    last, _, dones, infos = sb3.step(np.zeros((4, 4), np.float32))
    assert dones.all()
    assert set(infos[0]["terminal_observation"]) == {"image", "vector"}
    assert last["vector"].shape == first["vector"].shape == (4, 3)
    latent = gym.make("DreamDriving-v0", model=model)
    assert latent.observation_space.shape == (model.feature_dim,)
