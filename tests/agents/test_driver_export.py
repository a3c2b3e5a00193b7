"""The exported driver does what ``Driver`` does, along real drives."""

import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from wm_gym.actions import ActionFormat
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.export import MeanAction, StoredAction, agent_parts, export_agent
from wm_gym.agents.bundles.folder import load_agent, save_pixel_agent
from wm_gym.agents.policies.algorithms import ALGORITHMS
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.policies.network import rebuild_policy, set_normalisation
from wm_gym.agents.policies.observers import PixelObserver
from wm_gym.agents.policies.pixel_config import PixelAgentConfig
from wm_gym.cli.main import build_parser, main
from wm_gym.envs.simulators import make_simulator
from wm_gym.errors import ExportError
from wm_gym.export.folder import ExportSettings, export_parts

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
STEPS = 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The bundled agent's driver as files."""
    torch.set_num_threads(1)
    agent = load_agent("bundled")
    out = tmp_path_factory.mktemp("runs") / "export"
    return export_parts(agent_parts(agent), agent.model, out, ExportSettings(repeats=1), progress=False).path


def run_file(folder: Path, back_end: str):
    """``driver`` in its own runtime: arrays in, arrays out."""
    if back_end == "torchscript":
        module = torch.jit.load(str(folder / "driver.pt"))
        return lambda *inputs: [output.numpy() for output in module(*map(torch.from_numpy, inputs))]
    session = onnxruntime.InferenceSession(str(folder / "driver.onnx"), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    assert names == ["frame", "latent", "memory", "last_action", "is_first"]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def nothing_yet(number: int) -> list[np.ndarray]:
    """State and last action before the first frame: they must not count."""
    state = load_agent("bundled").model.start_states
    shapes = (state.latent.shape[1:], state.memory.shape[1:], (4,))
    return [np.full((number, *shape), np.nan, np.float32) for shape in shapes]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("back_end", ["torchscript", "onnx"])
def test_the_file_drives_as_the_driver_does(exported, back_end):
    run, driver = run_file(exported, back_end), Driver.load("bundled")
    env = make_simulator("car-racing")
    latent, memory, last_action = nothing_yet(1)
    for seed in (3, 4):  # the second drive begins with the state of the first
        driver.reset()
        frame, _ = env.reset(seed=seed)
        for step in range(STEPS):
            expected = driver.act(frame)
            action, latent, memory = run(frame[None], latent, memory, last_action, np.array([step == 0]))
            assert action.dtype == np.float32
            np.testing.assert_allclose(action[0], expected, rtol=0, atol=1e-4)
            carried_out = expected
            if step == 5:  # another action takes the place of the driver's
                carried_out = np.array((0.3, 0.0, 0.5, 1.0), np.float32)
                driver.carried_out(carried_out)
            last_action = carried_out[None]
            frame, *_ = env.step(carried_out)
        state = driver.observer.state
        np.testing.assert_allclose(latent, state.latent, rtol=0, atol=1e-4)
        np.testing.assert_allclose(memory, state.memory, rtol=0, atol=1e-4)


def test_one_call_serves_drives_of_different_age(exported, rng):
    run = run_file(exported, "onnx")
    frames = rng.integers(0, 256, (3, 2, 64, 64, 3), dtype=np.uint8)
    state, firsts = nothing_yet(2), [np.array([True, True]), np.array([False, True]), np.array([False, False])]
    for t in range(3):
        action, latent, memory = run(frames[t], *state, firsts[t])
        state = [latent, memory, action]
    for row, first in ((0, 0), (1, 1)):
        driver = Driver.load("bundled")
        for t in range(first, 3):
            expected = driver.act(frames[t, row])
        np.testing.assert_allclose(action[row], expected, rtol=0, atol=1e-4)


POLICIES = {name: {} for name in ALGORITHMS} | {
    "ppo, state-dependent exploration": {"algo": "ppo", "algorithm": {"use_sde": True}},
    "sac, state-dependent exploration": {"algo": "sac", "algorithm": {"use_sde": True}},
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("action", ["driving", "steer_accel"])
def test_the_mean_action_is_what_predict_gives(name, action):
    stored = ActionFormat.driving()
    config = resolve(AgentConfig(**{"algo": name, "net_arch": (8,), "action": action, **POLICIES[name]}), stored)
    torch.manual_seed(1)
    policy = rebuild_policy(config, spaces.Box(-np.inf, np.inf, (6,)), stored.space(action))
    set_normalisation(policy, torch.randn(6), torch.rand(6) + 0.5)
    policy.set_training_mode(False)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_()  # so that bounds are reached
        features = 4 * torch.randn(50, 6)
        chosen = MeanAction(policy)(features)
        np.testing.assert_allclose(chosen, policy.predict(features.numpy(), deterministic=True)[0], rtol=0, atol=1e-6)
        assert float(chosen.std(dim=0).min()) > 0.1
        # Everything up to the stored action, as the environment does it.
        expected = stored.to_stored(chosen.numpy(), action)
        np.testing.assert_allclose(StoredAction(stored, stored.resolve(action))(chosen), expected, rtol=0, atol=1e-6)


def test_a_squashed_action_is_scaled_to_its_bounds():
    action_space = ActionFormat.driving().space()
    torch.manual_seed(1)
    space = spaces.Box(-np.inf, np.inf, (6,))
    policy = ActorCriticPolicy(space, action_space, lambda _: 0.0, [8], use_sde=True, squash_output=True)
    with torch.no_grad():
        policy.action_net.weight.normal_()
        features = 4 * torch.randn(50, 6)
        chosen = MeanAction(policy)(features)
    np.testing.assert_allclose(chosen, policy.predict(features.numpy(), deterministic=True)[0], rtol=0, atol=1e-6)


def test_every_algorithm_is_tested():
    assert set(ALGORITHMS) <= set(POLICIES)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (ActionFormat.driving(), "driving"),
        (ActionFormat.driving(), "steer_accel"),
        (ActionFormat(kind="native", low=(-1.0, 0.0, 0.0, -2.0), high=(1.0, 1.0, 0.5, 2.0)), "native"),
    ],
)
def test_actions_are_stored_as_the_format_does_it(stored, name, rng):
    values = rng.uniform(-3, 3, (200, 2 if name == "steer_accel" else 4)).astype(np.float32)
    values[:3, -1] = (0.5, -0.5, 0.0)  # halves round to the even number in both
    given = StoredAction(stored, name)(torch.from_numpy(values))
    np.testing.assert_array_equal(given.numpy(), stored.to_stored(values, name))


