"""``dataset.json``: what a dataset folder says about itself."""

from __future__ import annotations

import json
import sys
from functools import cache
from hashlib import sha256
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import wm_gym
from wm_gym.checksums import canonical
from wm_gym.data_collection.datasets.codec import FrameCodec
from wm_gym.errors import DatasetError, first_invalid
from wm_gym.files import describe_os_error, write_text_atomically
from wm_gym.hub import DATASETS, SCHEME, parse_reference
from wm_gym.plain_files import JSON_BYTES, NotPlainError, parse_json, read_text
from wm_gym.provenance import git_revision
from wm_gym.simulator import SimulatorSpec

METADATA_FILE = "dataset.json"
EPISODES_FOLDER = "episodes"
DATASET_FORMAT = "wm_gym.dataset"
DATASET_VERSION = 1
_CHECKSUM = "sha256"
_REMEDY = "restore it from a copy of the dataset"


class CollectionSettings(BaseModel):
    """The settings that decide what is in every episode of a collected dataset.

    Attributes:
        seed: Seed of the collection; it decides every episode's own seed and behaviour.
        behaviours: Behaviour names with their weights, which sum to 1.
        max_episode_steps: Steps after which the collector truncates an episode, or ``None``.
        patience: Steps in a row without a reward above 0 after which it does, or ``None``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(ge=0)
    behaviours: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)
    max_episode_steps: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)


class DatasetMetadata(BaseModel):
    """Content of ``dataset.json``.

    Attributes:
        format: What the file is.
        version: Of the format.
        simulator: The simulator that the episodes were recorded from.
        codec: How the frames are stored.
        collection: How the episodes were collected; ``None`` for an imported dataset.
        source: Where the episodes came from, in words.
        created_with: Package versions, and the git revision where the package runs from a checkout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["wm_gym.dataset"] = "wm_gym.dataset"
    version: Literal[1] = 1
    simulator: SimulatorSpec
    codec: FrameCodec = FrameCodec()
    collection: CollectionSettings | None = None
    source: str = ""
    created_with: dict[str, str] = Field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``dataset.json`` (and the folders that it needs), whole or not at all."""
        try:
            (folder / EPISODES_FOLDER).mkdir(parents=True, exist_ok=True)
            content = self.model_dump(mode="json")
            content[_CHECKSUM] = sha256(canonical(content)).hexdigest()
            text = json.dumps(content, indent=2, ensure_ascii=False)
            write_text_atomically(folder / METADATA_FILE, text + "\n")
        except OSError as error:
            raise DatasetError(f"the dataset {folder} cannot be written: {describe_os_error(error)}") from error

    @classmethod
    def read(cls, folder: Path) -> DatasetMetadata:
        """Read ``dataset.json``.

        Raises:
            DatasetError: the folder is missing, is no dataset, or its file is damaged or of another version.
        """
        if not folder.exists():
            named = parse_reference(str(folder))
            hint = "" if named is None else f" (a dataset on the Hub is {SCHEME}{DATASETS}{named.repository})"
            raise DatasetError(
                f"there is no dataset at {folder}; check the path{hint}, or make one with `wm-gym collect`."
            )
        if not folder.is_dir():
            raise DatasetError(f"{folder} is a file, but a dataset is a folder with a {METADATA_FILE} in it.")
        path = folder / METADATA_FILE
        if not path.is_file():
            raise DatasetError(
                f"{folder} is no wm_gym dataset, because it holds no {METADATA_FILE}; make one with `wm-gym collect` "
                "or import your recordings with `wm-gym dataset convert`."
            )
        return cls.parse(read_text(path, error=DatasetError, remedy=_REMEDY, limit=JSON_BYTES), str(folder))

    @classmethod
    def parse(cls, file: str | bytes, folder: str) -> DatasetMetadata:
        """Read the contents of ``dataset.json``; ``folder`` is what the messages call the dataset.

        Raises:
            DatasetError: the file is damaged or of another version.
        """
        path = f"{folder}/{METADATA_FILE}"
        try:
            content = parse_json(file)
        except NotPlainError as error:
            raise DatasetError(f"{path} {error}; {_REMEDY}.") from error
        if not isinstance(content, dict) or content.get("format") != DATASET_FORMAT:
            raise DatasetError(f"{path} does not declare the format {DATASET_FORMAT!r}, so it is no wm_gym dataset.")
        if content.get("version") != DATASET_VERSION:
            raise DatasetError(
                f"{folder} has dataset version {content.get('version')!r}, but this wm_gym {wm_gym.__version__} reads "
                f"version {DATASET_VERSION}; use the wm_gym release that wrote it."
            )
        checksum = content.pop(_CHECKSUM, None)  # other writers give none
        if checksum is not None and checksum != sha256(canonical(content)).hexdigest():
            raise DatasetError(f"{path} has changed since it was written: its checksum does not match; {_REMEDY}.")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            where, message = first_invalid(error)
            raise DatasetError(f"{path} is damaged at {where!r}: {message}; restore it from a copy.") from error


def difference(old: DatasetMetadata, new: DatasetMetadata) -> str | None:
    """The first setting in which two records differ, as ``"name: 'old' there, 'new' here"``; else ``None``.

    Versions of packages and the source are no settings.
    """

    def settings(metadata: DatasetMetadata) -> dict[str, Any]:
        return metadata.model_dump(mode="json", exclude={"created_with", "source"})

    return first_difference("", settings(old), settings(new))


def first_difference(where: str, old: Any, new: Any) -> str | None:
    """The first place below ``where`` in which two JSON values differ, as :func:`difference` says it."""
    if isinstance(old, dict) and isinstance(new, dict) and where != "collection.behaviours":
        for key in [*old, *(key for key in new if key not in old)]:
            found = first_difference(f"{where}.{key}".lstrip("."), old.get(key), new.get(key))
            if found:
                return found
        return None
    return None if old == new else f"{where} is {old!r} there and {new!r} here"


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is recorded, and the package's git revision."""
    found = {"python": sys.version.split()[0], "wm_gym": wm_gym.__version__}
    for package in ("gymnasium", "numpy", "opencv-python", "safetensors"):
        try:
            found[package] = package_metadata.version(package)
        except package_metadata.PackageNotFoundError:
            continue
    revision = git_revision()
    return found | ({"git": revision} if revision else {})
