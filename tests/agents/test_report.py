"""The report of a small real run: simulator, world model, agent and evaluations are all real ones."""

import argparse
import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_world import REWARD, PointWorld

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.agents.evaluation.judge import judge
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.reports import figures
from wm_gym.agents.reports.drives import Drive, make_film, measure_gap, record_drives
from wm_gym.agents.reports.judgement import read_scorecard, write_scorecard
from wm_gym.agents.reports.report import GIF_NAME, _gap_section, write_report
from wm_gym.agents.reports.run_files import read_record
from wm_gym.agents.training.dream_training import train_agent
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.cli import report as report_command
from wm_gym.config import load_config
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.data_collection.recording.collector import collect
from wm_gym.errors import BundleError, ConfigError
from wm_gym.frames import tensor_to_frames
from wm_gym.observation import split_observation
from wm_gym.state import LatentState
from wm_gym.training.trainer import WorldModelTrainer
from wm_gym.uncertainty import Uncertainty, VarianceNetwork

MAX_FRAMES = 240  # of the simulator: episodes of 60 steps
VOID_TAGS = {"meta", "img", "br"}


class Page(HTMLParser):
    """What the tests look at in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[bytes] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[name] for name in ("href", "src") if name in values and name != tag]
        if tag == "img":
            head, data = values["src"].split(",", 1)
            assert head in ("data:image/png;base64", "data:image/gif;base64")
            assert values["alt"]
            self.images.append(base64.b64decode(data, validate=True))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """A run as the demo leaves it, of the smallest sizes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "run"
    collect(
        folder / "data",
        "car-racing",
        make_behaviour=make_behaviour,
        episodes=4,
        behaviour="noisy:0.5,random:0.5",
        simulator_kwargs={"max_frames": MAX_FRAMES},
        progress=False,
    )
    config = load_config("debug")
    data = open_training_data(folder / "data", 0.5)
    WorldModelTrainer(
        config,
        data.simulator,
        data.train,
        data.validation,
        folder / "model",
        data_info=data.info,
        device="cpu",
        progress=False,
    ).run()
    small = AgentConfig(steps=96, num_envs=4, horizon=8, net_arch=(8,), batch_size=16, n_epochs=2, seed=3)
    train_agent(folder / "model", out=folder / "agent", config=small, device="cpu", progress=False)
    for name, driver in (("agent", folder / "agent"), ("random", "random")):
        evaluate(
            driver,
            data.simulator,
            episodes=3,
            max_episode_steps=15,
            json_path=folder / "evaluation" / f"{name}.json",
            progress=False,
        )
    return folder


@pytest.fixture
def run_folder(finished_run, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def driver(finished_run) -> Driver:
    return Driver.load(finished_run / "agent")


@pytest.fixture(scope="module")
def drive(driver) -> Drive:
    return record_drives(driver, [900_000])[0]


def read(page: Path) -> Page:
    return Page(page.read_text(encoding="utf-8"))


def test_the_page_shows_the_whole_run_and_needs_nothing_else(run_folder):
    (run_folder / "summary.json").write_text(json.dumps({"stages": [{"name": "collect", "seconds": 150.0}]}))
    written = write_report(run_folder)
    assert written == run_folder / "report" / "index.html"
    page = read(written)
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith("data:") for link in page.links)
    assert page.headings == [
        "Returns in the simulator",
        "A drive and the dream of it",
        "Reality gap",
        "Training",
        "Data",
        "Time",
        "Made by",
    ]
    for data in page.images:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            assert picture.width > 200
    assert (run_folder / "report" / GIF_NAME).read_bytes() in page.images
    assert {file.name for file in written.parent.iterdir()} == {"index.html", GIF_NAME}
    for name in ("agent", "random"):
        result = json.loads((run_folder / "evaluation" / f"{name}.json").read_text())
        low, high = result["ci95"]
        row = next(row for row in page.rows if row and row[0].startswith(name))
        assert row[1:] == [
            f"{result['mean_return']:.1f}",
            f"{low:.1f} to {high:.1f}",
            "3",
            "1000000 to 1000002 (held out)",
        ]
    returns = open_training_data(run_folder / "data", 0.5).info["mean_return"]
    assert next(row for row in page.rows if row[0] == "the collected data")[1] == f"{returns:.1f}"
    assert ["collect", "2.5 min"] in page.rows
    assert next(row for row in page.rows if row[0] == "agent" and len(row) == 9)[-1] == "3"


