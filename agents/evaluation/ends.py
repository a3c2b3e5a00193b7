"""How episodes ended, as the simulator's ``info["end"]`` says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

CUT = "the limit on its steps"
"""What ended an episode whose simulator names no end."""


def count_ends(ends: Sequence[str]) -> dict[str, int]:
    """How many episodes ended in which way, the most frequent first; those without an end were cut."""
    return dict(Counter(end or CUT for end in ends).most_common())


def ends_in_words(ends: Sequence[str]) -> str:
    """The same in a line, as in ``"collision 3, route_done 1"``."""
    return ", ".join(f"{end} {count}" for end, count in count_ends(ends).items())
