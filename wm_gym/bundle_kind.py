"""What the folder of a finished model or agent consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BundleKind:
    """One kind of folder, by the files that it may have.

    Attributes:
        name: What it is called in a sentence, for example ``"world model"``.
        asset: Its folder among those that the package ships.
        manifest: The file that every folder of the kind has.
        files: Every file that one may have, the manifest among them; paths inside the folder with ``/``.
    """

    name: str
    asset: Literal["model", "agent"]
    manifest: str
    files: tuple[str, ...]

    @property
    def manifests(self) -> tuple[str, ...]:
        """Its manifest, and those of the folders in it (an agent brings its world model along)."""
        names = {"config.yaml", "agent.yaml", self.manifest}
        return tuple(file for file in self.files if file.rpartition("/")[2] in names)
