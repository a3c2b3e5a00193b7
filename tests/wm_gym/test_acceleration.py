import warnings
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import pytest
import torch

from wm_gym.acceleration import AcceleratedModel, DreamStep, _compiled_for_gpu, accelerate
from wm_gym.actions import ActionFormat
from wm_gym.config import load_config
from wm_gym.envs import DreamVecEnv
from wm_gym.envs.dream_model import DreamModel
from wm_gym.errors import ConfigError
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

BATCH = 3


def untrained(kind):
    config = load_config("debug", [f"model.dynamics.kind={kind}", "model.dynamics.groups=4"]).model
    simulator = SimulatorSpec(id="x", frame_size=config.frame_size, action=ActionFormat.driving())
    return WorldModel(config, simulator).eval()


def untrained_with_rewards(kind):
    torch.manual_seed(0)
    model = untrained(kind)
    torch.nn.init.normal_(model.reward_head.mlp[-1].weight)  # heads begin at zero, where nothing could differ
    return model


@pytest.fixture(params=["rssm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gru", "transformer"))])
def model(request):
    return untrained_with_rewards(request.param)


@torch.no_grad()
def test_a_compiled_step_has_the_temperature_of_its_model():
    model = untrained_with_rewards("rssm").at_temperature(3.0)
    assert_steps_as(AcceleratedModel(model), model, BATCH)
    state, action, noise = step_of(model)
    assert not torch.equal(
        model.imagine(state, action, noise).reward, model.at_temperature(0.2).imagine(state, action, noise).reward
    )


@pytest.mark.parametrize(
    ("kind", "temperature", "sentence"),
    [("rssm", 0.0, "above 0"), ("rssm", float("nan"), "above 0"), ("gru", 2.0, "draw nothing")],
)
def test_a_temperature_that_cannot_be_is_refused(kind, temperature, sentence):
    with pytest.raises(ConfigError, match=sentence):
        untrained(kind).at_temperature(temperature)


@pytest.fixture(scope="module")
def fast():
    return accelerate("bundled")


def step_of(model, batch=BATCH):
    generator = torch.Generator().manual_seed(1)
    state = model.initial_state(torch.rand(batch, 3, *model.config.frame_size, generator=generator) * 2 - 1)
    action = torch.rand(batch, 4, generator=generator)
    noise = torch.rand(batch, model.noise_dim, generator=generator) if model.noise_dim else None
    return state, action, noise


