"""Sending an agent to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wm_gym.agents.bundles.folder import AGENT_BUNDLE, PixelAgentManifest, load_agent, save_self_contained
from wm_gym.hub_card import agent_scores, read_evaluation
from wm_gym.hub_push import PushTarget, push_folder


def push_agent(
    path: str | Path,
    repository: str,
    *,
    private: bool = False,
    video: str | Path | None = None,
    evaluation: str | Path | None = None,
    message: str | None = None,
) -> str:
    """Send an agent, with its world model if it sees through one, in one commit; needs the extra ``hub``.

    The agent is read first, so that a damaged one is not sent. ``Driver.load("owner/name")`` reads it back.

    Args:
        path: The agent's folder, or ``"bundled"``.
        repository: ``"owner/name"``; made where there is none.
        private: Whether nobody else may see a repository that is made now.
        video: A file ``.mp4`` or ``.gif`` that the model card shows, such as one of ``wm-gym evaluate --video``.
        evaluation: A file of ``wm-gym evaluate --json``, whose mean return the card shows.
        message: Of the commit.

    Returns:
        The address of the repository.

    Raises:
        BundleError: The agent, the video or the evaluation cannot be read, the name is not of the form
            ``owner/name``, the extra is not installed, one may not write there, the repository holds something else,
            or the Hub cannot be reached.
    """
    target = PushTarget(repository, private, video, message)
    result = None if evaluation is None else read_evaluation(evaluation)
    agent = load_agent(path)
    simulator = agent.observer.simulator.id if result is None else result["simulator"]["id"]
    source = "pixels" if isinstance(agent.manifest, PixelAgentManifest) else "world-model"
    tags = (source, "driving", "reinforcement-learning", "stable-baselines3", agent.manifest.config.algo)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_self_contained(Path(temporary) / "agent", agent)
        scores = agent_scores(agent.metrics, result)
        return push_folder(folder, AGENT_BUNDLE, target, tags=tags, simulator=simulator, scores=scores)
