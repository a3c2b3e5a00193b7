"""What each episode of a collection is: a pure function of the collection's seed and the episode's index."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wm_gym.errors import DatasetError

HELD_OUT_FROM = 1_000_000
"""Simulator seeds from here on are held out for evaluation; collection uses smaller ones only."""

_GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class EpisodePlan:
    """One episode to collect.

    Attributes:
        index: Number of the episode.
        seed: Seed for the simulator's reset, below :data:`HELD_OUT_FROM`.
        behaviour: Name of the behaviour that drives.
        behaviour_seed: Seed for the behaviour's own randomness.
    """

    index: int
    seed: int
    behaviour: str
    behaviour_seed: int


@dataclass(frozen=True)
class CollectionPlan:
    """The endless list of episodes of a collection.

    Simulator seeds are ``(a + i b) mod 1,000,000`` with ``a`` and ``b`` drawn from the seed and ``b`` coprime to the
    modulus, so no seed occurs twice in a dataset. Behaviours follow the golden-ratio sequence: after any number of
    episodes each one's share is as near to its weight as whole episodes allow (within one or two of them).

    Attributes:
        seed: Seed of the collection, 0 or more and below :data:`HELD_OUT_FROM`.
        behaviours: Behaviour names and weights.
    """

    seed: int
    behaviours: dict[str, float]

    def __post_init__(self) -> None:
        if not 0 <= self.seed < HELD_OUT_FROM:
            raise DatasetError(
                f"the collection seed {self.seed} is not in 0 to {HELD_OUT_FROM - 1}; larger seeds are held out for "
                "evaluation."
            )

    def __getitem__(self, index: int) -> EpisodePlan:
        """The episode with this index."""
        offset, stride, phase = self._constants
        names = list(self.behaviours)
        ends = np.cumsum([self.behaviours[name] for name in names])
        point = (phase + index * _GOLDEN_RATIO) % 1.0 * ends[-1]
        chosen = min(int(np.searchsorted(ends, point, side="right")), len(names) - 1)
        return EpisodePlan(
            index=index,
            seed=(offset + index * stride) % HELD_OUT_FROM,
            behaviour=names[chosen],
            behaviour_seed=int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0]),
        )

    @cached_property
    def _constants(self) -> tuple[int, int, float]:
        rng = np.random.default_rng(self.seed)
        stride = int(rng.integers(HELD_OUT_FROM))
        while math.gcd(stride, HELD_OUT_FROM) != 1:
            stride = int(rng.integers(HELD_OUT_FROM))
        return int(rng.integers(HELD_OUT_FROM)), stride, float(rng.random())


def parse_behaviours(text: str) -> dict[str, float]:
    """Read a behaviour mix: one name, or names with weights as in ``"noisy:0.7,random:0.3"``.

    Returns:
        Names and weights; the weights sum to 1. A name without a weight counts as 1 before that.

    Raises:
        DatasetError: a name is empty or occurs twice, or a weight is not a positive number.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.strip().rpartition(":")
        if not colon or "/" in number or "\\" in number:  # a colon may belong to a path
            name, number = part.strip(), "1"
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise DatasetError(f"the weight {number!r} of behaviour {name!r} in {text!r} is not a positive number.")
        if not name or name in weights:
            raise DatasetError(
                f"the behaviour mix {text!r} has {'an empty name' if not name else f'{name!r} twice'}; write names "
                "with weights, as in noisy:0.7,random:0.3."
            )
        weights[name] = weight
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
