import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_simulator
from toy_simulator import make_behaviour

from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.episode_file import read_episode
from wm_gym.data_collection.datasets.verification import verify
from wm_gym.data_collection.recording.collector import collect
from wm_gym.errors import DatasetError, SimulatorError, SimulatorLostError, WMGymError

MIX = "wild:0.4,calm:0.6"


def collect_toy(out, **settings):
    settings = {"behaviour": MIX, "progress": False, "make_behaviour": make_behaviour, **settings}
    return collect(out, toy_simulator.NAME, **settings)


def episode_bytes(folder):
    return {path.name: path.read_bytes() for path in (folder / "episodes").iterdir()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Ten episodes made by one worker in one go."""
    out = tmp_path_factory.mktemp("reference") / "data"
    collect_toy(out, episodes=10)
    return out


def test_dataset_is_valid_and_says_where_it_comes_from(reference):
    dataset = Dataset.open(reference)
    assert dataset.num_episodes == 10
    assert verify(reference).is_valid
    assert {header.behaviour for header in dataset.episodes} == {"wild", "calm"}
    assert dataset.metadata.simulator.id == toy_simulator.ENV_ID
    assert dataset.metadata.simulator.frame_size == (16, 16)
    assert dataset.metadata.collection.behaviours == {"wild": 0.4, "calm": 0.6}
    assert dataset.metadata.created_with["wm_gym"]
    episode = dataset.read_episode(0)
    assert episode.infos.keys() == {"x", "is_left"}
    np.testing.assert_array_equal(episode.rewards, episode.actions[:, 0])
    assert (episode.frames[:, 0, -1, 0] == np.arange(len(episode) + 1)).all()


def test_worker_count_does_not_change_the_episodes(reference, tmp_path):
    summary = collect_toy(tmp_path / "data", episodes=10, workers=3)
    assert episode_bytes(tmp_path / "data") == episode_bytes(reference)
    assert (summary.num_episodes, summary.new_episodes) == (10, 10)
    assert summary.num_steps == summary.new_steps == Dataset.open(reference).num_steps


def test_running_again_resumes_and_extends(reference, tmp_path):
    out = tmp_path / "data"
    collect_toy(out, episodes=4)
    (out / "episodes" / "episode-000001.safetensors").unlink()
    (out / "episodes" / "episode-000002.safetensors.77.partial").write_bytes(b"half")
    before = (out / "episodes" / "episode-000003.safetensors").stat().st_mtime_ns
    summary = collect_toy(out, episodes=10, workers=2)
    assert summary.new_episodes == 7
    assert episode_bytes(out) == episode_bytes(reference)
    assert (out / "episodes" / "episode-000003.safetensors").stat().st_mtime_ns == before
    again = collect_toy(out, episodes=10)
    assert (again.num_episodes, again.new_episodes, again.steps_per_s) == (10, 0, 0.0)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_target_in_frames_takes_the_first_episodes_that_reach_it(reference, tmp_path, workers):
    lengths = [header.length for header in Dataset.open(reference).episodes]
    summary = collect_toy(tmp_path / "data", frames=sum(lengths[:5]) - 1, workers=workers)
    assert summary.num_steps == sum(lengths[:5])
    expected = {name: content for name, content in episode_bytes(reference).items() if name < "episode-000005"}
    assert episode_bytes(tmp_path / "data") == expected


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"seed": 1}, "collection.seed is 0 there and 1 here"),
        ({"behaviour": "calm"}, "collection.behaviours"),
        ({"codec": "raw"}, "codec.name is 'png' there and 'raw' here"),
        ({"max_episode_steps": 5}, "collection.max_episode_steps is None there and 5 here"),
        ({"simulator_kwargs": {"frame_size": 32}}, "simulator.frame_size"),
        ({"simulator_kwargs": {"size": 32}}, "simulator.kwargs.size"),
    ],
)
def test_another_setting_is_refused_by_name(reference, change, setting):
    before = episode_bytes(reference)
    with pytest.raises(DatasetError, match=setting):
        collect_toy(reference, episodes=12, **change)
    assert episode_bytes(reference) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"episodes": 1, "frames": 1},
        {},
        {"episodes": 0},
        {"frames": -5},
        {"episodes": 1, "workers": 0},
        {"episodes": 1, "seed": 1_000_000},
        {"episodes": 1, "codec": "gif"},
        {"episodes": 1, "max_episode_steps": 0},
        {"episodes": 1, "behaviour": "calm:0"},
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, settings):
    with pytest.raises(DatasetError):
        collect_toy(tmp_path / "data", **settings)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match="not empty"):
        collect_toy(tmp_path, episodes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unknown_simulator_or_behaviour_leaves_nothing(tmp_path):
    with pytest.raises(WMGymError):
        collect(tmp_path / "data", "NoSuchSimulator-v0", make_behaviour=make_behaviour, episodes=1, progress=False)
    with pytest.raises(SimulatorError, match="absent"):
        collect_toy(tmp_path / "data", episodes=1, behaviour="absent")
    assert not list(tmp_path.iterdir())


def test_an_exception_in_the_simulator_names_the_episode(tmp_path):
    with pytest.raises(SimulatorError, match=r"episode 0 \(behaviour \w+, seed \d+\): ZeroDivisionError: the toy"):
        collect_toy(tmp_path / "data", episodes=3, simulator_kwargs={"fail_at": 5})
    assert not list((tmp_path / "data" / "episodes").iterdir())


def test_a_killed_worker_is_replaced_and_its_episode_made_again(tmp_path):
    kill_file = tmp_path / "killed"
    collect_toy(tmp_path / "data", episodes=6, workers=2, simulator_kwargs={"kill_file": str(kill_file)})
    assert kill_file.exists()
    assert Dataset.open(tmp_path / "data").num_episodes == 6
    assert verify(tmp_path / "data").is_valid


def test_a_worker_that_dies_every_time_is_an_error(tmp_path):
    settings = {"kill_file": str(tmp_path / "killed"), "always_kill": True}
    with pytest.raises(SimulatorError, match="died 3 times"):
        collect_toy(tmp_path / "data", episodes=2, simulator_kwargs=settings)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_episode_whose_simulator_is_lost_is_made_again(reference, tmp_path, workers):
    where = [{"lose_file": str(tmp_path / f"lost {worker}")} for worker in range(workers)]
    summary = collect_toy(tmp_path / "data", episodes=10, worker_kwargs=where)
    assert summary.lost == len(list(tmp_path.glob("lost*"))) >= 1
    assert episode_bytes(tmp_path / "data") == episode_bytes(reference)
    assert "lost" not in (tmp_path / "data" / "dataset.json").read_text()


def test_a_worker_whose_simulator_is_gone_leaves_its_work_to_the_others(reference, tmp_path, given_up):
    with pytest.warns(UserWarning, match="worker 2 of 2 was given up, .* lost 3 times in a row: the toy is gone"):
        collect_toy(tmp_path / "data", episodes=60, worker_kwargs=[{"wait_for": str(given_up)}, {"is_gone": True}])
    found = episode_bytes(tmp_path / "data")
    assert len(found) == 60
    assert {name: found[name] for name in episode_bytes(reference)} == episode_bytes(reference)


def test_without_any_simulator_there_is_no_dataset(tmp_path):
    with pytest.raises(
        SimulatorLostError, match=r"episode \d .*: the simulator was lost 3 times in a row: the toy is gone;"
    ):
        collect_toy(tmp_path / "data", episodes=3, worker_kwargs=[{"is_gone": True}, {"is_gone": True}])
    assert not list(tmp_path.iterdir())
    collect_toy(tmp_path / "data", episodes=1)
    with pytest.raises(SimulatorLostError):
        collect_toy(tmp_path / "data", episodes=3, worker_kwargs=[{"is_gone": True}])
    assert Dataset.open(tmp_path / "data").num_episodes == 1


def test_episodes_are_truncated_on_request(tmp_path):
    collect_toy(tmp_path / "data", episodes=2, max_episode_steps=7)
    assert [(h.length, h.end) for h in Dataset.open(tmp_path / "data").episodes] == [(7, "truncated")] * 2


def test_a_foreign_episode_is_not_taken_for_an_own_one(reference, tmp_path):
    collect_toy(tmp_path / "data", episodes=1, seed=5)
    name = "episode-000001.safetensors"
    (tmp_path / "data" / "episodes" / name).write_bytes((reference / "episodes" / name).read_bytes())
    with pytest.raises(DatasetError, match="not an episode of this collection"):
        collect_toy(tmp_path / "data", episodes=2, seed=5)


def start_collection(out, episodes, sleep_s):
    """A collection in a process group of its own, as a terminal would start it."""
    script = (
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        # A background job of a shell hands down an ignored SIGINT, a terminal does not.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n"
        "    import test_collector\n"
        f"    test_collector.collect_toy(sys.argv[2], episodes={episodes}, workers=2,\n"
        f"                               simulator_kwargs={{'sleep_s': {sleep_s}}})\n"
    )
    path = out.parent / "script.py"
    path.write_text(script)
    return subprocess.Popen(
        [sys.executable, str(path), str(Path(__file__).parent), str(out)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_episodes(process, out, count, timeout_s=240.0):
    deadline = time.monotonic() + timeout_s
    while len(list((out / "episodes").glob("*.safetensors"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_of_session(session):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for_no_process(session, timeout_s=240.0):
    deadline = time.monotonic() + timeout_s
    while processes_of_session(session):
        assert time.monotonic() < deadline, "worker processes are left"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_stopping_leaves_a_valid_dataset_and_no_process(tmp_path, how):
    out = tmp_path / "data"
    process = start_collection(out, episodes=500, sleep_s=0.005)
    try:
        wait_for_episodes(process, out, 3)
        if how == "interrupt":
            os.killpg(process.pid, signal.SIGINT)
            assert "KeyboardInterrupt" in process.communicate(timeout=240)[1]
        else:
            process.kill()
            process.communicate(timeout=240)
        assert process.returncode != 0
        wait_for_no_process(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    found = Dataset.open(out)
    assert 3 <= found.num_episodes < 500
    assert verify(out).is_valid
    if how == "interrupt":
        assert not list((out / "episodes").glob("*.partial"))
    kept = episode_bytes(out)
    more = found.num_episodes + 2
    collect_toy(out, episodes=more, workers=2, simulator_kwargs={"sleep_s": 0.005})
    after = episode_bytes(out)
    assert {name: after[name] for name in kept if name.endswith(".safetensors")} == {
        name: content for name, content in kept.items() if name.endswith(".safetensors")
    }
    assert not [name for name in after if name.endswith(".partial")]
    assert verify(out).is_valid


WRITER = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from episode_factory import make_episode
from wm_gym.data_collection import FrameCodec
from wm_gym.data_collection.datasets.episode_file import write_episode
for index in range(100_000):
    write_episode(Path(sys.argv[2]), make_episode(index % 7, steps=40, size=(64, 64)), FrameCodec.parse("raw"))
    if index == 0:
        kill = lambda: (time.sleep(float(sys.argv[3])), os.kill(os.getpid(), signal.SIGKILL))
        threading.Thread(target=kill).start()
"""


def test_a_kill_while_writing_leaves_only_whole_episodes(tmp_path):
    for delay_s in (0.05, 0.11, 0.17):
        folder = tmp_path / f"{delay_s}"
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(folder), str(delay_s)],
            check=False,
            timeout=240,
        )
        assert done.returncode == -signal.SIGKILL
        whole = sorted(folder.glob("episode-*.safetensors"))
        assert whole
        for path in whole:
            assert len(read_episode(path)) == 40


def test_two_collections_do_not_share_a_folder(tmp_path):
    out = tmp_path / "data"
    process = start_collection(out, episodes=500, sleep_s=0.01)
    try:
        wait_for_episodes(process, out, 1)
        with pytest.raises(DatasetError, match="another process is writing"):
            collect_toy(out, episodes=500, simulator_kwargs={"sleep_s": 0.01})
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=240)


def test_progress_shows_episodes_steps_and_return(tmp_path, capsys):
    collect_toy(tmp_path / "data", episodes=2, progress=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "mean_return" in shown
    assert "steps_per_s" in shown


def test_metadata_records_the_settings(reference):
    content = json.loads((reference / "dataset.json").read_text())
    assert content["collection"] == {
        "seed": 0,
        "behaviours": {"wild": 0.4, "calm": 0.6},
        "max_episode_steps": None,
        "patience": None,
    }
    assert content["source"] == f"collected from {toy_simulator.ENV_ID}"
