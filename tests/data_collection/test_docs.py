import re
import shlex
from pathlib import Path

from wm_gym.cli.main import build_parser
from wm_gym.data_collection import Dataset

DOCS = Path(__file__).parents[2] / "docs" / "dataset.md"


def test_the_examples_of_the_docs_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    exec(compile(examples[0], str(DOCS), "exec"), {})
    shown = capsys.readouterr().out
    assert "(8, 10, 64, 64, 3) (8, 9, 4)" in shown
    assert "speed_mps" in shown
    assert Dataset.open("runs/my_data").num_steps == 60
    exec(compile(examples[1], str(DOCS), "exec"), {})
    assert capsys.readouterr().out == "2 2\n0\n"
    assert len(list(Path("runs/downloads").glob("??/*/episode-*.safetensors"))) == 2


def test_the_commands_of_the_docs_parse():
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) >= 4
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])
