"""Sending world models, and what agents need to be sent, to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wm_gym.bundle import MODEL_BUNDLE, save_model
from wm_gym.bundle_kind import BundleKind
from wm_gym.errors import BundleError
from wm_gym.hub import HubReference, check_is_pushable, parse_reference, repository_url, upload
from wm_gym.hub_card import Score, hub_card, judgement_scores, model_scores, read_judgement
from wm_gym.world_model import WorldModel

VIDEO_STEM = "replay"
"""Name of the video in a repository, without suffix: the one that the Hub shows beside a model's card."""
VIDEO_SUFFIXES = (".mp4", ".gif")
ENV_FILE = "env.py"
"""The file that LeRobot's EnvHub runs; this package neither downloads nor runs one."""
_ENV = '''\
"""The dreams of this repository's world model, for LeRobot's EnvHub; needs the package wm_gym."""


def make_env(n_envs=1, use_async_envs=False, cfg=None):
    """Dreams side by side in one process, which is as fast as in several: they share one model."""
    from wm_gym.envs.lerobot_dreams import make_lerobot_dreams

    return make_lerobot_dreams({repository!r}, n_envs)
'''
_VIDEOS = tuple(VIDEO_STEM + suffix for suffix in VIDEO_SUFFIXES)


@dataclass(frozen=True)
class PushTarget:
    """Where a model or an agent is to be sent, and how; checked when made, before any work.

    Args:
        repository: ``"owner/name"``, with ``hf://`` before it or without.
        private: Whether nobody else may see a repository that is made now.
        video: A file ``.mp4`` or ``.gif`` that its card shows.
        message: Of the commit; by default it names the package's version.

    Raises:
        BundleError: The name is not of the form ``owner/name``, there is no such video, or the extra ``hub`` is not
            installed.
    """

    repository: str
    private: bool = False
    video: str | Path | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        if self.video is not None:
            _check_video(Path(self.video))
        check_is_pushable(self.reference)

    @property
    def reference(self) -> HubReference:
        """The repository."""
        return parse_reference(self.repository, may_be_path=False)


def push_model(
    model: WorldModel, target: PushTarget, *, env_hub: bool = False, judgement: str | Path | None = None
) -> str:
    """Send a world model; see :meth:`WorldModel.push_to_hub`."""
    judged = [] if judgement is None else judgement_scores(read_judgement(judgement))
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_model(model, Path(temporary) / "model")
        env = Path(temporary) / ENV_FILE
        env.write_text(_ENV.format(repository=f"hf://{target.reference.repository}"), encoding="utf-8")
        return push_folder(
            folder,
            MODEL_BUNDLE,
            target,
            tags=("world-model", "driving"),
            simulator=model.simulator.id,
            scores=[*model_scores(model.metrics), *judged],
            further={ENV_FILE: env} if env_hub else {},
        )


def push_folder(
    folder: Path,
    kind: BundleKind,
    target: PushTarget,
    *,
    tags: Sequence[str],
    simulator: str,
    scores: Sequence[Score],
    further: Mapping[str, Path] | None = None,
) -> str:
    """Send a folder of one's own, whose card is replaced by the one for the Hub.

    Args:
        folder: The folder.
        kind: What it is.
        target: Where to, and how.
        tags: What the Hub finds it by.
        simulator: Gymnasium id of the simulator that the scores belong to.
        scores: Figures for the card.
        further: Other files, by their names in the repository.

    Returns:
        The address of the repository.

    Raises:
        BundleError: As :func:`wm_gym.hub.upload`.
    """
    video = None if target.video is None else Path(target.video)
    reference = target.reference
    shown = {} if video is None else {VIDEO_STEM + video.suffix.lower(): video}
    card = folder / "README.md"
    text = hub_card(
        card.read_text(encoding="utf-8"),
        reference.repository,
        tags=tags,
        simulator=simulator,
        scores=scores,
        video_address=next((f"{repository_url(reference)}/resolve/main/{name}" for name in shown), None),
    )
    card.write_text(text, encoding="utf-8")
    files = {name: folder / name for name in kind.files if (folder / name).is_file()}
    return upload(
        files | shown | dict(further or {}),
        reference,
        what=kind.name,
        manifest=kind.manifest,
        private=target.private,
        message=target.message,
        replaceable=(*kind.files, *_VIDEOS, ENV_FILE),
    )


def _check_video(path: Path) -> None:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise BundleError(f"the video {str(path)!r} must be {' or '.join(VIDEO_SUFFIXES)}; give another file.")
    if not path.is_file() or path.stat().st_size == 0:
        raise BundleError(
            f"the video {str(path)!r} is missing or empty; make one with `wm-gym evaluate --video`, or leave it out."
        )