def test_the_command_exports_driver_and_model(agent_folder, tmp_path, capsys):
    out = tmp_path / "export"
    command = ["export", "--agent", str(agent_folder), "--out", str(out), "--format", "torchscript"]
    assert main([*command, "--repeats", "1", "--device", "cpu", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert {path.stem for path in out.glob("*.pt")} == {"driver", "policy", "encoder", "observe", "step", "decoder"}
    assert "driver.pt: at most 0.0e+00 from the model over 20 inputs" in printed
    assert "| driver | 1 | " in printed
    assert "- Agent: algorithm ppo, action steer_accel" in (out / "README.md").read_text()


def test_an_agent_that_sees_pixels_is_refused(driving_spec, tmp_path):
    config = PixelAgentConfig(features_dim=16, net_arch=(8,), frame_stack=2, action="steer_accel")
    space = PixelObserver(driving_spec, 2).space
    policy = rebuild_policy(config, space, driving_spec.action.space("steer_accel"))
    path = save_pixel_agent(tmp_path / "agent", policy, driving_spec, config)
    with pytest.raises(ExportError, match="sees pixels and has no world model to export; give one that was trained"):
        export_agent(path, tmp_path / "export", progress=False)
    assert not (tmp_path / "export").exists()


def test_the_example_of_the_docs_runs(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported.parent.parent)
    exported.parent.rename("runs")
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    try:
        exec(compile(example, str(DOCS), "exec"), {})
    finally:
        Path("runs").rename(exported.parent)
    assert re.fullmatch(r"return of 25 steps: \d+\.\d\n", capsys.readouterr().out)


def test_the_commands_of_the_docs_parse():
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL) for line in block.split("\n")
    ]
    commands = [line for line in lines if line.startswith("wm-gym ")]
    assert len(commands) == 5
    for command in commands:
        build_parser().parse_args(shlex.split(command, comments=True)[1:])
