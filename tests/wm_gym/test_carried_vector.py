"""Dynamics that carry the observation's vector: exact where it was observed, learnt where it is imagined."""

from __future__ import annotations

import pytest
import torch

from wm_gym.acceleration import AcceleratedModel
from wm_gym.actions import ActionFormat
from wm_gym.config import ModelConfig, load_config, parse_config
from wm_gym.errors import ConfigError
from wm_gym.models.vector import VectorTransition
from wm_gym.observation import Observation
from wm_gym.simulator import SimulatorSpec
from wm_gym.vector import VectorField
from wm_gym.world_model import WorldModel

FIELDS = (
    VectorField(name="speed", unit="m/s", low=-10.0, high=40.0),
    VectorField.of_classes("light", ("none", "red", "green")),
    VectorField(name="offset", unit="m", low=-15.0, high=15.0, mirror_sign=-1),
)


def vectors(count: int) -> torch.Tensor:
    """``(count, 3)`` within the bounds."""
    speed, light, offset = 40 * torch.rand(count), torch.randint(0, 3, (count,)), 4 * torch.rand(count) - 2
    return torch.stack((speed, light.float(), offset), dim=-1)


PLAIN, BINS, BOUNDS = (), ("shows_bins",), ("shows_bins", "bounds_by_class")


@pytest.fixture(params=[PLAIN, BINS, BOUNDS], ids=["plain", "bins", "bounds"])
def model(request) -> WorldModel:
    torch.manual_seed(0)
    simulator = SimulatorSpec(id="none", frame_size=(64, 64), action=ActionFormat.driving(), vector=FIELDS)
    config = load_config("town").model
    settings = {name: name in request.param for name in ("shows_bins", "bounds_by_class")}
    dynamics = config.dynamics.model_copy(update=settings)
    return WorldModel(config.model_copy(update={"dynamics": dynamics}), simulator).eval()


def observation(vector: torch.Tensor) -> Observation[torch.Tensor]:
    return Observation(torch.rand(*vector.shape[:-1], 3, 64, 64) * 2 - 1, vector)


def test_an_observed_vector_is_in_the_features_to_the_last_digit(model):
    first, second = vectors(6), vectors(6)
    state = model.initial_state(observation(first))
    torch.testing.assert_close(model.decode_vector(state), first, atol=1e-4, rtol=0)
    state = model.observe(state, torch.rand(6, 4), observation(second))
    torch.testing.assert_close(model.decode_vector(state), second, atol=1e-4, rtol=0)
    assert model.features(state).shape == (6, model.feature_dim)
    # The vector is read linearly: what the features end with.
    torch.testing.assert_close(model.features(state)[:, -5] * 25 / 5 + 15, second[:, 0], atol=1e-3, rtol=0)


def test_bins_share_a_number_between_the_two_centres_beside_it():
    transition = VectorTransition(FIELDS, 8, 4)
    bins = transition.bins(transition.carry(torch.tensor([[20.0, 1.0, -14.0]]))).view(2, 17)
    # 17 centres: of the speed every 3.125 m/s from -10 on, of the offset every 1.875 m from -15 on.
    wanted = torch.zeros(2, 17)
    wanted[0, 9], wanted[0, 10] = 0.4, 0.6
    wanted[1, 0], wanted[1, 1] = 0.875 / 1.875, 1 / 1.875
    torch.testing.assert_close(bins, wanted, atol=1e-5, rtol=0)


def test_filtering_equals_observing_step_by_step(model):
    vector, actions = vectors(8).view(2, 4, 3), torch.rand(2, 3, 4)
    seen = observation(vector)
    followed = model.filter(model.encode(seen), actions)
    state = model.initial_state(Observation(seen.image[:, 0], vector[:, 0]))
    for t in range(3):
        state = model.observe(state, actions[:, t], Observation(seen.image[:, t + 1], vector[:, t + 1]))
    torch.testing.assert_close(followed.states.memory[-2:], state.memory, atol=1e-4, rtol=1e-4)
    assert followed.vector_loss is not None
    assert followed.vector_loss.shape == (3, 2)


def test_before_training_a_dream_keeps_the_vector(model):
    first = vectors(5)
    state = model.initial_state(observation(first))
    for _ in range(10):
        state = model.imagine(state, torch.rand(5, 4)).state
    torch.testing.assert_close(model.decode_vector(state), first, atol=1e-3, rtol=0)


def test_what_is_carried_stays_within_its_bounds():
    transition = VectorTransition(FIELDS, 8, 4)
    torch.nn.init.constant_(transition.expected[-1].bias, 100.0)
    following = transition(transition.carry(vectors(3)), torch.zeros(3, 8), torch.zeros(3, 4))
    assert transition.fields.collapse(following / 5)[:, [0, 2]].tolist() == [[40.0, 15.0]] * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_classes_are_drawn_as_often_as_they_are_likely(temperature):
    transition = VectorTransition(FIELDS, 8, 4)
    transition.temperature = temperature
    red = transition.carry(torch.tensor([[0.0, 1.0, 0.0]])).expand(20_000, -1)
    expected, drawn = torch.zeros(20_000, 8), torch.zeros(20_000, 4)
    following = transition(red, expected, drawn, torch.rand(20_000, 1))
    found = transition.fields.collapse(following / 5)[:, 1]
    likely = torch.tensor([0.0, 5.0 / temperature, 0.0]).softmax(-1)
    shares = torch.stack([(found == light).float().mean() for light in range(3)])
    torch.testing.assert_close(shares, likely, atol=0.01, rtol=0)
    assert (transition.fields.collapse(transition(red, expected, drawn) / 5)[:, 1] == 1).all()


