"""What runs on a GPU gives what the processor gives: dreams, compiled steps, both trainings."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from wm_gym.acceleration import AcceleratedModel
from wm_gym.actions import ActionFormat
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.clips import Clips
from wm_gym.config import load_config
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.precision import without_tf32 as full_precision
from wm_gym.simulator import SimulatorSpec
from wm_gym.training.captured import CapturedGradients, clear_gradients
from wm_gym.training.log import read_metrics
from wm_gym.training.trainer import Objective, WorldModelTrainer, make_fabric, make_gradients, make_loss
from wm_gym.vector import VectorField
from wm_gym.world_model import WorldModel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["gru", "rssm", "transformer"])
def model(request):
    config = load_config("debug", [f"model.dynamics.kind={request.param}", "model.dynamics.groups=4"]).model
    torch.manual_seed(0)
    simulator = SimulatorSpec(id="x", frame_size=config.frame_size, action=ActionFormat.driving())
    model = WorldModel(config, simulator).eval()
    torch.nn.init.normal_(model.reward_head.mlp[-1].weight)  # heads begin at zero, where nothing could differ
    return model


@pytest.fixture
def without_tf32():
    with full_precision():
        yield


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_cuda_graph_of_the_step_gives_what_the_processor_gives(model, batch, precision):
    generator = torch.Generator().manual_seed(1)
    state = model.initial_state(torch.rand(batch, 3, *model.config.frame_size, generator=generator) * 2 - 1)
    noise = torch.rand(batch, model.noise_dim, generator=generator) if model.noise_dim else None
    actions = torch.rand(4, batch, model.simulator.action.dim, generator=generator)
    wanted = [model.imagine(state, action, noise) for action in actions]
    model.to("cuda")
    fast = AcceleratedModel(model, precision)
    noise = None if noise is None else noise.to("cuda")
    found = [fast.imagine(state.to("cuda"), action.to("cuda"), noise) for action in actions]
    assert fast.is_compiled
    # All are compared at the end: a graph that wrote over what an earlier call gave would show.
    for ours, theirs in zip(found, wanted, strict=True):
        tolerance = 1e-3 if precision == "fp32" else 0.1
        torch.testing.assert_close(ours.continuation.cpu(), theirs.continuation, atol=tolerance, rtol=tolerance)
        if precision == "fp32":
            torch.testing.assert_close(ours.reward.cpu(), theirs.reward, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(
                fast.features(ours.state).cpu(), model.cpu().features(theirs.state), atol=1e-3, rtol=1e-3
            )
            model.to("cuda")


def test_dreams_on_the_gpu_are_those_on_the_processor():
    envs = [gym.make_vec("DreamDriving-v0", num_envs=5, device=device, horizon=8) for device in ("cpu", "cuda")]
    for env in envs:
        env.reset(seed=0)
    actions = np.zeros((5, 4), np.float32)
    for _ in range(6):
        (_, reward, *_), (_, other, *_) = (env.step(actions) for env in envs)
        np.testing.assert_allclose(reward, other, atol=2e-2)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
@pytest.mark.parametrize("kind", ["gru", "rssm"])
def test_a_world_model_trains_on_the_gpu(car_racing_data, tmp_path, kind, precision):
    changes = [f"model.dynamics.kind={kind}", "model.dynamics.groups=4", f"training.precision={precision}"]
    config = load_config("debug", [*changes, "training.latent.steps=10", "training.latent.clip_length=8"])
    data = open_training_data(car_racing_data, config.training.validation_fraction)
    trainer = WorldModelTrainer(
        config,
        data.simulator,
        data.train,
        data.validation,
        tmp_path / "run",
        data_info=data.info,
        device="cuda",
        progress=False,
    )
    model = trainer.run()
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["update"] for row in rows] == list(range(1, config.training.updates + 1))
    assert rows[config.training.steps - 1]["loss"] < rows[0]["loss"]
    on_cpu = WorldModel.from_pretrained(tmp_path / "run", "cpu")
    assert on_cpu.fingerprint == model.fingerprint


@pytest.mark.parametrize("kind", ["gru", "rssm", "transformer", "town"])
def test_recorded_updates_are_those_that_are_launched_one_by_one(kind, without_tf32):
    """Losses, gradients and what the model notes of its inputs, over clips of changing shape and content."""
    fields = (
        VectorField(name="speed", unit="m/s", low=-10.0, high=40.0),
        VectorField.of_classes("light", ("red", "green")),
    )
    simulator = SimulatorSpec(
        id="x", frame_size=(64, 64), action=ActionFormat.driving(), vector=fields if kind == "town" else ()
    )
    changes = [] if kind == "town" else [f"model.dynamics.kind={kind}", "model.dynamics.groups=4"]
    config = load_config(
        "town" if kind == "town" else "debug", [*changes, "training.precision=32-true", "loss.prediction=1"]
    )
    fabric, _ = make_fabric("32-true", "cuda", 1)
    found = []
    for can_capture in (False, True):
        torch.manual_seed(0)
        objective = Objective(WorldModel(config.model, simulator).train(), make_loss(config, None))
        torch.nn.init.normal_(objective.model.reward_head.mlp[-1].weight)
        optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
        wrapped, optimizer = fabric.setup(objective, optimizer)
        gradients = make_gradients(fabric, wrapped, config.training, None if can_capture else torch.amp.GradScaler())
        assert isinstance(gradients, CapturedGradients) is can_capture
        generator = torch.Generator().manual_seed(1)
        for update, length in enumerate((6, 6, 8, 6)):
            clips = Clips(
                torch.rand(3, length, 3, 64, 64, generator=generator) * 2 - 1,
                torch.rand(3, length - 1, 4, generator=generator),
                torch.randn(3, length - 1, generator=generator),
                torch.rand(3, length - 1, generator=generator) < 0.2,
                torch.rand(3, length, len(simulator.vector), generator=generator).round(),
                is_real=torch.rand(3, length - 1, generator=generator) < 0.7 if update % 2 else None,
            )
            draws = objective.loss.draw(clips, generator)
            torch.manual_seed(update)
            moved = Clips(*(None if value is None else value.to("cuda") for value in clips))
            loss, terms = gradients(moved, draws.to(fabric.device))
            state = {name: value.clone() for name, value in objective.model.state_dict().items()}
            grads = [None if p.grad is None else p.grad.clone() for p in objective.parameters()]
            found.append((float(loss), {name: float(term) for name, term in terms.items()}, state, grads))
            optimizer.step()
            clear_gradients(optimizer, gradients)
        if can_capture:
            assert gradients.is_captured
    for (loss, terms, state, grads), (other, *others) in zip(found[:4], found[4:], strict=True):
        assert other == pytest.approx(loss, rel=1e-3)
        assert others[0] == pytest.approx(terms, rel=1e-3, abs=1e-5)
        for name, value in state.items():
            torch.testing.assert_close(others[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
        for one, two in zip(grads, others[2], strict=True):
            assert one is None or torch.allclose(one, two, rtol=1e-2, atol=1e-4)


def test_ppo_learns_in_dreams_on_the_gpu():
    model = WorldModel.from_pretrained("bundled", "cuda")
    config = AgentConfig(num_envs=16, compile_model=True, model_precision="bf16")
    with ImaginationTrainer(model, config) as trainer:
        trainer.train_round()
        assert trainer.dream_steps > 0
