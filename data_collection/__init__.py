"""Recording, storing, checking, converting and sampling of driving episodes."""

from wm_gym.data_collection.codec import FrameCodec
from wm_gym.data_collection.collector import CollectionSummary, collect
from wm_gym.data_collection.dataset import Dataset
from wm_gym.data_collection.download_cache import DownloadCache
from wm_gym.data_collection.episode import Episode
from wm_gym.data_collection.episode_file import EpisodeHeader
from wm_gym.data_collection.folder_io import import_folder
from wm_gym.data_collection.metadata import CollectionSettings, DatasetMetadata
from wm_gym.data_collection.minari_io import export_minari, import_minari
from wm_gym.data_collection.remote_dataset import PushSummary, push
from wm_gym.data_collection.statistics import DatasetStatistics, describe, render
from wm_gym.data_collection.verification import Verification, verify

__all__ = [
    "CollectionSettings",
    "CollectionSummary",
    "Dataset",
    "DatasetMetadata",
    "DatasetStatistics",
    "DownloadCache",
    "Episode",
    "EpisodeHeader",
    "FrameCodec",
    "PushSummary",
    "Verification",
    "collect",
    "describe",
    "export_minari",
    "import_folder",
    "import_minari",
    "push",
    "render",
    "verify",
]
