import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from toy_dream import LineModel, LineSimulator

from wm_gym.envs import DreamDrivingEnv, LatentObservation
from wm_gym.errors import BundleError, ConfigError, SimulatorError

# A frame has 255 levels over 32 in position and 4 in velocity.
TOLERANCE = np.array([16 / 255, 2 / 255]) + 1e-6


@pytest.mark.parametrize("action", ["driving", "steer_accel"])
def test_dream_and_simulator_share_their_spaces(action):
    model = LineModel()
    env = LatentObservation(LineSimulator(action), model)
    dream = DreamDrivingEnv(model, action=action)
    assert env.observation_space == dream.observation_space
    assert env.action_space == dream.action_space


def test_observations_are_what_the_frames_show():
    simulator = LineSimulator("steer_accel")
    env = LatentObservation(simulator, LineModel())
    observation, info = env.reset(seed=3)
    assert abs(observation[0] - info["start"]) <= TOLERANCE[0] and env.state.memory.item() == 0
    for step, action in enumerate(([0.0, 1.0], [0.3, 0.5], [0.0, -0.75])):
        observation, reward, terminated, truncated, info = env.step(action)
        true = simulator.state.latent[0].numpy()
        assert (np.abs(observation - true) <= TOLERANCE).all()
        assert observation in env.observation_space
        # the memory was advanced with the action: one more step is remembered
        assert env.state.memory.item() == step + 1
        assert reward == pytest.approx(action[1] - abs(action[0]) / 2)
        assert (terminated, truncated) == (False, False)


def test_the_model_gets_the_stored_action():
    class Recorder(LineModel):
        def observe(self, state, action, frame):
            self.seen = action
            return super().observe(state, action, frame)

    model = Recorder()
    env = LatentObservation(LineSimulator("steer_accel"), model)
    env.reset(seed=0)
    env.step([0.25, -0.5])
    assert model.seen.tolist() == [[0.25, 0.0, 0.5, 1.0]] and model.seen.dtype == torch.float32


def test_a_dream_goes_on_from_the_observed_state():
    """The state is the model's: what is imagined from it is what the simulator then does."""
    model = LineModel()
    env = LatentObservation(LineSimulator(), model)
    env.reset(seed=0)
    env.step([0.0, 1.0, 0.0, 1.0])
    dream = DreamDrivingEnv(model, start_states=env.state)
    dream.reset(seed=0)
    for action in ([0, 1, 0, 1], [0, 0, 0.5, 1]):
        real, imagined = env.step(action), dream.step(action)
        assert (np.abs(real[0] - imagined[0]) <= 2 * TOLERANCE).all()
        assert real[1] == pytest.approx(imagined[1])


def test_reset_forgets_the_episode_before():
    env = LatentObservation(LineSimulator(), LineModel())
    first, _ = env.reset(seed=5)
    for _ in range(3):
        env.step([0.0, 1.0, 0.0, 1.0])
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    assert env.state.memory.item() == 0


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice on unbounded observations, not the contract
def test_both_env_checkers_pass():
    env = LatentObservation(LineSimulator("steer_accel"), LineModel())
    check_env(env, skip_render_check=True)
    sb3_check_env(env)


def test_rendering_wrappers_and_the_simulator_are_reachable():
    simulator = LineSimulator()
    env = RecordEpisodeStatistics(LatentObservation(simulator, LineModel()))
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), simulator.frame())
    assert env.unwrapped is simulator and env.render_mode == "rgb_array"


def test_state_needs_a_reset():
    env = LatentObservation(LineSimulator(), LineModel())
    with pytest.raises(ResetNeeded):
        _ = env.state
    with pytest.raises(ResetNeeded):
        env.step([0.0, 1.0, 0.0, 1.0])


def test_a_bad_action_does_not_reach_the_simulator():
    simulator = LineSimulator()
    env = LatentObservation(simulator, LineModel())
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="finite"):
        env.step([np.nan, 1.0, 0.0, 1.0])
    assert simulator.elapsed == 0


def test_frames_of_another_size_are_named():
    with pytest.raises(SimulatorError, match=r"frames are 64x96.*trained with 8x12.*frame_size=\(8, 12\)"):
        LatentObservation(LineSimulator(frame_size=(64, 96)), LineModel())


def test_observations_that_are_no_frames_are_named():
    with pytest.raises(SimulatorError, match=r"observes Box.*, but frames are needed: uint8 \(H, W, 3\)"):
        LatentObservation(gym.make("CartPole-v1"), LineModel())


def test_actions_of_another_kind_are_named():
    with pytest.raises(
        SimulatorError, match=r"actions are Box\(.*\(4,\).*trained on Line-v0 with action='native': Box"
    ):
        LatentObservation(LineSimulator(), LineModel(native=True))


def test_a_model_elsewhere_is_named():
    with pytest.raises(BundleError, match="device='cuda'"):
        LatentObservation(LineSimulator(), LineModel(), device="cuda")
