"""Collection on a real Ray of two CPUs, with car-racing and with stand-in CARLA servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from tests.carla_server.process import StandIn, free_port
from wm_gym.agents.behaviours import make_behaviour
from wm_gym.data_collection import Dataset
from wm_gym.data_collection.datasets.verification import verify
from wm_gym.data_collection.recording import ray_pool
from wm_gym.data_collection.recording.collector import collect
from wm_gym.data_collection.recording.ray_pool import RayPool
from wm_gym.errors import ConfigError, SimulatorError, SimulatorLostError

os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # read when Ray is imported
ray = pytest.importorskip("ray")

MIX = "autopilot:0.5,random:0.5"
STEPS = 12


@pytest.fixture(scope="module")
def cluster():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level="error",
        log_to_driver=False,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def servers():
    pytest.importorskip("carla.libcarla")
    with StandIn() as first, StandIn() as second:
        yield first, second


@pytest.fixture(scope="module")
def reference(servers, tmp_path_factory):
    """Six episodes from one server, recorded by a process of this machine."""
    out = tmp_path_factory.mktemp("reference") / "data"
    collect_carla(out, [servers[0]], engine="processes")
    return out


@pytest.fixture
def workers(cluster, monkeypatch):
    """The actors that are started, in that order."""
    started = []
    start = RayPool._start

    def start_and_note(pool, place):
        started.append(start(pool, place))
        return started[-1]

    monkeypatch.setattr(RayPool, "_start", start_and_note)
    return started


def at(server, **settings):
    return {"host": "127.0.0.1", "port": server.port, "image_timeout_s": 30.0, "restart": True, **settings}


def collect_with(out, simulator, **settings):
    settings = {
        "make_behaviour": make_behaviour,
        "behaviour": MIX,
        "episodes": 6,
        "max_episode_steps": STEPS,
        "simulator_kwargs": {"frame_size": 32},
        "progress": False,
        "engine": "ray",
        **settings,
    }
    return collect(out, simulator, **settings)


def collect_carla(out, servers, **settings):
    worker_kwargs = [server if isinstance(server, dict) else at(server) for server in servers]
    return collect_with(out, "carla", worker_kwargs=worker_kwargs, **settings)


def checksums(out):
    return {header.index: header.sha256 for header in Dataset.open(out).episodes}


def check_folder(out, episodes):
    """Every episode is there, whole, and nothing else is."""
    assert verify(out).problems == []
    names = {path.name for path in (out / "episodes").iterdir()}
    assert names == {f"episode-{index:06d}.safetensors" for index in range(episodes)}


def wait_until(condition, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def num_files(out):
    return len(list((out / "episodes").glob("*.safetensors")))


# -- the same dataset ----------------------------------------------------------------------------------------------


def test_car_racing_gives_the_same_files_as_local_processes(cluster, tmp_path):
    for engine in ("processes", "ray"):
        summary = collect_with(tmp_path / engine, "car-racing", episodes=3, workers=2, engine=engine)
        assert (summary.num_episodes, summary.new_steps) == (3, 3 * STEPS)
    for path in sorted((tmp_path / "processes").rglob("*.*")):
        if path.is_file():
            assert (tmp_path / "ray" / path.relative_to(tmp_path / "processes")).read_bytes() == path.read_bytes()
    check_folder(tmp_path / "ray", 3)
    assert ray.is_initialized()  # it was not started by the collection, which therefore leaves it alone


@pytest.mark.slow
def test_two_servers_give_the_same_files_as_local_processes_in_one_go_and_resumed(
    reference, servers, workers, tmp_path
):
    out = tmp_path / "data"
    with servers[0].held_until(lambda: len(workers) == 2 and all(worker.host for worker in workers)):
        summary = collect_carla(out, [at(servers[0], timeout_s=180.0), servers[1]], episodes=4)
    assert (summary.new_episodes, summary.lost) == (4, 0)
    assert len({worker.host.pid for worker in workers}) == 2
    assert all(server.wait_until_clean() for server in servers)
    before = {path: path.stat().st_mtime_ns for path in (out / "episodes").iterdir()}
    summary = collect_carla(out, servers[:1])
    assert summary.new_episodes == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    check_folder(out, 6)
    assert checksums(out) == checksums(reference)


# -- what dies -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_actors_that_are_killed_in_the_middle_cost_no_episode(reference, servers, workers, tmp_path):
    out = tmp_path / "data"
    killed = []

    def at_work():
        return [worker for worker in workers if worker.task is not None and worker not in killed]

    def kill_one(files, how):
        wait_until(lambda: num_files(out) >= files and at_work())
        for server in servers:  # no episode comes to its end meanwhile
            server.faults(stall_at_frame=0)
        wait_until(at_work)
        killed.append(at_work()[0])
        how(killed[-1])
        wait_until(lambda: killed[-1].death)
        for server in servers:
            server.faults(stall_at_frame=-1)

    def kill():
        kill_one(1, lambda worker: os.kill(worker.host.pid, signal.SIGKILL))
        kill_one(2, lambda worker: ray.kill(worker.actor))

    killer = threading.Thread(target=kill)
    killer.start()
    collect_carla(out, [at(server, timeout_s=180.0, image_timeout_s=180.0) for server in servers])
    killer.join()
    assert len(killed) == 2
    assert all(worker.task is not None and worker.death for worker in killed)  # each died at an episode
    assert len(workers) >= 3
    check_folder(out, 6)
    assert checksums(out) == checksums(reference)
    assert all(server.wait_until_clean() for server in servers)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:worker 1 of 2 was given up")  # depends on how fast the other one is
def test_a_server_that_is_killed_in_the_middle_leaves_its_episodes_to_the_other(reference, servers, cluster, tmp_path):
    out = tmp_path / "data"
    with StandIn() as doomed:
        gone = at(doomed, timeout_s=10.0, image_timeout_s=15.0, connect_timeout_s=0.2)
        with servers[0].held_until(doomed.dies_in_use):
            summary = collect_carla(out, [gone, at(servers[0], timeout_s=180.0)])
        assert not doomed.is_running
    assert summary.lost >= 1
    check_folder(out, 6)
    assert checksums(out) == checksums(reference)


@pytest.mark.slow
def test_servers_that_are_all_gone_end_it_with_one_sentence(cluster, tmp_path):
    pytest.importorskip("carla.libcarla")
    gone = {"host": "127.0.0.1", "port": free_port(), "restart": True, "connect_timeout_s": 0.2}
    with pytest.raises(SimulatorLostError, match=r"^episode 0 \(.*lost 3 times in a row: no CARLA server") as error:
        collect_carla(tmp_path / "data", [gone])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupt_stops_the_actors_and_keeps_every_finished_episode(reference, servers, cluster, tmp_path):
    out = tmp_path / "data"
    options = ["--env", "carla", "--carla", ",".join(server.address for server in servers), "--out", str(out)]
    options += ["--frame-size", "32", "--max-episode-steps", str(STEPS), "--behaviour", MIX, "--episodes", "500"]
    options += ["--engine", "ray", "--ray-address", cluster, "--quiet"]
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from wm_gym.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main())\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(script), "collect", *options],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: num_files(out) >= 3 or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        _, printed = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0, printed
    assert 3 <= num_files(out) < 500, printed
    assert verify(out).problems == []
    assert not list((out / "episodes").glob("*.partial"))
    kept = checksums(reference)
    assert all(sha256 == kept.get(index, sha256) for index, sha256 in checksums(out).items())
    assert all(server.wait_until_clean() for server in servers)
    wait_until(lambda: ray.available_resources().get("CPU") == 2.0)  # Ray lives, the actors do not


# -- sentences -----------------------------------------------------------------------------------------------------


def check_sentence(error, sentence, tmp_path, **settings):
    with pytest.raises(error, match=sentence) as raised:
        collect_with(tmp_path / "data", "car-racing", behaviour="random", **settings)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"engine": "rey"}, r"engine='rey' is unknown \(did you mean 'ray'\?\)"),
        ({"engine": "processes", "ray_address": "auto"}, "'auto' belongs to the engine ray"),
        ({"ray_address": "head"}, "'head' is neither auto nor of the form HOST:PORT"),
        ({"ray_address": "ray://head:10001"}, "neither auto nor of the form HOST:PORT"),
    ],
)
def test_a_wrong_engine_or_address_is_told(tmp_path, settings, sentence):
    check_sentence(ConfigError, sentence, tmp_path, **settings)


def test_ray_is_imported_only_when_it_is_asked_for():
    program = (
        "import sys, wm_gym.cli.collect, wm_gym.data_collection.recording.ray_pool; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


LISTENING = """
import json
from wm_gym.data_collection.recording.ray_pool import RayPool

