"""The end of a training: the termination head alone, on states of all recordings.

Ends are rare, and a collision comes only of the very step that it happens in. In a training of the whole model the head
sees some thousand of them while what it reads keeps changing. Afterwards, with everything else as it is, it sees more
of them, in updates that cost a small part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from wm_gym.errors import TrainingError
from wm_gym.progress import progress_bar
from wm_gym.state import LatentState
from wm_gym.training.clips import ClipSource, EncodedEpisodes, encode_episodes
from wm_gym.world_model import WorldModel

NEAR_STEPS = 8
"""An end and as many steps before it, less one, are near an end."""
_MOST_STEPS = 250_000
"""Of steps that are near no end, so many are kept at most, drawn at random."""
_TOGETHER = 32
"""Episodes that are followed at once."""
_BATCH_SIZE = 512
_NEAR_SHARE = 0.25
_LEARNING_RATE = 3e-4
_STREAM = 7


class RecordedSteps(NamedTuple):
    """Steps of recordings, on the CPU.

    Attributes:
        before: States before the step, ``N`` of them.
        actions: ``(N, A)`` float32, stored format.
        observed: States after it, which have seen the frame.
        terminated: ``(N,)`` bool, whether the task ended with it.
        is_near: ``(N,)`` bool, whether it is near an end of the task.
    """

    before: LatentState
    actions: Tensor
    observed: LatentState
    terminated: Tensor
    is_near: Tensor


@torch.no_grad()
def recorded_steps(
    model: WorldModel, source: ClipSource, seed: int, encoded: EncodedEpisodes | None = None
) -> RecordedSteps:
    """Follow every episode from its beginning to its end; where there are too many steps, a random part is kept."""
    latents = (encoded or encode_episodes(model, source)).latents
    lengths = source.episode_lengths()
    share = min(1.0, _MOST_STEPS / max(1, int(lengths.sum())))
    rng = np.random.default_rng((seed, _STREAM))
    parts: list[RecordedSteps] = []
    order = np.argsort(lengths, kind="stable")  # so that those which are followed together are of one length, nearly
    for first in range(0, len(order), _TOGETHER):
        group = order[first : first + _TOGETHER].tolist()
        clips = [source.read_clips(np.array([[episode, 0]]), int(lengths[episode]) + 1) for episode in group]
        actions = pad_sequence([torch.from_numpy(clip.actions[0]) for clip in clips], batch_first=True)
        seen = pad_sequence([latents[episode] for episode in group], batch_first=True)
        states = model.filter(seen.to(model.device), actions.to(model.device)).states  # (T * B, ...)
        for row, (episode, clip) in enumerate(zip(group, clips, strict=True)):
            length = int(lengths[episode])
            terminated = torch.from_numpy(clip.terminated[0])
            is_near = (torch.arange(length) >= length - NEAR_STEPS) & terminated.any()
            kept = torch.nonzero(is_near | (torch.from_numpy(rng.random(length)) < share)).squeeze(1)
            at = (kept * len(group) + row).to(model.device)
            before, after = (states.select(rows).to("cpu") for rows in (at, at + len(group)))
            parts.append(RecordedSteps(before, actions[row, kept], after, terminated[kept], is_near[kept]))
    return RecordedSteps(
        LatentState.cat([part.before for part in parts]),
        torch.cat([part.actions for part in parts]),
        LatentState.cat([part.observed for part in parts]),
        torch.cat([part.terminated for part in parts]),
        torch.cat([part.is_near for part in parts]),
    )


def train_termination_head(
    model: WorldModel,
    source: ClipSource,
    steps: int,
    seed: int,
    *,
    progress: bool = True,
    encoded: EncodedEpisodes | None = None,
) -> None:
    """Train the termination head, in place, to tell ends from states that have seen them and from imagined ones.

    A quarter of the steps of each update is near an end of the task, the rest is drawn from all. Where the task ends no
    episode, nothing is done.

    Args:
        model: A trained world model, in evaluation mode; all else of it stays as it is.
        source: The training episodes.
        steps: Updates.
        seed: Of all that is drawn.
        progress: Show a progress bar.
        encoded: The latents of ``source``; ``None`` encodes it.

    Raises:
        TrainingError: The loss is not finite.
    """
    recorded = recorded_steps(model, source, seed, encoded)
    near_an_end = torch.nonzero(recorded.is_near).squeeze(1)
    if not len(near_an_end):
        return
    device, head = model.device, model.continuation_head
    generator = torch.Generator().manual_seed(int(np.random.default_rng((seed, _STREAM, 1)).integers(2**63)))
    optimizer = torch.optim.Adam(head.parameters(), _LEARNING_RATE)
    num_near = round(_NEAR_SHARE * _BATCH_SIZE)
    head.train()
    with progress_bar(steps, "update", "termination head", enabled=progress) as bar:
        for _ in range(steps):
            anywhere = torch.randint(len(recorded.terminated), (_BATCH_SIZE - num_near,), generator=generator)
            near = near_an_end[torch.randint(len(near_an_end), (num_near,), generator=generator)]
            rows = torch.cat((anywhere, near))
            noise = torch.rand(_BATCH_SIZE, model.noise_dim, generator=generator).to(device)
            with torch.no_grad():
                imagined = model.imagine_state(
                    recorded.before.select(rows).to(device), recorded.actions[rows].to(device), noise
                )
                states = (imagined, recorded.observed.select(rows).to(device))
                features = torch.cat([model.features(state) for state in states])  # (2 * B, F)
            terminated = recorded.terminated[rows].to(device).repeat(2)
            loss = head.losses(features, terminated).mean()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the termination head's loss became {float(loss.detach())}; set training.termination_steps=0, or "
                    "check the data with `wm-gym dataset verify`."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
    head.eval()
