"""Episodes of an evaluation that has not come to its end: the same call goes on from them.

They are lines of JSON in a file beside that of the results, each written when its episode is over. A line tells which
evaluation its episode belongs to; those of another one are passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from wm_gym._version import __version__
from wm_gym.agents.bundles.folder import MANIFEST, read_agent_manifest
from wm_gym.agents.evaluation.drives import DriveResult, DriveSettings
from wm_gym.agents.evaluation.reality_gap import DriveGap, Windows
from wm_gym.checksums import file_sha256

SUFFIX = ".part"
"""What the name of the results' file is followed by."""


class FinishedEpisodes:
    """The file of one command's finished episodes.

    Args:
        results: The file of its results; ``None``, or what is no ordinary file, keeps nothing.
    """

    def __init__(self, results: Path | None) -> None:
        self._path: Path | None = None
        if results is not None and (results.is_file() or not results.exists()):
            target = results.resolve()  # behind a link such as /dev/stdout
            self._path = target.with_name(target.name + SUFFIX)

    def of(self, settings: DriveSettings, seeds: Sequence[int]) -> KeptEpisodes:
        """Those of one evaluation."""
        return KeptEpisodes(self._path, settings, seeds)

    def remove(self) -> None:
        """Forget them: the results are written."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


class KeptEpisodes:
    """The finished episodes of one evaluation, each known by its seed and the options of its reset.

    Args:
        path: Of the file, which need not exist; ``None`` keeps nothing.
        settings: Driver and simulator.
        seeds: Seed of each episode.
    """

    def __init__(self, path: Path | None, settings: DriveSettings, seeds: Sequence[int]) -> None:
        self._path = path
        self._keys: list[str] = []
        if path is None:
            return
        made_by = {
            "wm_gym": __version__,
            "driver": _version(settings),
            "simulator": settings.simulator.model_dump(mode="json"),
            "device": settings.device,
            "max_episode_steps": settings.max_episode_steps,
            "gap_horizon": settings.gap_horizon,
            "horizons": list(settings.horizons),
        }
        for index, seed in enumerate(seeds):
            option = settings.reset_options[index] if settings.reset_options else None
            text = json.dumps({**made_by, "seed": seed, "options": option}, sort_keys=True, default=repr)
            self._keys.append(hashlib.sha256(text.encode()).hexdigest())

    def read(self) -> dict[int, DriveResult]:
        """The episodes that are there, by their numbers. What was cut off while it was written is passed over."""
        if self._path is None or not self._path.is_file():
            return {}
        places = {key: index for index, key in enumerate(self._keys)}
        found = {}
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                index = places[entry["of"]]
                found[index] = _from_json(index, entry["result"])
        return found

    def add(self, result: DriveResult) -> None:
        """Write one down. A disk that has become full is told when the results are written."""
        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"of": self._keys[result.index], "result": _to_json(result)})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")  # a line that a kill has cut off ends here


def _version(settings: DriveSettings) -> str:
    """What an agent is, wherever its folder lies; the name of another driver."""
    driver = str(settings.driver)
    return file_sha256(read_agent_manifest(driver)[0] / MANIFEST) if settings.is_agent else driver


def _to_json(result: DriveResult) -> Mapping[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if isinstance(value, np.ndarray):  # the shape tells the number of columns where there are no rows
            return {"shape": value.shape, "values": value.ravel().tolist()}
        return value

    values: Mapping[str, Any] = plain(asdict(result))
    return values


def _from_json(index: int, values: dict[str, Any]) -> DriveResult:
    gap = values["gap"]
    if gap is not None:
        windows = {name: _array(name, part) for name, part in gap["windows"].items()}
        arrays = {name: _array(name, gap[name]) for name in ("rewards", "predicted", "continuations", "terminated")}
        gap = DriveGap(windows=Windows(**windows), dream_return=gap["dream_return"], **arrays)
    return DriveResult(
        **{**{field.name: values[field.name] for field in fields(DriveResult)}, "gap": gap, "index": index}
    )


def _array(name: str, array: Mapping[str, Any] | None) -> Any:
    if array is None:
        return None
    dtype = np.bool_ if name in {"driven", "terminated"} else np.float32
    return np.asarray(array["values"], dtype).reshape(array["shape"])
