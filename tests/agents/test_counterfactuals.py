"""Counterfactuals, pictures and doubt of a judged world model: figures by hand, and a dream that is the simulator."""

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import linalg
from toy_world import REWARD, PointWorld

from wm_gym.actions import ActionFormat
from wm_gym.agents.behaviours import make_behaviour, make_blind_behaviour
from wm_gym.agents.evaluation.counterfactuals import (
    HELD,
    CounterfactualPoint,
    dream_of_counterfactuals,
    held_sequences,
    pictures_of,
    record_counterfactuals,
    score_counterfactuals,
)
from wm_gym.agents.evaluation.dream_drives import BlindInDreams, doubted_dream_drives, drawn_states, dream_drives
from wm_gym.agents.evaluation.judge import judge
from wm_gym.agents.evaluation.moments import Moment
from wm_gym.agents.evaluation.pictures import picture_steps, score_pictures
from wm_gym.agents.evaluation.scorecard import RealDrives, score_policies
from wm_gym.agents.reports.judgement import read_scorecard, write_scorecard
from wm_gym.agents.reports.sections import judge_section
from wm_gym.cli.main import main
from wm_gym.errors import BundleError, ConfigError
from wm_gym.hub_card import judgement_scores, read_judgement
from wm_gym.metrics import frechet_distance, psnr, ssim
from wm_gym.observation import Observation
from wm_gym.simulator import SimulatorSpec
from wm_gym.uncertainty import Uncertainty, VarianceNetwork

NUM_HELD = sum(map(len, HELD.values()))


