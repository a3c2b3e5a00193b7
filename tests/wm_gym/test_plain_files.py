import os

import pytest

from wm_gym.errors import BundleError, WMGymError
from wm_gym.plain_files import NotPlainError, parse_json, parse_yaml, read_json, read_text, read_yaml

BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        (BOMB, "more than 100,000 values"),
        ("- 1\n" * 60_000 + "- [1, 1]\n" * 30_000, "more than 100,000 values"),
        ("a: &a [*a]", "its alias 'a' names nothing, or what it is a part of"),
        ("a: &a {<<: *a}", "its alias 'a' names nothing, or what it is a part of"),
        ("a: !!int x", "no valid YAML"),
        ("a: !!bool x", "no valid YAML"),
        ("a: !!timestamp x", "no valid YAML"),
        ("a: !!binary x", "no valid YAML"),
        ("a: !!set {b}", "no valid YAML"),
        ("a: 1" + ":59" * 10_000, "a whole number of more than 64 characters"),
        ("a: 0x" + "f" * 30, "a whole number of more than 64 bits"),
        ("? [1]\n: 2", "no valid YAML"),
        ('a: "\\e[2J"', "control characters"),
        ("a: '\u202e'", "control characters"),
    ],
)
def test_yaml_that_is_more_than_plain_values(text, sentence):
    with pytest.raises(NotPlainError, match=sentence):
        parse_yaml(text)


def test_yaml_that_is_plain():
    text = "base: &base {steps: 10, rate: 3.0e-4}\nmine: {<<: *base, steps: 20}\nday: 2001-99-99\nmany: [*base, *base]"
    base = {"steps": 10, "rate": 3e-4}
    assert parse_yaml(text) == {
        "base": base,
        "mine": {"steps": 20, "rate": 3e-4},
        "day": "2001-99-99",
        "many": [base, base],
    }


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 70 + "1" + "}" * 70, "9" * 5_000, '"\\ud800"', '"\\u001b"', ""]
)
def test_json_that_is_more_than_plain_values(text):
    with pytest.raises(NotPlainError, match="is damaged"):
        parse_json(text)


def test_files_that_are_none(tmp_path):
    pipe, folder, device = tmp_path / "pipe", tmp_path / "folder", tmp_path / "device"
    os.mkfifo(pipe)
    folder.mkdir()
    device.symlink_to("/dev/zero")
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    for path, sentence in (
        (pipe, "is no regular file"),
        (folder, "is no regular file"),
        (device, "is no regular file"),
        (sparse, "has more than the"),
        (tmp_path / "nowhere", "there is no such file"),
    ):
        for read in (read_text, read_json, read_yaml):
            with pytest.raises(BundleError, match=sentence):
                read(path, error=BundleError, remedy="copy it again")


def test_a_message_holds_no_commands_for_a_terminal():
    assert str(WMGymError("no \x1b[2J\u202e, a\nline, ü")) == r"no \x1b[2J\u202e, a\nline, ü"
