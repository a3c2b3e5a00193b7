"""Import of LeRobot datasets, version 3 (the extra ``lerobot``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import ValidationError

from wm_gym.actions import DRIVING_NAMES, ActionFormat, FloatArray
from wm_gym.data_collection.conversion import lerobot_layout as layout
from wm_gym.data_collection.conversion.column_names import COLUMN_NAMES, column_name, plain_name
from wm_gym.data_collection.conversion.driving_columns import Columns, driving_actions, rewards_of, scaled
from wm_gym.data_collection.conversion.lerobot_rows import RowReader, read_entries, read_images
from wm_gym.data_collection.conversion.pictures import FrameFit, fit_frame
from wm_gym.data_collection.conversion.recording import CutSettings
from wm_gym.data_collection.conversion.reward_expression import RewardExpression
from wm_gym.data_collection.conversion.video_files import read_video
from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC, FrameCodec, decode_image
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.metadata import DatasetMetadata, versions
from wm_gym.data_collection.datasets.remote_folder import local_folder
from wm_gym.data_collection.datasets.writer import check_target
from wm_gym.errors import ConfigError, DatasetError, did_you_mean
from wm_gym.frames import Frame
from wm_gym.simulator import SimulatorSpec
from wm_gym.vector import VectorField

_DECORATIONS = ("_normalized", "_position", "_pos")


def import_lerobot(
    source: str | Path,
    out: str | Path,
    *,
    camera: str | None = None,
    frame_size: tuple[int, int] | None = None,
    fit: FrameFit = "letterbox",
    fill: Mapping[str, float] | None = None,
    scale: Mapping[str, float] | None = None,
    reward: str | None = None,
    codec: str = DEFAULT_CODEC,
    notify: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Make a dataset from one in LeRobot's format, version 3.

    Of an episode with ``N`` rows come ``N`` frames and ``N - 1`` steps. Where the entries of ``action`` are named like
    steering and throttle, they are driving actions; else they are taken as they are, within the bounds that they have
    in the data (``"native"``). ``observation.state`` is the observation's vector, ``next.reward`` the reward, and every
    other single number an info. What :func:`~wm_gym.data_collection.export_lerobot` wrote comes back as it was, but for
    the loss of its video.

    Args:
        source: The dataset's folder.
        out: Folder of the new dataset.
        camera: The feature with the frames; may be left out where there is one, and shortened to its end
            (``"front"`` for ``"observation.images.front"``).
        frame_size: Height and width of the frames; ``None`` keeps those of the camera.
        fit: How frames of another aspect ratio are brought there.
        fill: Values of driving actions that the dataset lacks.
        scale: Factors for columns.
        reward: Formula of the rewards; see :class:`RewardExpression`.
        codec: How to store frames.
        notify: Called with a sentence where something was assumed.

    Raises:
        ConfigError: The camera or the formula is none.
        DatasetError: A package is missing, or the dataset does not fit or is damaged; nothing is left behind.
    """
    folder, target = local_folder(source), local_folder(out)
    formula = None if reward is None else RewardExpression(reward)
    check_target(target)
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder} to convert.")
    info, own = layout.read_info(folder), layout.read_own_record(folder)
    camera = _camera(folder, info, camera)
    entries = [entry for entry in read_entries(folder, info, camera) if entry.rows > 1]
    if not entries:
        raise DatasetError(f"{folder} has no episode with two frames, so there is no step.")
    reader = _Numbers(folder, info, own, CutSettings(fill=fill or {}, scale=scale or {}, reward=formula), notify)
    episodes, simulator = reader.read(entries)
    size = frame_size or _size(info.features[camera], folder, camera)
    metadata = DatasetMetadata(
        simulator=simulator.model_copy(update={"frame_size": size}),
        codec=FrameCodec.parse(codec),
        source=f"converted from lerobot, {folder.resolve().name}",
        created_with=versions(),
    )

    def with_frames(entry: layout.EpisodeEntry, episode: Episode) -> Episode:
        return replace(episode, frames=_frames(entry, camera, info.fps, lambda frame: fit_frame(frame, *size, fit)))

    return Dataset.create(target, metadata, map(with_frames, entries, episodes))


def _camera(folder: Path, info: layout.Info, wanted: str | None) -> str:
    cameras = info.cameras
    if not cameras:
        raise DatasetError(f"{folder} has no camera, but frames are needed; it has {', '.join(info.features)}.")
    if wanted is None:
        if len(cameras) > 1:
            raise ConfigError(f"{folder} has the cameras {', '.join(cameras)}; choose one by --camera {cameras[0]}.")
        return cameras[0]
    found = [name for name in cameras if wanted == name] or [name for name in cameras if name.endswith(f".{wanted}")]
    if len(found) != 1:
        raise ConfigError(
            f"--camera {wanted!r} is no camera of {folder}{did_you_mean(wanted, cameras)}; it has {', '.join(cameras)}."
        )
    return found[0]


