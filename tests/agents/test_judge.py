"""A world model as a judge: its figures against independent references, dreams by hand, the command on real parts."""

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from toy_world import REWARD, PointWorld

from wm_gym.actions import ActionFormat
from wm_gym.agents.behaviours import make_behaviour, make_blind_behaviour
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.evaluation.dream_drives import (
    BlindInDreams,
    OnlookerInDreams,
    drawn_states,
    dream_drives,
    first_states,
)
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.evaluation.judge import judge
from wm_gym.agents.evaluation.multiple_choice import (
    DecisionPoint,
    dream_of_choices,
    record_decision_points,
    score_choices,
)
from wm_gym.agents.evaluation.rank_agreement import mean_maximum_rank_violation, pearson, spearman
from wm_gym.agents.evaluation.scorecard import RealDrives, Scorecard, agreement, driving_agreement, score_policies
from wm_gym.agents.reports.judgement import read_scorecard, write_scorecard
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.cli.main import main
from wm_gym.envs.imagined_rollouts import ImaginedRollouts
from wm_gym.envs.simulators import describe_simulator, make_simulator
from wm_gym.errors import BundleError, ConfigError, SimulatorError
from wm_gym.files import write_json_result
from wm_gym.observation import Observation
from wm_gym.provenance import measured_on
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

PAIRS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=12)
POLICIES = ("bundled", "random", "held(0.1 0.3)")


# --- Agreement of two rankings ---------------------------------------------------------------------------------------


@given(PAIRS)
def test_correlations_are_those_of_scipy(pairs):
    predicted, real = zip(*pairs, strict=True)
    if len(set(predicted)) == 1 or len(set(real)) == 1:
        assert pearson(predicted, real) is None
        assert spearman(predicted, real) is None
    else:
        assert pearson(predicted, real) == pytest.approx(stats.pearsonr(predicted, real).statistic, abs=1e-9)
        assert spearman(predicted, real) == pytest.approx(stats.spearmanr(predicted, real).statistic, abs=1e-9)


@given(PAIRS)
def test_the_rank_violation_is_that_of_its_definition(pairs):
    predicted, real = zip(*pairs, strict=True)
    worst = []
    for i in range(len(pairs)):
        violations = [0.0]
        for j in range(len(pairs)):
            if (predicted[i] < predicted[j]) != (real[i] < real[j]):
                violations.append(abs(real[i] - real[j]))
        worst.append(max(violations))
    assert mean_maximum_rank_violation(predicted, real) == pytest.approx(sum(worst) / len(worst))


def test_agreement_of_a_few_policies_by_hand():
    right = agreement([1.0, 20.0, 300.0], [-5.0, 5.0, 15.0], 50)
    assert (right.spearman, right.mmrv, right.mmrv_share) == (pytest.approx(1.0), 0.0, 0.0)
    assert right.mean_error == pytest.approx(102.0)
    # The best two are taken for each other, 10 apart: two of the three policies are violated by 10.
    swapped = agreement([0.0, 2.0, 1.0], [0.0, 10.0, 20.0], 50)
    assert (swapped.mmrv, swapped.mmrv_share) == (pytest.approx(20 / 3), pytest.approx(1 / 3))
    assert swapped.spearman == pytest.approx(0.5)
    constant = agreement([3.0, 3.0], [1.0, 2.0], 50)
    assert (constant.pearson, constant.spearman, constant.mmrv) == (None, None, pytest.approx(1.0 / 2))
    with pytest.raises(ConfigError, match="one finite number for each policy"):
        pearson([1.0, 2.0], [1.0, float("nan")])


# --- Dreams ----------------------------------------------------------------------------------------------------------


def held(world, text):
    return BlindInDreams(lambda: make_blind_behaviour(f"held({text})", world.simulator))


