"""Conversion to and from Minari, the Farama Foundation's dataset format (an optional extra)."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import ValidationError

from wm_gym.actions import ActionFormat
from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC, FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.metadata import DatasetMetadata, versions
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.data_collection.datasets.writer import check_target
from wm_gym.errors import DatasetError
from wm_gym.frames import resize_frame
from wm_gym.observation import Observation, join_observation, observation_space, split_observation
from wm_gym.simulator import SimulatorSpec
from wm_gym.vector import VectorField

SIMULATOR_KEY = "wm_gym_simulator"
INDEX_KEY = "wm_gym_index"
BEHAVIOUR_KEY = "behaviour"


def export_minari(dataset: Dataset, dataset_id: str) -> None:
    """Write a dataset into Minari's local storage, frames without loss.

    Where that is says Minari's ``MINARI_DATASETS_PATH``. Minari keeps frames uncompressed then, so the result is
    several times larger. Infos get one entry more in front (NaN), since Minari counts the reset as well.

    Args:
        dataset: What to export.
        dataset_id: Name in Minari, for example ``"car-racing/mixed-v0"``.

    Raises:
        DatasetError: Minari is not installed or too old, the name is taken or no valid one, or a file is damaged.
    """
    minari = _minari()
    _check_id(dataset_id)
    simulator = dataset.metadata.simulator
    if dataset_id in minari.list_local_datasets():
        raise DatasetError(f"Minari has a dataset {dataset_id!r} already; choose another name or delete that one.")
    metadata: list[dict[str, Any]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about author and permalink, which are the user's to add
            created = minari.create_dataset_from_buffers(
                dataset_id,
                buffer=_buffers(dataset, metadata),
                observation_space=observation_space(simulator.frame_size, simulator.vector),
                action_space=simulator.action.space(),
                algorithm_name=", ".join(sorted({header.behaviour for header in dataset.episodes})),
                description=f"Recorded with wm_gym from {simulator.id}.",
                jpeg_encoding=False,
            )
        created.storage.update_metadata({SIMULATOR_KEY: simulator.model_dump_json()})
        created.storage.update_episode_metadata(metadata)
    except BaseException:
        if dataset_id in minari.list_local_datasets():
            minari.delete_dataset(dataset_id)
        raise


def import_minari(
    dataset_id: str, out: str | Path, *, frame_size: tuple[int, int] | None = None, codec: str = DEFAULT_CODEC
) -> Dataset:
    """Make a dataset from one in Minari's local storage.

    Observations have to be images, or a ``Dict`` of an ``"image"`` and a ``"vector"``, and actions a one-dimensional
    Box. What :func:`export_minari` wrote comes back as it was; any other dataset's actions are taken as they are
    (``"native"``).

    Args:
        dataset_id: Name in Minari. It has to be there already: nothing is downloaded.
        out: Folder of the new dataset.
        frame_size: Height and width to resize frames to; ``None`` keeps them.
        codec: How to store frames.

    Raises:
        DatasetError: Minari is not installed, the dataset is missing, or it does not fit.
    """
    minari = _minari()
    target = local_folder(out)
    check_target(target)
    _check_id(dataset_id)
    source, described = _load(minari, dataset_id)
    metadata = DatasetMetadata(
        simulator=_simulator(dataset_id, source, described, frame_size),
        codec=FrameCodec.parse(codec),
        source=f"imported from Minari, {dataset_id}",
        created_with=versions() | {"minari": str(minari.__version__)},
    )
    episode_metadata = source.storage.get_episode_metadata(range(source.total_episodes))
    if not source.total_episodes:
        raise DatasetError(f"the Minari dataset {dataset_id!r} has no episodes.")
    recorded = zip(source.iterate_episodes(), episode_metadata, strict=True)
    return Dataset.create(
        target,
        metadata,
        (_to_episode(i, data, about, metadata.simulator.frame_size) for i, (data, about) in enumerate(recorded)),
    )


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise DatasetError("Minari is not installed; install it with `pip install wm_gym[minari]`.") from error
    if "jpeg_encoding" not in inspect.signature(minari.create_dataset_from_buffers).parameters:
        raise DatasetError(
            f"Minari {minari.__version__} cannot store frames without loss; install 0.5.4 or later with "
            "`pip install -U wm_gym[minari]`."
        )
    return minari


def _check_id(dataset_id: str) -> None:
    """Refuse a name that Minari would make a folder for and then stumble over."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except ValueError as error:
        raise DatasetError(
            f"{dataset_id!r} is no name for a Minari dataset; write it as in car-racing/mixed-v0."
        ) from error