@pytest.mark.slow
def test_what_the_model_pays_for_a_held_wheel_is_in_the_page(run_folder):
    metrics = json.loads((run_folder / "model" / "metrics.json").read_text())
    measured = metrics["held_wheel"]
    page = read(write_report(run_folder))
    assert ["steering", "-0.3", "-0.15", "-0.05", "+0", "+0.05", "+0.15", "+0.3"] in page.rows
    label = f"return of {measured['steps']} dreamt steps"
    assert [label, *(f"{value:.1f}" for value in measured["returns"].values())] in page.rows
    metrics |= {"held_wheel": {**measured, "lost": 0.31}, "r2_reconstruction": 0.2}
    (run_folder / "model" / "metrics.json").write_text(json.dumps(metrics))
    warned = read(write_report(run_folder)).text
    assert "it costs 31 % of the return" in warned
    assert "its reconstructions have 20 % of what differs" in warned
    del metrics["held_wheel"]  # of a model from before, or of another simulator
    (run_folder / "model" / "metrics.json").write_text(json.dumps(metrics))
    assert "The wheel held" not in read(write_report(run_folder)).text


def test_equal_runs_give_equal_pages(run_folder):
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


def validations(losses):
    """Rows of a metrics file, one at every tenth update."""
    return [
        {"kind": "validation", "update": 10 * (place + 1), "loss": loss, "psnr": {"1": 20.0}, "ssim_copy": {"1": 0.5}}
        for place, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("saved_update", "keep", "update", "label"),
    [
        (30, "last", 30, "saved: 0.4"),
        (20, "best", 20, "saved: 0.2"),
        (10, "best", 10, "saved: 0.5"),  # whatever the losses are, the model says which one it is
        (None, "last", 30, "to be saved so far: 0.4"),
        (None, "best", 20, "to be saved so far: 0.2"),
        (77, "best", 20, "to be saved so far: 0.2"),
    ],
)
def test_the_curves_mark_the_model_that_is_saved(monkeypatch, saved_update, keep, update, label):
    monkeypatch.setattr(figures, "_png", lambda figure: figure)
    drawn = figures.draw_model_curves(validations([0.5, 0.2, 0.4]), saved_update, keep)
    panels = {axes.get_title(loc="left"): axes for axes in drawn.axes}
    _, marked = panels["Validation loss"].get_lines()
    assert list(marked.get_xdata()) == [update]
    assert [text.get_text() for text in panels["Validation loss"].get_legend().get_texts()] == [label]
    ssim = panels[f"SSIM by horizon (update {update})"]
    assert [line.get_label() for line in ssim.get_lines()] == ["repeating the last frame"]


def test_the_report_asks_the_saved_model_which_one_it_is(run_folder, monkeypatch):
    asked = []
    draw = figures.draw_model_curves
    monkeypatch.setattr(figures, "draw_model_curves", lambda *given: asked.append(given[1:]) or draw(*given))
    update = json.loads((run_folder / "model" / "metrics.json").read_text())["update"]
    write_report(run_folder)
    (run_folder / "model" / "metrics.json").unlink()  # as a training that has not finished
    config = run_folder / "model" / "run_config.yaml"
    config.write_text(config.read_text().replace("keep: best", "keep: last"))
    write_report(run_folder)
    assert asked == [(update, "best"), (None, "last")]


def test_missing_parts_are_left_out(run_folder):
    shutil.rmtree(run_folder / "evaluation")
    shutil.rmtree(run_folder / "data")
    (run_folder / "agent" / "agent.yaml").unlink()  # as a training that has not finished
    page = read(write_report(run_folder))
    assert page.headings == ["Training", "Made by"]
    assert "no finished agent" in page.text
    assert not (run_folder / "report" / GIF_NAME).exists()


def test_an_agent_alone_is_enough(run_folder, tmp_path):
    """A copied agent's folder, without the files of its training."""
    kept = ("agent.yaml", "policy.safetensors", "metrics.json", "model")
    alone = tmp_path / "alone"
    (alone / "agent").mkdir(parents=True)
    for name in kept:
        (run_folder / "agent" / name).rename(alone / "agent" / name)
    page = read(write_report(alone))
    assert page.headings == ["A drive and the dream of it", "Reality gap", "Made by"]
    assert next(row for row in page.rows if row[0] == "agent")[-1] == "3"