def test_dreams_of_any_model_with_the_five_verbs_are_what_can_be_computed_by_hand():
    class Mortal(PointWorld):
        def imagine(self, state, action, noise=None):
            following, reward, _ = super().imagine(state, action, noise)
            return following, reward, torch.full_like(reward, 0.9)

    world = Mortal(drift=0.0)
    starts = LatentState(torch.tensor([[-1.0], [0.5]]), torch.zeros(2, 1))
    rewards = dream_drives(world, held(world, "0.4 0"), starts, [7, 8], steps=3, draws=2)
    assert (rewards.shape, rewards.dtype) == ((2, 3), np.float32)
    for row, start in zip(rewards, (-1.0, 0.5), strict=True):
        positions = start + 0.2 * np.arange(1, 4)
        assert row == pytest.approx(REWARD * (1 - np.abs(positions)) * 0.9 ** np.arange(3), rel=1e-5)
    with pytest.raises(BundleError, match="2 start states do not fit 1 seeds"):
        dream_drives(world, held(world, "0.4 0"), starts, [7], steps=3)


def test_every_policy_meets_the_same_noise_and_the_seed_decides_it():
    class Windy(PointWorld):
        noise_dim = 1

        def imagine(self, state, action, noise=None):
            following, _, continuation = super().imagine(state, action, noise)
            return following, noise[:, 0].clone(), continuation

    world = Windy()
    starts = drawn_states(world, 3, seed=0)
    left, right, other = (
        dream_drives(world, held(world, text), starts, seeds, steps=5, draws=2)
        for text, seeds in (("-1 0", [1, 2, 3]), ("1 0", [1, 2, 3]), ("1 0", [4, 2, 3]))
    )
    assert np.array_equal(left, right)
    assert np.array_equal(right[1:], other[1:])
    assert not np.array_equal(right[0], other[0])


def test_random_actions_in_a_dream_are_those_of_the_drive_with_the_seed(driving_spec):
    policy = BlindInDreams(lambda: make_blind_behaviour("random", driving_spec))
    policy.reset([5, 6, 5])
    alone = make_behaviour("random", driving_spec)
    alone.reset(None, 6)
    for _ in range(4):
        actions = policy.act(np.zeros((3, 1), np.float32))
        assert np.array_equal(actions[1], alone.act(None))
        assert np.array_equal(actions[0], actions[2])
        assert not np.array_equal(actions[0], actions[1])


def test_dreams_begin_with_what_the_simulator_shows_first(tiny_model):
    states = first_states(tiny_model, [3, 4])
    env = make_simulator("car-racing")
    frame, _ = env.reset(seed=4)
    pictures = torch.from_numpy(frame)[None].permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = tiny_model.initial_state(pictures)
    assert torch.allclose(states.latent[1], expected.latent[0], atol=1e-4)
    assert not torch.allclose(states.latent[0], expected.latent[0], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "action"),
    [("0.5 -0.25", [0.5, 0, 0.25, 1]), ("-2 0.5 0.1 -1", [-1, 0.5, 0.1, -1])],
)
def test_a_held_action_is_written_as_steering_and_acceleration_or_in_full(text, action, driving_spec):
    behaviour = make_behaviour(f"held({text})", driving_spec)
    behaviour.reset(None, 0)
    assert [behaviour.act(None).tolist() for _ in range(2)] == [pytest.approx(action)] * 2
    assert behaviour.name == f"held({text})"


# --- Predicted against real ------------------------------------------------------------------------------------------


def drives(returns, lengths, by_horizon=None, max_steps=None):
    seeds = list(range(len(returns)))
    return RealDrives("driven", seeds, returns, lengths, by_horizon or {}, max_steps)


def test_like_is_compared_with_like():
    predicted = {name: np.full((2, 4), value, np.float32) for name, value in (("a", 1.0), ("b", 2.0))}
    known = {
        "a": drives([10.0, 12.0], [9, 9], {2: [3.0, 5.0], 4: [4.0, 4.0]}),
        "b": drives([30.0, 30.0], [2, 1]),  # over after two steps: the whole is the return over two, and over four
    }
    scores, found = score_policies(predicted, known, [2, 4])
    assert [one.compared_with for one in found] == ["same_steps", "same_steps"]
    assert [(one.predicted, one.real) for one in scores[0].by_horizon] == [(2.0, 4.0), (4.0, 4.0)]
    assert [(one.predicted, one.real) for one in scores[1].by_horizon] == [(4.0, 30.0), (8.0, 30.0)]
    assert scores[0].by_horizon[0].real_ci95 == (3.0, 5.0)
    assert scores[0].predicted_returns == {2: [2.0, 2.0], 4: [4.0, 4.0]}

    # Cut at two steps, a drive says nothing of four: whole drives take their place, for every policy.
    scores, found = score_policies(predicted, known | {"b": drives([30.0, 30.0], [2, 2], max_steps=2)}, [2, 4])
    assert [one.compared_with for one in found] == ["same_steps", "whole_drive"]
    assert [score.by_horizon[1].real for score in scores] == [11.0, 30.0]
    with pytest.raises(ConfigError, match="the policy 'b' has no drives"):
        score_policies(predicted, {"a": known["a"]}, [2])
    with pytest.raises(ConfigError, match=r"the horizons \[5\] do not fit dreams of 4 steps"):
        score_policies(predicted, known, [5])


