"""The command line on the real parts: the pipeline end to end, and one sentence for each thing that is wrong."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.carla_server.process import StandIn, free_port
from wm_gym import files
from wm_gym.cli.main import build_parser, main
from wm_gym.cli.options import carla_connections


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A quick demo: every step of the pipeline, by the command itself."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "wm_gym", "demo", "--quick", "--quiet", "--out", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


@pytest.mark.slow
def test_demo_prints_every_drivers_return_with_its_interval(demo):
    folder, printed = demo
    drivers = ("PPO trained in the dream", "the clone that it began from", "random", "autopilot", "the collected data")
    for driver in drivers:
        row = next(line for line in printed.splitlines() if line.startswith(driver))
        assert " to " in row
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["drivers"]) == {"agent", "clone", "random", "autopilot"}
    agent = json.loads((folder / "evaluation" / "agent.json").read_text())
    assert agent["seeds"] == [1_000_000, 1_000_001]
    assert agent["mean_return"] == pytest.approx(sum(agent["returns"]) / 2)
    assert (folder / "report" / "index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_demo_again_has_nothing_left_to_do(demo, capsys):
    folder, _ = demo

    def written():
        files = [
            file for file in folder.rglob("*") if file.is_file() and file.name not in ("stages.json", "summary.json")
        ]
        return {file.relative_to(folder): file.stat().st_mtime_ns for file in files}

    def seconds():
        return [stage["seconds"] for stage in json.loads((folder / "summary.json").read_text())["stages"]]

    before, took = written(), seconds()
    code, out, _ = run(capsys, "demo", "--quick", "--quiet", "--out", str(folder))
    assert code == 0
    assert "PPO trained in the dream" in out
    assert written() == before
    assert all(then <= now for then, now in zip(took, seconds(), strict=True)), "the first call's time still counts"

    # A result that was changed is made anew, and only that.
    (folder / "evaluation" / "random.json").write_text("{}")
    assert run(capsys, "demo", "--quick", "--quiet", "--out", str(folder))[0] == 0
    assert {file for file, time in written().items() if before.get(file) != time} == {Path("evaluation/random.json")}


@pytest.mark.slow
def test_each_command_by_itself(demo, capsys, tmp_path):
    folder, _ = demo
    data = str(tmp_path / "data")
    collect = ["collect", "--env", "car-racing", "--out", data, "--behaviour", "random", "--quiet"]
    assert run(capsys, *collect, "--episodes", "2", "--max-episode-steps", "20")[0] == 0
    assert "2 episodes, 40 steps" in run(capsys, *collect, "--episodes", "2", "--max-episode-steps", "20")[1]
    code, out, _ = run(capsys, "dataset", "info", data, "--json")
    assert code == 0
    assert json.loads(out)["steps"] == 40
    assert run(capsys, "dataset", "verify", data)[0] == 0

    agent_data = str(tmp_path / "agent_data")
    collect = ["collect", "--env", "car-racing", "--out", agent_data, "--behaviour", str(folder / "agent"), "--quiet"]
    assert run(capsys, *collect, "--episodes", "1", "--max-episode-steps", "5")[0] == 0

    agent = str(tmp_path / "agent")
    train = [
        "train-agent",
        "--model",
        str(folder / "model"),
        "--algo",
        "a2c",
        "--steps",
        "640",
        "--out",
        agent,
        "--quiet",
    ]
    assert run(capsys, *train, "--set", "num_envs=32", "--set", "horizon=10")[0] == 0
    video, result = tmp_path / "drive.gif", tmp_path / "result.json"
    evaluate = ["evaluate", "--agent", agent, "--episodes", "1", "--max-episode-steps", "5", "--quiet"]
    assert run(capsys, *evaluate, "--json", str(result), "--video", str(video))[0] == 0
    assert json.loads(result.read_text())["lengths"] == [5]
    assert video.stat().st_size > 0


@pytest.mark.slow
def test_any_image_environment_goes_through_the_same_commands(capsys, tmp_path):
    """The stock CarRacing-v3, a simulator that the package has no special code for: 3 native actions."""
    data, model, agent = (str(tmp_path / name) for name in ("data", "model", "agent"))
    collect = ["collect", "--env", "CarRacing-v3", "--frame-size", "64", "--action-repeat", "2", "--out", data]
    collect += ["--behaviour", "random", "--episodes", "3", "--max-episode-steps", "20", "--quiet"]
    assert run(capsys, *collect)[0] == 0
    more = str(tmp_path / "more")
    assert run(capsys, *collect, "--out", more, "--seed", "9")[0] == 0
    train = ["train-model", "--data", data, "--config", "debug", "--out", model, "--set", "training.steps=4", "--quiet"]
    assert "is given twice" in fails_with_one_sentence(capsys, *train, "--data", data)
    assert run(capsys, *train, "--data", more, "--seed", "1", "--device", "cpu")[0] == 0
    assert json.loads((tmp_path / "model" / "run.json").read_text())["data"]["num_episodes"] == 6
    dream = ["train-agent", "--model", model, "--steps", "320", "--out", agent, "--quiet"]
    assert run(capsys, *dream, "--set", "num_envs=16", "--set", "horizon=10")[0] == 0
    code, out, _ = run(capsys, "evaluate", "--agent", agent, "--episodes", "1", "--max-episode-steps", "5", "--quiet")
    assert code == 0
    assert "CarRacing-v3: mean return" in out


def fails_with_one_sentence(capsys, *arguments: str) -> str:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def test_a_truncated_dataset_file(capsys, tmp_path):
    data = tmp_path / "data"
    collect = ["collect", "--env", "car-racing", "--behaviour", "random", "--episodes", "2", "--max-episode-steps", "9"]
    assert run(capsys, *collect, "--out", str(data), "--quiet")[0] == 0
    file = sorted((data / "episodes").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-100])
    train = ["train-model", "--data", str(data), "--config", "debug", "--out", str(tmp_path / "m"), "--quiet"]
    assert file.name in fails_with_one_sentence(capsys, *train)
    assert not (tmp_path / "m").exists()
    code, out, _ = run(capsys, "dataset", "verify", str(data))
    assert code == 1
    assert file.name in out


def test_a_wrong_config_key(capsys, tmp_path):
    arguments = ["train-model", "--data", "nowhere", "--out", str(tmp_path / "m"), "--set", "training.stepz=3"]
    assert "did you mean 'steps'" in fails_with_one_sentence(capsys, *arguments)
    arguments = ["train-agent", "--model", "nowhere", "--out", str(tmp_path / "a"), "--set", "horizn=3"]
    assert "did you mean 'horizon'" in fails_with_one_sentence(capsys, *arguments)


def test_a_missing_model_path(capsys, tmp_path):
    arguments = ["train-agent", "--model", str(tmp_path / "none"), "--steps", "10", "--out", str(tmp_path / "a")]
    assert "no world model" in fails_with_one_sentence(capsys, *arguments)
    assert "none" in fails_with_one_sentence(capsys, "evaluate", "--agent", str(tmp_path / "none"))


def test_a_model_of_other_sizes(capsys, car_racing_data, tmp_path):
    train = ["train-model", "--data", str(car_racing_data), "--config", "base", "--out", str(tmp_path / "m"), "--quiet"]
    message = fails_with_one_sentence(capsys, *train)
    assert "64x64" in message
    assert "256x256" in message
    evaluate = ["evaluate", "--agent", "bundled", "--frame-size", "96", "--episodes", "1", "--quiet"]
    message = fails_with_one_sentence(capsys, *evaluate)
    assert "96" in message
    assert "64" in message


def test_a_simulator_without_images(capsys, tmp_path):
    collect = ["collect", "--env", "Pendulum-v1", "--episodes", "1", "--out", str(tmp_path / "data"), "--quiet"]
    assert "frames are needed" in fails_with_one_sentence(capsys, *collect)
    assert not (tmp_path / "data").exists()


CARLA_MISTAKES = [
    (["--env", "car-racing", "--carla", "localhost:2000"], "--carla belongs to --env carla, not to --env car-racing"),
    (["--env", "car-racing", "--carla-recycle", "5"], "--carla-recycle belongs to --env carla"),
    (["--carla", "localhost:x"], "'localhost:x' is no address of a CARLA server; write HOST:PORT"),
    (["--carla", "one:2000,one:2000"], "names a server twice"),
    (["--carla", "one:2000,two:2000", "--workers", "3"], "workers=3 does not fit 2 servers"),
    (["--carla-servers", "2"], "--carla-servers is for servers that are started here; give --carla-launch"),
    (["--carla-launch", "docker", "--carla", "elsewhere:2000"], "names servers elsewhere"),
    (["--carla-launch", "docker", "--carla-servers", "0"], "--carla-servers 0 must be a whole number of at least 1"),
    (["--carla-launch", "/nowhere/CarlaUE4.sh"], "'/nowhere/CarlaUE4.sh' names no CARLA server"),
]


@pytest.mark.parametrize(("options", "sentence"), CARLA_MISTAKES)
@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_wrong_options_for_carla(command, options, sentence, capsys, tmp_path):
    pytest.importorskip("carla")
    arguments = {
        "collect": ["--out", str(tmp_path / "data"), "--behaviour", "random"],
        "evaluate": ["--agent", "random", "--json", str(tmp_path / "result.json")],
    }[command]
    env = [] if "--env" in options else ["--env", "carla"]
    told = fails_with_one_sentence(capsys, command, *arguments, *env, "--episodes", "2", "--quiet", *options)
    assert sentence in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "bundled", "--env", "car-racing"],
        ["--model", "bundled", "--rounds", "1", "--data", "x", "--frame-size", "64"],
        ["--env", "car-racing", "--rounds", "1", "--data", "x"],
        ["--model", "bundled", "--env-set", "max_frames=9"],
    ],
)
def test_a_simulator_is_for_rounds_that_begin_with_nothing(options, capsys, tmp_path):
    out = tmp_path / "run"
    told = fails_with_one_sentence(capsys, "train-agent", *options, "--out", str(out), "--quiet")
    assert "belongs to --in simulator, not to --in dream; leave it out" in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "bundled"], "--carla belongs to --rounds or --select-drives; give one of them as well"),
        (["--in", "data", "--model", "bundled", "--data", "x"], "--carla belongs to --in simulator and dream"),
        (["--in", "simulator", "--env", "car-racing"], "--carla belongs to --env carla, not to --env car-racing"),
        (
            ["--model", "bundled", "--data", "x", "--rounds", "1"],
            "runs without a server, so 'host' cannot be set for it",
        ),
        (["--model", "bundled", "--select-drives", "1"], "runs without a server, so 'host' cannot be set for it"),
    ],
)
def test_servers_that_a_training_has_no_use_for_are_refused(options, sentence, capsys, tmp_path):
    out = tmp_path / "run"
    told = fails_with_one_sentence(capsys, "train-agent", *options, "--out", str(out), "--carla", "there", "--quiet")
    assert sentence in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            "collect --env car-racing --episodes 1 --behaviour random:0.9,noisy:0.1",
            "the behaviour 'noisy' reads the simulator's state, which --no-privileged rules out; use what sees "
            "observations alone: random, held(STEERING ACCELERATION), or an agent's folder.",
        ),
        (
            "train-agent --model bundled --data {noisy} --rounds 1",
            "the behaviour 'noisy' reads the simulator's state",
        ),
        (
            "train-agent --model bundled --data {random} --rounds 1 --set-rounds behaviour=autopilot",
            "the behaviour 'autopilot' reads the simulator's state",
        ),
        (
            "train-agent --env car-racing --rounds 1 --set-rounds first_behaviour=random:0.5,autopilot:0.5",
            "the behaviour 'autopilot' reads the simulator's state",
        ),
        ("train-agent --model bundled", "--no-privileged belongs to --rounds"),
        ("train-agent --in data --model bundled --data x", "--no-privileged belongs to --in dream"),
    ],
)
def test_a_run_without_a_teacher_refuses_one(command, sentence, capsys, tmp_path):
    data = {"noisy": tmp_path / "noisy", "random": tmp_path / "random"}
    for behaviour, folder in data.items():
        if f"{{{behaviour}}}" in command:
            collect = ["collect", "--env", "car-racing", "--behaviour", behaviour, "--episodes", "2"]
            assert run(capsys, *collect, "--max-episode-steps", "3", "--out", str(folder), "--quiet")[0] == 0
            out = run(capsys, "dataset", "info", str(folder))[1]
            assert out.endswith(
                "privileged: 2 of 2 episodes are of drivers that read the simulator's state (noisy)\n"
                if behaviour == "noisy"
                else "privileged: 0 of 2 episodes are of drivers that read the simulator's state\n"
            )
    out = tmp_path / "run"
    told = fails_with_one_sentence(capsys, *command.format(**data).split(), "--no-privileged", "--out", str(out))
    assert sentence in told
    assert not out.exists()


def test_random_drivers_need_no_teacher(capsys, tmp_path):
    out = str(tmp_path / "data")
    collect = ["collect", "--env", "car-racing", "--behaviour", "random:0.5,held(0 0.2):0.5", "--out", out, "--quiet"]
    assert run(capsys, *collect, "--episodes", "2", "--max-episode-steps", "3", "--no-privileged")[0] == 0


@pytest.mark.parametrize(
    ("options", "connections"),
    [
        ([], None),
        (["--carla", "one:2000,two:2010"], [("one", 2000, None, 0), ("two", 2010, None, 0)]),
        (["--carla", "one:2000", "--carla", "two:2010"], [("one", 2000, None, 0), ("two", 2010, None, 0)]),
        (["--carla", "one"], [("one", 2000, None, 0)]),
        (
            ["--carla", "localhost:2000", "--carla-launch", "docker", "--carla-servers", "3", "--carla-recycle", "7"],
            [("localhost", 2000, "docker", 7), ("localhost", 2004, "docker", 7), ("localhost", 2008, "docker", 7)],
        ),
        (["--carla-launch", "/opt/carla", "--carla", "localhost:3000"], [("localhost", 3000, "/opt/carla", 0)]),
    ],
)
def test_options_for_carla_name_a_server_for_each_worker(options, connections):
    arguments = build_parser().parse_args(["evaluate", "--agent", "random", "--env", "carla", *options])
    found = carla_connections(arguments)
    if connections is None:
        assert found is None
        return
    values = [(one["host"], one["port"], one.get("launch"), one.get("recycle_episodes", 0)) for one in found]
    assert values == connections
    assert all(one["restart"] for one in found)


def test_servers_that_are_started_leave_ports_alone_that_are_in_use():
    options = ["evaluate", "--agent", "random", "--env", "carla", "--carla-launch", "docker", "--carla-servers", "2"]

    def ports():
        return [one["port"] for one in carla_connections(build_parser().parse_args(options))]

    first, second = ports()
    assert first >= 2000 and first % 4 == second % 4 == 0
    with socket.create_server(("127.0.0.1", first + 1)):  # where it would send pictures
        assert ports()[0] == second


@pytest.mark.slow
def test_collect_and_evaluate_on_two_carla_servers(capsys, tmp_path):
    pytest.importorskip("carla")
    data, result = tmp_path / "data", tmp_path / "result.json"
    with StandIn() as one, StandIn() as two:
        servers = ["--env", "carla", "--carla", f"{one.address},{two.address}", "--frame-size", "32", "--quiet"]
        servers += ["--max-episode-steps", "8", "--env-set", "town=Town02", "--env-set", "traffic={vehicles: 2}"]
        collect = ["collect", *servers, "--out", str(data), "--episodes", "4", "--behaviour", "autopilot"]
        code, out, _ = run(capsys, *collect)
        assert code == 0
        assert "4 episodes, 32 steps" in out
        evaluate = ["evaluate", *servers, "--agent", "traffic-manager", "--episodes", "2", "--json", str(result)]
        code, out, _ = run(capsys, *evaluate)
        assert code == 0
        assert "driving_score: " in out
        assert one.wait_until_clean()
        assert two.wait_until_clean()
    assert run(capsys, "dataset", "verify", str(data))[0] == 0
    recorded = json.loads((data / "dataset.json").read_text())["simulator"]
    assert recorded == json.loads(result.read_text())["simulator"]
    assert recorded["kwargs"] == {"town": "Town02", "traffic": {"vehicles": 2}}
    missing = ["collect", "--env", "carla", "--carla", f"127.0.0.1:{free_port()}", "--out", str(tmp_path / "none")]
    told = fails_with_one_sentence(capsys, *missing, "--episodes", "2", "--quiet")
    assert "nothing listens there" in told
    assert not (tmp_path / "none").exists()


def test_resume_without_a_run(capsys, tmp_path):
    arguments = ["train-model", "--data", "x", "--out", str(tmp_path / "m"), "--resume"]
    assert "holds no training run" in fails_with_one_sentence(capsys, *arguments)


def test_every_command_has_help_with_an_example(capsys):
    for command in (
        "demo",
        "collect",
        "dataset",
        "train-model",
        "train-agent",
        "evaluate",
        "report",
        "bench",
        "doctor",
    ):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"example:\n  wm-gym {command}" in capsys.readouterr().out


def test_doctor_finds_this_machine_sound(capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "MISSING" not in out
    assert "CarRacing simulator" in out


@pytest.mark.slow
def test_bench_measures_dream_and_simulator_in_one_run(capsys, tmp_path):
    table = tmp_path / "bench.json"
    options = ("--parts", "environments", "--num-envs", "1,8", "--seconds", "0.2", "--json", str(table))
    code, out, _ = run(capsys, "bench", *options)
    assert code == 0
    rows = json.loads(table.read_text())["environments"]
    kinds = ("as it is", "accelerated, fp32", "accelerated, bf16")
    assert [(row["environment"], row.get("model"), row["num_envs"]) for row in rows] == [
        ("CarRacing-v3", None, 1),
        ("CarRacingDriving-v0", None, 1),
        *(("DreamDriving-v0", kind, number) for kind in kinds for number in (1, 8)),
    ]
    assert all(row["steps_per_s"] > 0 for row in rows)
    assert "| DreamDriving-v0 | as it is | 8 |" in out
    single_dreams = [row for row in rows if row.get("model") and row["num_envs"] == 1]
    assert [row for row in rows if row.get("own_us") is not None] == single_dreams


def test_errors_of_the_system_are_one_sentence(capsys, tmp_path, monkeypatch):
    evaluate = ["evaluate", "--agent", "random", "--env", "car-racing", "--episodes", "1", "--max-episode-steps", "2"]
    for option in ("--json", "--video"):
        code, out, err = run(capsys, *evaluate, "--quiet", option, "/proc/nowhere/result.gif")
        assert (code, out) == (2, "")
        assert err.count("\n") == 1 and "/proc/nowhere/result.gif" in err
    for command in (
        ["train-agent", "--model", "bundled", "--steps", "100"],
        ["export", "--model", "bundled"],
        ["collect", "--env", "car-racing", "--episodes", "1"],
    ):
        code, out, err = run(capsys, *command, "--quiet", "--out", "/proc/nowhere")
        assert code == 2 and err.count("\n") == 1 and "/proc/nowhere" in err

    # A disk that becomes full during the drives: their result is told all the same.
    def full(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write_json_atomically", full)
    code, out, err = run(capsys, *evaluate, "--quiet", "--json", str(tmp_path / "result.json"))
    assert code == 2 and "mean return" in out
    assert "result.json': the disk is full; free some space" in err


def test_a_video_that_cannot_be_written_costs_no_result(capsys, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("PIL.Image.Image.save", full)
    evaluate = ["evaluate", "--agent", "random", "--env", "car-racing", "--episodes", "1", "--max-episode-steps", "2"]
    code, out, err = run(capsys, *evaluate, "--quiet", "--video", str(tmp_path / "drive.gif"))
    assert code == 2 and "mean return" in out and "the disk is full" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["", "lerobot:"])
def test_the_home_folder_is_found_where_a_shell_leaves_its_sign(prefix, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    code, _, err = run(capsys, "dataset", "convert", "~/nothing", f"--out={prefix}~/used")
    assert code == 2
    assert str(tmp_path) in err
    assert "~" not in err


def test_main_runs_in_any_thread(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["evaluate", "--agent", "nobody", "--quiet"])))
    thread.start()
    thread.join(120)
    assert codes == [2]
    before = signal.getsignal(signal.SIGTERM)
    main(["evaluate", "--agent", "nobody", "--quiet"])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
def test_a_reader_that_leaves_early_is_no_defect():
    """``wm-gym --help | head -1``, and an encoding that lacks what is printed."""
    code = (
        "import sys, time; from wm_gym.cli import main as m\n"
        "from types import SimpleNamespace as N\n"
        "def run(_):\n"
        "    print('first \\u2026', flush=True); time.sleep(1)\n"
        "    while True: print('x' * 1000, flush=True)\n"
        "m.build_parser = lambda: N(parse_args=lambda _: N(command='c', run=run))\n"
        "sys.exit(m.main([]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert process.stdout.readline() == b"first ?\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(120) == 141