def test_a_scorecard_beside_the_run_becomes_a_section(run_folder):
    agent = str(run_folder / "agent")
    results = [run_folder / "evaluation" / f"{name}.json" for name in ("agent", "random")]
    values = json.loads(results[0].read_text()) | {"driver": agent}  # the run was copied
    results[0].write_text(json.dumps(values))
    policies = [agent, "random"]
    judged = judge(run_folder / "model", policies, results=results, episodes=2, steps=15, draws=1, progress=False)
    write_scorecard(judged, run_folder / "judge")
    assert read_scorecard(run_folder / "judge" / "scorecard.json") == judged
    page = read(write_report(run_folder))
    assert page.headings[3] == "The dream as a judge"
    assert page.open == []
    row = next(row for row in page.rows if row[0] == agent)
    assert row[1] == f"{values['mean_return']:.1f}"
    (run_folder / "judge" / "scorecard.json").write_text('{"model": "bundled"}')
    with pytest.raises(BundleError, match=r"scorecard\.json' is no scorecard: simulator: "):
        write_report(run_folder)


def test_every_text_is_escaped(run_folder):
    evil = "<script>alert(1)</script>"
    (run_folder / "evaluation" / "random.json").rename(run_folder / "evaluation" / "<b>&.json")
    (run_folder / "summary.json").write_text(json.dumps({"stages": [{"name": evil, "seconds": 1}]}))
    page = read(write_report(run_folder))
    assert not {"script", "b"} & set(page.tags)
    assert [evil, "1 s"] in page.rows
    assert any(row[0] == "<b>&" for row in page.rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"random\.json' is damaged"),
        ("[]", r"random\.json' is damaged: it must hold a mapping"),
        ('{"returns": []}', r"random\.json' is no evaluation: returns"),
    ],
)
def test_a_damaged_evaluation_is_named_before_anything_is_written(run_folder, content, message):
    (run_folder / "evaluation" / "random.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        write_report(run_folder)
    assert not (run_folder / "report").exists()


@pytest.mark.parametrize("held", [{"steps": 20, "returns": {"left": 1.0}}, {"returns": {"0": 1.0}}, "much"])
def test_damaged_metrics_of_a_held_wheel_are_named(tmp_path, held):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "metrics.json").write_text(json.dumps({"update": 3, "held_wheel": held}))
    with pytest.raises(BundleError, match=r"metrics\.json' is no file of a world model's metrics: held_wheel"):
        read_record(tmp_path)


def test_a_folder_without_model_and_agent_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(BundleError, match="neither a world model"):
        write_report(tmp_path)
    with pytest.raises(BundleError, match="neither a world model"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("seed", [-1, 999_998, 1_000_000])
def test_held_out_tracks_are_not_driven(finished_run, seed):
    with pytest.raises(ConfigError, match="held out"):
        write_report(finished_run, seed=seed)


def test_the_film_shows_the_drive_beside_its_dream(driver, drive, tmp_path):
    film = make_film(driver.model, drive, tmp_path / "film.gif")
    assert film.first_frame + film.context > 13  # later than the camera's first second
    assert film.steps == len(drive.actions) + 1 - film.first_frame - film.context
    assert film.gif == (tmp_path / "film.gif").read_bytes()
    with Image.open(io.BytesIO(film.gif)) as gif:
        assert gif.n_frames == film.context + film.steps
        for index in (0, gif.n_frames - 1):
            gif.seek(index)
            shown = np.asarray(gif.convert("RGB"), np.float32)[-256:, :256]
            real = drive.observed.image[film.first_frame + index].repeat(4, axis=0).repeat(4, axis=1)
            assert np.abs(shown - real).mean() < 6  # of 255: the palette costs a little


def test_drives_repeat_and_end_where_told(driver, drive):
    again = record_drives(driver, [900_000], max_steps=12)[0]
    assert len(again.actions) == 12
    assert again.observed.image.shape == (13, 64, 64, 3)
    assert np.array_equal(again.observed.image, drive.observed.image[:13])
    assert np.array_equal(again.rewards, drive.rewards[:12])
    assert len(drive.actions) == MAX_FRAMES // 4


def test_too_short_a_drive_has_no_film_and_no_gap(driver, drive, tmp_path):
    short = Drive(drive.seed, split_observation(drive.observed.image[:2]), drive.actions[:1], drive.rewards[:1])
    assert make_film(driver.model, short, tmp_path / "film.gif") is None
    assert measure_gap(driver, [short]) is None


class Pixels(PointWorld):
    """A wave along its track: the position follows the phase, which frames show in two colours.

    Unlike the point's, its rewards go up and down whatever the driver does, and one frame shows the whole state.
    """

    continuation = 1.0

    def imagine(self, state, action, noise=None):
        turn = 0.3 + 0.2 * action[:, 0]
        cosine, sine = state.latent[:, 0], state.latent[:, 1]
        latent = torch.stack((cosine * turn.cos() - sine * turn.sin(), cosine * turn.sin() + sine * turn.cos()), dim=1)
        return LatentState(latent, state.memory), REWARD * latent[:, 0], torch.full((len(latent),), self.continuation)

    def features(self, state):
        return state.latent[:, :1]

    def decode(self, state):
        colours = torch.cat((state.latent, torch.zeros(len(state.latent), 1)), dim=1)
        return colours[:, :, None, None].expand(-1, 3, 8, 8)

    def initial_state(self, frame):
        return LatentState(frame.mean(dim=(-1, -2))[:, :2], torch.zeros(len(frame), 1))


def drive_in_pixels(driver: Driver, steps: int, rng: np.random.Generator | None = None) -> Drive:
    """A real drive in a world that is the model itself; with ``rng`` under random actions."""
    world = driver.model
    state = LatentState(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1))
    frames, actions, rewards = [], [], []
    driver.reset()
    for _ in range(steps):
        frames.append(tensor_to_frames(world.decode(state))[0].numpy())
        actions.append(driver.act(frames[-1]) if rng is None else np.array([rng.uniform(-1, 1), 0, 0, 1], np.float32))
        state, reward, _ = world.imagine(state, torch.from_numpy(actions[-1])[None])
        rewards.append(float(reward))
    frames.append(tensor_to_frames(world.decode(state))[0].numpy())
    return Drive(0, split_observation(np.stack(frames)), np.stack(actions), np.asarray(rewards, np.float32))