with RayPool([None], None):
    import psutil  # Ray brings it along

    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    print(json.dumps(sorted({socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN})))
"""


def test_a_ray_of_our_own_listens_on_this_machine_only():
    run = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, timeout=120, check=True)
    listening = json.loads(run.stdout.splitlines()[-1])
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_no_ray_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    check_sentence(SimulatorError, r"Ray is not installed; install it with `pip install 'wm_gym\[ray\]'`", tmp_path)


def test_an_address_where_nobody_listens_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    address = f"127.0.0.1:{free_port()}"
    sentence = rf"no Ray cluster can be reached at {address} \(.*refused\); start one with `ray start --head`"
    check_sentence(SimulatorError, sentence, tmp_path, ray_address=address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    check_sentence(SimulatorError, sentence, tmp_path)
    assert time.monotonic() - started < 20.0  # Ray itself tries for longer


def test_an_address_where_something_else_listens_is_told_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_pool, "CONNECT_TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        check_sentence(SimulatorError, f"no Ray cluster answers at {address} within 2 s", tmp_path, ray_address=address)


def test_a_cluster_without_a_free_cpu_is_told_in_time(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "PLACE_TIMEOUT_S", 1.0)

    class Busy:
        def hold(self):
            return True

    busy = ray.remote(num_cpus=2)(Busy).remote()
    ray.get(busy.hold.remote())
    try:
        with pytest.warns(UserWarning, match="the Ray cluster has 2 CPUs now, so no more than 2 of the 3 workers run"):
            check_sentence(SimulatorError, "no host of the Ray cluster had a free CPU", tmp_path, workers=3)
    finally:
        ray.kill(busy)


def test_a_host_with_another_version_is_told(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "__version__", "0.0.9")
    check_sentence(SimulatorError, r"host \S+ has wm_gym \S+, but this one has 0\.0\.9; install one", tmp_path)


def test_what_a_host_cannot_import_is_told(cluster, tmp_path, monkeypatch):
    module = types.ModuleType("only_on_this_host")
    exec("def make(name, spec): pass", vars(module))
    monkeypatch.setitem(sys.modules, "only_on_this_host", module)
    sentence = "the simulator cannot be made: ModuleNotFoundError: No module named 'only_on_this_host'"
    check_sentence(SimulatorError, sentence, tmp_path, make_behaviour=module.make)
