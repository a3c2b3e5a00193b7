"""Searching for an agent's settings, with the real Optuna; the scores are given, so that it is known what they do."""

from __future__ import annotations

import sys

import pytest
import torch
import yaml

from wm_gym.agents.bundles.driver import Driver
from wm_gym.agents.bundles.folder import is_finished_agent, load_agent
from wm_gym.agents.policies.config import make_agent_config
from wm_gym.agents.training import tuning
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.agents.training.selection import DriveSelection
from wm_gym.agents.training.tuning import parse_search, tune
from wm_gym.cli.main import main
from wm_gym.errors import ConfigError, DivergedError, TrainingError
from wm_gym.training.log import read_metrics

optuna = pytest.importorskip("optuna", reason="needs the extra `tune`: pip install 'wm_gym[tune]'")

CONFIG = make_agent_config({"steps": 96, "num_envs": 4, "horizon": 8, "net_arch": (8,), "validate_every": 32})
SEARCHES = ("learning_rate=log:1e-5:1e-2", "n_epochs=int:1:3", "ent_coef=choice:0,0.01")


@pytest.fixture
def model(tiny_model, tmp_path):
    return tiny_model.save_pretrained(tmp_path / "model")


@pytest.fixture
def search(model, tmp_path):
    """Search with the scores that are given, one for each checkpoint in turn."""

    def run(scores, **changed):
        left = iter(scores)
        given = {
            "out": tmp_path / "tune",
            "trials": 2,
            "searches": SEARCHES,
            "config": CONFIG,
            "validation": lambda _: next(left),
            "progress": False,
            "say": lambda _: None,
            **changed,
        }
        summary = tune(model, **given)
        assert list(left) == []
        return summary

    return run


def outcomes(summary):
    return [(trial.number, trial.outcome, trial.score) for trial in summary.trials]


def test_the_trial_with_the_best_drives_is_found_and_the_search_goes_on(search, tmp_path):
    summary = search([1, 3, 2, 4, 5, 4])
    assert outcomes(summary) == [(0, "complete", 3.0), (1, "complete", 5.0)]
    assert summary.best.path == tmp_path / "tune" / "trial_001"
    agent = load_agent(summary.best.path)
    assert agent.metrics["score"] == 5.0
    found = agent.manifest.config
    assert summary.best.settings == (
        f"learning_rate={found.learning_rate}",
        f"n_epochs={found.n_epochs}",
        f"ent_coef={found.ent_coef:g}",
    )
    assert 1e-5 <= found.learning_rate <= 1e-2
    best = yaml.safe_load((tmp_path / "tune" / "best.yaml").read_text())
    assert make_agent_config(best) == make_agent_config(CONFIG.model_dump(), summary.best.settings)
    # The same again has nothing to do; more trials go on from what there is.
    assert search([]) == summary
    more = search([0, 0, 0], trials=3)
    assert more.trials[:2] == summary.trials
    assert more.best == summary.best
    assert len({trial.settings for trial in more.trials}) == 3


def test_a_bad_trial_is_stopped_by_its_drives(search, tmp_path, monkeypatch):
    # Dreams of the second trial pay the most, and do not save it.
    original = ImaginationTrainer.train_round
    rounds = []

    def paid(trainer):
        rounds.append(trainer)
        report = original(trainer)
        return {**report, "ep_rew_mean": 3.0 if len(rounds) == 4 else 0.0}

    monkeypatch.setattr(ImaginationTrainer, "train_round", paid)
    summary = search([4, 5, 6, 1, 7, 8, 7], trials=3, spared=1)
    assert outcomes(summary) == [(0, "complete", 6.0), (1, "pruned", 1.0), (2, "complete", 8.0)]
    rows = read_metrics(tmp_path / "tune" / "trial_001" / "metrics.jsonl")
    assert [(row["kind"], row["dream_steps"]) for row in rows] == [("train", 32), ("validation", 32)]
    assert not is_finished_agent(tmp_path / "tune" / "trial_001")
    # The last checkpoint saves nothing by being pruned, and more trials are spared where that is asked for.
    assert outcomes(search([6, 7, 0], trials=4, spared=1))[-1] == (3, "complete", 7.0)
    assert outcomes(search([0, 0, 0], trials=5, spared=9))[-1] == (4, "complete", 0.0)


def test_a_stopped_trial_is_gone_on_with(search, tmp_path, monkeypatch):
    whole = search([1, 3, 2, 4, 5, 4], out=tmp_path / "whole")
    original, rounds = ImaginationTrainer.train_round, []

    def interrupted(trainer):
        rounds.append(trainer.dream_steps)
        if len(rounds) == 5:  # the second one of the second trial
            raise KeyboardInterrupt
        return original(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImaginationTrainer, "train_round", interrupted)
        search([1, 3, 2, 4])
    summary = search([5, 4])
    assert outcomes(summary) == outcomes(whole)
    assert [trial.settings for trial in summary.trials] == [trial.settings for trial in whole.trials]
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'tune' / 'study.db'}")
    assert study.n_trials == 2


def test_a_trial_that_diverges_counts_as_failed(search, monkeypatch):
    original, rounds = ImaginationTrainer.train_round, []

    def diverging(trainer):
        rounds.append(trainer)
        if len(rounds) == 1:
            raise DivergedError("no longer finite.")
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(ImaginationTrainer, "train_round", diverging)
        summary = search([1, 1, 1])
    assert outcomes(summary) == [(0, "failed", None), (1, "complete", 1.0)]
    assert summary.trials[0].why == "no longer finite."
    assert summary.best.number == 1


def test_a_search_without_any_score_says_so(search):
    with pytest.raises(TrainingError, match=r"none of the 1 trials .* came to a score; the last one said: it has no"):
        search([None, None, None], trials=1)