def test_driving_scores_are_ranked_where_all_are_known(tmp_path):
    predicted = {name: np.full((2, 4), value, np.float32) for name, value in (("a", 1.0), ("b", 3.0), ("c", 2.0))}
    driven = {
        name: dataclasses.replace(drives([value], [2]), driving_score=score)
        for name, value, score in (("a", 1.0, 10.0), ("b", 2.0, 60.0), ("c", 3.0, 90.0))
    }
    scores, found = score_policies(predicted, driven, [2, 4])
    against = driving_agreement(scores)
    # b and c, 30 apart, are taken for each other.
    assert [(one.steps, one.compared_with, one.spearman, one.mmrv, one.mmrv_share) for one in against] == [
        (steps, "driving_score", pytest.approx(0.5), pytest.approx(20.0), pytest.approx(0.25)) for steps in (2, 4)
    ]
    assert {one.mean_error for one in against} == {one.mean_absolute_error for one in against} == {None}
    card = Scorecard(
        model="m",
        simulator=describe_simulator(make_simulator("car-racing")),
        starts="model",
        seeds=[0, 1],
        draws=1,
        policies=scores,
        agreement=found,
        choices=None,
        dream_s=1.0,
        drive_s=None,
        choices_s=None,
        machine=measured_on("cpu"),
    )
    assert "driving score" not in card.to_markdown()
    card = dataclasses.replace(card, driving_agreement=against)
    text = card.to_markdown()
    assert "| 2 | driving score of whole drives |" in text and "| c | " in text and "90.0" in text
    write_scorecard(card, tmp_path)
    assert read_scorecard(tmp_path / "scorecard.json") == card

    scores, _ = score_policies(predicted, driven | {"c": drives([3.0], [2])}, [2, 4])
    assert driving_agreement(scores) == []


# --- Multiple choice -------------------------------------------------------------------------------------------------


def point(returns, distances=None):
    nothing = Observation(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 0), np.float32))
    choices = np.zeros((len(returns), 30, 4), np.float32)
    return DecisionPoint(0, nothing, np.zeros((0, 4), np.float32), choices, np.array(distances), spread(returns))


def spread(returns):
    """Rewards ``(C, 30)`` of sequences whose whole return is earned in step 11."""
    rewards = np.zeros((len(returns), 30))
    rewards[:, 10] = returns
    return rewards


def test_choices_are_scored_by_what_the_simulator_gave():
    points = [point([1.0, 5.0, 3.0, 5.0], [0.1, 0.2, 0.3, 0.4]), point([9.0, 1.0, 2.0, 8.0], [0.2, 0.1, 0.3, 0.4])]
    promised = [spread([0.0, 1.0, 2.0, 9.0]), spread([1.0, 2.0, 3.0, 4.0])]
    score = score_choices(points, promised)
    assert (score.points, score.choices, score.steps) == (2, 4, 30)
    assert (score.accuracy, score.ci95) == (0.5, (0.0, 1.0))
    assert score.chance == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert score.nearest_accuracy == 0.0
    assert (score.regret, score.nearest_regret) == (0.5, 6.0)
    assert score.chance_regret == pytest.approx((1.5 + 4.0) / 2)
    assert score_choices(points, promised, 11) == dataclasses.replace(score, steps=11)
    early = score_choices(points, promised, 10)  # nothing is earned yet: any is as good as the best
    assert (early.steps, early.accuracy, early.chance, early.regret) == (10, 1.0, 1.0, 0.0)


