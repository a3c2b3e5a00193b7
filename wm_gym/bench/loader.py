"""Whether training waits for its data."""

from __future__ import annotations

import time

from wm_gym.bench.table import Table
from wm_gym.bench.updates import SyntheticTraining
from wm_gym.config import Config
from wm_gym.training.clips import ClipLoader, ClipSource, to_tensors

_FIRST_UPDATES = 5


def measure_loader(name: str, config: Config, source: ClipSource, seconds: float, *, device: str) -> Table:
    """Clips a second from the disk to the gradient, and the share of the time that training waits for clips.

    The first row begins with nothing in memory; the second one reads the same clips again, which the dataset has kept
    decoded as far as its memory goes.

    Args:
        name: What to call the configuration.
        config: The configuration, whose frame size the data have.
        source: Training episodes, just opened.
        seconds: Time for each row.
        device: Where the model trains.
    """
    training = SyntheticTraining(config, device)
    rows = []
    for pass_name in ("first", "second"):
        settings = config.training
        loader = ClipLoader(source, settings.batch_size, settings.clip_length, accumulation=1, seed=settings.seed)
        updates = loader.updates(0, 1_000_000)
        waited = 0.0
        count = 0
        started = time.perf_counter()
        try:
            while count < _FIRST_UPDATES or time.perf_counter() - started < seconds:
                asked = time.perf_counter()
                (clips,) = next(updates)
                waited += time.perf_counter() - asked
                training.update_on(to_tensors(clips, training.fabric.device))
                count += 1
        finally:
            updates.close()
        elapsed = time.perf_counter() - started
        rows.append(
            {
                "config": name,
                "pass": pass_name,
                "clips_per_s": count * settings.batch_size / elapsed,
                "frames_per_s": count * settings.batch_size * settings.clip_length / elapsed,
                "waiting": waited / elapsed,
            }
        )
    return Table(
        "loader",
        "From the disk to the gradient",
        (
            ("config", "config", ""),
            ("pass", "pass over the clips", ""),
            ("clips_per_s", "clips/s", ",.1f"),
            ("frames_per_s", "frames/s", ",.0f"),
            ("waiting", "share of the time waiting for clips", ".3f"),
        ),
        rows,
        (f"{config.training.batch_size} clips of {config.training.clip_length} frames an update.",),
    )