@pytest.mark.parametrize("continuation", [1.0, 0.9])
def test_a_perfect_model_has_no_gap_but_for_the_dreams_that_it_ends(small_config, rng, continuation):
    world = Pixels()
    world.start_states = LatentState(torch.rand(16, 2), torch.zeros(16, 1))
    world.continuation = continuation
    with ImaginationTrainer(world, small_config) as trainer:
        driver = Driver(world, trainer.policy, trainer.config.action)
    drives = [drive_in_pixels(driver, steps) for steps in (60, 40)]
    windows, gap = measure_gap(driver, drives)
    # 60 steps leave room for 30 behind the first 20, from starts 20, 25 and 30; the shorter drive has none.
    assert windows.horizons == [by.steps for by in gap.by_horizon] == [1, 5, 10, 20, 30]
    assert gap.windows == 3
    assert np.array_equal(windows.real, [drives[0].rewards[start : start + 30] for start in (20, 25, 30)])
    assert windows.real.std() > 10
    # A frame shows the state to half of 2/255, which is worth 0.16 of a reward.
    assert windows.predicted == pytest.approx(windows.real, abs=0.4)
    assert windows.dreamt == pytest.approx(windows.real * continuation ** np.arange(30), abs=1.0)
    assert min(by.predicted_correlation for by in gap.by_horizon) > 0.99
    assert gap.reward.steps == 100
    assert gap.reward.expected_calibration_error < 0.4
    assert gap.termination.brier == pytest.approx((1 - continuation) ** 2)
    # A simulator that pays 2 less than the model believes, in every step; other actions than the agent's.
    wild = drive_in_pixels(driver, 60, rng)
    windows, gap = measure_gap(driver, [wild._replace(rewards=wild.rewards - 2)])
    assert windows.predicted == pytest.approx(windows.real + 2, abs=0.4)
    errors = {by.steps: by.predicted_error for by in gap.by_horizon}
    assert errors == pytest.approx({steps: 2 * steps for steps in errors}, rel=0.1)
    assert gap.reward.expected_calibration_error == pytest.approx(2, abs=0.4)


def test_the_gap_shows_the_uncertainty_where_the_model_tells_it(small_config):
    world = Pixels()
    world.start_states = LatentState(torch.rand(16, 2), torch.zeros(16, 1))
    with ImaginationTrainer(world, small_config) as trainer:
        driver = Driver(world, trainer.policy, trainer.config.action)
    drives = [drive_in_pixels(driver, 60)]
    plain = str(_gap_section(*measure_gap(driver, drives), drives))
    world.uncertainty = Uncertainty(VarianceNetwork(1, 4, horizon=30, hidden_dim=4))
    _, gap = measure_gap(driver, drives)
    assert [at.steps for at in gap.uncertainty] == [1, 5, 10, 20, 30]
    shown = str(_gap_section(*measure_gap(driver, drives), drives))
    assert "Uncertainty of the dream" in shown and f"{gap.uncertainty[-1].mean_deviation:.2f}" in shown
    assert "Uncertainty" not in plain


def test_the_command_prints_the_page(finished_run, tmp_path, capsys):
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    parser = argparse.ArgumentParser()
    report_command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["report", str(folder), "--device", "cpu", "--seed", "5"])
    assert arguments.run(arguments) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report" / "index.html")
    assert "track with seed 5" in read(folder / "report" / "index.html").text