def test_a_model_that_knows_the_world_prefers_what_leads_to_its_middle():
    world = PointWorld(drift=0.0)
    choices = np.zeros((3, 4, 4), np.float32)
    choices[:, :, 0] = [[1.0], [-0.5], [0.0]]
    seen = Observation(np.full((1, 8, 8, 3), 255, np.uint8), np.zeros((1, 0), np.float32))  # at position 1
    moment = dataclasses.replace(point([0.0, 0.0, 0.0]), observed=seen, choices=choices)
    expected = [REWARD * sum(1 - abs(1 + step * pace) for step in range(1, 5)) for pace in (0.5, -0.25, 0.0)]
    assert dream_of_choices(world, moment, draws=2).sum(1) == pytest.approx(expected, rel=1e-4)


def test_decision_points_are_restored_by_driving_there_again(driving_spec):
    driver = make_behaviour("autopilot", driving_spec)
    (moment,) = record_decision_points(driving_spec, [driver], 1, seed=990_000, steps=4)
    assert moment.choices.shape == (5, 4, 4)
    assert len(moment.observed.image) == len(moment.actions) + 1 >= 21
    env = make_simulator("car-racing")
    assert moment.rewards.shape == (5, 4)
    for choice, expected in zip(moment.choices[[0, 4]], moment.rewards[[0, 4]], strict=True):
        frame, _ = env.reset(seed=990_000)
        for action in moment.actions:
            frame = env.step(action)[0]
        assert np.array_equal(frame, moment.observed.image[-1])
        assert [env.step(action)[1] for action in choice] == pytest.approx(expected.tolist(), abs=1e-9)
    assert moment.distances[:4].min() > 0


class Forgetful(gym.Env):
    """Its rewards depend on what was driven before."""

    metadata = {"render_modes": []}  # noqa: RUF012
    steps = 0

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action):
        Forgetful.steps += 1
        return np.zeros((8, 8, 3), np.uint8), float(Forgetful.steps), False, False, {}


def test_a_simulator_that_does_not_repeat_itself_is_refused():
    gym.register(id="WmGymForgetful-v0", entry_point=Forgetful)
    simulator = describe_simulator(make_simulator("WmGymForgetful-v0"))
    with pytest.raises(SimulatorError, match="does not repeat a drive under the same seed and actions"):
        record_decision_points(simulator, [make_behaviour("random", simulator)], 1, seed=1, steps=2)


# --- The whole -------------------------------------------------------------------------------------------------------


def test_the_command_judges_the_bundled_model(tmp_path, capsys):
    given = tmp_path / "random.json"
    first = evaluate("random", "car-racing", episodes=2, seed=990_000, max_episode_steps=52, progress=False)
    write_json_result(given, first.to_json())
    command = ["judge", "--model", "bundled", "--policies", ",".join(POLICIES), "--real", str(given), "--steps", "52"]
    command += ["--episodes", "2", "--draws", "2", "--choices", "1", "--seed", "990000", "--device", "cpu", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "card.json")]) == 0
    printed = capsys.readouterr().out
    card = json.loads((tmp_path / "card.json").read_text())
    assert card == json.loads((tmp_path / "out" / "scorecard.json").read_text())
    assert printed == (tmp_path / "out" / "scorecard.md").read_text()
    with Image.open(tmp_path / "out" / "scatter.png") as picture:
        assert picture.width > 600

    by_name = {score["policy"]: score for score in card["policies"]}
    assert tuple(by_name) == POLICIES
    assert by_name["random"]["drives"]["source"] == str(given)
    assert by_name["random"]["drives"]["returns"] == first.returns
    driven = evaluate("bundled", episodes=2, seed=990_000, max_episode_steps=52, gap=False, progress=False)
    assert by_name["bundled"]["drives"]["returns"] == driven.returns
    assert by_name["bundled"]["by_horizon"][1]["real"] == pytest.approx(driven.mean_return)
    assert [(one["steps"], one["compared_with"]) for one in card["agreement"]] == [
        (50, "same_steps"),
        (52, "same_steps"),
    ]
    # So far apart that the shipped model must tell them: a driver of the whole track, and one that holds the wheel.
    promised = {name: score["by_horizon"][0]["predicted"] for name, score in by_name.items()}
    assert promised["bundled"] > promised["held(0.1 0.3)"] + 50
    assert card["agreement"][0]["pearson"] > 0.9
    assert (card["choices"]["points"], card["choices"]["steps"]) == (1, 30)
    assert [one["steps"] for one in card["shorter_choices"]] == [10, 20]
    assert "| at random |" in printed


