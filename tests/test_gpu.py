"""What runs on a GPU gives what the processor gives: dreams, compiled steps, both trainings."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from wm_gym.acceleration import AcceleratedModel
from wm_gym.actions import ActionFormat
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.config import load_config
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.simulator import SimulatorSpec
from wm_gym.training.log import read_metrics
from wm_gym.training.trainer import WorldModelTrainer
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


def test_ppo_learns_in_dreams_on_the_gpu():
    model = WorldModel.from_pretrained("bundled", "cuda")
    config = AgentConfig(num_envs=16, compile_model=True, model_precision="bf16")
    with ImaginationTrainer(model, config) as trainer:
        trainer.train_round()
        assert trainer.dream_steps > 0
