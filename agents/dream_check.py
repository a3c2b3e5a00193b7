"""A look at a dream before an agent trains in it: does it pay for driving at random?

Policies begin with random actions, and where those earn well already there is nothing to learn. Recordings of random
driving say what the simulator gives for it. A dream that pays clearly more has not understood what wheel and pedals do,
such as one whose road follows the wheel. Its error on held-out recordings, whose actions are mostly sensible, does not
tell (docs/experiments.md).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from wm_gym.agents.behaviours import make_blind_behaviour
from wm_gym.agents.evaluation.dream_drives import BlindInDreams, dream_drives
from wm_gym.envs.dream_model import DreamModel
from wm_gym.state import LatentState

_DREAMS = 256
_CLEARLY = 0.1
"""Share of what all recorded episodes earn: so much more than recorded random driving is clearly more."""


@dataclass(frozen=True)
class _Returns:
    mean: float
    high: float


@dataclass(frozen=True)
class _RandomDriving:
    """As :func:`~wm_gym.data_collection.datasets.window_returns.random_driving` gives it."""

    mean_reward: float
    returns: dict[int, _Returns]


_RECORDED = TypeAdapter(_RandomDriving)


@dataclass(frozen=True)
class DreamCheck:
    """What driving at random earns in dreams and in recordings.

    Attributes:
        steps: Steps that were counted.
        paid: Mean return of the dreams.
        recorded: Mean return of the recordings of random driving, over as many steps.
        high: What 19 of 20 of those do not exceed.
        tolerance: How much more a dream may pay.
    """

    steps: int
    paid: float
    recorded: float
    high: float
    tolerance: float

    @property
    def warning(self) -> str | None:
        """One sentence where the dreams pay clearly more, else ``None``."""
        if self.paid <= self.high + self.tolerance:
            return None
        return (
            f"the dream pays {self.paid:.1f} over {self.steps} steps of random driving, but recorded random driving "
            f"got {self.recorded:.1f} in as many, and hardly ever more than {self.high:.1f}: the world model does not "
            "know what bad driving costs, and a policy would learn from that mistake; record more drives or others, "
            "such as random ones and ones with disturbances, or train the world model longer."
        )


def check_dream(model: DreamModel, starts: LatentState, metrics: dict[str, Any], horizon: int) -> DreamCheck | None:
    """Drive at random in dreams, and compare with what the model's metrics tell of recorded random driving.

    The second half of the dreams counts. They begin where the recorded drivers were, most of them on the road and at
    speed, and whatever is done next is paid for at first.

    Args:
        model: The world model.
        starts: States that dreams begin from.
        metrics: Of the model, as its training left them.
        horizon: Steps of the dreams that an agent trains in; as many are dreamt, or fewer, so that half of them is one
            of the recorded lengths.

    Returns:
        The comparison, whose ``warning`` is given as a warning, too; ``None`` where nothing was recorded over so few
        steps.

    Raises:
        BundleError: The model imagined a number that is not finite.
    """
    try:
        recorded = _RECORDED.validate_python(metrics.get("random_driving"))
    except ValidationError:  # none, or none that can be read
        return None
    steps = max((steps for steps in recorded.returns if 1 <= steps <= horizon / 2), default=None)
    if steps is None:
        return None
    rows = np.random.default_rng(0).integers(starts.batch_size, size=_DREAMS)
    rewards = dream_drives(
        model,
        BlindInDreams(partial(make_blind_behaviour, "random", model.simulator)),
        starts.select(torch.from_numpy(rows).to(starts.latent.device)),
        range(_DREAMS),
        steps=2 * steps,
    )
    check = DreamCheck(
        steps=steps,
        paid=float(rewards[:, steps:].sum(axis=1, dtype=np.float64).mean()),
        recorded=recorded.returns[steps].mean,
        high=recorded.returns[steps].high,
        tolerance=_CLEARLY * steps * abs(recorded.mean_reward),
    )
    if check.warning is not None:
        warnings.warn(check.warning, stacklevel=2)
    return check