def test_whole_drives_and_the_models_own_start_states(tmp_path):
    """The file of an evaluation from before returns were kept by horizon."""
    values = evaluate("held(0 0)", "car-racing", episodes=1, max_episode_steps=8, progress=False).to_json()
    for name in ("returns_by_horizon", "max_episode_steps"):
        del values[name]
    values |= {"returns": [-1.0], "lengths": [9]}
    write_json_result(tmp_path / "old.json", values)
    write_json_result(tmp_path / "new.json", values | {"driver": "random", "returns": [-2.0]})
    card = judge(
        "bundled",
        ["random", "held(0 0)"],
        results=[tmp_path / "old.json", tmp_path / "new.json"],
        episodes=2,
        steps=5,
        draws=1,
        starts="model",
        progress=False,
    )
    assert [one.compared_with for one in card.agreement] == ["whole_drive"]
    assert [score.by_horizon[0].real for score in card.policies] == [-2.0, -1.0]
    assert (card.starts, card.choices, card.choices_s) == ("model", None, None)
    assert "real return of whole drives" in card.to_markdown()


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    """An empty working folder, where the first thing that a judgement does fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wm_gym.agents.evaluation.judge.resolve_model", lambda *_: pytest.fail("work has begun"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"policies": ["bundled"]}, ConfigError, "1 policy cannot be ranked; name at least two"),
        ({"policies": ["random", "bundeld"]}, ConfigError, r"'bundeld' is neither .*did you mean 'bundled'"),
        ({"policies": ["random", "autopilot"]}, ConfigError, "'autopilot' cannot drive in a dream"),
        ({"policies": ["random", "noisy(bundled)"]}, ConfigError, r"'noisy\(bundled\)' cannot drive in a dream"),
        ({"policies": ["random", "random"]}, ConfigError, "'random' is named twice"),
        (
            {"policies": ["random", "held(left)"]},
            ConfigError,
            r"holds no action of this simulator; write 2 or 4 numbers",
        ),
        ({"policies": ["random", "held(1 2 3)"]}, ConfigError, "write 2 or 4 numbers"),
        ({"episodes": 0}, ConfigError, "episodes=0 must be a whole number of at least 1"),
        ({"steps": 0}, ConfigError, "steps=0"),
        ({"draws": 0}, ConfigError, "draws=0"),
        ({"choices": -1}, ConfigError, "choices=-1"),
        ({"counterfactuals": -1}, ConfigError, "counterfactuals=-1"),
        ({"model": "missing"}, BundleError, "there is no world model at 'missing'"),
        ({"results": ["missing.json"]}, BundleError, "missing.json"),
        ({"results": ["damaged.json"]}, BundleError, r"'damaged\.json' is damaged"),
        ({"results": ["no_evaluation.json"]}, BundleError, r"'no_evaluation\.json' is no evaluation: returns"),
        ({"results": ["stranger.json"]}, ConfigError, "an evaluation of 'autopilot', which is not among the policies"),
        ({"results": ["other.json"]}, BundleError, r"was driven in CarRacingDriving-v0 \(64x64, max_frames=40\), but"),
        ({"results": ["one.json", "one.json"]}, ConfigError, "is the second evaluation of 'random'"),
        ({"results": ["nameless.json"]}, BundleError, "does not say who drove in which simulator"),
        ({"results": ["uneven.json"]}, BundleError, "of different numbers of episodes"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_before_any_work(
    arguments, error, sentence, in_empty_folder, driving_spec
):
    simulator = driving_spec.model_dump(mode="json")
    one = {
        "driver": "random",
        "simulator": simulator,
        "returns": [1.0],
        "lengths": [9],
        "seeds": [5],
        "mean_return": 1.0,
    }
    files = {
        "one": one,
        "stranger": one | {"driver": "autopilot"},
        "other": one | {"simulator": simulator | {"kwargs": {"max_frames": 40}}},
        "nameless": {name: value for name, value in one.items() if name != "driver"},
        "no_evaluation": {"loss": 1.0},
        "uneven": one | {"seeds": [5, 6]},
    }
    for name, values in files.items():
        write_json_result(in_empty_folder / f"{name}.json", values)
    (in_empty_folder / "damaged.json").write_text('{"returns": [1.0')
    with pytest.raises(error, match=sentence) as raised:
        judge(**{"model": "bundled", "policies": ["random", "bundled"], "progress": False, **arguments})
    assert "\n" not in str(raised.value)


def test_agents_with_eyes_of_their_own_are_shown_the_dream(agent_folder, pixel_agent_folder):
    names = ["random", "bundled", str(agent_folder), str(pixel_agent_folder)]
    of_another_model = judge(agent_folder / "model", names, episodes=2, steps=4, draws=2, progress=False)
    assert [one.policy for one in of_another_model.policies] == names
    assert all(np.isfinite(one.by_horizon[0].predicted) for one in of_another_model.policies)


def test_an_onlooker_acts_on_the_frames_of_each_dream_as_on_those_of_a_drive(
    agent_folder, pixel_agent_folder, tiny_model
):
    torch.manual_seed(1)
    dreaming = WorldModel(tiny_model.config, tiny_model.simulator).eval()
    dreaming.start_states = tiny_model.start_states
    for folder in (agent_folder, pixel_agent_folder):
        onlooker, alone = OnlookerInDreams(Driver.load(folder)), [Driver.load(folder) for _ in range(3)]
        for _ in range(2):  # a second batch of dreams begins with nothing left of the first one
            onlooker.reset([0, 1, 2])
            for one in alone:
                one.reset()
            rollouts = ImaginedRollouts(
                3,
                model=dreaming,
                horizon=5,
                observation="image",
                action=None,
                device=None,
                start_states=None,
                termination="never",
            )
            rollouts.random.seed([3, 4, 5])
            rollouts.reset()
            for _ in range(5):
                frames = rollouts.observations()
                actions = onlooker.act(frames)
                expected = np.stack([one.act(frame) for one, frame in zip(alone, frames, strict=True)])
                assert actions == pytest.approx(expected, abs=1e-5)
                rollouts.step(actions)
            assert len(np.unique(actions, axis=0)) == 3


def test_a_dream_earns_the_same_whichever_way_its_own_model_is_looked_through(tiny_model):
    """What an agent sees changes what it does, and nothing else of the dream."""

    class Still:
        def __init__(self, sees):
            self.sees = sees

        def reset(self, seeds):
            self.count = len(seeds)

        def act(self, observed):
            assert observed.shape == (
                (self.count, 64, 64, 3) if self.sees == "image" else (self.count, tiny_model.feature_dim)
            )
            return np.zeros((self.count, 4), np.float32)

    starts = drawn_states(tiny_model, 3, 0)
    latent, image = (
        dream_drives(tiny_model, Still(sees), starts, [1, 2, 3], steps=6, draws=2) for sees in ("latent", "image")
    )
    assert latent.std() > 0 and np.array_equal(latent, image)


def test_an_agent_of_another_simulator_is_refused(agent_folder, tmp_path, tiny_model, small_config):
    larger = tiny_model.simulator.model_copy(update={"frame_size": (96, 96)})
    config = tiny_model.config.model_copy(update={"frame_size": (96, 96)})
    model = WorldModel(config, larger).eval()
    with torch.no_grad():
        model.start_states = model.initial_state(torch.zeros(2, 3, 96, 96))
    other = train_agent(model, out=tmp_path / "larger", config=small_config, progress=False).path
    with pytest.raises(BundleError, match=r"cannot drive in dreams of .*: the frames of .* are 64x64, but .* 96x96"):
        judge("bundled", ["random", str(other)], progress=False)
    alias = agent_folder / ".." / "agent"
    with pytest.raises(ConfigError, match="is named twice"):
        judge(agent_folder / "model", [str(agent_folder), str(alias)], progress=False)


def test_native_formats_hold_all_their_values():
    action = ActionFormat.native(spaces.Box(-1, 1, (3,), np.float32))
    simulator = PointWorld().simulator.model_copy(update={"action": action})
    assert make_behaviour("held(0 1 2)", simulator).act(None).tolist() == [0.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match=r"write 3 numbers, as in held\(0 0 0\)"):
        make_behaviour("held(0)", simulator)
