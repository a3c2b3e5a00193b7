"""Recording, storing, checking, converting and sampling of driving episodes."""

from wm_gym.data_collection.conversion.convert import convert_recordings
from wm_gym.data_collection.conversion.folder_io import import_folder
from wm_gym.data_collection.conversion.lerobot_export import export_lerobot
from wm_gym.data_collection.conversion.lerobot_import import import_lerobot
from wm_gym.data_collection.conversion.minari_io import export_minari, import_minari
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.download_cache import DownloadCache
from wm_gym.data_collection.datasets.episode import Episode
from wm_gym.data_collection.datasets.episode_file import EpisodeHeader
from wm_gym.data_collection.datasets.metadata import CollectionSettings, DatasetMetadata
from wm_gym.data_collection.datasets.publishing import PushSummary
from wm_gym.data_collection.datasets.push import push
from wm_gym.data_collection.datasets.statistics import DatasetStatistics, describe, render
from wm_gym.data_collection.datasets.verification import Verification, verify
from wm_gym.data_collection.recording.collector import CollectionSummary, collect

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
    "convert_recordings",
    "describe",
    "export_lerobot",
    "export_minari",
    "import_folder",
    "import_lerobot",
    "import_minari",
    "push",
    "render",
    "verify",
]