def assert_steps_as(fast, model, batch):
    """The compiled step gives what the model does."""
    state, action, noise = step_of(model, batch)
    with warnings.catch_warnings(), torch.inference_mode():  # the mode that dreams step in
        warnings.simplefilter("error", UserWarning)
        found = fast.imagine(state, action, noise)
    assert fast.is_compiled
    wanted = model.imagine(state, action, noise)
    torch.testing.assert_close(found.state.memory, wanted.state.memory, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.reward, wanted.reward, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.continuation, wanted.continuation)
    torch.testing.assert_close(fast.features(found.state), model.features(wanted.state), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fast.decode(found.state), model.decode(wanted.state), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_compiled_step_is_the_model_s_own(model):
    fast = AcceleratedModel(model)
    assert isinstance(fast, DreamModel)
    for batch in (BATCH, 1):
        assert_steps_as(fast, model, batch)
    assert fast.device == model.device
    assert (fast.noise_dim, fast.feature_dim, fast.simulator) == (model.noise_dim, model.feature_dim, model.simulator)


@pytest.mark.slow
@torch.no_grad()
def test_rows_shared_out_among_threads_are_the_rows_of_one_thread(model):
    fast = AcceleratedModel(model)
    state, action, noise = step_of(model, 19)  # blocks of unlike length
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        shared_out = fast.imagine(state, action, noise)
        torch.set_num_threads(1)
        alone = fast.imagine(state, action, noise)
    finally:
        torch.set_num_threads(threads)
    assert fast.is_compiled
    for ours, theirs in zip((*shared_out.state, *shared_out[1:]), (*alone.state, *alone[1:]), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(shared_out.reward, model.imagine(state, action, noise).reward, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_python_threads_may_step_one_model_at_once():
    model = untrained_with_rewards("rssm")
    fast = AcceleratedModel(model)
    steps = [step_of(model, batch) for batch in (8, 40, 8, 33)]
    wanted = [fast.imagine(*step) for step in steps]

    def repeatedly(step):
        with torch.no_grad():
            return [fast.imagine(*step) for _ in range(50)]

    with ThreadPoolExecutor(len(steps)) as pool:
        for found, reference in zip(pool.map(repeatedly, steps), wanted, strict=True):
            assert all(torch.equal(each.reward, reference.reward) for each in found)


@torch.no_grad()
def test_bf16_is_close_and_gives_float32(model):
    fast = AcceleratedModel(model, "bf16", compiled=False)
    state, action, noise = step_of(model)
    found, wanted = fast.imagine(state, action, noise), model.imagine(state, action, noise)
    assert {part.dtype for part in (*found.state, found.reward, found.continuation)} == {torch.float32}
    hidden = model.config.dynamics.hidden_dim  # of rssm; beyond it, one draw in many may fall on another class
    ours, theirs = fast.features(found.state), model.features(wanted.state)
    torch.testing.assert_close(ours[:, :hidden], theirs[:, :hidden], atol=0.05, rtol=0.05)
    assert not torch.equal(ours, theirs)


def test_where_nothing_can_be_compiled_a_warning_says_so(model):
    fast = AcceleratedModel(model)

    def cannot(*_):
        raise RuntimeError("no C++ compiler\nand more")

    fast._step = cannot
    state, action, noise = step_of(model)
    with pytest.warns(UserWarning, match=r"could not be compiled \(no C\+\+ compiler\); it dreams as it is"):
        found = fast.imagine(state, action, noise)
    torch.testing.assert_close(found.reward, model.imagine(state, action, noise).reward)
    assert not fast.is_compiled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.imagine(state, action, noise)


def test_wrong_arguments_are_no_reason_to_give_up_compiling(model):
    fast = AcceleratedModel(model)
    state, action, noise = step_of(model)
    with pytest.raises(RuntimeError):
        fast.imagine(state, action[:, :2], noise)
    assert fast.is_compiled


@pytest.mark.slow
def test_many_models_in_one_process_are_all_compiled_where_pytorch_counts_them():
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    models = [untrained("gru") for _ in range(10)]
    with torch.no_grad():
        for model in models:
            state, action, _ = step_of(model)
            found = _compiled_for_gpu(DreamStep(model, "fp32"))(*state, action)
            torch.testing.assert_close(found[0], model.imagine(state, action).reward, atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + len(models)


def test_an_unknown_precision_is_named(model):
    with pytest.raises(ConfigError, match=r"precision='fp16' is unknown.*use fp32 or bf16"):
        AcceleratedModel(model, "fp16")


@pytest.mark.slow
def test_dreams_take_an_accelerated_model(fast):
    env = gym.make("DreamDriving-v0", model=fast, render_mode="rgb_array")
    plain = gym.make("DreamDriving-v0", render_mode="rgb_array")
    for each in (env, plain):
        each.reset(seed=3)
    for _ in range(3):
        (ours, reward, *_), (theirs, wanted, *_) = (each.step(each.action_space.low * 0) for each in (env, plain))
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert reward == pytest.approx(wanted, abs=1e-3)
    difference = env.render().astype(int) - plain.render().astype(int)
    assert abs(difference).max() <= 2
    many = DreamVecEnv(8, model=fast, action="steer_accel")
    many.reset()
    assert many.step(torch.zeros(8, 2).numpy())[1].shape == (8,)


@pytest.mark.slow
def test_states_of_a_read_out_keep_no_latent_of_their_own(fast):
    bank = fast.start_states
    state = LatentState(bank.latent[:2], bank.memory[:2])
    noise = torch.rand(2, fast.noise_dim, generator=torch.Generator().manual_seed(0))
    found = fast.imagine(state, torch.zeros(2, 4), noise)
    assert torch.equal(found.state.latent, state.latent)
    with torch.no_grad():
        wanted = fast.model.imagine(state, torch.zeros(2, 4), noise).state
        torch.testing.assert_close(fast.model.dynamics.shown(wanted), wanted.latent)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_code_is_of_its_own_parameters_and_takes_what_lies_otherwise_or_is_of_another_kind():
    model, other = untrained("gru"), untrained("gru")
    fast, other_fast = AcceleratedModel(model), AcceleratedModel(other)
    state, action, noise = step_of(model)
    found, other_found = (each.imagine(state, action, noise).state.memory for each in (fast, other_fast))
    torch.testing.assert_close(found, model.imagine(state, action, noise).state.memory)
    torch.testing.assert_close(other_found, other.imagine(state, action, noise).state.memory)
    assert not torch.allclose(found, other_found)
    column_major = LatentState(state.latent.t().contiguous().t(), state.memory)
    assert not column_major.latent.is_contiguous()
    torch.testing.assert_close(fast.imagine(column_major, action, noise).state.memory, found)
    with pytest.raises(RuntimeError):
        fast.imagine(state, action[:2], noise)
    with pytest.raises(RuntimeError):
        fast.imagine(state, action.double(), noise)
    assert fast.is_compiled
    torch.testing.assert_close(fast.imagine(state, action, noise).state.memory, found)
