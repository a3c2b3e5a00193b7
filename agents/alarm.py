"""An alarm for dreams that pay more than the task can: the policy then lives on errors of the world model.

A policy that trains in a dream finds what the dream pays for by mistake. From within the dream that looks like
progress. Two numbers from outside tell otherwise: what the simulator's rules can give at all, and the most that any
recorded episode has got in as many steps.
"""

from __future__ import annotations

import math
import warnings

from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.data_collection.datasets.episode_file import read_steps
from wm_gym.data_collection.datasets.window_returns import window_returns
from wm_gym.errors import ConfigError

_REMEDY = (
    "stop earlier, choose the checkpoint by drives (--select-drives), or train the model on data of this policy "
    "(--rounds)."
)


class DreamReturnAlarm:
    """Warns once, when dreams pay more on average than the task can give.

    Args:
        ceiling: The most that the task can give in ``steps`` steps (:func:`wm_gym.envs.simulators.return_ceiling`),
            or ``None`` where nobody knows.
        best_recorded: The most that a recorded episode got in ``steps`` steps (:func:`best_recorded_return`), or
            ``None``. It is what judges short dreams, in which even a wrong return stays far below the ceiling. A mean
            above the best of thousands of windows is no proof: the policy may drive better than all that was recorded.
        steps: Horizon of the dreams.

    Raises:
        ConfigError: ``steps`` is below 1.
    """

    def __init__(self, ceiling: float | None, best_recorded: float | None, steps: int) -> None:
        if steps < 1:
            raise ConfigError(f"steps={steps} must be a whole number of at least 1: the horizon of the dreams.")
        self.ceiling = ceiling
        self.best_recorded = best_recorded
        self.steps = steps
        self._has_rung = False

    def check(self, mean_dream_return: float | None) -> str | None:
        """Look at the mean return of the last dreams.

        Args:
            mean_dream_return: In the simulator's own units, not scaled; ``None`` where no dream has ended yet.

        Returns:
            One sentence, the first time that the return is too high, which is also given as a warning; else ``None``.
        """
        if self._has_rung or mean_dream_return is None:
            return None
        paid = f"the dream pays {mean_dream_return:.0f} over {self.steps} step{'' if self.steps == 1 else 's'}, "
        if self.ceiling is not None and mean_dream_return > self.ceiling:
            sentence = (
                f"{paid}but the task can give at most {self.ceiling:.0f}: the policy exploits errors of the world "
                f"model; {_REMEDY}"
            )
        elif self.best_recorded is not None and mean_dream_return > self.best_recorded:
            sentence = (
                f"{paid}but no recorded drive got more than {self.best_recorded:.0f} in as many: unless the policy "
                f"drives better than all of them, it exploits errors of the world model; {_REMEDY}"
            )
        else:
            return None
        self._has_rung = True
        warnings.warn(sentence, stacklevel=2)
        return sentence


def best_recorded_return(dataset: Dataset, steps: int) -> float | None:
    """The most that was earned within ``steps`` successive steps of a recorded episode.

    Frames are not read.

    Args:
        dataset: Recorded episodes.
        steps: Length of the window.

    Returns:
        The return, or ``None`` where no episode is long enough.

    Raises:
        ConfigError: ``steps`` is below 1.
        DatasetError: A file is missing or damaged.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps} must be a whole number of at least 1.")
    best: float | None = None
    for header in dataset.episodes:
        found = window_returns(read_steps(header)["rewards"], steps, ended=header.end == "terminated")
        if len(found):
            best = max(float(found.max()), -math.inf if best is None else best)
    return best
