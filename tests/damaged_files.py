"""Damages every kind of file that the package reads, in a process of its own, and tells what went wrong.

Run as ``python damaged_files.py FOLDER SEED SECONDS``; prints one JSON object: ``tries`` by kind and ``faults``, each a
sentence. A damaged file must be refused with one of the package's own sentences, or give exactly what the sound one
gives; it must not take seconds, nor a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wm_gym.actions import ActionFormat
from wm_gym.agents.bundles.folder import load_agent, save_agent
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.from_config import resolve
from wm_gym.agents.policies.network import rebuild_policy
from wm_gym.bundle import load_model, save_model
from wm_gym.config import load_config
from wm_gym.data_collection import Dataset, DatasetMetadata, Episode, FrameCodec
from wm_gym.data_collection.conversion.folder_io import import_folder
from wm_gym.data_collection.datasets import remote_folder
from wm_gym.data_collection.datasets.push import push
from wm_gym.data_collection.datasets.verification import verify
from wm_gym.envs.rollout_contract import observation_space_of
from wm_gym.errors import DatasetError, WMGymError
from wm_gym.plain_files import read_json
from wm_gym.run_folder import RunFolder
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.training.checkpoint import load_checkpoint, save_checkpoint
from wm_gym.training.log import read_metrics
from wm_gym.world_model import WorldModel

LONGEST_S = 5.0
MOST_MEMORY_KIB = 2**18
"""Beyond what the imported libraries hold, which depends on the system: 0.7 to 1 GiB."""
SPEC = SimulatorSpec(id="CarRacingDriving-v0", frame_size=(64, 64), action=ActionFormat.driving(), step_s=0.08)


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
        name: What to call it.
        folder: Sound files.
        read: Reads the folder, and gives what names its contents.
        is_exact: Whether any change of the contents must be noticed.
    """

    name: str
    folder: Path
    read: Callable[[Path], str]
    is_exact: bool = True


def digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, (torch.Tensor, np.ndarray)):
            found.update(np.ascontiguousarray(part).tobytes())
        else:
            found.update(json.dumps(part, sort_keys=True, default=str).encode())
    return found.hexdigest()


def make_kinds(root: Path) -> list[Kind]:
    torch.manual_seed(0)
    model = WorldModel(load_config("debug").model, SPEC).eval()
    with torch.no_grad():
        model.start_states = LatentState(*map(torch.clone, model.initial_state(torch.rand(8, 3, 64, 64))))
    model.metrics, model.provenance = {"validation_loss": 1.5}, {"wm_gym": "0", "data": {"path": "car"}}
    save_model(model, root / "model")

    config = resolve(AgentConfig(net_arch=(8, 6), num_envs=2, horizon=8, reward_scale=1.0), model.simulator.action)
    space = model.simulator.action.space(config.action)
    policy = rebuild_policy(config, observation_space_of(model, "latent"), space)
    save_agent(root / "agent", policy, model, config, {"dream_return": 1.0})

    (root / "checkpoint").mkdir()
    state = {"update": 3, "best": 0.5, "model": dict(model.state_dict()), "optimizer": {"step": torch.ones(3)}}
    save_checkpoint(root / "checkpoint" / "last.pt", state, {"seed": 3})

    kinds = [
        Kind("model", root / "model", read_model),
        Kind("agent", root / "agent", read_agent),
        Kind("checkpoint", root / "checkpoint", read_checkpoint),
    ]
    rng = np.random.default_rng(0)
    for codec in ("raw", "png", "webp", "jpeg"):
        metadata = DatasetMetadata(simulator=SPEC, codec=FrameCodec.parse(codec))
        Dataset.create(root / codec, metadata, [make_episode(rng, index) for index in range(2)])
        kinds.append(Kind(f"dataset {codec}", root / codec, read_dataset))
    push(root / "png", f"file://{root}/pushed", progress=False)
    kinds.append(Kind("pushed", root / "pushed", read_pushed, is_exact=False))

    (root / "settings").mkdir()
    (root / "settings" / "mine.yaml").write_text("model: {latent_dim: 16}\ntraining: {steps: 10}\n")
    (root / "settings" / "result.json").write_text(json.dumps({"returns": [1.0, 2.0], "provenance": {"a": {}}}))
    (root / "settings" / "metrics.jsonl").write_text('{"update": 1, "loss": 1.0}\n' * 20)
    kinds.append(Kind("settings", root / "settings", read_settings, is_exact=False))

    hold_run(root / "run")
    kinds.append(Kind("run", root / "run", read_run, is_exact=False))

    recording = root / "recording" / "drive"
    (recording / "frames").mkdir(parents=True)
    for index in range(3):
        frame = make_episode(rng, 0).frames[index]
        (recording / "frames" / f"{index}.png").write_bytes(FrameCodec.parse("png").encode(frame))
    (recording / "actions.csv").write_text("steering,throttle,brake,gear\n0,1,0,1\n0.5,1,0,1\n")
    kinds.append(Kind("recording", root / "recording", read_recording, is_exact=False))
    return kinds


