"""What becomes one episode: its steps, and the image files of its frames; the way from there into a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wm_gym.actions import ActionFormat, FloatArray
from wm_gym.data_collection.conversion.pictures import FrameFit, fit_frame, read_picture
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode import BoolArray, Episode
from wm_gym.data_collection.datasets.metadata import DatasetMetadata, versions
from wm_gym.errors import DatasetError
from wm_gym.simulator import SimulatorSpec
from wm_gym.vector import Fields


@dataclass(frozen=True)
class Segment:
    """An episode whose frames are still image files. ``T`` counts steps.

    Attributes:
        pictures: ``T + 1`` image files.
        actions: ``(T, 4)`` float32, driving actions within their bounds.
        rewards: ``(T,)`` float32.
        vectors: ``(T + 1,)`` float32 for each field of the observation's vector, by name.
        infos: Further numbers by name, each ``(T,)`` float32.
        terminated: ``(T,)`` bool; ``None``: nowhere.
        truncated: ``(T,)`` bool; ``None``: nowhere but at the end of a recording that does not terminate.
    """

    pictures: Sequence[Path]
    actions: FloatArray
    rewards: FloatArray
    vectors: dict[str, FloatArray] = field(default_factory=dict)
    infos: dict[str, FloatArray] = field(default_factory=dict)
    terminated: BoolArray | None = None
    truncated: BoolArray | None = None


def write_segments(
    target: Path,
    segments: Sequence[Segment],
    *,
    source: str,
    fields: Fields,
    step_s: float,
    frame_size: tuple[int, int] | None,
    fit: FrameFit,
    codec: str,
    behaviour: str,
) -> Dataset:
    """Write a new dataset with one episode a segment: the whole folder or nothing.

    Args:
        target: Folder of the new dataset.
        segments: One or more, in order.
        source: Where they came from, in words.
        fields: Fields of the observation's vector.
        step_s: Seconds between two frames, or 0 where that is not known.
        frame_size: Height and width of the frames; ``None``: those of the first image, which all must have.
        fit: How images of another aspect ratio become frames.
        codec: How to store frames.
        behaviour: What to call the driver.

    Raises:
        DatasetError: An image or an episode does not fit, the folder is in use, or the disk refuses it.
    """
    height, width = frame_size or read_picture(segments[0].pictures[0]).shape[:2]

    def read(segment: Segment, index: int) -> Episode:
        frames = np.empty((len(segment.pictures), height, width, 3), np.uint8)
        for position, path in enumerate(segment.pictures):
            picture = read_picture(path)
            if picture.shape[:2] != (height, width) and frame_size is None:
                raise DatasetError(
                    f"{path} has {picture.shape[0]}x{picture.shape[1]} pixels, but the first frame has "
                    f"{height}x{width}; ask for one frame size (--frame-size) to resize them all."
                )
            frames[position] = fit_frame(picture, height, width, fit)
        none = np.zeros(len(segment.actions), np.bool_)
        terminated = none if segment.terminated is None else segment.terminated
        truncated = (none if segment.truncated is None else segment.truncated).copy()
        if not terminated[-1]:
            truncated[-1] = True  # the recording stops here, which is a cut from outside
        vectors = [segment.vectors[entry.name] for entry in fields]
        return Episode(
            frames=frames,
            actions=segment.actions,
            rewards=segment.rewards,
            terminated=terminated,
            truncated=truncated,
            vectors=np.stack(vectors, axis=-1) if vectors else np.zeros((len(frames), 0), np.float32),
            infos=segment.infos,
            behaviour=behaviour,
            index=index,
        )

    metadata = DatasetMetadata(
        simulator=SimulatorSpec(
            id="recording",
            frame_size=(height, width),
            action=ActionFormat.driving(),
            step_s=step_s,
            vector=fields,
        ),
        codec=FrameCodec.parse(codec),
        source=source,
        created_with=versions(),
    )
    return Dataset.create(target, metadata, map(read, segments, range(len(segments))))
