"""Reading a dataset: headers, episodes, and clips drawn at random for training."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.clips import Clips
from wm_gym.data_collection.datasets.download_cache import DownloadCache
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.episode_file import (
    EPISODE_PATTERN,
    EpisodeHeader,
    check_episode_file,
    read_episode,
    read_header,
    read_slice,
)
from wm_gym.data_collection.datasets.episode_part import EpisodePart, split_by_time
from wm_gym.data_collection.datasets.metadata import EPISODES_FOLDER, DatasetMetadata
from wm_gym.data_collection.datasets.remote import open_remote
from wm_gym.data_collection.datasets.remote_folder import is_url, local_folder
from wm_gym.data_collection.datasets.writer import check_sizes, write_dataset
from wm_gym.errors import DatasetError

DEFAULT_CACHE_BYTES = 1 << 30
_DOWNLOADS_AT_ONCE = 8


class _FrameCache:
    """Whole decoded episodes, kept until the byte limit is reached and never dropped.

    Clips are drawn uniformly, so that no episode is likelier to come next than another: dropping one to keep another
    would only cost decoding.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._episodes: dict[Path, Episode] = {}
        self._checked: set[Path] = set()
        self._lock = threading.Lock()

    def read(self, header: EpisodeHeader, start: int, length: int) -> Clips[NDArray[Any]]:
        """The slice from memory, or from the disk; an episode's checksum is computed when it is first touched."""
        whole = self._episodes.get(header.path)
        if whole is None and self._reserve(header):
            try:
                whole = header.read(read_episode)
                if len(whole) != header.length or whole.frame_size != header.frame_size:
                    raise DatasetError(f"{header.path} has changed since the dataset was opened; open it again.")
            except BaseException:
                self._release(header)
                raise
            self._episodes[header.path] = whole
        if whole is not None:
            seen, steps = slice(start, start + length), slice(start, start + length - 1)
            return Clips(
                whole.frames[seen],
                whole.actions[steps],
                whole.rewards[steps],
                whole.terminated[steps],
                whole.vectors[seen],
            )
        if header.path not in self._checked:
            header.read(check_episode_file)
            self._checked.add(header.path)
        return read_slice(header, start, length)

    def holds(self, header: EpisodeHeader) -> bool:
        """Whether the episode is in memory."""
        return header.path in self._episodes

    def __getstate__(self) -> dict[str, int]:
        return {"limit_bytes": self.limit_bytes}  # another process reads and checks for itself

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["limit_bytes"])  # type: ignore[misc]

    def _reserve(self, header: EpisodeHeader) -> bool:
        with self._lock:
            fits = self._used_bytes + _decoded_bytes(header) <= self.limit_bytes
            self._used_bytes += _decoded_bytes(header) if fits else 0
            return fits

    def _release(self, header: EpisodeHeader) -> None:
        with self._lock:
            self._used_bytes -= _decoded_bytes(header)


