"""Reading the JSON file of an evaluation, as ``wm-gym evaluate --json`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from wm_gym.errors import BundleError, first_invalid
from wm_gym.plain_files import read_json
from wm_gym.simulator import SimulatorSpec

T = TypeVar("T")


class SavedEvaluation(BaseModel):
    """What is read of an evaluation's file; the fields are those of
    :class:`~wm_gym.agents.evaluation.evaluation.EvaluationResult`.

    ``driver`` and ``simulator`` are ``None`` where the file does not name them, and ``returns_by_horizon`` is empty in
    one that is older than that field.
    """  # noqa: D205

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    driver: str | None = None
    simulator: SimulatorSpec | None = None
    returns: list[float] = Field(min_length=1)
    lengths: list[int] = Field(min_length=1)
    drive_s: list[float] = Field(default_factory=list)
    max_episode_steps: int | None = None
    returns_by_horizon: dict[int, list[float]] = Field(default_factory=dict)
    seeds: list[int] = Field(min_length=1)
    mean_return: float
    ci95: tuple[float, float] | None = None
    driving: dict[str, float] = Field(default_factory=dict)
    texts: dict[str, list[str]] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_number_for_each_episode(self) -> SavedEvaluation:
        counts = {len(self.returns), len(self.lengths), len(self.seeds)}
        counts.update(map(len, self.returns_by_horizon.values()), map(len, self.texts.values()))
        if len(counts) > 1:
            raise ValueError("returns, lengths, seeds or texts are of different numbers of episodes")
        return self


def read_evaluation(file: Path) -> SavedEvaluation:
    """Read the file of an evaluation.

    Raises:
        BundleError: It is missing, damaged, or no evaluation.
    """
    return read_result(file, SavedEvaluation, "evaluation", "evaluate again")


def read_result(file: Path, kind: type[T], what: str, remedy: str) -> T:
    """Read a result that was written as JSON.

    Args:
        file: The file.
        kind: The type that it is to have.
        what: What it is, in words.
        remedy: What the user can do.

    Raises:
        BundleError: It is missing, damaged, or of another kind.
    """
    values = read_json(file, error=BundleError, remedy=f"{remedy}, or remove it")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        where, message = first_invalid(error)
        raise BundleError(f"{str(file)!r} is no {what}: {where}: {message}; {remedy}, or remove it.") from error
