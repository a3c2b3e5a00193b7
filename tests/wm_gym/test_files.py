"""Writing: whole or not at all, through links and pipes, readable by others, and nothing left of dead processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import BaseModel, RootModel
from safetensors.torch import load_file

from wm_gym import files, run_folder
from wm_gym.errors import OutputError, TrainingError
from wm_gym.files import (
    check_replaceable,
    check_writable,
    describe_os_error,
    folder_written_atomically,
    is_free,
    remove_temporary_files,
    write_json_atomically,
    write_tensors,
    write_text_atomically,
    written_atomically,
)
from wm_gym.lock import exclusive_lock
from wm_gym.run_folder import RunFolder
from wm_gym.training.checkpoint import load_checkpoint, save_checkpoint


def test_a_link_is_followed(tmp_path):
    real = tmp_path / "elsewhere" / "real.json"
    real.parent.mkdir()
    (tmp_path / "result.json").symlink_to("again.json")
    (tmp_path / "again.json").symlink_to(real)
    write_json_atomically(tmp_path / "result.json", {"a": 1})
    assert json.loads(real.read_text()) == {"a": 1}
    assert (tmp_path / "result.json").is_symlink() and (tmp_path / "again.json").is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["again.json", "elsewhere", "real.json", "result.json"]


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_pipe_gets_the_content_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write_text_atomically(pipe, "through\n")
    reader.join(60)
    assert got == ["through\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="POSIX")
def test_the_standard_output_is_written_where_it_stands(tmp_path):
    """A redirected file keeps what was printed before and after."""
    code = (
        "from pathlib import Path; from wm_gym.files import write_text_atomically as w; print('before');"
        "link = Path('link'); link.symlink_to('/dev/stdout'); w(link, 'content\\n'); print('after')"
    )
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=tmp_path, check=True, timeout=240)
    assert (tmp_path / "out.txt").read_text() == "before\ncontent\nafter\n"


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"name": "value"})
        write_text_atomically(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [1, 1]


def test_an_error_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught, written_atomically(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert describe_os_error(caught.value).startswith(f"{str(path)!r}: the disk is full; free some space")
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "old"


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_dead_process_left_goes_with_the_next_write(tmp_path):
    left = tmp_path / f".a.json.{files._MACHINE}-{dead_process()}-0.partial.json"
    living = tmp_path / f".a.json.{files._MACHINE}-{os.getppid()}-0.partial.json"
    elsewhere = tmp_path / f".a.json.0000ffff-{dead_process()}-0.partial.json"
    forgotten = tmp_path / ".a.json.0000ffff-7-0.partial.json"
    other = tmp_path / f".b.json.{files._MACHINE}-{dead_process()}-0.partial.json"
    for path in (left, living, elsewhere, forgotten, other):
        path.write_text("half")
    os.utime(forgotten, (0, 0))
    write_json_atomically(tmp_path / "a.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {living.name, elsewhere.name, other.name, "a.json"}


def fill(path: Path, text: str) -> None:
    with folder_written_atomically(path) as folder:
        (folder / "file.txt").write_text(text)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_or_stays(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    model = tmp_path / "model"
    fill(model, "old")
    fill(model, "new")
    with pytest.raises(KeyboardInterrupt), folder_written_atomically(model) as folder:
        (folder / "file.txt").write_text("half")
        raise KeyboardInterrupt
    assert (model / "file.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    (tmp_path / "link").symlink_to("model")
    fill(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink() and (model / "file.txt").read_text() == "newer"


def test_without_an_exchange_an_interrupt_or_a_kill_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    model = tmp_path / "model"
    fill(model, "old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".partial" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill(model, "new")
    assert (model / "file.txt").read_text() == "old"
    model.rename(tmp_path / ".model.replaced")  # as a kill between the two renames leaves it
    with pytest.raises(ZeroDivisionError), folder_written_atomically(model):
        raise ZeroDivisionError
    assert (model / "file.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "a" / "b.json", "file, not a folder")):
        with pytest.raises(OutputError, match=message):
            check_writable(path)
    with pytest.raises(OutputError, match="no folder"):
        check_writable(tmp_path / "file", is_folder=True)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="leads to itself"):
        check_writable(tmp_path / "loop")
    with pytest.raises(OutputError, match=r"/proc/.*: "):
        check_writable("/proc/nothing.json")
    assert check_writable(tmp_path / "new" / "result.json") == tmp_path / "new" / "result.json"
    assert check_writable("/dev/null") == Path("/dev/null")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_folder_with_what_a_kill_left_is_free(tmp_path):
    assert is_free(tmp_path / "missing") and is_free(tmp_path)
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.0-1-0.partial.json").touch()
    (tmp_path / "checkpoints").mkdir()
    assert is_free(tmp_path, own=("checkpoints",)) and not is_free(tmp_path)
    assert check_replaceable(tmp_path, "x") is False
    (tmp_path / "checkpoints" / "photo.jpg").touch()
    assert not is_free(tmp_path, own=("checkpoints",))
    assert remove_temporary_files(tmp_path) == 1


def test_one_run_at_a_time(tmp_path):
    out = tmp_path / "new" / "run"
    code = (
        "import sys\nfrom pydantic import RootModel\nfrom wm_gym.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1], 'wm_gym.test', RootModel({'steps': 3})).held():\n    print('held')"
    )
    asked = [sys.executable, "-c", code, str(out)]
    with RunFolder(out, "wm_gym.test", RootModel({"steps": 3})).held():
        with pytest.raises(OutputError, match="another process is writing"), exclusive_lock(out / ".lock"):
            pass
        refused = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=120)
        assert "another process is writing" in refused.stderr and refused.returncode == 1
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "run_config.yaml"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120).stdout == "held\n"


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_another_process_begins_meanwhile_is_no_strangers(tmp_path, monkeypatch, first):
    run = RunFolder(tmp_path, "wm_gym.test", RootModel({"steps": 3}))

    def is_free_meanwhile(folder, own=()):
        monkeypatch.undo()
        free = None if first else is_free(folder, own)
        with run.held():
            (tmp_path / "progress.csv").touch()
        return is_free(folder, own) if free is None else free

    monkeypatch.setattr(run_folder, "is_free", is_free_meanwhile)
    with RunFolder(tmp_path, "wm_gym.test", RootModel({"steps": 3})).held():
        assert (tmp_path / "progress.csv").exists()


def test_a_folder_that_goes_while_it_is_looked_at_is_free(tmp_path, monkeypatch):
    folder = tmp_path / "made"
    (folder / "episodes").mkdir(parents=True)
    listed = Path.iterdir

    def listed_too_late(path):
        monkeypatch.undo()
        shutil.rmtree(folder)
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", listed_too_late)
    assert is_free(folder, own=("episodes",))


def test_a_run_goes_on_where_its_settings_have_become_more(tmp_path):
    class Settings(BaseModel):
        steps: int
        horizon: int = 30
        seed: int = 0

    old = RunFolder(tmp_path / "run", "k", RootModel({"steps": 3, "seed": 0}))
    with old.held():
        save_checkpoint(old.checkpoints / "last.pt", {"update": 1}, old.contents)
    new = RunFolder(tmp_path / "run", "k", Settings(steps=3))
    with new.held():
        assert load_checkpoint(new.checkpoints / "last.pt", new.contents) == {"update": 1}
    with (
        pytest.raises(TrainingError, match=r"\(horizon was 30 and is now 31\)"),
        RunFolder(tmp_path / "run", "k", Settings(steps=3, horizon=31)).held(),
    ):
        pass
    (tmp_path / "run" / "run_config.yaml").write_text(yaml.safe_dump({"steps": 4, "seed": 0}))
    changed = RunFolder(tmp_path / "run", "k", Settings(steps=4))
    with changed.held(), pytest.raises(TrainingError, match="belongs to another run"):
        load_checkpoint(changed.checkpoints / "last.pt", changed.contents)


@pytest.mark.parametrize("name", ["run.json", "run_config.yaml"])
def test_a_damaged_run_is_one_sentence(tmp_path, name):
    run = RunFolder(tmp_path / "run", "k", RootModel({"steps": 3}))
    with run.held():
        pass
    (tmp_path / "run" / name).write_bytes(b"[\xff")
    with pytest.raises(TrainingError, match=f"{name}' is damaged: .*; restore it from a copy"), run.held():
        pass


def test_a_run_that_is_refused_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(TrainingError, match="is not empty"), RunFolder(tmp_path / "photos", "k", RootModel({})).held():
        pass
    settings, identity = RootModel({"a": {"b": 1}}), {"data.id": "on it"}
    with RunFolder(tmp_path / "run", "k", settings, {"data": {"id": 7}}, identity=identity).held():
        pass
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(TrainingError, match=r"\(a.b was 1 and is now 2\)"),
        RunFolder(tmp_path / "run", "k", RootModel({"a": {"b": 2}})).held(),
    ):
        pass
    with (
        pytest.raises(TrainingError, match="holds a run on it"),
        RunFolder(tmp_path / "run", "k", settings, {"data": {"id": 8}}, identity=identity).held(),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path / "x.lock"):
        raise ZeroDivisionError
    assert not (tmp_path / "x.lock").exists()
