import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.cli.main import build_parser
from wm_gym.envs.simulators import make_simulator
from wm_gym.errors import BundleError, ConfigError, OutputError, SimulatorError

SHORT = {"max_frames": 40}


def without_time(result):
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in ("wall_s", "drive_s")}


def run(driver, simulator="car-racing", **arguments):
    return evaluate(driver, simulator, simulator_kwargs=SHORT, progress=False, **{"episodes": 2, **arguments})


def test_results_are_those_of_driving_by_hand():
    result = run("autopilot")
    assert result.seeds == [1_000_000, 1_000_001]
    from wm_gym.agents.behaviours import make_behaviour

    env = make_simulator("car-racing", **SHORT)
    for i, seed in enumerate(result.seeds):
        autopilot = make_behaviour("autopilot", env.simulator)
        frame, _ = env.reset(seed=seed)
        autopilot.reset(env, seed)
        rewards, infos, truncated = [], [], False
        while not truncated:
            frame, reward, _, truncated, info = env.step(autopilot.act(frame))
            rewards.append(reward)
            infos.append(info)
        assert result.returns[i] == pytest.approx(sum(rewards), abs=1e-9)
        assert result.lengths[i] == 10 == len(rewards)
    assert result.mean_return == pytest.approx(np.mean(result.returns))
    assert result.driving.keys() == {"mean_speed", "off_road_fraction", "progress", "lap_finished_rate"}
    assert 0 < result.driving["progress"] < 0.5
    assert result.infos["frames"] == {"mean": 22.0, "last": 40.0}
    assert result.terminated_rate == 0


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["noisy", "agent"])
def test_the_number_of_workers_changes_nothing(driver, request):
    name = str(request.getfixturevalue("agent_folder")) if driver == "agent" else driver
    one = run(name, episodes=3)
    assert without_time(one) == without_time(run(name, episodes=3))
    assert without_time(one) == without_time(run(name, episodes=3, workers=2))
    assert one.returns != run(name, episodes=3, seed=2_000_000).returns


def test_the_json_file_holds_the_result(tmp_path):
    result = run("random", json_path=tmp_path / "deep" / "result.json")
    written = json.loads((tmp_path / "deep" / "result.json").read_text())
    assert written["returns"] == result.returns
    assert written["ci95"] == list(result.ci95)
    assert written["simulator"]["kwargs"] == SHORT
    assert (written["driver"], written["episodes"], written["seeds"]) == ("random", 2, result.seeds)
    assert written["provenance"]["packages"]["gymnasium"]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["result.json"]


def test_an_agent_drives_the_simulator_of_its_world_model(agent_folder):
    named = evaluate(agent_folder, "car-racing", episodes=1, max_episode_steps=4, progress=False)
    result = evaluate(agent_folder, episodes=1, max_episode_steps=4, progress=False)
    assert (result.simulator.id, result.simulator.frame_size, result.lengths) == ("CarRacingDriving-v0", (64, 64), [4])
    assert result.returns == named.returns
    assert (result.ci95, result.std_return) == (None, 0.0)


def test_an_agent_is_warned_of_another_rhythm_and_refuses_other_frames(agent_folder):
    arguments = {"episodes": 1, "max_episode_steps": 2, "progress": False}
    with pytest.warns(UserWarning, match=r"an action lasts 0\.02 s"):
        evaluate(agent_folder, simulator_kwargs={"action_repeat": 1}, **arguments)
    with pytest.raises(SimulatorError, match="are 96x96, but the agent was trained with 64x64"):
        evaluate(agent_folder, simulator_kwargs={"frame_size": 96}, **arguments)
    with pytest.raises(SimulatorError, match="CarRacing-v3 takes 3 native values"):
        evaluate(agent_folder, "CarRacing-v3", simulator_kwargs={"frame_size": 64}, **arguments)


def test_a_simulator_that_is_no_driving_one_needs_no_metrics():
    result = evaluate("random", "CarRacing-v3", episodes=1, max_episode_steps=3, progress=False)
    assert result.driving == {}
    assert result.lengths == [3]


def test_an_agents_dreams_are_compared_with_its_drives(agent_folder, tmp_path):
    arguments = {"episodes": 2, "max_episode_steps": 33, "progress": False}
    result = evaluate(agent_folder, json_path=tmp_path / "result.json", **arguments)
    gap = result.reality_gap
    assert (gap.horizon, gap.windows) == (8, 4)  # trained with 8 steps; starts 20 and 25 of both drives
    whole = gap.whole_drive
    assert (whole.drives, whole.mean_steps) == (2, 33)
    assert whole.mean_real == pytest.approx(result.mean_return, rel=1e-5)
    assert gap.reward.steps == gap.termination.steps == 66
    written = json.loads((tmp_path / "result.json").read_text())["reality_gap"]
    assert written == json.loads(json.dumps(dataclasses.asdict(gap)))
    assert evaluate(agent_folder, gap_horizon=12, **arguments).reality_gap.windows == 2  # start 20 only
    without = evaluate(agent_folder, gap=False, **arguments)
    assert without.reality_gap is None
    assert without.returns == result.returns


