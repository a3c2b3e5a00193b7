"""The parts of tools/new_user.py; all of it is a step of the release."""

import json
import os
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from wm_gym.cli.main import build_parser

TOOL = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "new_user.py"))


def test_its_commands_parse():
    for command in TOOL["commands"](1000).values():
        program, *arguments = shlex.split(command)
        assert program == "wm-gym"
        build_parser().parse_args(arguments)


def test_a_step_prints_its_time_and_gives_its_output(tmp_path, capsys):
    printed = TOOL["step"]("say where", [sys.executable, "-c", "import os; print(os.getcwd())"], tmp_path, os.environ)
    assert Path(printed.strip()).resolve() == tmp_path.resolve()
    assert capsys.readouterr().out.endswith(" s  say where\n")


def test_a_step_that_fails_ends_it_with_a_sentence(tmp_path, capsys):
    command = [sys.executable, "-c", "print('so far'); raise SystemExit(3)"]
    with pytest.raises(SystemExit) as caught:
        TOOL["step"]("fall over", command, tmp_path, os.environ)
    *lines, sentence = str(caught.value).splitlines()
    assert lines == ["so far"] and "the step 'fall over' failed" in sentence and "exit code 3" in sentence
    assert not capsys.readouterr().out


def test_a_new_user_has_set_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("WM_GYM_CACHE_GB", "1")
    env = TOOL["user_environment"](tmp_path, tmp_path / "bin")
    assert not {"HF_TOKEN", "PYTHONPATH", "WM_GYM_CACHE_GB"} & env.keys()
    assert env["PATH"].startswith(f"{tmp_path / 'bin'}{os.pathsep}")
    assert Path(env["HF_HOME"]).parent == tmp_path == Path(env["WM_GYM_CACHE"]).parent


def test_the_first_dream_is_that_of_the_wheel_and_has_a_picture(tmp_path):
    check, installed = TOOL["check_first_dream"], tmp_path / "venv" / "wm_gym" / "__init__.py"
    with pytest.raises(SystemExit, match="not from the wheel"):
        check("/checkout/wm_gym/__init__.py\n", tmp_path / "venv", tmp_path)
    with pytest.raises(SystemExit, match="left no PNG"):
        check(f"{installed}\n", tmp_path / "venv", tmp_path)
    (tmp_path / TOOL["PICTURE"]).write_bytes(b"\x89PNG\r\n\x1a\n")
    check(f"{installed}\n", tmp_path / "venv", tmp_path)


def test_a_wheel_that_is_missing_is_told(tmp_path):
    with pytest.raises(SystemExit, match="there is no wheel"):
        TOOL["main"](["--wheel", str(tmp_path / "none.whl")])


def test_the_return_is_read(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"mean_return": 12.5}))
    assert TOOL["mean_return"](tmp_path / "result.json") == 12.5
