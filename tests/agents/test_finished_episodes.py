"""A stopped evaluation goes on from its finished episodes."""

import dataclasses

import pytest

from wm_gym.agents.evaluation import drives
from wm_gym.agents.evaluation.evaluation import evaluate
from wm_gym.cli.main import EXIT_INTERRUPTED, main

SETTINGS = {"max_episode_steps": 33, "progress": False}


@pytest.fixture
def driven(monkeypatch):
    """The numbers of the episodes that were driven, and the one at which Ctrl-C is pressed."""

    class Driven(list):
        stop_at = None

    numbers = Driven()
    drive = drives._Cockpit.drive

    def drive_and_note(cockpit, index, *arguments):
        if index == numbers.stop_at:
            raise KeyboardInterrupt
        numbers.append(index)
        return drive(cockpit, index, *arguments)

    monkeypatch.setattr(drives._Cockpit, "drive", drive_and_note)
    return numbers


def without_time(result):
    return {name: value for name, value in dataclasses.asdict(result).items() if name not in ("wall_s", "drive_s")}


def stopped(numbers, at, *arguments, **settings):
    """An evaluation that is stopped before an episode."""
    numbers.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments, **{**SETTINGS, **settings})
    numbers.clear()
    numbers.stop_at = None


def test_an_agents_evaluation_gives_what_one_in_one_go_gives(agent_folder, driven, tmp_path):
    file = tmp_path / "deep" / "result.json"
    settings = {"episodes": 3, "seed": 2_000_000}
    whole = evaluate(agent_folder, **SETTINGS, **settings)
    stopped(driven, 2, agent_folder, json_path=file, **settings)
    assert [path.name for path in file.parent.iterdir()] == ["result.json.part"]
    result = evaluate(agent_folder, json_path=file, **SETTINGS, **settings)
    assert driven == [2]
    assert result.reality_gap.windows == 6
    assert without_time(result) == without_time(whole)
    assert [path.name for path in file.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("change", "cut", "again"),
    [
        ({}, 40, [1, 2]),
        ({"episodes": 4}, 0, [2, 3]),
        ({"seed": 7}, 0, [0, 1, 2]),
        ({"max_episode_steps": 5}, 0, [0, 1, 2]),
    ],
)
def test_what_is_cut_off_or_of_another_evaluation_is_passed_over(driven, tmp_path, change, cut, again):
    part = tmp_path / "result.json.part"
    settings = {"episodes": 3, "json_path": tmp_path / "result.json"}
    stopped(driven, 2, "random", "car-racing", **settings)
    text = part.read_text()
    part.write_text(text[: len(text) - cut])
    evaluate("random", "car-racing", **{**SETTINGS, **settings, **change})
    assert driven == again
    assert not part.exists()


def test_the_episode_of_a_video_is_driven_again(driven, tmp_path):
    file = tmp_path / "result.json"
    settings = {"episodes": 3, "json_path": file, "video_path": tmp_path / "film.gif"}
    stopped(driven, 2, "random", "car-racing", **settings)
    evaluate("random", "car-racing", **SETTINGS, **settings)
    assert driven == [0, 2]


def test_a_finished_evaluation_called_again_drives_again(driven, tmp_path):
    for _ in range(2):
        evaluate("random", "car-racing", episodes=1, json_path=tmp_path / "result.json", **SETTINGS)
    assert driven == [0, 0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--json", "no-such-folder/result.json"], "stopped; run the same command again to go on"),
        ([], "stopped; with --json FILE the same command goes on from its finished episodes"),
    ],
)
def test_who_stops_a_command_learns_whether_it_goes_on(driven, capsys, options, sentence):
    driven.stop_at = 0
    code = main(["evaluate", "--agent", "random", "--env", "car-racing", "--episodes", "1", "--quiet", *options])
    assert code == EXIT_INTERRUPTED
    assert sentence in capsys.readouterr().err