def make_episode(rng: np.random.Generator, index: int) -> Episode:
    steps = 4
    ends = np.arange(1, steps + 1) == steps
    return Episode(
        frames=rng.integers(0, 256, (steps + 1, 64, 64, 3), dtype=np.uint8),
        actions=np.zeros((steps, 4), np.float32),
        rewards=np.ones(steps, np.float32),
        terminated=ends,
        truncated=np.zeros(steps, bool),
        infos={"speed": np.ones(steps, np.float32)},
        index=index,
    )


def hold_run(path: Path) -> None:
    record = {"simulator": SPEC.model_dump(mode="json")}
    with RunFolder(path, "test", AgentConfig(), record, identity={"simulator": "with another simulator"}).held():
        pass


def read_model(folder: Path) -> str:
    model = load_model(folder)
    assert model.start_states is not None
    return digest(model.fingerprint, *model.start_states, model.metrics, model.provenance)


def read_agent(folder: Path) -> str:
    agent = load_agent(folder)
    state = agent.policy.state_dict()
    settings = agent.manifest.model_dump(mode="json")
    return digest(read_model(folder / "model"), *(state[name] for name in sorted(state)), settings, agent.metrics)


def read_checkpoint(folder: Path) -> str:
    state = load_checkpoint(folder / "last.pt", {"seed": 3}, keys=("update", "best", "model"))
    tensors = [state["model"][name] for name in sorted(state["model"])]
    return digest(state["update"], state["best"], *tensors, state["optimizer"]["step"])


def read_dataset(folder: Path) -> str:
    found = verify(folder)
    if not found.is_valid:
        raise DatasetError(found.problems[0])
    dataset = Dataset.open(folder)
    episodes = [dataset.read_episode(position) for position in range(len(dataset))]
    content = [array for episode in episodes for array in (episode.frames, *episode.tensors().values())]
    about = [(episode.seed, episode.behaviour, sorted(episode.infos)) for episode in episodes]
    return digest(dataset.metadata.model_dump(mode="json"), about, *content)


def read_pushed(folder: Path) -> str:
    found = verify(f"file://{folder}")
    if not found.is_valid:
        raise DatasetError(found.problems[0])
    return ""


def read_settings(folder: Path) -> str:
    load_config(folder / "mine.yaml")
    read_json(folder / "result.json", error=WMGymError, remedy="make it again")
    read_metrics(folder / "metrics.jsonl")
    return ""


def read_run(folder: Path) -> str:
    hold_run(folder)
    return ""


