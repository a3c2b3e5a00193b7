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
_EVENT_STEP = 0x9E3779B97F4A7C15 * _LANES_PER_EVENT % 2**64
_EVENT = np.uint64(_EVENT_STEP)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
_TO_24_BITS, _PER_24_BITS = np.uint64(64 - 24), np.float32(2.0**-24)
_MOST_AHEAD = 64
_MOST_NUMBERS_AHEAD = 2**14  # bounds the memory where an event takes many
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
            self._lanes = _lanes(num_lanes)
        return _uniform(self._places, self._lanes)

    def below(self, high: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(K,)`` whole numbers from 0 to ``high - 1`` for the current event of the slots ``rows``."""
        return _below(high, self._places[rows])

    def advance(self, slots: NDArray[np.int64] | NDArray[np.bool_] | None = None) -> None:
        """Go on to the next event of the slots: their indices or a mask; ``None`` is all."""
        if slots is None:
            self._places += _EVENT
        else:
            self._places[slots] += _EVENT


class StreamAhead:
    """The random stream of one slot, whose numbers are made for many events in one go.

    An array operation for 64 events takes little more than one for a single event. The numbers are those of a slot of
    :class:`SlotRandom` with the same key.

    Args:
        num_lanes: Numbers that an event takes.
    """

    def __init__(self, num_lanes: int) -> None:
        self._lanes = _lanes(num_lanes)
        self._num_ahead = max(1, min(_MOST_AHEAD, _MOST_NUMBERS_AHEAD // num_lanes))
        self._first = 0  # where the first of the events whose numbers are made begins
        self._numbers = np.zeros((0, num_lanes), np.float32)
        self._event = 0  # the current event, counted from the first

    def set_key(self, key: int) -> None:
        """Start the stream from its beginning."""
        self._first, self._event = key, 0
        self._numbers = self._numbers[:0]

    def uniform(self) -> NDArray[np.float32]:
        """``(num_lanes,)`` float32 in [0, 1) for the current event; not to be written into."""
        if self._event >= len(self._numbers):
            self._first, self._event = self._place, 0
            events = np.arange(self._num_ahead, dtype=np.uint64) * _EVENT
            self._numbers = _uniform(np.uint64(self._first) + events, self._lanes)
        row: NDArray[np.float32] = self._numbers[self._event]
        return row

    def below(self, high: int) -> int:
        """A whole number from 0 to ``high - 1`` for the current event."""
        return int(_below(high, np.array([self._place], np.uint64))[0])

    def advance(self) -> None:
        """Go on to the next event."""
        self._event += 1

    @property
    def _place(self) -> int:
        """Where the current event begins in the sequence."""
        return (self._first + self._event * _EVENT_STEP) % 2**64


def _lanes(num_lanes: int) -> NDArray[np.uint64]:
    """Distances of an event's draws from the place where it begins."""
    return np.arange(1, num_lanes + 1, dtype=np.uint64) * _GOLDEN


def _uniform(places: NDArray[np.uint64], lanes: NDArray[np.uint64]) -> NDArray[np.float32]:
    """``(K, num_lanes)`` float32 in [0, 1) of the events that begin at ``places`` ``(K,)``."""
    bits = mix64(places[:, None] + lanes)
    # 24 bits fill the significand of a float32, so that no number rounds up to 1.
    bits >>= _TO_24_BITS
    numbers = bits.astype(np.float32)
    numbers *= _PER_24_BITS
    return numbers


def _below(high: int, places: NDArray[np.uint64]) -> NDArray[np.int64]:
    """``(K,)`` whole numbers from 0 to ``high - 1`` of the events that begin at ``places`` ``(K,)``."""
    bits = mix64(places + _GOLDEN)
    return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 * high).astype(np.int64)
