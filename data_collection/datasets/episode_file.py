"""One episode, one file: a safetensors container that checks itself.

Tensors, for ``T`` steps:

=================== ======================= ==================================================================
``frames``          ``(T + 1, H, W, 3)``    uint8, codec ``raw``
``frames``          ``(bytes,)``            uint8, every other codec: the images one after another
``frame_offsets``   ``(T + 2,)``            int64: image ``t`` is ``frames[offsets[t]:offsets[t + 1]]``
``actions``         ``(T, A)``              float32
``rewards``         ``(T,)``                float32
``terminated``      ``(T,)``                bool
``truncated``       ``(T,)``                bool
``vectors``         ``(T + 1, V)``          float32, in version 2 alone
``info.<name>``     ``(T,)``                float32
=================== ======================= ==================================================================

The container's ``__metadata__`` holds format, version, index, seed, behaviour, length, height, width, codec, return,
end and a SHA-256 over all of these and over every tensor's name, type, shape and bytes. An episode without vectors is
written as version 1.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from wm_gym.actions import FloatArray
from wm_gym.clips import Clips
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.episode import INFO_PREFIX, Episode, check_steps
from wm_gym.errors import DatasetError, reason_of
from wm_gym.files import describe_os_error, write_bytes_atomically
from wm_gym.frames import Frame
from wm_gym.observation import Observation
from wm_gym.plain_files import check_tensor_file
from wm_gym.simulator import MAX_FRAME_SIDE

EPISODE_FORMAT = "wm_gym.episode"
EPISODE_VERSION = "2"
_WITHOUT_VECTORS = "1"
EPISODE_PATTERN = "episode-*.safetensors"

End = Literal["terminated", "truncated", "none"]
T = TypeVar("T")


def episode_file_name(index: int) -> str:
    """File name of the episode with this index."""
    return f"episode-{index:06d}.safetensors"


class EpisodeOrigin(Protocol):
    """Where the files of episodes come from that are not on this machine yet."""

    def read(self, header: EpisodeHeader, function: Callable[[Path], T]) -> T:
        """Bring the file here, and let the function read it."""


@dataclass(frozen=True)
class EpisodeHeader:
    """What is known of an episode without reading its tensors.

    Attributes:
        path: Its file on this machine; of an episode that is elsewhere (``origin``), where its copy will be.
        index: Number of the episode.
        length: Number of steps ``T``; there is one frame more.
        frame_size: Height and width of its frames, in pixels.
        action_dim: Values in one action.
        vector_dim: Numbers beside each frame, 0 where there are none.
        codec: How its frames are stored.
        seed: Seed that the simulator was reset with, or -1 where it is not known.
        behaviour: Name of the policy that drove.
        return_: Sum of the rewards.
        end: ``"terminated"``, ``"truncated"`` (also where both are true at the last step: ``"terminated"``), or
            ``"none"`` where the recording just stops.
        sha256: Checksum of the episode.
        file_bytes: Size of the file.
        origin: Where the file comes from; ``None`` where it is no copy.
    """

    path: Path
    index: int
    length: int
    frame_size: tuple[int, int]
    action_dim: int
    vector_dim: int
    codec: FrameCodec
    seed: int
    behaviour: str
    return_: float
    end: End
    sha256: str
    file_bytes: int
    origin: EpisodeOrigin | None = field(default=None, compare=False, repr=False)

    def read(self, function: Callable[[Path], T]) -> T:
        """Let a function read the episode's file, which is brought to this machine first where it is elsewhere.

        Raises:
            DatasetError: the file cannot be had, or what the function raises.
        """
        return function(self.path) if self.origin is None else self.origin.read(self, function)


class EpisodeRecorder:
    """Builds one episode step by step; frames are coded as they come, so memory holds no raw video.

    Args:
        codec: How to store the frames.
        observed: First frame, ``(H, W, 3)`` uint8 RGB, and vector, ``(V,)`` float32.
        seed: Seed that the simulator was reset with, or -1.
        behaviour: Name of the policy that drives.
        index: Number of the episode.
    """

    def __init__(
        self, codec: FrameCodec, observed: Observation[NDArray[Any]], *, seed: int, behaviour: str, index: int
    ) -> None:
        self.codec = codec
        self.seed = seed
        self.behaviour = behaviour
        self.index = index
        self._shape = observed.image.shape
        self._frames: list[bytes] = []
        self._vectors: list[FloatArray] = []
        self._actions: list[FloatArray] = []
        self._rewards: list[float] = []
        self._terminated: list[bool] = []
        self._truncated: list[bool] = []
        self._infos: dict[str, list[float]] = {}
        self._add_observation(observed)

    def __len__(self) -> int:
        """Number of steps so far."""
        return len(self._actions)

    @property
    def return_(self) -> float:
        """Sum of the rewards so far."""
        return float(np.sum(np.asarray(self._rewards, np.float32), dtype=np.float64))

    def add(
        self,
        action: FloatArray,
        observed: Observation[NDArray[Any]],
        reward: float,
        *,
        terminated: bool,
        truncated: bool,
        infos: Mapping[str, float] | None = None,
    ) -> None:
        """Add one step: the action, and what it led to.

        Raises:
            DatasetError: the frame's or vector's shape or type differs from the first one's.
        """
        for name in infos or {}:
            if name not in self._infos:  # a scalar that appears late was not reported before
                self._infos[name] = [np.nan] * len(self)
        for name, values in self._infos.items():
            values.append(float((infos or {}).get(name, np.nan)))
        self._actions.append(np.array(action, dtype=np.float32))
        self._rewards.append(float(reward))
        self._terminated.append(bool(terminated))
        self._truncated.append(bool(truncated))
        self._add_observation(observed)

    def write(self, folder: Path) -> EpisodeHeader:
        """Write the episode into a folder, whole or not at all.

        Raises:
            DatasetError: the episode is empty or holds values that are not finite, or the disk refuses it.
        """
        return write_episode_file(folder, self.index, self.content())

    def content(self) -> bytes:
        """The bytes of the episode's file.

        Raises:
            DatasetError: the episode is empty or holds values that are not finite.
        """
        if not self._actions:
            raise DatasetError(f"episode {self.index} has no step, so there is nothing to write.")
        tensors: dict[str, NDArray[Any]] = {
            "actions": np.stack(self._actions),
            "rewards": np.asarray(self._rewards, np.float32),
            "terminated": np.asarray(self._terminated, np.bool_),
            "truncated": np.asarray(self._truncated, np.bool_),
            "vectors": np.stack(self._vectors),
            **{INFO_PREFIX + name: np.asarray(values, np.float32) for name, values in self._infos.items()},
        }
        check_steps(f"episode {self.index}", len(self), tensors)
        has_vectors = tensors["vectors"].shape[1] > 0
        if not has_vectors:
            del tensors["vectors"]
        blob = np.frombuffer(b"".join(self._frames), np.uint8)
        if self.codec.name == "raw":
            tensors["frames"] = blob.reshape(len(self._frames), *self._shape)
        else:
            tensors["frames"] = blob
            tensors["frame_offsets"] = np.cumsum([0, *map(len, self._frames)], dtype=np.int64)
        metadata = {
            "format": EPISODE_FORMAT,
            "version": EPISODE_VERSION if has_vectors else _WITHOUT_VECTORS,
            "index": str(self.index),
            "seed": str(self.seed),
            "behaviour": self.behaviour,
            "length": str(len(self)),
            "height": str(self._shape[0]),
            "width": str(self._shape[1]),
            "codec": str(self.codec),
            "return": repr(self.return_),
            "end": "terminated" if self._terminated[-1] else "truncated" if self._truncated[-1] else "none",
        }
        metadata["sha256"] = _checksum(metadata, tensors)
        return _serialised(tensors, metadata)

    def _add_observation(self, observed: Observation[NDArray[Any]]) -> None:
        frame, vector = observed
        if self._vectors and vector.shape != self._vectors[0].shape:
            raise DatasetError(
                f"episode {self.index} met a vector of shape {vector.shape}, but {self._vectors[0].shape} is wanted."
            )
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or frame.shape != self._shape:
            raise DatasetError(
                f"episode {self.index} met a frame of shape {frame.shape} and type {frame.dtype}, but "
                f"{(*self._shape[:2], 3)} uint8 is wanted."
            )
        self._frames.append(self.codec.encode(frame))
        self._vectors.append(np.array(vector, np.float32))


def write_episode(folder: Path, episode: Episode, codec: FrameCodec) -> EpisodeHeader:
    """Write an episode into a folder, whole or not at all.

    Raises:
        DatasetError: the episode does not fit together (see :meth:`Episode.check`), or the disk refuses it.
    """
    episode.check()
    seen = [Observation(*pair) for pair in zip(episode.frames, episode.vectors, strict=True)]
    recorder = EpisodeRecorder(codec, seen[0], seed=episode.seed, behaviour=episode.behaviour, index=episode.index)
    for t in range(len(episode)):
        recorder.add(
            episode.actions[t],
            seen[t + 1],
            float(episode.rewards[t]),
            terminated=bool(episode.terminated[t]),
            truncated=bool(episode.truncated[t]),
            infos={name: float(values[t]) for name, values in episode.infos.items()},
        )
    return recorder.write(folder)


def write_episode_file(folder: Path, index: int, content: bytes) -> EpisodeHeader:
    """Write the bytes of an episode's file (:meth:`EpisodeRecorder.content`) into a folder, whole or not at all.

    Raises:
        DatasetError: the bytes are no episode, or the disk refuses them.
    """
    path = folder / episode_file_name(index)
    try:
        write_bytes_atomically(path, content)
    except OSError as error:
        raise DatasetError(f"the episode cannot be written: {describe_os_error(error)}") from error
    return read_header(path)


def read_header(path: Path) -> EpisodeHeader:
    """Read what is known of an episode without its tensors; the shapes are checked against each other.

    Raises:
        DatasetError: the file is missing, cut, damaged or foreign.
    """
    with _opened(path) as file:
        return _header(path, file)


def read_episode(path: Path) -> Episode:
    """Read a whole episode and check its checksum.

    Raises:
        DatasetError: the file is missing, cut, damaged or foreign.
    """
    header, tensors = check_episode_file(path)
    if header.codec.name == "raw":
        frames = tensors["frames"]
    else:
        frames = _decode(header, tensors["frames"], tensors["frame_offsets"])
    return Episode(
        frames=frames,
        actions=tensors["actions"],
        rewards=tensors["rewards"],
        terminated=tensors["terminated"],
        truncated=tensors["truncated"],
        vectors=tensors["vectors"],
        infos={
            name.removeprefix(INFO_PREFIX): tensors[name] for name in sorted(tensors) if name.startswith(INFO_PREFIX)
        },
        seed=header.seed,
        behaviour=header.behaviour,
        index=header.index,
    )


def read_steps(header: EpisodeHeader) -> dict[str, NDArray[Any]]:
    """Read everything of an episode but its frames, by tensor name; without a look at the checksum.

    Raises:
        DatasetError: the file is missing, cut or damaged.
    """

    def read(file: Any) -> dict[str, NDArray[Any]]:
        names = [name for name in file.keys() if not name.startswith("frame")]  # noqa: SIM118 - no mapping
        return {name: file.get_tensor(name) for name in names}

    return _read(header, read)


def verify_episode(path: Path) -> tuple[EpisodeHeader, dict[str, NDArray[Any]]]:
    """As :func:`check_episode_file`, and decode every frame, with no more than one of them in memory."""
    header, tensors = check_episode_file(path)
    if header.codec.name != "raw":
        for _ in _decoded(header, tensors["frames"], tensors["frame_offsets"]):
            pass
    return header, tensors


def check_episode_file(path: Path) -> tuple[EpisodeHeader, dict[str, NDArray[Any]]]:
    """Check an episode's checksum and its steps without decoding its frames.

    Returns:
        The header, and the tensors as they are stored.

    Raises:
        DatasetError: the file is missing, cut, damaged or foreign.
    """
    with _opened(path) as file:
        header = _header(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        metadata = dict(file.metadata())
    if metadata.pop("sha256") != _checksum(metadata, tensors):
        raise DatasetError(f"{path} is damaged: its checksum does not match; {_REMEDY}")
    tensors.setdefault("vectors", np.zeros((header.length + 1, 0), np.float32))
    try:
        check_steps("it", header.length, tensors)
    except DatasetError as error:
        raise DatasetError(f"{path} is not a valid episode: {str(error).rstrip('.')}; {_REMEDY}") from error
    return header, tensors


def read_slice(header: EpisodeHeader, start: int, length: int) -> Clips[NDArray[Any]]:
    """Read ``length`` frames from ``start`` on and the steps between them; nothing else is read or decoded.

    The caller keeps ``0 <= start`` and ``start + length <= header.length + 1``. The checksum is not computed (see
    :func:`check_episode_file`), but a file that is cut or no longer the one that ``header`` describes is refused.

    Raises:
        DatasetError: the file is missing, cut, damaged or has changed.
    """

    def read(file: Any) -> Clips[NDArray[Any]]:
        frames, vectors = _read_observations(file, header, start, length)
        steps = slice(start, start + length - 1)
        return Clips(
            frames=frames,
            actions=file.get_slice("actions")[steps],
            rewards=file.get_slice("rewards")[steps],
            terminated=file.get_slice("terminated")[steps],
            vectors=vectors,
        )

    return _read(header, read)


def read_observations(header: EpisodeHeader, start: int, count: int) -> Observation[NDArray[Any]]:
    """Read ``count`` frames and vectors from frame ``start`` on; as :func:`read_slice`, without the steps.

    Returns:
        ``(count, H, W, 3)`` uint8 and ``(count, V)`` float32.

    Raises:
        DatasetError: the file is missing, cut, damaged or has changed.
    """
    return _read(header, lambda file: _read_observations(file, header, start, count))


def _read(header: EpisodeHeader, function: Callable[[Any], T]) -> T:
    """Let a function read an episode's open container."""

    def read(path: Path) -> T:
        with _opened(path) as file:
            return function(file)

    return header.read(read)


