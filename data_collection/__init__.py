"""Recording, storing, checking, converting and sampling of driving episodes."""

from wm_gym.data_collection.codec import FrameCodec
from wm_gym.data_collection.dataset import ClipBatch, Dataset
from wm_gym.data_collection.episode import Episode
from wm_gym.data_collection.episode_file import EpisodeHeader
from wm_gym.data_collection.metadata import CollectionSettings, DatasetMetadata

__all__ = ["ClipBatch", "CollectionSettings", "Dataset", "DatasetMetadata", "Episode", "EpisodeHeader", "FrameCodec"]
