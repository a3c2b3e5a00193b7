"""A dataset's repository on the Hugging Face Hub, read as a folder on object storage is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from wm_gym.data_collection.datasets.remote_folder import SMALL_FILE_BYTES, in_several_attempts
from wm_gym.errors import DatasetError
from wm_gym.hub import download_file, may_pass, parse_dataset


class HubFolder:
    """A dataset's repository, with the methods of a :class:`RemoteFolder` that reading needs.

    fsspec reaches the Hub, too, but lists a folder before it reads a file of it, keeps the sizes of that listing, and
    has no copies for when there is no network.

    Args:
        url: ``"hf://datasets/owner/name"``, with ``@revision`` or without.

    Attributes:
        url: The same.

    Raises:
        DatasetError: It names no dataset on the Hub.
    """

    def __init__(self, url: str) -> None:
        self._reference = parse_dataset(url.rstrip("/"))
        self.url = str(self._reference)

    def read(self, name: str) -> bytes:
        """The bytes of a small file: the newest, or without a network the newest copy in the client's own cache.

        Raises:
            FileNotFoundError: there is none.
            DatasetError: it cannot be read, or is not small.
        """
        with download_file(self._reference, name).open("rb") as file:
            content = file.read(SMALL_FILE_BYTES + 1)
        if len(content) > SMALL_FILE_BYTES:
            raise DatasetError(f"{self.url}/{name} has more than {SMALL_FILE_BYTES:,} bytes; push the dataset again.")
        return content

    def download(self, name: str, path: Path, num_bytes: int, check: Callable[[Path], None]) -> None:
        """Copy a file to this machine, as :meth:`RemoteFolder.download` does.

        Raises:
            FileNotFoundError: there is none.
            DatasetError: it cannot be read, or arrives damaged each time.
        """

        def attempt() -> None:
            with TemporaryDirectory(dir=path.parent) as temporary:
                arrived = download_file(self._reference, name, Path(temporary))
                check(arrived)
                arrived.replace(path)

        in_several_attempts(f"{self.url}/{name} cannot be downloaded", attempt, may_pass)