def test_the_command_prints_the_gap_unless_told_not_to(agent_folder, capsys):
    command = ["evaluate", "--agent", str(agent_folder), "--episodes", "1", "--seed", "7", "--device", "cpu", "--quiet"]

    def lines(*options):
        arguments = build_parser().parse_args([*command, *options])
        assert arguments.run(arguments) == 0
        return capsys.readouterr().out.splitlines()

    shown = lines("--max-episode-steps", "30", "--gap-horizon", "5")
    assert re.fullmatch(r"  dream against simulator over 5 steps: -?\d.* against -?\d.*, 2 windows", shown[-6])
    assert re.fullmatch(
        r"  the same over as many of these steps as were driven before .*: -?\d.* against .*", shown[-5]
    )
    assert re.fullmatch(r"  predicted along the recorded actions over 5 steps: .*, correlation .*", shown[-4])
    assert re.fullmatch(r"  dream against simulator over whole drives \(30 steps\): .* against .*", shown[-3])
    assert re.fullmatch(r"  predicted reward of the next step: .*, calibration error \d.*", shown[-2])
    assert re.fullmatch(r"  ends: 0 real, \d+ predicted, precision .*, recall unknown, Brier score \d.*", shown[-1])
    assert (
        "no drive has 8 steps after its first 20; give a smaller --gap-horizon" in lines("--max-episode-steps", "9")[-4]
    )
    assert not any("dream" in line for line in lines("--max-episode-steps", "9", "--no-gap"))


def test_a_driver_that_cannot_dream_has_no_gap():
    assert run("random").reality_gap is None


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"gap_horizon": 0}, ConfigError, "gap_horizon=0 must be a whole number of at least 1"),
        ({"driver": "autopliot"}, ConfigError, "did you mean 'autopilot'"),
        ({"simulator": "car-raicing"}, SimulatorError, "no simulator is called 'car-raicing'"),
        ({"simulator": None}, SimulatorError, "belongs to no simulator; name one"),
        ({"episodes": 0}, ConfigError, "episodes=0 must be a whole number of at least 1"),
        ({"workers": 0}, ConfigError, "workers=0"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"max_episode_steps": 0}, ConfigError, "max_episode_steps=0"),
        ({"video_path": "drive.avi"}, SimulatorError, r"videos are written as \.mp4 or \.gif, but 'drive\.avi'"),
        ({"json_path": "."}, OutputError, "is a folder; give the name of a file"),
    ],
)
def test_wrong_arguments_give_one_sentence(arguments, error, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=sentence):
        run(**{"driver": "random", "json_path": "result.json", **arguments})
    assert not list(tmp_path.iterdir())


def test_a_damaged_agent_is_refused_before_any_drive(agent_folder):
    (agent_folder / "agent.yaml").write_text("{}")
    with pytest.raises(BundleError, match="of another format"):
        run(str(agent_folder))


@pytest.mark.slow
def test_an_error_in_a_worker_reaches_the_caller(agent_folder):
    data = (agent_folder / "policy.safetensors").read_bytes()
    (agent_folder / "policy.safetensors").write_bytes(data[:-8])
    with pytest.raises(BundleError, match=r"policy\.safetensors' is missing or damaged"):
        run(str(agent_folder), workers=2)


def test_the_first_episode_is_filmed(tmp_path):
    plain = run("autopilot")
    filmed = run("autopilot", video_path=tmp_path / "drive.mp4")
    assert filmed.returns == plain.returns
    video = cv2.VideoCapture(str(tmp_path / "drive.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 11
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    shown, picture = video.read()
    assert shown
    assert picture.shape == (400, 600, 3)
    assert picture[..., 1].mean() > picture[..., 2].mean()  # grass is green, in OpenCV's order too
    run("autopilot", video_path=tmp_path / "drive.gif", episodes=1)
    with Image.open(tmp_path / "drive.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (11, 80)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["drive.gif", "drive.mp4"]


def test_the_interval_agrees_with_an_independent_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, 100.0, size=25)
    rng = np.random.default_rng(2)
    means = values[rng.integers(0, 25, size=(20_000, 25))].mean(axis=1)
    low, high = bootstrap_interval(values.tolist())
    width = high - low
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.03 * width)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.03 * width)
    assert bootstrap_interval(values.tolist()) == (low, high)


def test_intervals_of_few_or_equal_values():
    assert bootstrap_interval([3.0]) is None
    assert bootstrap_interval([3.0] * 7) == (3.0, 3.0)
    low, high = bootstrap_interval([1.0, 2.0])
    assert (low, high) == (1.0, 2.0)
