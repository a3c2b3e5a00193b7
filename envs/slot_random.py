"""Random numbers for many dreams at once: one counter-based stream a slot, all advanced by array operations.

Each slot reads the sequence of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators") from a place of its own, which its key says. An event of a slot, a reset or a step, takes a block of the
sequence, and the draws inside the event are lanes of that block. A slot's stream therefore depends on nothing but its
key: N dreams draw the same numbers in one batch as one by one.
"""

from __future__ import annotations

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio, made odd
_LANES_PER_EVENT = 2**20
_EVENT = np.uint64(0x9E3779B97F4A7C15 * _LANES_PER_EVENT % 2**64)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
_TO_24_BITS, _PER_24_BITS = np.uint64(64 - 24), np.float32(2.0**-24)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function, in place: a bijection of 64 bits whose every output bit depends on every input bit.

    Args:
        values: Any shape but a scalar; overwritten and returned.
    """
    values ^= values >> _SHIFT_1
    values *= _FACTOR_1
    values ^= values >> _SHIFT_2
    values *= _FACTOR_2
    values ^= values >> _SHIFT_3
    return values


def draw_key(generator: np.random.Generator) -> int:
    """A slot's key from a Gymnasium generator."""
    return int(generator.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True))


class SlotRandom:
    """One random stream for each of ``N`` slots.

    Args:
        num_slots: ``N``.
    """

    def __init__(self, num_slots: int) -> None:
        self._places = np.zeros(num_slots, np.uint64)  # where each slot's current event begins in the sequence
        self._is_keyed = np.zeros(num_slots, np.bool_)
        self._lanes = np.zeros(0, np.uint64)

    def set_key(self, slot: int, key: int) -> None:
        """Start a slot's stream from its beginning."""
        self._places[slot] = key
        self._is_keyed[slot] = True

    def seed(self, seeds: list[int | None]) -> None:
        """Give each slot the key that a single environment reset with its seed has.

        A slot whose seed is ``None`` goes on with its stream, or starts from the system's entropy if it has none.
        """
        for slot, seed in enumerate(seeds):
            if seed is not None or not self._is_keyed[slot]:
                self.set_key(slot, draw_key(seeding.np_random(seed)[0]))

    def uniform(self, num_lanes: int) -> NDArray[np.float32]:
        """``(N, num_lanes)`` float32 in [0, 1) for each slot's current event."""
        if len(self._lanes) != num_lanes:
            self._lanes = np.arange(1, num_lanes + 1, dtype=np.uint64) * _GOLDEN
        bits = mix64(self._places[:, None] + self._lanes)
        # 24 bits fill the significand of a float32, so that no number rounds up to 1.
        bits >>= _TO_24_BITS
        numbers = bits.astype(np.float32)
        numbers *= _PER_24_BITS
        return numbers

    def below(self, high: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(K,)`` whole numbers from 0 to ``high - 1`` for the current event of the slots ``rows``."""
        bits = mix64(self._places[rows] + _GOLDEN)
        return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 * high).astype(np.int64)

    def advance(self, slots: NDArray[np.int64] | NDArray[np.bool_] | None = None) -> None:
        """Go on to the next event of the slots: their indices or a mask; ``None`` is all."""
        if slots is None:
            self._places += _EVENT
        else:
            self._places[slots] += _EVENT