class Dataset:
    """Recorded episodes in a folder, here or on object storage; see ``docs/dataset.md`` for the format.

    Make one with :meth:`open` or :meth:`create`. Reading is safe from several threads.

    Attributes:
        path: The dataset's folder, or its URL as text.
        metadata: What ``dataset.json`` says.

    ```python
    dataset = Dataset.open("runs/demo/data")
    clips = dataset.sample_clips(np.random.default_rng(0), batch_size=16, length=10)
    ```
    """

    def __init__(
        self,
        path: Path | str,
        metadata: DatasetMetadata,
        files: Sequence[Path],
        cache: _FrameCache,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self._files = list(files)
        self._cache = cache
        self._first_clips: dict[int, NDArray[np.int64]] = {}
        self._parts: dict[int, EpisodePart] = {}  # by position, for episodes of which a part alone belongs to this one

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        downloads: DownloadCache | None = None,
    ) -> Dataset:
        """Open a dataset for reading. Only ``dataset.json`` and the folder's listing are read here.

        Args:
            path: The dataset's folder, or a URL that fsspec knows (``"s3://bucket/car"``) or of the Hugging Face Hub
                (``"hf://datasets/owner/name"``), to which :func:`~wm_gym.data_collection.push` has put a dataset; its
                episodes are downloaded on first use.
            cache_bytes: Most bytes of decoded frames to keep in memory (per process); 0 keeps none.
            downloads: Where downloaded episodes are kept; ``None``: :meth:`DownloadCache.default`.

        Raises:
            DatasetError: the folder is missing, is no dataset, has another version, or has no episodes; the network
                fails, or the package for the URL's protocol is missing.
        """
        if is_url(path):
            url, metadata, headers = open_remote(str(path), downloads)
            remote = cls(url, metadata, [header.path for header in headers], _FrameCache(cache_bytes))
            remote.episodes = headers
            return remote
        folder = Path(path)
        metadata = DatasetMetadata.read(folder)
        files = list_episode_files(folder)
        if not files:
            raise DatasetError(f"the dataset {folder} has no episodes yet; run the collection again.")
        return cls(folder, metadata, files, _FrameCache(cache_bytes))

    @classmethod
    def create(cls, path: str | Path, metadata: DatasetMetadata, episodes: Iterable[Episode]) -> Dataset:
        """Write a new dataset from episodes (an iterable, taken one by one), and open it.

        Raises:
            DatasetError: the folder is in use, an episode does not fit, or the disk refuses it.
        """
        folder = local_folder(path)
        write_dataset(folder, metadata, episodes)
        return cls(folder, metadata, list_episode_files(folder), _FrameCache(DEFAULT_CACHE_BYTES))

    def push_to_hub(self, repository: str, *, private: bool = False, message: str | None = None) -> str:
        """Send the dataset to the Hugging Face Hub, or add to it there what it has gained; needs the extra ``hub``.

        ``Dataset.open("hf://datasets/owner/name")`` reads it back. Up to 96 episodes arrive in one commit; the first of
        more are sent before, and a reader does not see them until the last commit lists them. What was not sent when a
        push was interrupted is sent by the next one.

        Args:
            repository: ``"owner/name"``; made where there is none.
            private: Whether nobody else may see a repository that is made now.
            message: Of the commit.

        Returns:
            The address of the repository.

        Raises:
            DatasetError: The name is not of that form, the extra is not installed, an episode is damaged, one may not
                write there, the repository holds something else or other episodes, or the Hub cannot be reached.
        """
        from wm_gym.data_collection.datasets.hub_push import push_to_hub

        return push_to_hub(self, repository, private=private, message=message).url

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._files)

    @property
    def is_cut(self) -> bool:
        """Whether a part alone of an episode belongs to it, as after a split by time."""
        return bool(self._parts)

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self._files)

    @cached_property
    def episodes(self) -> list[EpisodeHeader]:
        """The headers of all episodes in the order of their indices; read on first use.

        Raises:
            DatasetError: a file is cut, damaged or foreign, or does not fit the dataset's simulator.
        """
        headers = [read_header(path) for path in self._files]
        for header in headers:
            check_sizes(str(header.path), header.frame_size, header.action_dim, header.vector_dim, self.metadata)
        return headers

    @property
    def num_steps(self) -> int:
        """Number of steps (actions) in all episodes."""
        return sum(header.length for header in self.episodes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the content: simulator, and every episode's index and checksum."""
        digest = hashlib.sha256(self.metadata.simulator.model_dump_json().encode())
        for header in self.episodes:
            digest.update(f"{header.index} {header.sha256}\n".encode())
        for position, part in self._parts.items():
            digest.update(f"{position} {part.first} {part.length}\n".encode())
        return digest.hexdigest()[:16]

    def read_episode(self, position: int) -> Episode:
        """Read the episode at a position of :attr:`episodes`, and check its checksum.

        Raises:
            DatasetError: there is none at that position, or its file is damaged.
        """
        header, part = self._header(position), self._parts.get(position)
        return header.read(read_episode) if part is None else part.cut(part.whole.read(read_episode))

    def read_clip(self, position: int, start: int, length: int) -> Clips[NDArray[Any]]:
        """Read ``length`` frames from ``start`` on, and the steps between them, as a batch of one clip.

        Raises:
            DatasetError: the clip leaves its episode, or the file is damaged.
        """
        header = self._header(position)
        if length < 2 or start < 0 or start + length > header.length + 1:
            raise DatasetError(
                f"a clip of {length} frames from frame {start} on does not lie in episode {header.index} with "
                f"{header.length + 1} frames; a clip has 2 frames or more."
            )
        return Clips(*(array[None] for array in self._read(position, start, length)[:5]))

    def download(self) -> None:
        """Bring every episode to this machine, to work without the network; does nothing where they are here.

        Raises:
            DatasetError: the network fails, or a file is damaged there.
        """
        self._fetch(self.episodes)

    def num_clips(self, length: int) -> int:
        """Number of different clips of ``length`` frames."""
        return int(self._clip_ends(length)[-1])

    def sample_clips(self, rng: np.random.Generator, batch_size: int, length: int) -> Clips[NDArray[Any]]:
        """Draw clips uniformly from all start frames that leave room for ``length`` frames, with replacement.

        Args:
            rng: The only source of randomness; the same state gives the same clips.
            batch_size: Number of clips, ``B``.
            length: Frames in a clip, ``T``; 2 or more.

        Raises:
            DatasetError: no episode is long enough, or a file is damaged.
        """
        return self.read_clips(self.draw_clips(rng, batch_size, length), length)

    def episode_lengths(self) -> NDArray[np.int64]:
        """Steps of each episode, by position: ``(E,)`` int64."""
        return np.array([header.length for header in self.episodes], np.int64)

    def draw_clips(self, rng: np.random.Generator, batch_size: int, length: int) -> NDArray[np.int64]:
        """As :meth:`sample_clips`, without reading: ``(B, 2)`` int64, positions of episodes and start frames."""
        ends = self._clip_ends(length)
        if ends[-1] == 0:
            longest = max(header.length for header in self.episodes) + 1
            raise DatasetError(
                f"no episode of {self.path} has {length} frames (the longest has {longest}); use shorter clips or "
                "collect longer episodes."
            )
        drawn = rng.integers(ends[-1], size=batch_size)
        positions = np.searchsorted(ends, drawn, side="right")
        first = np.where(positions > 0, ends[positions - 1], 0)
        return np.stack((positions, drawn - first), axis=1)

    def read_clips(self, draws: NDArray[np.int64], length: int) -> Clips[NDArray[Any]]:
        """Read the clips of ``length`` frames that :meth:`draw_clips` drew.

        Raises:
            DatasetError: a file is damaged.
        """
        batch_size = len(draws)
        self._fetch([self.episodes[position] for position in np.unique(draws[:, 0])])
        height, width = self.metadata.simulator.frame_size
        batch: Clips[NDArray[Any]] = Clips(
            np.empty((batch_size, length, height, width, 3), np.uint8),
            np.empty((batch_size, length - 1, self.metadata.simulator.action.dim), np.float32),
            np.empty((batch_size, length - 1), np.float32),
            np.empty((batch_size, length - 1), np.bool_),
            np.empty((batch_size, length, len(self.metadata.simulator.vector)), np.float32),
        )
        for row, (position, start) in enumerate(draws):
            part = self._read(int(position), int(start), length)
            for whole, one in zip(batch[:5], part[:5], strict=True):
                whole[row] = one
        return batch

    def split(self, validation_fraction: float) -> tuple[Dataset, Dataset]:
        """Split by episodes into a training and a validation part that share this dataset's cache.

        The episode with index ``i`` is for validation if ``floor((i + 1) f) > floor(i f)``: every tenth one for
        ``f = 0.1``. The rule looks at nothing but the index, so an episode stays in its part when more are collected;
        only a dataset too small for it gives its last episode to validation. Where it is too small and one episode has
        more than half of all steps, that one is split by time instead: its end, with the fraction of its steps, is for
        validation.

        Raises:
            DatasetError: the fraction is not in (0, 1), or the only episode has fewer than 3 steps.
        """
        if not 0.0 < validation_fraction < 1.0:
            raise DatasetError(f"validation_fraction is {validation_fraction}, but a number between 0 and 1 is wanted.")
        chosen = [_is_for_validation(header.index, validation_fraction) for header in self.episodes]
        if len(self) == 1 or not any(chosen):
            longest = int(np.argmax(self.episode_lengths()))
            if 2 * self.episodes[longest].length > self.num_steps:
                return self._split_by_time(longest, validation_fraction)
            chosen[-1] = True
        elif all(chosen):
            chosen[0] = False
        return self._subset([not yes for yes in chosen]), self._subset(chosen)

    def _fetch(self, headers: Sequence[EpisodeHeader]) -> None:
        """Download episodes side by side, before they are read one by one."""
        elsewhere = [header for header in headers if header.origin is not None and not self._cache.holds(header)]
        if len(elsewhere) > 1:
            with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="downloads") as pool:
                for _ in pool.map(lambda header: header.read(lambda path: path), elsewhere):
                    pass

    def _subset(self, chosen: Sequence[bool]) -> Dataset:
        files = [path for path, yes in zip(self._files, chosen, strict=True) if yes]
        part = Dataset(self.path, self.metadata, files, self._cache)
        part.episodes = [header for header, yes in zip(self.episodes, chosen, strict=True) if yes]
        return part

    def _split_by_time(self, position: int, validation_fraction: float) -> tuple[Dataset, Dataset]:
        """All episodes with the beginning of one, and the end of that one alone."""
        beginning, end = split_by_time(self.episodes[position], validation_fraction)
        train = self._subset([True] * len(self))
        validation = self._subset([place == position for place in range(len(self))])
        for dataset, place, part in ((train, position, beginning), (validation, 0, end)):
            dataset.episodes[place] = part.header
            dataset._parts[place] = part
        return train, validation

    def _read(self, position: int, start: int, length: int) -> Clips[NDArray[Any]]:
        part = self._parts.get(position)
        if part is None:
            return self._cache.read(self.episodes[position], start, length)
        return self._cache.read(part.whole, part.first + start, length)

    def _header(self, position: int) -> EpisodeHeader:
        if not 0 <= position < len(self):
            raise DatasetError(f"{self.path} has no episode at position {position}; it has {len(self)} episodes.")
        return self.episodes[position]

    def _clip_ends(self, length: int) -> NDArray[np.int64]:
        """For every episode the number of clips in it and in those before it: ``(num_episodes,)``."""
        if length < 2:
            raise DatasetError(f"a clip of {length} frames was asked for, but a clip has 2 frames or more.")
        if length not in self._first_clips:
            counts = [max(0, header.length + 2 - length) for header in self.episodes]
            self._first_clips[length] = np.cumsum(counts, dtype=np.int64)
        return self._first_clips[length]


def list_episode_files(folder: Path) -> list[Path]:
    """The episode files of a dataset folder in the order of their indices; the listing is the index."""
    return sorted((folder / EPISODES_FOLDER).glob(EPISODE_PATTERN), key=lambda path: (len(path.name), path.name))


def _is_for_validation(index: int, fraction: float) -> bool:
    return math.floor((index + 1) * fraction + 1e-9) > math.floor(index * fraction + 1e-9)


def _decoded_bytes(header: EpisodeHeader) -> int:
    return (header.length + 1) * header.frame_size[0] * header.frame_size[1] * 3