def _size(feature: layout.Feature, folder: Path, camera: str) -> tuple[int, int]:
    """Height and width of a camera's frames; LeRobot's shapes have the channels first or last."""
    shape = feature.shape
    if len(shape) == 3 and shape[2] == 3:
        return shape[0], shape[1]
    if len(shape) == 3 and shape[0] == 3:
        return shape[1], shape[2]
    raise DatasetError(f"{folder} has the camera {camera} with the shape {shape}, but colour images are wanted.")


class _Numbers:
    """Everything of a dataset but its frames."""

    def __init__(
        self,
        folder: Path,
        info: layout.Info,
        own: layout.OwnRecord | None,
        settings: CutSettings,
        notify: Callable[[str], None],
    ) -> None:
        self.folder, self.info, self.own = folder, info, own
        self.fill, self.scale, self.formula = settings.fill, settings.scale, settings.reward
        self.notify = notify
        self.action = _action_feature(folder, info)
        numbers = {name: feature for name, feature in info.features.items() if feature.is_number and feature.size}
        self.features = {
            name: feature
            for name, feature in numbers.items()
            if name in (self.action, layout.STATE) or (feature.size == 1 and name not in layout.BOOKKEEPING)
        }

    def read(self, entries: Sequence[layout.EpisodeEntry]) -> tuple[list[Episode], SimulatorSpec]:
        """Episodes without frames, and the simulator that they are said to come from, of a frame size of (1, 1)."""
        reader = RowReader(self.features)
        rows = [reader.read(entry) for entry in entries]
        spec = self._recorded_simulator()
        lengths = [entry.rows - 1 for entry in entries]
        about = [
            layout.OwnEpisode(steps=length, index=i, behaviour="lerobot", seed=-1) for i, length in enumerate(lengths)
        ]
        if self.own is not None and [episode.steps for episode in self.own.episodes] == lengths:
            about = self.own.episodes
        whole = {
            name: np.concatenate([one[name][:-1] for one in rows])  # the last row of an episode begins no step
            for name in self.features
        }
        states = np.concatenate([one.get(layout.STATE, np.zeros((0, 0))) for one in rows])
        if not np.isfinite(states).all() or not np.isfinite(whole[self.action]).all():
            raise DatasetError(f"{self.folder} has an action or a state that is no finite number; remove its episode.")
        columns = self._columns(whole)
        actions, action_format, columns = self._actions(whole[self.action], columns, spec)
        positions = np.arange(len(actions))
        rewards = rewards_of(str(self.folder), columns, positions, self.formula)
        if spec is None:
            spec = SimulatorSpec(
                id="recording",
                frame_size=(1, 1),
                action=action_format,
                step_s=1 / self.info.fps,
                vector=self._fields(states),
            )
        infos = self._infos(whole)
        edges = np.cumsum([0, *lengths])
        found = []
        for one, low, high, known in zip(rows, edges[:-1], edges[1:], about, strict=True):
            steps = slice(int(low), int(high))
            is_last = np.arange(known.steps) == known.steps - 1
            terminated = layout.TERMINATED in one and bool(one[layout.TERMINATED][-2, 0] == 1)
            truncated = bool(one[layout.TRUNCATED][-2, 0] == 1) if layout.TRUNCATED in one else not terminated
            told = {name: values[steps] for name, values in infos.items()}
            found.append(
                Episode(
                    frames=np.empty((0, 1, 1, 3), np.uint8),
                    actions=actions[steps],
                    rewards=rewards[steps],
                    terminated=is_last & terminated,
                    truncated=is_last & truncated,
                    vectors=one.get(layout.STATE, np.zeros((0, 0))).astype(np.float32),
                    infos={name: values for name, values in told.items() if not np.isnan(values).all()},
                    seed=known.seed,
                    behaviour=known.behaviour,
                    index=known.index,
                )
            )
        return found, spec

    def _recorded_simulator(self) -> SimulatorSpec | None:
        """That of an exported dataset, where its actions and states are still what they were."""
        if self.own is None:
            return None
        try:
            spec = SimulatorSpec.model_validate(self.own.simulator)
        except ValidationError as error:
            raise DatasetError(f"{self.folder} holds a damaged record of its simulator; export it again.") from error
        states = self.info.features[layout.STATE].size if layout.STATE in self.features else 0
        is_same = spec.action.dim == self.info.features[self.action].size and len(spec.vector) == states
        return spec if is_same else None

    def _columns(self, whole: Mapping[str, NDArray[np.float64]]) -> Columns:
        """Every number of a step by the name that a formula can write."""
        columns: Columns = {}
        for name, values in whole.items():
            if name == self.action:
                continue
            for place, entry in enumerate(self.info.features[name].entry_names(name.rpartition(".")[2])):
                columns.setdefault(column_name(entry), values[:, place])
        return columns

    def _actions(
        self, values: NDArray[np.float64], columns: Columns, spec: SimulatorSpec | None
    ) -> tuple[FloatArray, ActionFormat, Columns]:
        """Actions ``(N, A)`` float32, what they mean, and the columns with them among them."""
        name = str(self.folder)
        names = self.info.features[self.action].entry_names(layout.ACTION)
        known = {} if spec is not None else driving_places(names)
        if "steering" in known and ("throttle" in known or "throttle" in self.fill):
            for action in DRIVING_NAMES:
                columns.pop(action, None)  # one of that name is a measurement
            columns |= {action: values[:, place] for action, place in known.items()}
            columns = scaled(name, columns, self.scale)
            actions, columns = driving_actions(name, columns, np.arange(len(values)), self.fill, self.notify)
            return actions, ActionFormat.driving(), columns
        if self.fill:
            raise DatasetError(
                f"{name} has the actions {', '.join(names)}, to which --fill {next(iter(self.fill))} adds none that "
                "makes them driving actions; leave it out."
            )
        plain = [column_name(entry) for entry in names]
        if len(set(plain)) < len(plain):
            plain = [f"{layout.ACTION}_{place}" for place in range(len(plain))]
        columns = scaled(name, columns | {entry: values[:, place] for place, entry in enumerate(plain)}, self.scale)
        actions = np.stack([columns[entry] for entry in plain], axis=-1).astype(np.float32)
        if spec is not None:
            return actions, spec.action, columns
        low, high = actions.min(axis=0), actions.max(axis=0)
        self.notify(f"{name} has the actions {', '.join(names)}; they are taken as they are, within their own bounds.")
        return actions, ActionFormat.native(spaces.Box(low, high, dtype=np.float32)), columns

    def _fields(self, states: NDArray[np.float64]) -> tuple[VectorField, ...]:
        """Fields of the vector, within the bounds that ``states`` ``(N, V)`` have."""
        if layout.STATE not in self.features:
            return ()
        names = self.info.features[layout.STATE].entry_names("state")
        low, high = states.min(axis=0).astype(np.float32), states.max(axis=0).astype(np.float32)
        return tuple(
            VectorField(name=name, low=float(least), high=float(most if most > least else least + 1))
            for name, least, most in zip(names, low, high, strict=True)
        )

    def _infos(self, whole: Mapping[str, NDArray[np.float64]]) -> dict[str, FloatArray]:
        own = {} if self.own is None else self.own.infos
        left_out = (self.action, layout.STATE, layout.REWARD, *layout.ENDS)
        return {
            own.get(name, name): values[:, 0].astype(np.float32)
            for name, values in whole.items()
            if name not in left_out
        }