class PointEnv(gym.Env):
    """The world of :class:`PointWorld` as a simulator, which shows the position as brightness."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        self.observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = ActionFormat.driving().space()
        self.x = 0.0

    def _frame(self):
        return np.full((8, 8, 3), round((np.clip(self.x, -1, 1) + 1) * 127.5), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = -1.0
        return self._frame(), {}

    def step(self, action):
        self.x = float(np.clip(self.x + 0.5 * action[0], -5, 5))
        return self._frame(), REWARD * (1 - abs(self.x)), False, False, {}


class Still:
    """Stands where it is, so that what is shown of the position is all of it."""

    name = "still"

    def reset(self, env, seed):
        pass

    def act(self, observation):
        return np.array((0, 0, 0, 1), np.float32)


@pytest.fixture
def point_spec(monkeypatch):
    monkeypatch.setattr("wm_gym.agents.evaluation.moments.make_simulator_from_spec", lambda *_, **__: PointEnv())
    return SimulatorSpec(id="WmGymPoint-v0", frame_size=(8, 8), action=ActionFormat.driving())


def told(world, horizon=4):
    torch.manual_seed(1)
    network = VarianceNetwork(world.feature_dim, world.simulator.action.dim, horizon, hidden_dim=8)
    network.multipliers.uniform_(0.5, 2)
    network.mean.fill_(3000.0)
    return Uncertainty(network)


# --- Counterfactuals -------------------------------------------------------------------------------------------------


def test_a_dream_that_is_the_simulator_is_right_about_everything(point_spec):
    world = PointWorld(drift=0.0)
    points = record_counterfactuals(point_spec, [Still()], 2, seed=3, steps=10)
    dreamt = [dream_of_counterfactuals(world, point, draws=2) for point in points]
    score = score_counterfactuals(points, [one.returns for one in dreamt])
    assert (score.points, score.steps) == (2, 10)
    assert score.wheel.pearson == pytest.approx(1.0)
    assert score.wheel.mean_absolute_error == pytest.approx(0.0, abs=1e-3)
    assert score.wheel.predicted == pytest.approx(score.wheel.real, abs=1e-3)
    assert len(set(np.round(score.wheel.real))) == len(HELD["wheel"])
    # The pedals move nothing here: there is no order to be right about.
    assert (score.pedals.pearson, score.pedals.mean_absolute_error) == (None, pytest.approx(0.0, abs=1e-3))
    pictures = pictures_of(points, dreamt)
    assert pictures.sequences == pictures.frechet_sequences == 2 * (NUM_HELD + 1)
    assert [one.steps for one in pictures.by_horizon] == [1, 5, 10]
    assert min(one.psnr for one in pictures.by_horizon) > 45  # but for rounding
    assert pictures.by_horizon[-1].psnr_copy < pictures.by_horizon[-1].psnr - 5
    assert pictures.frechet == pytest.approx(0.0, abs=0.05 * pictures.frechet_copy)
    assert pictures.by_horizon[0].ssim is None  # its window is larger than these frames


def test_correlation_and_error_of_held_controls_by_hand():
    moment = Moment(0, Observation(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 0), np.float32)), None, None)
    width, others = len(HELD["wheel"]), len(HELD["pedals"])
    real = [np.arange(NUM_HELD + 1.0), np.arange(NUM_HELD + 1.0)]
    points = [CounterfactualPoint(moment, [np.zeros((6, 4), np.float32)], one, []) for one in real]
    promised = [real[0].copy() * 2, real[1].copy()]
    promised[0][-1] = promised[1][-1] = 1e6  # of what the driver did, which is not held
    score = score_counterfactuals(points, promised)
    assert (score.points, score.steps) == (2, 6)
    assert score.wheel.mean_absolute_error == pytest.approx(np.arange(width).mean() / 2)
    x, y = np.concatenate((np.arange(width) * 2, np.arange(width))), np.tile(np.arange(width), 2)
    x, y = x - x.mean(), y - y.mean()
    by_hand = (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
    assert score.wheel.pearson == pytest.approx(by_hand)
    assert score.pedals.real == list(range(width, width + others))
    assert score.pedals.predicted == pytest.approx([1.5 * value for value in score.pedals.real])


def test_one_control_is_held_and_the_other_does_next_to_nothing(driving_spec):
    held = held_sequences(driving_spec, 3)
    assert len(held) == NUM_HELD
    assert held[0] == pytest.approx(np.tile([HELD["wheel"][0], 0.15, 0.0, 1.0], (3, 1)))
    assert held[len(HELD["wheel"])] == pytest.approx(np.tile([0.0, 0.0, 0.5, 1.0], (3, 1)))
    assert held[-1] == pytest.approx(np.tile([0.0, 1.0, 0.0, 1.0], (3, 1)))


@pytest.fixture
def early_moments(monkeypatch):
    """Moments that are soon reached."""
    monkeypatch.setattr("wm_gym.agents.evaluation.moments.FIRST_POINT", 3)
    monkeypatch.setattr("wm_gym.agents.evaluation.moments.LAST_POINT", 6)


@pytest.mark.usefixtures("early_moments")
def test_held_moments_are_restored_by_driving_there_again(driving_spec):
    driver = make_behaviour("autopilot", driving_spec)
    (point,) = record_counterfactuals(driving_spec, [driver], 1, seed=990_000, steps=5)
    env = gym.make(driving_spec.id)
    env.reset(seed=990_000)
    for action in point.moment.actions:
        frame = env.step(action)[0]
    assert np.array_equal(frame, point.moment.observed.image[-1])
    steps = [env.step(action) for action in point.sequences[0]]
    assert sum(step[1] for step in steps) == pytest.approx(point.returns[0], abs=1e-9)
    assert np.array_equal(point.frames[0], np.stack([steps[0][0], steps[4][0]]))
    assert point.returns[-1] == point.moment.taken.total


def test_a_simulator_without_a_wheel_is_refused_before_any_driving(point_spec, monkeypatch):
    native = point_spec.model_copy(update={"action": ActionFormat.native(spaces.Box(-1, 1, (1,)))})
    manifest = SimpleNamespace(simulator=native)
    monkeypatch.setattr("wm_gym.agents.evaluation.judge.read_manifest", lambda _: (None, manifest))
    monkeypatch.setattr("wm_gym.agents.evaluation.judge.resolve_model", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ConfigError, match="counterfactuals hold wheel and pedals, which the actions of WmGymPoint-v0"):
        judge("native", ["random", "held(0)"], counterfactuals=1, progress=False)


# --- Pictures --------------------------------------------------------------------------------------------------------


def test_the_frechet_distance_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 1
    second = rng.normal(size=(30, 5)) * [1, 2, 3, 4, 5]
    covariances = np.cov(first.T), np.cov(second.T)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(*map(torch.from_numpy, (first, second))) == pytest.approx(expected)
    few = torch.from_numpy(first[:3])  # fewer samples than entries
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(few, few + 2.0) == pytest.approx(4.0 * 5)


def test_pictures_are_compared_by_horizon_as_far_as_episodes_go(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    assert picture_steps(12) == [1, 5, 10]
    frames = rng.integers(0, 255, (3, 3, 64, 64, 3), np.uint8)
    real = [frames[0], frames[1], frames[2][:2]]  # the last episode ended before its tenth step
    dreamt = [frames[0], frames[1] // 2, frames[2]]
    score = score_pictures(real, dreamt, [frames[2][0]] * 3)
    assert [(one.steps, one.frames) for one in score.by_horizon] == [(1, 3), (5, 3), (10, 2)]
    target = torch.from_numpy(frames[:2, 2].copy()).permute(0, 3, 1, 2) / 127.5 - 1
    ours = target.clone()
    ours[1] = torch.from_numpy(dreamt[1][2]).permute(2, 0, 1) / 127.5 - 1
    assert score.by_horizon[2].psnr == pytest.approx(psnr(ours, target), rel=1e-5)
    assert score.by_horizon[2].ssim == pytest.approx(ssim(ours, target), rel=1e-4)
    assert {one.lpips for one in score.by_horizon} == {None}
    assert score.frechet_sequences == 2
    assert score.frechet < score.frechet_copy
    equal = score_pictures(real, [frames[0], frames[1], frames[2]], [frames[2][0]] * 3)
    assert equal.frechet == pytest.approx(0.0, abs=1e-6)
    assert (equal.by_horizon[0].psnr, equal.by_horizon[0].ssim) == (60.0, pytest.approx(1.0))


def test_lpips_is_measured_where_its_weights_are(monkeypatch, tmp_path):
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features.state_dict()
    torch.save({f"features.{name}": value for name, value in features.items()}, weights)
    frames = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8)
    (one,) = score_pictures([frames], [frames], [255 - frames[0]]).by_horizon
    assert one.lpips == pytest.approx(0.0, abs=1e-6)
    assert one.lpips_copy > 1e-4


def test_a_model_that_decodes_nothing_has_no_pictures(point_spec):
    class Blind(PointWorld):
        def decode(self, state):
            raise NotImplementedError

    points = record_counterfactuals(point_spec, [Still()], 1, seed=3, steps=2)
    dreamt = dream_of_counterfactuals(Blind(drift=0.0), points[0], draws=1)
    assert dreamt.frames is None
    assert pictures_of(points, [dreamt]) is None
    assert np.isfinite(dreamt.returns).all()
    with pytest.raises(BundleError, match="not finite"):
        dream_of_counterfactuals(PointWorld(drift=float("nan")), points[0], draws=1)


# --- Doubt -----------------------------------------------------------------------------------------------------------


def held(world):
    return BlindInDreams(lambda: make_blind_behaviour("held(0.4 0)", world.simulator))


def test_the_doubt_is_what_a_dream_says_of_itself():
    world = PointWorld(drift=0.0)
    starts, seeds = drawn_states(world, 2, seed=0), [1, 2]
    plain = doubted_dream_drives(world, held(world), starts, seeds, steps=6, draws=2)
    assert plain.deviations is None
    world.uncertainty = told(world)
    doubted = doubted_dream_drives(world, held(world), starts, seeds, steps=6, draws=2)
    assert np.array_equal(doubted.rewards, plain.rewards)
    assert np.array_equal(dream_drives(world, held(world), starts, seeds, steps=6, draws=2), plain.rewards)
    env = gym.make("DreamDriving-v0", model=world, start_states=starts, observation="latent", horizon=6)
    env.reset(options={"start_state": 1})
    expected = [env.step(np.array([0.4, 0, 0, 1], np.float32))[-1]["uncertainty"] for _ in range(6)]
    assert doubted.deviations[1] == pytest.approx(expected, rel=1e-4)


def test_a_dream_that_is_over_is_doubted_no_further():
    class Mortal(PointWorld):
        def imagine(self, state, action, noise=None):
            following, reward, _ = super().imagine(state, action, noise)
            return following, reward, torch.zeros_like(reward)

    world = Mortal(drift=0.0)
    world.uncertainty = told(world)
    world.uncertainty.multipliers[:] = 1.5
    doubted = doubted_dream_drives(world, held(world), drawn_states(world, 1, seed=0), [1], steps=3)
    assert doubted.deviations[0] == pytest.approx([doubted.deviations[0][0]] * 3)


def test_doubts_stand_beside_the_policies_that_have_one():
    predicted = {name: np.ones((2, 4), np.float32) for name in ("a", "b")}
    real = {name: RealDrives("driven", [0, 1], [1.0, 3.0], [4, 4], {}) for name in predicted}
    doubts = {"a": np.array([[1, 2, 3, 4], [1, 4, 5, 6]], np.float32)}
    scores, _ = score_policies(predicted, real, [4], doubts)
    assert [score.by_horizon[0].doubt for score in scores] == [5.0, None]
    assert score_policies(predicted, real, [4])[0][0].by_horizon[0].doubt is None


# --- The scorecard ---------------------------------------------------------------------------------------------------


@pytest.fixture
def doubting(tiny_model, tmp_path):
    tiny_model.uncertainty = told(tiny_model)
    return tiny_model.save_pretrained(tmp_path / "model")


@pytest.mark.usefixtures("early_moments")
def test_the_card_has_counterfactuals_pictures_and_doubt(doubting, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    out = doubting / "judge"
    command = ["judge", "--model", str(doubting), "--policies", "random,held(0 0.2)", "--steps", "6", "--draws", "1"]
    command += ["--episodes", "2", "--counterfactuals", "1", "--seed", "990000", "--device", "cpu", "--quiet"]
    assert main([*command, "--out", str(out)]) == 0
    card = read_scorecard(out / "scorecard.json")
    assert card.counterfactuals.points == 1
    assert [one.steps for one in card.pictures.by_horizon] == [1, 5, 10, 30]
    assert all(score.by_horizon[0].doubt > 0 for score in card.policies)
    text = (out / "scorecard.md").read_text()
    assert capsys.readouterr().out == text
    for words in (
        "Does the dream know what wheel and pedals do",
        "Mean return with the pedals held",
        "LPIPS is left out",
        "Frechet distance in the bundled encoder's latents (not FVD) over 13 sequences",
        "doubt, 6",
    ):
        assert words in text
    figures = {score.name: score.value for score in judgement_scores(read_judgement(out / "scorecard.json"))}
    assert figures["MMRV of returns"] == pytest.approx(card.agreement[0].mmrv)
    wheel = card.counterfactuals.wheel
    assert figures["Error of return with the wheel held"] == pytest.approx(wheel.mean_absolute_error)
    assert figures["PSNR (dB) of dreamt frames, 30 steps ahead"] == pytest.approx(card.pictures.by_horizon[-1].psnr)
    assert figures["Frechet distance in the bundled encoder's latents"] == pytest.approx(card.pictures.frechet)
    assert not any("LPIPS" in name for name in figures)

    section = str(judge_section(SimpleNamespace(scorecard=card)))
    assert "Mean return with the wheel held" in section and "Bars with ends" in section

    write_scorecard(card, tmp_path / "again")
    assert read_scorecard(tmp_path / "again" / "scorecard.json") == card
    (out / "scorecard.json").write_text('{"agreement": []}')
    with pytest.raises(BundleError, match="is no scorecard"):
        read_judgement(out / "scorecard.json")

    # A file from before these figures.
    values = json.loads((tmp_path / "again" / "scorecard.json").read_text())
    for name in ("counterfactuals", "pictures", "counterfactuals_s"):
        del values[name]
    for score in values["policies"]:
        for one in score["by_horizon"]:
            del one["doubt"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    old = read_scorecard(tmp_path / "old.json")
    assert old.agreement == card.agreement
    assert (old.counterfactuals, old.pictures) == (None, None)
    assert "doubt" not in old.to_markdown() and "wheel" not in old.to_markdown()
    assert {score.name.partition(" ")[0] for score in judgement_scores(values)} <= {"Pearson", "Spearman", "MMRV"}
