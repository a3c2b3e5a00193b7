"""What recorded gradients do where a graph cannot be had; the graphs themselves are tested on a GPU."""

from __future__ import annotations

import pytest
import torch

from wm_gym.clips import Clips
from wm_gym.losses import Draws
from wm_gym.training.captured import CapturedGradients, _Graph


class _Replay:
    """Stands for a CUDA graph, which only a GPU can record."""

    def replay(self) -> None:
        pass


def _clips(frames: int) -> Clips[torch.Tensor]:
    return Clips(
        torch.zeros(1, frames, 3, 8, 8),
        torch.zeros(1, frames - 1, 4),
        torch.zeros(1, frames - 1),
        torch.zeros(1, frames - 1, dtype=torch.bool),
        torch.zeros(1, frames, 0),
    )


def _gradients(room: int) -> CapturedGradients:
    """Gradients on a device whose memory has room for so many graphs."""
    gradients = CapturedGradients(lambda clips, draws: (torch.zeros(()), {}), torch.nn.Linear(1, 1))

    def capture(clips, draws):
        if len(gradients._graphs) >= room:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1.75 GiB.")
        given = [value.clone() for value in clips if value is not None]
        return _Graph(_Replay(), given, (torch.zeros(()), {"recorded": torch.ones(())}))

    gradients._capture = capture
    return gradients


def test_graphs_of_other_shapes_make_room():
    gradients = _gradients(1)
    for frames in (4, 6, 4):
        _, terms = gradients(_clips(frames), Draws(2, None, None))
        assert "recorded" in terms
    assert gradients.is_captured


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why():
    gradients = _gradients(0)
    with pytest.warns(UserWarning, match=r"could not be recorded as CUDA graphs \(CUDA out of memory\.\); they run"):
        _, terms = gradients(_clips(4), Draws(2, None, None))
    assert not terms
    assert not gradients.is_captured