def driving_places(names: Sequence[str]) -> dict[str, int]:
    """The places of driving actions among the names of a vector's entries; none where a name occurs twice."""
    found: dict[str, int] = {}
    for place, name in enumerate(names):
        plain = plain_name(name)
        for decoration in _DECORATIONS:
            plain = plain.removesuffix(decoration)
        known = next((action for action in DRIVING_NAMES if plain in COLUMN_NAMES[action]), None)
        if known in found:
            return {}
        if known is not None:
            found[known] = place
    return found


def _action_feature(folder: Path, info: layout.Info) -> str:
    named = [name for name in info.features if name == layout.ACTION] or [
        name
        for name, feature in info.features.items()
        if name.startswith(f"{layout.ACTION}.") and feature.dtype.startswith("float")
    ]
    if len(named) != 1 or not info.features[named[0]].is_number or len(info.features[named[0]].shape) != 1:
        raise DatasetError(
            f"{folder} has no feature 'action' of one row of numbers; it has {', '.join(info.features)}."
        )
    return named[0]


def _frames(entry: layout.EpisodeEntry, camera: str, fps: float, fitted: Callable[[Frame], Frame]) -> NDArray[np.uint8]:
    """The frames ``(N, H, W, 3)`` uint8 of an episode, each brought to its size by ``fitted``."""
    if entry.video_file is not None:
        return np.stack(read_video(entry.video_file, entry.video_start_s, entry.rows, fps, fitted))
    frames = []
    for image in read_images(entry, camera):
        decoded = decode_image(np.frombuffer(image, np.uint8))
        if decoded is None:
            raise DatasetError(f"{entry.data_file} has an image of episode {entry.index} that cannot be read.")
        frames.append(fitted(decoded))
    return np.stack(frames)
