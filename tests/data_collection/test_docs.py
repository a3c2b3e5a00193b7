import re
from pathlib import Path

from wm_gym.data_collection import Dataset

DOCS = Path(__file__).parents[2] / "docs" / "dataset.md"


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 1
    exec(compile(examples[0], str(DOCS), "exec"), {})
    shown = capsys.readouterr().out
    assert "(8, 10, 64, 64, 3) (8, 9, 4)" in shown
    assert "speed_mps" in shown
    assert Dataset.open("runs/my_data").num_steps == 60