def read_recording(folder: Path) -> str:
    target = folder.with_name("imported")
    shutil.rmtree(target, ignore_errors=True)
    import_folder(folder, target)
    return ""


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_in_head(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[int(rng.integers(min(len(changed), 300)))] = int(rng.integers(256))
    return bytes(changed)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def zeros(content: bytes, rng: np.random.Generator) -> bytes:
    low, high = sorted(int(at) for at in rng.integers(len(content) + 1, size=2))
    return content[:low] + bytes(high - low) + content[high:]


def swap(content: bytes, rng: np.random.Generator) -> bytes:
    low, middle, high = sorted(int(at) for at in rng.integers(len(content) + 1, size=3))
    return content[:low] + content[middle:high] + content[low:middle] + content[high:]


def other_number(content: bytes, rng: np.random.Generator) -> bytes:
    """A digit of a text becomes a number that is huge, negative or none."""
    digits = [at for at, byte in enumerate(content[:4000]) if chr(byte).isdigit()]
    if not digits:
        return flip(content, rng)
    at = digits[int(rng.integers(len(digits)))]
    number = (b"1000000000", b"99999999999999999999", b"-1", b".nan", b"1e400", b'"\\u001b[2J"')[int(rng.integers(6))]
    return content[:at] + number + content[at + 1 :]


CHANGES = (flip, flip, flip_in_head, flip_in_head, cut, zeros, swap, other_number, other_number)

BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
TEXTS = {
    "empty": b"",
    "deep lists": b"[" * 100_000,
    "deep mappings": b'{"a":' * 100_000,
    "alias bomb": BOMB.encode(),
    "recursion": b"a: &a [*a]\n",
    "bad timestamp": b"a: 2001-99-99\n",
    "bad integer": b"a: !!int x\n",
    "long integer": b"a: " + b"1" * 200_000,
    "sexagesimal": b"a: 1" + b":59" * 60_000,
    "long list": b"- 1\n" * 3_000_000,
    "no text": bytes(range(256)) * 10,
}


def replacements(file: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What may lie in a file's place."""
    for name, content in TEXTS.items():
        yield name, lambda content=content: file.write_bytes(content)
    yield "pipe", lambda: os.mkfifo(file)
    yield "folder", file.mkdir
    yield "endless device", lambda: file.symlink_to("/dev/zero")
    yield "broken link", lambda: file.symlink_to("nowhere")
    yield "a tebibyte of nothing", lambda: os.truncate(os.open(file, os.O_CREAT | os.O_WRONLY), 2**40)


class TookTooLongError(BaseException):
    """Raised by the clock."""


def _ring(*_: object) -> None:
    raise TookTooLongError


def peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def fault_of(kind: Kind, folder: Path, sound: str) -> str | None:
    """Read a damaged folder; what is wrong with how that went, or ``None``."""
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        found = kind.read(folder)
    except WMGymError as error:
        message = str(error)
        return None if message.isprintable() and message else f"says {message!r}"
    except TookTooLongError:
        return f"takes longer than {LONGEST_S} s"
    except BaseException:
        return " | ".join(traceback.format_exc().splitlines()[-3:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    return "was accepted, though it has changed" if kind.is_exact and found != sound else None


def main(root: Path, seed: int, seconds: float) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _ring)
    remote_folder.BACKOFF_S = 0.0  # it waits for a network to come back
    os.environ["WM_GYM_CACHE"] = str(root / "cache")
    resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
    kinds = make_kinds(root)
    sound = {kind.name: kind.read(kind.folder) for kind in kinds}
    base = peak_kib()
    faults: list[str] = []
    tries = dict.fromkeys(sound, 0)
    copy = root / "copy"
    rng = np.random.default_rng(seed)

    def attempt(kind: Kind, name: str, what: str, damage: Callable[[Path], object]) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(kind.folder, copy)
        damage(copy / name)
        before = peak_kib()
        fault = fault_of(kind, copy, sound[kind.name])
        if peak_kib() > max(before, base + MOST_MEMORY_KIB):
            fault = f"takes {peak_kib() / 2**20:.1f} GiB"
        tries[kind.name] += 1
        if fault is not None:
            faults.append(f"{kind.name}: {name} with {what} {fault}")

    files = {
        kind.name: sorted(
            str(path.relative_to(kind.folder))
            for path in kind.folder.rglob("*")
            if path.is_file() and path.name != "README.md"
        )
        for kind in kinds
    }
    for kind in kinds:
        for name in files[kind.name]:
            if name != files[kind.name][0] and kind.name.startswith("dataset") and kind.name != "dataset png":
                continue  # the same reader
            for what, _ in replacements(Path()):

                def replace(file: Path, what: str = what) -> None:
                    file.unlink()
                    dict(replacements(file))[what]()

                attempt(kind, name, what, replace)
    end, rounds = time.monotonic() + seconds, 0
    while rounds < 10 or time.monotonic() < end:
        rounds += 1
        for kind in kinds:
            name = files[kind.name][int(rng.integers(len(files[kind.name])))]
            change = CHANGES[int(rng.integers(len(CHANGES)))]
            content = (kind.folder / name).read_bytes()
            changed = change(content, rng)
            if changed != content:
                attempt(kind, name, change.__name__, lambda file, changed=changed: file.write_bytes(changed))
    print(json.dumps({"tries": tries, "faults": faults, "base_mib": base // 1024, "peak_mib": peak_kib() // 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
