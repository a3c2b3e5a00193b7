"""Compare ways to store episodes: speed of writing, size, and random 10-frame clips a second.

Frames are CarRacing-v3's own, driven by smooth random actions and resized. Run from the repository's root::

    python benchmarks/storage_formats.py --episodes 2 --steps 200

HDF5 is measured where ``h5py`` is installed (it is no dependency of this package).
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_gym.actions import ActionFormat
from wm_gym.data_collection import Dataset, DatasetMetadata, Episode, FrameCodec
from wm_gym.frames import resize_frame
from wm_gym.simulator import SimulatorSpec

try:
    import h5py
except ImportError:
    h5py = None

Frames = NDArray[np.uint8]
ReadClips = Callable[[np.random.Generator, int], object]
CLIP_FRAMES = 10


def record(episodes: int, steps: int) -> list[Frames]:
    """Frames of CarRacing-v3, rendered at full size: ``(steps + 1, 400, 600, 3)`` uint8 an episode."""
    env = gym.make("CarRacing-v3", render_mode="rgb_array", max_episode_steps=steps)
    recorded = []
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        frames = [env.render()]
        steering, done = 0.0, False
        while not done:
            steering = float(np.clip(0.95 * steering + rng.normal(0, 0.1), -1, 1))
            *_, terminated, truncated, _ = env.step(np.array([steering, 0.3, 0.0], np.float32))
            frames.append(env.render())
            done = terminated or truncated
        recorded.append(np.stack(frames))
    env.close()
    return recorded


def read_files(episodes: list[Frames], opened: Callable[[int], Any]) -> ReadClips:
    """Random clips of files with ``"frames"``, one an episode, which is opened for each clip."""

    def read(rng: np.random.Generator, clips: int) -> object:
        found = []
        for _ in range(clips):
            episode = int(rng.integers(len(episodes)))
            start = int(rng.integers(len(episodes[episode]) - CLIP_FRAMES + 1))
            with opened(episode) as file:
                found.append(file["frames"][start : start + CLIP_FRAMES])
        return np.stack(found)

    return read


def write_dataset(codec: str) -> Callable[[Path, list[Frames]], ReadClips]:
    """This package's own format with one frame codec, read without its memory cache."""

    def write(folder: Path, episodes: list[Frames]) -> ReadClips:
        size = episodes[0].shape[1:3]
        spec = SimulatorSpec(id="CarRacing-v3", frame_size=size, action=ActionFormat.driving())

        def as_episode(index: int, frames: Frames) -> Episode:
            steps = len(frames) - 1
            return Episode(
                frames=frames,
                actions=np.zeros((steps, 4), np.float32),
                rewards=np.zeros(steps, np.float32),
                terminated=np.zeros(steps, np.bool_),
                truncated=np.zeros(steps, np.bool_),
                index=index,
            )

        Dataset.create(
            folder / "dataset",
            DatasetMetadata(simulator=spec, codec=FrameCodec.parse(codec)),
            (as_episode(i, frames) for i, frames in enumerate(episodes)),
        )
        dataset = Dataset.open(folder / "dataset", cache_bytes=0)
        return lambda rng, clips: dataset.sample_clips(rng, clips, CLIP_FRAMES)

    return write


def write_hdf5(**options: object) -> Callable[[Path, list[Frames]], ReadClips]:
    """One HDF5 file an episode, one chunk a frame (contiguous where nothing compresses)."""

    def write(folder: Path, episodes: list[Frames]) -> ReadClips:
        for i, frames in enumerate(episodes):
            with h5py.File(folder / f"{i}.h5", "w") as file:
                chunks = (1, *frames.shape[1:]) if options else None
                file.create_dataset("frames", data=frames, chunks=chunks, **options)
        return read_files(episodes, lambda episode: h5py.File(folder / f"{episode}.h5", "r"))

    return write


def write_npz(folder: Path, episodes: list[Frames]) -> ReadClips:
    """One compressed npz file an episode; a clip needs the whole episode."""
    for i, frames in enumerate(episodes):
        np.savez_compressed(folder / f"{i}.npz", frames=frames)
    return read_files(episodes, lambda episode: np.load(folder / f"{episode}.npz", allow_pickle=False))


def formats() -> dict[str, Callable[[Path, list[Frames]], ReadClips]]:
    """What to compare, by name."""
    found = {f"safetensors, {codec}": write_dataset(codec) for codec in ("raw", "png", "webp", "jpeg:95")}
    if h5py is not None:
        found["HDF5, raw"] = write_hdf5()
        found["HDF5, lzf"] = write_hdf5(compression="lzf")
        found["HDF5, gzip 4"] = write_hdf5(compression="gzip", compression_opts=4)
    found["npz, deflate"] = write_npz
    return found


def measure(
    write: Callable[[Path, list[Frames]], ReadClips], episodes: list[Frames], seconds: float
) -> tuple[float, float, float]:
    """Frames written a second, bytes a frame, clips read a second."""
    num_frames = sum(map(len, episodes))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        read = write(folder, episodes)
        written_s = time.perf_counter() - started
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        rng = np.random.default_rng(0)
        read(rng, 8)  # checks, caches of the system
        clips, batch = 0, 4
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            read(rng, batch)
            clips += batch
        rate = clips / (time.perf_counter() - started)
    return num_frames / written_s, size / num_frames, rate


def main() -> None:
    """Record, measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each reading measurement")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many measurements counts")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    full = record(arguments.episodes, arguments.steps)
    packages = ["numpy", "opencv-python", "safetensors", *(["h5py"] if h5py is not None else [])]
    print(f"{platform.machine()}, Python {platform.python_version()}, one thread")
    print(", ".join(f"{name} {metadata.version(name)}" for name in packages))
    for size in (64, 256):
        episodes = [np.stack([resize_frame(frame, size, size) for frame in frames]) for frames in full]
        print(f"\n| {size}x{size} | frames written/s | bytes/frame | clips read/s |\n| --- | ---: | ---: | ---: |")
        for name, write in formats().items():
            rows = [measure(write, episodes, arguments.seconds) for _ in range(arguments.repeats)]
            written, size_bytes, clips = map(max, zip(*rows, strict=True))
            print(f"| {name} | {written:,.0f} | {size_bytes:,.0f} | {clips:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