def _buffers(dataset: Dataset, metadata: list[dict[str, Any]]) -> Iterator[Any]:
    """One Minari buffer an episode, read when Minari asks for it; fills ``metadata`` on the way."""
    from minari.data_collector import EpisodeBuffer

    for position in range(dataset.num_episodes):
        episode = dataset.read_episode(position)
        metadata.append({BEHAVIOUR_KEY: episode.behaviour, INDEX_KEY: episode.index})
        yield EpisodeBuffer(
            seed=episode.seed if episode.seed >= 0 else None,
            observations=join_observation(Observation(episode.frames, episode.vectors)),
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminated,
            truncations=episode.truncated,
            infos={name: np.concatenate(([np.float32(np.nan)], values)) for name, values in episode.infos.items()}
            or None,
        )


def _load(minari: Any, dataset_id: str) -> tuple[Any, Mapping[str, Any]]:
    from minari.storage import get_dataset_path

    try:
        described = json.loads((Path(get_dataset_path(dataset_id)) / "data" / "metadata.json").read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"Minari has no local dataset {dataset_id!r}; `minari list local` shows those that there are."
        ) from error
    if not {"observation_space", "action_space"} <= described.keys():
        # Minari would make the recorded environment then, which runs whatever code the dataset names.
        raise DatasetError(f"the Minari dataset {dataset_id!r} does not say its spaces, so it cannot be imported.")
    source = minari.load_dataset(dataset_id)
    observations, actions = source.observation_space, source.action_space
    images, vectors = _parts(observations)
    is_image = isinstance(images, spaces.Box) and images.dtype == np.uint8 and len(images.shape) == 3
    is_vector = vectors is None or (isinstance(vectors, spaces.Box) and len(vectors.shape) == 1)
    if not is_image or not is_vector or images.shape[-1] != 3:
        raise DatasetError(
            f"the Minari dataset {dataset_id!r} observes {observations}, but images are needed: uint8 (H, W, 3), "
            "alone or as 'image' in a Dict with a one-dimensional Box 'vector'."
        )
    if not isinstance(actions, spaces.Box) or len(actions.shape) != 1:
        raise DatasetError(
            f"the Minari dataset {dataset_id!r} has actions {actions}, but a one-dimensional Box is needed."
        )
    return source, described


def _simulator(
    dataset_id: str, source: Any, described: Mapping[str, Any], frame_size: tuple[int, int] | None
) -> SimulatorSpec:
    images, vectors = _parts(source.observation_space)
    size = frame_size or (int(images.shape[0]), int(images.shape[1]))
    recorded = described.get(SIMULATOR_KEY)
    if recorded is not None:
        try:
            return SimulatorSpec.model_validate_json(recorded).model_copy(update={"frame_size": size})
        except ValidationError as error:
            raise DatasetError(f"the Minari dataset {dataset_id!r} holds a damaged {SIMULATOR_KEY!r}.") from error
    try:
        env_id = str(json.loads(described["env_spec"])["id"])
    except (KeyError, TypeError, ValueError):
        env_id = dataset_id
    fields: list[VectorField] = []
    if vectors is not None:
        if not vectors.is_bounded():
            raise DatasetError(f"the vectors of the Minari dataset {dataset_id!r} have no finite bounds: {vectors}.")
        bounds = zip(vectors.low.tolist(), vectors.high.tolist(), strict=True)
        fields = [VectorField(name=f"vector_{place}", low=low, high=high) for place, (low, high) in enumerate(bounds)]
    action = ActionFormat.native(source.action_space)
    return SimulatorSpec(id=env_id, frame_size=size, action=action, vector=tuple(fields))


def _parts(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """The spaces of image and vector; the vector's is ``None`` where there is none."""
    if isinstance(space, spaces.Dict) and set(space.spaces) == {"image", "vector"}:
        return space["image"], space["vector"]
    return space, None


def _to_episode(position: int, data: Any, about: Mapping[str, Any], frame_size: tuple[int, int]) -> Episode:
    steps = len(data.rewards)
    frames, vectors = split_observation(data.observations)
    if frames.shape[1:3] != frame_size:
        frames = np.stack([resize_frame(frame, *frame_size) for frame in frames])
    return Episode(
        frames=frames,
        actions=np.asarray(data.actions, np.float32),
        rewards=np.asarray(data.rewards, np.float32),
        terminated=np.asarray(data.terminations, np.bool_),
        truncated=np.asarray(data.truncations, np.bool_),
        vectors=vectors,
        infos=_scalar_infos(data.infos or {}, steps),
        seed=-1 if about.get("seed") is None else int(about["seed"]),
        behaviour=str(about.get(BEHAVIOUR_KEY, "minari")),
        index=int(about.get(INDEX_KEY, position)),
    )


def _scalar_infos(infos: Mapping[str, Any], steps: int) -> dict[str, NDArray[np.float32]]:
    """The infos that are one number a step; an entry for the reset, in front, is dropped."""
    kept = {}
    for name, values in infos.items():
        array = np.asarray(values) if not isinstance(values, Mapping) else np.empty(0, object)
        if array.shape in ((steps,), (steps + 1,)) and array.dtype.kind in "buif":
            kept[name] = array[len(array) - steps :].astype(np.float32)
    return kept
