"""What ``wm-gym view`` is started with, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wm_gym.agents.view.episodes import EpisodeShelf
from wm_gym.agents.view.imagination import Imagination
from wm_gym.data_collection.datasets.download_cache import DownloadCache
from wm_gym.data_collection.datasets.survey import survey
from wm_gym.device import resolve_device
from wm_gym.envs.dream_model import resolve_model
from wm_gym.errors import SimulatorError

NO_MODEL = "none"


@dataclass(frozen=True)
class ViewSetup:
    """What all pages share.

    Attributes:
        shelf: The episodes.
        imagination: The world model at work on them; ``None`` without one.
        model_name: What the page calls the model; without one, why there is none.
    """

    shelf: EpisodeShelf
    imagination: Imagination | None
    model_name: str


def load_view(
    path: str | Path, model: str | None = None, *, downloads: DownloadCache | None = None, device: str = "cpu"
) -> ViewSetup:
    """Read a dataset's headers and a world model.

    Args:
        path: The dataset's folder or URL.
        model: A world model's folder, ``"bundled"`` or ``"none"``; ``None`` takes the bundled one where it was made of
            the dataset's simulator.
        downloads: Where downloaded episodes are kept; see :func:`~wm_gym.data_collection.datasets.survey.survey`.
        device: Where the model computes.

    Raises:
        DatasetError: There is no dataset, or the network fails.
        BundleError: The model is missing or damaged.
        SimulatorError: The model was named, and does not take what the dataset holds.
        ConfigError: There is no such device.
    """
    found = survey(path, downloads)
    shelf = EpisodeShelf(found)
    if model == NO_MODEL:
        return ViewSetup(shelf, None, "no world model was asked for")
    loaded = resolve_model("bundled" if model is None else model, resolve_device(device))
    trained, recorded = loaded.simulator, found.metadata.simulator
    # Frames are brought to the model's size.
    misfit = trained.misfit(recorded.model_copy(update={"frame_size": trained.frame_size}))
    differs = (trained.id, trained.frame_size, trained.step_s) != (recorded.id, recorded.frame_size, recorded.step_s)
    if model is None and misfit is None and differs:
        misfit = f"it was made of {trained.id} with other settings, or of another simulator"
    if misfit is None:
        return ViewSetup(shelf, Imagination(loaded, shelf), "bundled" if model is None else model)
    if model is None:
        return ViewSetup(shelf, None, f"the bundled world model does not fit, because {misfit}; give another --model")
    raise SimulatorError(f"the world model {model} does not fit {found.path}, because {misfit}; give another --model.")
