"""A dataset card for the Hub: what was recorded, by whom, how to load it, and a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from wm_gym.actions import DRIVING_NAMES
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.statistics import BehaviourStatistics, by_behaviour
from wm_gym.hub import HubReference
from wm_gym.plain_files import NotPlainError, parse_yaml

PICTURE = "frames.png"
"""The picture's name in a repository."""
CARD = "README.md"
_FRAMES_SHOWN = 6
_LICENSE_FIELDS = ("license", "license_name", "license_link")


def hub_card(dataset: Dataset, reference: HubReference, before: str = "") -> str:
    """The text of ``README.md`` in a dataset's repository; only the headers of the episodes are read.

    Args:
        dataset: The dataset.
        reference: The repository.
        before: The text of the card that is replaced, whose license is kept; without one the owner has to choose it.
    """
    simulator, headers = dataset.metadata.simulator, dataset.episodes
    action = simulator.action
    head = {
        "pretty_name": reference.repository.rpartition("/")[2],
        "task_categories": ["reinforcement-learning", "robotics"],
        "tags": ["wm_gym", "driving", "world-model", simulator.id],
        "size_categories": [_size_category(dataset.num_steps)],
        "viewer": False,  # of tables, which there are none of here
        **_license(before),
    }
    height, width = simulator.frame_size
    rows = {
        "simulator": f"`{simulator.id}`",
        "episodes": f"{len(dataset):,}",
        "steps": f"{dataset.num_steps:,}" + _hours(dataset.num_steps * simulator.step_s),
        "frames": f"{height}x{width} RGB, stored as {dataset.metadata.codec}",
        "actions": ", ".join(DRIVING_NAMES) if action.kind == "driving" else f"{action.dim} of the simulator's own",
        "numbers beside each frame": ", ".join(field.name for field in simulator.vector) or "none",
        "size": f"{sum(header.file_bytes for header in headers) / 1e6:,.1f} MB",
    }
    source = f"\nSource: {dataset.metadata.source}\n" if dataset.metadata.source else ""
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# {head["pretty_name"]}

Recorded driving episodes for world models, a dataset of `wm_gym`.

![{_FRAMES_SHOWN} frames of an episode]({PICTURE})

| | |
| --- | --- |
{"".join(f"| {name} | {value} |{chr(10)}" for name, value in rows.items())}{source}
## Drivers

| behaviour | episodes | steps | mean return |
| --- | ---: | ---: | ---: |
{"".join(_driver_row(name, driven) for name, driven in by_behaviour(headers).items())}
## Use

`pip install 'wm_gym[hub]'`, then

```python
from wm_gym.data_collection import Dataset

dataset = Dataset.open("{reference}")
episode = dataset.read_episode(0)
```

or `wm-gym train-model --data {reference} --config tiny --out runs/model`.
"""


def picture_strip(dataset: Dataset) -> bytes:
    """A PNG of frames of the first episode side by side, from its beginning to its end.

    Raises:
        DatasetError: Its file is damaged.
    """
    frames = dataset.read_episode(0).frames
    chosen = np.linspace(0, len(frames) - 1, _FRAMES_SHOWN).round().astype(int)
    return FrameCodec().encode(np.ascontiguousarray(np.concatenate(list(frames[chosen]), axis=1)))


def _license(card: str) -> dict[str, Any]:
    """The fields of a card that name a license, and its name and address where it is not one of the Hub's list."""
    opening, _, rest = card.partition("---\n")
    try:
        fields = parse_yaml(rest.partition("\n---")[0]) if not opening else {}
    except NotPlainError:
        fields = {}
    return {name: fields[name] for name in _LICENSE_FIELDS if name in fields} if isinstance(fields, dict) else {}


def _driver_row(name: str, driven: BehaviourStatistics) -> str:
    name = name.replace("|", "\\|")
    return f"| {name} | {driven.episodes:,} | {driven.steps:,} | {driven.mean_return:.1f} |\n"


def _hours(seconds: float) -> str:
    return f" ({seconds / 3600:.1f} hours)" if seconds >= 3600 else f" ({seconds / 60:.1f} minutes)" if seconds else ""


def _size_category(steps: int) -> str:
    """The Hub's class of a number of rows."""
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    for lower, (power, name) in zip(("", *names), enumerate(names), strict=False):
        if steps < 10 ** (3 + power):
            return f"{lower}<n<{name}" if lower else f"n<{name}"
    return "n>1B"