def test_a_step_is_learnt_to_a_thousandth_of_the_bounds_and_a_class_with_it():
    torch.manual_seed(0)
    transition = VectorTransition(FIELDS, 32, 4)
    reads = torch.nn.Linear(transition.spread_dim + 1, 32)
    optimizer = torch.optim.Adam([*transition.parameters(), *reads.parameters()], lr=3e-3)

    def step(before: torch.Tensor, steering: torch.Tensor) -> torch.Tensor:
        after = before.clone()
        after[:, 2] += 0.02 * before[:, 0].clamp(max=10) * steering[:, 0]
        after[:, 1] = torch.where(before[:, 0] < 20, 1.0, before[:, 1])
        return after

    for _ in range(1500):
        before, steering = vectors(256), 2 * torch.rand(256, 1) - 1
        carried = transition.carry(before)
        expected = torch.tanh(reads(torch.cat((transition.spread(carried), steering), dim=-1)))
        loss = transition.loss(carried, transition.carry(step(before, steering)), expected, torch.rand(256, 4)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before, steering = vectors(2000), 2 * torch.rand(2000, 1) - 1
    carried = transition.carry(before)
    expected = torch.tanh(reads(torch.cat((transition.spread(carried), steering), dim=-1)))
    found = transition.fields.collapse(transition(carried, expected, torch.rand(2000, 4)) / 5)
    wanted = step(before, steering)
    assert (found[:, 2] - wanted[:, 2]).abs().mean() < 0.03
    assert (found[:, 1] == wanted[:, 1]).float().mean() > 0.97


def test_a_number_that_is_always_at_its_bound_under_a_class_is_so_when_a_dream_draws_it():
    """The distance to a light that is gone is that of no light."""
    transition = VectorTransition(FIELDS, 8, 4, bounds_by_class=True)

    def recorded(count: int) -> torch.Tensor:
        found = vectors(count)
        found[:, 2] = torch.where(found[:, 1] == 0, 15.0, found[:, 2])  # no light: the offset is at its high bound
        found[:, 0] = torch.where(found[:, 1] == 2, torch.where(torch.rand(count) < 0.99, -10.0, 3.0), found[:, 0])
        return found

    parts = torch.zeros(2000, 8), torch.rand(2000, 4)
    before = transition.carry(vectors(2000))
    dreamt = transition.fields.collapse(transition(before, *parts, torch.rand(2000, 1)) / 5)
    assert (dreamt[dreamt[:, 1] == 0, 2] < 15.0).all()  # nothing is known yet

    transition.eval().loss(before, transition.carry(recorded(2000)), *parts)
    assert transition.seen.sum() == 0  # only training counts
    transition.train()
    for _ in range(3):
        transition.loss(before, transition.carry(recorded(2000)), *parts)
    assert transition.seen.sum() == 6000
    dreamt = transition.fields.collapse(transition(before, *parts, torch.rand(2000, 1)) / 5)
    is_gone = dreamt[:, 1] == 0
    assert (dreamt[is_gone, 2] == 15.0).all()
    assert (dreamt[~is_gone, 2] < 15.0).all()
    assert (dreamt[:, 0] > -10.0).all()  # under green, the speed was not always at its bound

    # What follows from a class is not predicted: its error counts nothing.
    following = transition.carry(torch.tensor([[5.0, 0.0, 15.0], [5.0, 0.0, 15.0]]))
    start = transition.carry(torch.tensor([[5.0, 0.0, -15.0], [5.0, 0.0, 15.0]]))
    far, near = transition.eval().loss(start, following, torch.zeros(2, 8), torch.zeros(2, 4))
    assert far == near


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(PLAIN, marks=pytest.mark.slow, id="plain"),
        pytest.param(BINS, marks=pytest.mark.slow, id="bins"),
        pytest.param(BOUNDS, id="bounds"),
    ],
    indirect=True,
)
def test_the_accelerated_step_is_the_same(model):
    state, action, noise = (
        model.initial_state(observation(vectors(4))),
        torch.rand(4, 4),
        torch.rand(4, model.noise_dim),
    )
    plain, fast = model.imagine(state, action, noise), AcceleratedModel(model).imagine(state, action, noise)
    torch.testing.assert_close(fast.state.memory, plain.state.memory, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast.reward, plain.reward, atol=1e-4, rtol=1e-4)


def test_only_rssm_carries_a_vector_and_says_so():
    with pytest.raises(ConfigError, match="carries_vector needs kind: rssm, but kind is gru"):
        parse_config(ModelConfig, {"dynamics": {"kind": "gru", "carries_vector": True}}, origin="a test")
    for name in ("shows_bins", "bounds_by_class"):
        with pytest.raises(ConfigError, match=f"{name} needs carries_vector: true"):
            parse_config(ModelConfig, {"dynamics": {"kind": "rssm", name: True}}, origin="a test")
    assert "carries_vector" not in load_config("tiny").model.dynamics.model_dump()


def test_a_model_without_a_vector_is_as_before(driving_spec):
    carrying = load_config("town").model
    plain = carrying.model_copy(update={"dynamics": carrying.dynamics.model_copy(update={"carries_vector": False})})
    torch.manual_seed(0)
    first = WorldModel(carrying, driving_spec).state_dict()
    torch.manual_seed(0)
    second = WorldModel(plain, driving_spec).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert first.keys() == second.keys()