def _read_observations(file: Any, header: EpisodeHeader, start: int, count: int) -> Observation[NDArray[Any]]:
    if (file.metadata() or {}).get("sha256") != header.sha256:
        raise DatasetError(f"{header.path} has changed since the dataset was opened; open the dataset again.")
    if header.codec.name == "raw":
        frames = file.get_slice("frames")[start : start + count]
    else:
        offsets = file.get_slice("frame_offsets")[start : start + count + 1]
        low, high = int(offsets[0]), int(offsets[-1])
        if not 0 <= low <= high <= file.get_slice("frames").get_shape()[0]:
            raise DatasetError(f"{header.path} is damaged: its frame offsets leave the file; {_REMEDY}")
        frames = _decode(header, file.get_slice("frames")[low:high], offsets - low)
    seen = slice(start, start + count)
    vectors = file.get_slice("vectors")[seen] if header.vector_dim else np.zeros((count, 0), np.float32)
    return Observation(frames, vectors)


_REMEDY = "delete the file and run the collection again, or restore it from a copy."


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open container; every way in which the file can be bad becomes one :class:`DatasetError`."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {reason_of(error)}; {_REMEDY}") from error
    if not stat.S_ISREG(mode):
        raise DatasetError(f"{path} is no regular file, and links out of a dataset are not followed; copy it there.")
    try:
        check_tensor_file(path)
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DatasetError(f"{path} is cut short or damaged ({_first_line(error)}); {_REMEDY}") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {reason_of(error)}; {_REMEDY}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _header(path: Path, file: Any) -> EpisodeHeader:
    metadata = file.metadata() or {}
    if metadata.get("format") != EPISODE_FORMAT:
        raise DatasetError(f"{path} is a safetensors file, but no wm_gym episode; move it out of the dataset.")
    if metadata.get("version") not in (_WITHOUT_VECTORS, EPISODE_VERSION):
        raise DatasetError(
            f"{path} has episode version {metadata.get('version')!r}, but this wm_gym reads up to version "
            f"{EPISODE_VERSION!r}; use the wm_gym release that wrote it."
        )
    # Bad numbers and absent keys raise ValueError or KeyError, which _opened turns into the error for the user.
    end = metadata["end"]
    if end not in ("terminated", "truncated", "none"):
        raise ValueError(f"end {end!r} is unknown")
    try:
        codec = FrameCodec.parse(metadata["codec"])
    except (DatasetError, ValidationError) as error:
        raise ValueError(f"codec {metadata['codec']!r} is unknown") from error
    length, height, width = (int(metadata[key]) for key in ("length", "height", "width"))
    if not (1 <= height <= MAX_FRAME_SIDE and 1 <= width <= MAX_FRAME_SIDE):
        raise ValueError(f"its frames of {height}x{width} pixels are larger than any that are recorded")
    shapes = {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    action_dim = int(shapes["actions"][0][-1])
    vector_dim = int(shapes["vectors"][0][-1]) if metadata["version"] == EPISODE_VERSION else 0
    wanted = {
        "actions": ([length, action_dim], "F32"),
        "rewards": ([length], "F32"),
        "terminated": ([length], "BOOL"),
        "truncated": ([length], "BOOL"),
        **({"vectors": ([length + 1, vector_dim], "F32")} if vector_dim else {}),
        **{name: ([length], "F32") for name in shapes if name.startswith(INFO_PREFIX)},
    }
    if codec.name == "raw":
        wanted["frames"] = ([length + 1, height, width, 3], "U8")
    else:
        wanted["frames"] = ([shapes["frames"][0][0]], "U8")
        wanted["frame_offsets"] = ([length + 2], "I64")
    if length < 1 or shapes != wanted:
        wrong = next((name for name in {**wanted, **shapes} if shapes.get(name) != wanted.get(name)), "length")
        raise ValueError(f"tensor {wrong!r} does not fit an episode of {length} steps")
    index = int(metadata["index"])
    if path.name != episode_file_name(index):
        raise DatasetError(f"{path} holds episode {index}; rename it to {episode_file_name(index)}.")
    return EpisodeHeader(
        path=path,
        index=index,
        length=length,
        frame_size=(height, width),
        action_dim=action_dim,
        vector_dim=vector_dim,
        codec=codec,
        seed=int(metadata["seed"]),
        behaviour=metadata["behaviour"],
        return_=float(metadata["return"]),
        end=end,
        sha256=metadata["sha256"],
        file_bytes=path.stat().st_size,
    )


def _serialised(tensors: dict[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its content alone; the library orders metadata at random."""
    content = save(tensors)
    size = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8 : 8 + size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[8 + size :]))


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        digest.update(f"\n{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _decode(header: EpisodeHeader, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Decode the images that lie between the offsets: ``(N + 1,)`` int64 into ``blob``."""
    images = _decoded(header, blob, offsets)
    first = next(images)  # by now every image's header has been compared
    try:
        frames = np.empty((len(offsets) - 1, *header.frame_size, 3), np.uint8)
    except MemoryError as error:
        raise DatasetError(f"{header.path} has frames that do not fit into memory; read clips of it.") from error
    frames[0] = first
    for t, frame in enumerate(images, start=1):
        frames[t] = frame
    return frames


def _decoded(header: EpisodeHeader, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Iterator[Frame]:
    """Each of the images; all their headers are compared before the first is decoded."""
    if offsets[0] != 0 or offsets[-1] != len(blob) or (np.diff(offsets) < 0).any():
        raise DatasetError(f"{header.path} is damaged: its frame offsets do not fit its frames; {_REMEDY}")
    images = [blob[low:high] for low, high in pairwise(offsets)]
    try:
        for image in images:
            header.codec.check_header(image, header.frame_size)
        for image in images:
            frame = header.codec.decode(image)
            if frame.shape[:2] != header.frame_size:
                raise DatasetError(f"a frame has shape {frame.shape}.")
            yield frame
    except DatasetError as error:
        raise DatasetError(f"{header.path} is damaged: {str(error).rstrip('.')}; {_REMEDY}") from error