@pytest.mark.slow
def test_the_drives_of_the_simulator_judge(model, driving_spec, tmp_path):
    spec = driving_spec.model_copy(update={"kwargs": {"max_frames": 24}})
    with DriveSelection(spec, 2) as selection:
        given = {"validation": selection, "searches": SEARCHES[:1], "config": CONFIG, "progress": False}
        summary = tune(model, out=tmp_path / "tune", trials=2, **given)
        assert selection.frames == 2 * 36
        assert summary.best.score == max(trial.score for trial in summary.trials)
        # Scores over other drives are not to be compared with these.
    with (
        DriveSelection(spec, 1) as selection,
        pytest.raises(TrainingError, match=r"other settings \(drives was 2 and is now 1\)"),
    ):
        tune(model, out=tmp_path / "tune", trials=3, **{**given, "validation": selection})
    driver = Driver.load(summary.best.path)
    assert isinstance(next(driver.policy.parameters()), torch.Tensor)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate", "is not of the form KEY=KIND:VALUES"),
        ("learning_rate=1e-5", "is not of the form KEY=KIND:VALUES"),
        ("learning_rate=lag:1e-5:1e-3", r"no kind 'lag' \(did you mean 'log'\?\)"),
        ("learning_rate=log:1e-3:1e-5", "the first number must be smaller"),
        ("learning_rate=log:1e-3:1e-3", "the first number must be smaller"),
        ("learning_rate=log:1e-3:inf", "the first number must be smaller"),
        ("learning_rate=log:0:1e-3", "needs numbers above 0"),
        ("learning_rate=log:-1:1e-3", "needs numbers above 0"),
        ("learning_rate=log:1e-5", "needs two numbers, as in log:LOW:HIGH"),
        ("learning_rate=log:1e-5:1e-4:1e-3", "needs two numbers"),
        ("horizon=int:1.5:3", "needs two whole numbers"),
        ("horizon=int:1:1" + "0" * 400, "needs two whole numbers"),
        ("ent_coef=choice:0", "at least two different values"),
        ("ent_coef=choice:0,0", "at least two different values"),
        ("ent_coef=choice:0,,1", "at least two different values"),
    ],
)
def test_a_search_that_makes_no_sense_is_one_sentence(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_search(text)


def test_a_choice_may_have_values_with_commas():
    assert parse_search("net_arch=choice:[8, 8],[16]").choices == ("[8, 8]", "[16]")


@pytest.mark.parametrize(
    ("searches", "said"),
    [
        ((), "nothing to search"),
        (("learning_rat=log:1e-5:1e-3",), r"unknown key 'learning_rat' \(did you mean 'learning_rate'\?\)"),
        (("gamma=float:0.9:1.5",), r"wrong at 'gamma'.*given: 1\.5"),
        (("horizon=int:0:5",), "wrong at 'horizon'"),
        (("activation=choice:tanh,tonh",), "wrong at 'activation'"),
        (("exploration_noise=float:0.1:0.2",), "exploration_noise"),
        (("algorithm.vf_cof=float:0.1:1",), "vf_cof"),
        (("gamma=float:0.9:1", "gamma=float:0.8:1"), "names 'gamma' twice"),
        (("seed=int:0:5",), "cannot be compared"),
    ],
)
def test_settings_are_looked_at_before_anything_is_written(search, tmp_path, searches, said):
    with pytest.raises(ConfigError, match=said):
        search([], searches=searches)
    assert not (tmp_path / "tune").exists()


def test_other_settings_are_another_search(search):
    search([1, 1, 1], trials=1)
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        search([], searches=("gamma=float:0.9:1",))


@pytest.mark.parametrize("damage", [lambda content: b"garbage" * 1000, lambda content: content[: len(content) // 2]])
def test_a_damaged_record_is_one_sentence(search, tmp_path, damage):
    search([1, 1, 1], trials=1)
    file = tmp_path / "tune" / "study.db"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TrainingError, match=r"study\.db' cannot be read .* restore it from a copy"):
        search([])


def test_optuna_that_is_not_installed_is_one_sentence_before_anything_is_written(search, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs Optuna; install it with `pip install 'wm_gym\[tune\]'`"):
        search([])
    arguments = ["--out", str(tmp_path / "tune"), "--search", "gamma=float:0.9:1"]
    assert main(["tune", "--model", "bundled", *arguments]) == 2
    assert "wm_gym[tune]" in capsys.readouterr().err
    assert not (tmp_path / "tune").exists()


def test_the_command_prints_the_best_settings(model, tmp_path, monkeypatch, capsys):
    scores = iter([1, 2, 3, 4, 5, 4])
    original = tuning.train_agent
    monkeypatch.setattr(
        tuning, "train_agent", lambda *a, **k: original(*a, **{**k, "on_checkpoint": lambda _: next(scores)})
    )
    settings = ["num_envs=4", "horizon=8", "net_arch=[8]", "validate_every=32"]
    arguments = [text for setting in settings for text in ("--set", setting)]
    arguments += ["--search", "gamma=float:0.9:0.99", "--search", "n_epochs=int:1:3", "--out", str(tmp_path / "tune")]
    arguments += ["--steps", "96", "--trials", "2", "--select-drives", "1", "--quiet"]
    assert main(["tune", "--model", str(model), *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 trials (2 complete)" in out
    best = yaml.safe_load((tmp_path / "tune" / "best.yaml").read_text())
    assert f"--set gamma={best['gamma']} --set n_epochs={best['n_epochs']}" in out
    assert "trial_001" in out
    assert main(["tune", "--model", str(model), *arguments, "--select-drives", "0"]) == 2
    assert "cannot judge a trial" in capsys.readouterr().err
