"""What a world model's own metrics say against training an agent in it.

Both measures are of held-out recordings and need no simulator. The limits lie between the models that gave good drivers
and those that did not: docs/experiments.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

_LEAST_SEEN = 0.25
_LEAST_LOST = 0.5
_REMEDY = "train it longer or with another seed, or record more."


def model_faults(metrics: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a world model.

    Args:
        metrics: Of the model, as its training left them. What is missing, as in models from before, or is no number is
            passed over.

    Returns:
        One sentence for each fault.
    """
    held_wheel = metrics.get("held_wheel")
    seen = _number(metrics.get("r2_reconstruction"))
    lost = _number(held_wheel.get("lost") if isinstance(held_wheel, Mapping) else None)
    sentences = []
    if seen is not None and seen < _LEAST_SEEN:
        sentences.append(
            "the world model does not see what a driver must see: its reconstructions have "
            f"{100 * max(seen, 0.0):.0f} % of what differs between frames, where models in which agents learnt to "
            f"drive had 40 % or more, as a rule; {_REMEDY}"
        )
    if lost is not None and lost < _LEAST_LOST:
        sentences.append(
            f"the dream's road follows the wheel: held far to one side, it costs {100 * max(lost, 0.0):.0f} % of the "
            f"return, where it costs two thirds or more in models in which agents learnt to drive; {_REMEDY}"
        )
    return sentences


def warn_of_faults(metrics: Mapping[str, Any]) -> None:
    """Give :func:`model_faults` as warnings: by default Python shows each of them once in a process."""
    for sentence in model_faults(metrics):
        warnings.warn(sentence, stacklevel=1)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
