"""The scorecard of a world model as a judge of policies: what it predicts for each, and how well that ranks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from wm_gym.actions import FloatArray
from wm_gym.agents.evaluation.bootstrap import bootstrap_interval
from wm_gym.agents.evaluation.counterfactuals import CounterfactualScore
from wm_gym.agents.evaluation.fidelity_tables import counterfactual_tables, picture_table
from wm_gym.agents.evaluation.multiple_choice import ChoiceScore
from wm_gym.agents.evaluation.pictures import PictureScore
from wm_gym.agents.evaluation.rank_agreement import mean_maximum_rank_violation, pearson, spearman
from wm_gym.bench.table import Table, render_markdown
from wm_gym.errors import ConfigError
from wm_gym.simulator import SimulatorSpec

Compared = Literal["same_steps", "whole_drive", "driving_score"]
"""What a predicted return is compared with: the real return over as many steps or of whole episodes, or the driving
score of these."""
_COMPARED_WORDS = {
    "same_steps": "real return over as many steps",
    "whole_drive": "real return of whole drives",
    "driving_score": "driving score of whole drives",
}


@dataclass(frozen=True)
class RealDrives:
    """What a policy earned in the simulator.

    Attributes:
        source: ``"driven"``, or the file that it was read from.
        seeds: Seed of each episode.
        returns: Return of each whole episode.
        lengths: Steps of each.
        by_horizon: By a number of steps, the return of each episode over its first so many.
        max_steps: Steps after which the episodes were cut; ``None`` where that was left to the simulator.
        drive_s: Seconds that they took; ``None`` where nobody knows.
        driving_score: Their mean driving score, 0 to 100; ``None`` where the simulator has none, as CarRacing.
    """

    source: str
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    by_horizon: Mapping[int, list[float]]
    max_steps: int | None = None
    drive_s: float | None = None
    driving_score: float | None = None

    def returns_over(self, steps: int) -> list[float] | None:
        """The returns over the first ``steps`` steps; ``None`` where the records do not tell them."""
        if steps in self.by_horizon:
            return self.by_horizon[steps]
        ended = max(self.lengths) <= steps and (self.max_steps is None or steps <= self.max_steps)
        return self.returns if ended else None


@dataclass(frozen=True)
class PolicyReturn:
    """One policy over a number of steps.

    Attributes:
        steps: Number of steps.
        predicted: Mean return of its dreams.
        predicted_ci95: 95 % bootstrap interval of that mean over the start states; ``None`` for one.
        real: Mean return of its drives: that which the prediction is compared with.
        real_ci95: 95 % bootstrap interval of that mean over the episodes; ``None`` for one.
        doubt: One standard deviation of the error of ``predicted`` by what the model itself tells: the mean over its
            dreams, whose errors are taken to go the same way; ``None`` where it tells nothing.
    """

    steps: int
    predicted: float
    predicted_ci95: tuple[float, float] | None
    real: float
    real_ci95: tuple[float, float] | None
    doubt: float | None = None


@dataclass(frozen=True)
class PolicyScore:
    """One policy in dream and simulator.

    Attributes:
        policy: Its name or folder.
        by_horizon: Means and intervals, the shortest horizon first.
        predicted_returns: By a number of steps, the dream's return from each start state (mean over the draws).
        drives: Its drives in the simulator.
    """

    policy: str
    by_horizon: list[PolicyReturn]
    predicted_returns: dict[int, list[float]]
    drives: RealDrives


@dataclass(frozen=True)
class Agreement:
    """How well the predictions for all policies agree with their real returns over a number of steps.

    Attributes:
        steps: Number of steps that were dreamt.
        compared_with: What they are compared with; ``"whole_drive"`` where the return over as many steps is not known
            of all.
        pearson: Correlation of predicted and real means; ``None`` where one of them does not vary.
        spearman: Correlation of their ranks; ``None`` as above.
        mmrv: Mean maximum rank violation, in units of the real figure.
        mmrv_share: The same as a share of the range of the real figures; ``None`` where they do not vary.
        mean_error: Mean over the policies of predicted minus real return; ``None`` against the driving score.
        mean_absolute_error: Mean of its size; ``None``, too.
    """

    steps: int
    compared_with: Compared
    pearson: float | None
    spearman: float | None
    mmrv: float
    mmrv_share: float | None
    mean_error: float | None
    mean_absolute_error: float | None


@dataclass(frozen=True)
class Scorecard:
    """A world model's figures as a judge of policies; the fields are those of the JSON file.

    Attributes:
        model: Its name or folder.
        simulator: The record of its simulator.
        starts: What dreams began from: ``"simulator"`` for the first observations of the simulator's episodes with
            ``seeds``, ``"model"`` for the model's own start states.
        seeds: One for each start state, of the dreams' noise and the policies' randomness.
        draws: Dreams from each start state.
        policies: Every policy, in the order in which they were given.
        agreement: By horizon, the shortest first.
        choices: The multiple choice; ``None`` where it was not asked for.
        dream_s: Seconds that the dreams of all policies took, start states included.
        drive_s: Seconds that the episodes of all policies took, those read from files included; ``None`` where a file
            does not tell.
        choices_s: Seconds that the multiple choice took; ``None`` without one.
        machine: What it was measured on.
        counterfactuals: What wheel and pedals do; ``None`` where it was not asked for.
        pictures: How near dreamt frames are, at the same moments; ``None`` also where the model decodes none.
        counterfactuals_s: Seconds that both took; ``None`` without.
        driving_agreement: As ``agreement``, against the driving score; empty where a policy's is not known.
        shorter_choices: The multiple choice over the first steps of the same sequences; empty without one.
    """

    model: str
    simulator: SimulatorSpec
    starts: str
    seeds: list[int]
    draws: int
    policies: list[PolicyScore]
    agreement: list[Agreement]
    choices: ChoiceScore | None
    dream_s: float
    drive_s: float | None
    choices_s: float | None
    machine: dict[str, Any]
    counterfactuals: CounterfactualScore | None = None
    pictures: PictureScore | None = None
    counterfactuals_s: float | None = None
    driving_agreement: list[Agreement] = field(default_factory=list)
    shorter_choices: list[ChoiceScore] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The contents of the JSON file."""
        return {**asdict(self), "simulator": self.simulator.model_dump(mode="json")}

    def tables(self) -> list[Table]:
        """Agreement by horizon, the policies from best to worst, and what else was measured."""
        choices = [] if self.choices is None else [_choice_table([*self.shorter_choices, self.choices])]
        held = [] if self.counterfactuals is None else counterfactual_tables(self.counterfactuals)
        pictures = [] if self.pictures is None else [picture_table(self.pictures)]
        return [self._agreement_table(), self._policy_table(), *choices, *held, *pictures]

    def to_markdown(self) -> str:
        """The tables as Markdown, with settings and machine below."""
        settings = {
            "model": self.model,
            "simulator": self.simulator.id,
            "start states": f"{len(self.seeds)} ({self.starts})",
            "seeds": f"{self.seeds[0]} to {self.seeds[-1]}",
            "dreams from each": self.draws,
        }
        return render_markdown(self.tables(), settings, self.machine)

    def _agreement_table(self) -> Table:
        driven = "unknown" if self.drive_s is None else f"{self.drive_s:.0f} s"
        return Table(
            name="agreement",
            title=f"Does {self.model} rank {len(self.policies)} policies as the simulator does?",
            columns=(
                ("steps", "steps", ".0f"),
                ("compared_with", "the dream against", ""),
                ("pearson", "Pearson", ".3f"),
                ("spearman", "Spearman", ".3f"),
                ("mmrv", "MMRV", ".1f"),
                ("mmrv_share", "of the range", ".3f"),
                ("mean_error", "dream minus real", "+.1f"),
            ),
            rows=[
                {**asdict(one), "compared_with": _COMPARED_WORDS[one.compared_with]}
                for one in (*self.agreement, *self.driving_agreement)
            ],
            notes=(f"The dreams took {self.dream_s:.0f} s, the drives {driven}.",),
        )

    def _policy_table(self) -> Table:
        horizons = [one.steps for one in self.agreement]
        columns: list[tuple[str, str, str]] = [("policy", "policy", "")]
        for steps in horizons:
            columns += [(f"real_{steps}", f"real, {steps}", ".1f"), (f"dream_{steps}", f"dream, {steps}", ".1f")]
        longest = horizons[-1]
        columns += [("real", f"real, {longest}, 95 %", ""), ("dream", f"dream, {longest}, 95 %", "")]
        if self.driving_agreement:
            columns += [("driving_score", "driving score", ".1f")]
        notes: tuple[str, ...] = ()
        if any(score.by_horizon[-1].doubt is not None for score in self.policies):
            columns += [(f"doubt_{steps}", f"doubt, {steps}", ".1f") for steps in horizons]
            notes = ("The doubt is one standard deviation of the dream's error, as the model itself tells it.",)
        rows = []
        for score in sorted(self.policies, key=lambda score: score.by_horizon[-1].real, reverse=True):
            row: dict[str, Any] = {"policy": score.policy, "driving_score": score.drives.driving_score}
            for one in score.by_horizon:
                row |= {
                    f"real_{one.steps}": one.real,
                    f"dream_{one.steps}": one.predicted,
                    f"doubt_{one.steps}": one.doubt,
                }
            last = score.by_horizon[-1]
            rows.append({**row, "real": _interval(last.real_ci95), "dream": _interval(last.predicted_ci95)})
        return Table("policies", "Mean returns by number of steps", tuple(columns), rows, notes)


def _choice_table(scores: Sequence[ChoiceScore]) -> Table:
    picks = [
        (score.steps, *pick)
        for score in scores
        for pick in (
            ("the dream", score.accuracy, score.ci95, score.regret),
            ("nearest to what the driver did", score.nearest_accuracy, None, score.nearest_regret),
            ("at random", score.chance, None, score.chance_regret),
        )
    ]
    return Table(
        name="choices",
        title=f"Which of {scores[0].choices} action sequences is the best?",
        columns=(
            ("steps", "steps", ".0f"),
            ("picks", "picks", ""),
            ("right", "right", ".2f"),
            ("ci95", "95 %", ""),
            ("loss", "loss", ".1f"),
        ),
        rows=[
            {"steps": steps, "picks": name, "right": accuracy, "ci95": _interval(interval, 2), "loss": loss}
            for steps, name, accuracy, interval, loss in picks
        ],
        notes=(f"Over {scores[0].points} decision points; the loss is the mean return given away against the best.",),
    )


def score_policies(
    predicted: Mapping[str, FloatArray],
    real: Mapping[str, RealDrives],
    horizons: Sequence[int],
    doubts: Mapping[str, FloatArray] | None = None,
) -> tuple[list[PolicyScore], list[Agreement]]:
    """Compare what dreams promise for several policies with what they earned.

    Where the real returns over a number of steps are not known of every policy, those of whole episodes take their
    place for all: a prediction over some steps is never mixed with another one's.

    Args:
        predicted: For each policy, the dream's reward ``(N, K)`` from ``N`` start states, as
            :func:`~wm_gym.agents.evaluation.dream_drives.dream_drives` gives it.
        real: For each of them, its episodes.
        horizons: Numbers of steps, at most ``K``.
        doubts: For those policies of which it is known, one standard deviation ``(N, K)`` of the error of the reward
            that is summed up after each step.

    Returns:
        Every policy, and the agreement by horizon.

    Raises:
        ConfigError: There are fewer than two policies, one of them has no episodes, or a horizon is beyond the dreams.
    """
    check_can_be_ranked(list(predicted))
    steps_of = sorted(set(horizons))
    for name, rewards in predicted.items():
        if name not in real:
            raise ConfigError(f"the policy {name!r} has no drives to be compared with; give them, or leave it out.")
        if not steps_of or not 1 <= steps_of[0] <= steps_of[-1] <= rewards.shape[1]:
            raise ConfigError(
                f"the horizons {steps_of} do not fit dreams of {rewards.shape[1]} steps; give 1 to {rewards.shape[1]}."
            )
    compared: dict[int, Compared] = {
        steps: "same_steps" if all(real[name].returns_over(steps) is not None for name in predicted) else "whole_drive"
        for steps in steps_of
    }
    scores = []
    for name, rewards in predicted.items():
        sums = {steps: rewards[:, :steps].sum(1, dtype=np.float64).tolist() for steps in steps_of}
        returns = []
        deviations = (doubts or {}).get(name)
        for steps in steps_of:
            known = real[name].returns_over(steps) if compared[steps] == "same_steps" else real[name].returns
            assert known is not None
            returns.append(
                PolicyReturn(
                    steps=steps,
                    predicted=float(np.mean(sums[steps])),
                    predicted_ci95=bootstrap_interval(sums[steps]),
                    real=float(np.mean(known)),
                    real_ci95=bootstrap_interval(known),
                    doubt=None if deviations is None else float(np.mean(deviations[:, steps - 1], dtype=np.float64)),
                )
            )
        scores.append(PolicyScore(name, returns, sums, real[name]))
    return scores, [
        agreement(
            [score.by_horizon[place].predicted for score in scores],
            [score.by_horizon[place].real for score in scores],
            steps,
            compared[steps],
        )
        for place, steps in enumerate(steps_of)
    ]


def driving_agreement(scores: Sequence[PolicyScore]) -> list[Agreement]:
    """How well what dreams promise for several policies agrees with their driving scores.

    Args:
        scores: The policies, as :func:`score_policies` gives them.

    Returns:
        One for each number of steps that they were dreamt, the fewest first; none where the driving score of a policy
        is not known.
    """
    real = [score.drives.driving_score for score in scores]
    known = [one for one in real if one is not None]
    if len(known) < len(real):
        return []
    return [
        agreement([one.predicted for one in at], known, at[0].steps, "driving_score")
        for at in zip(*(score.by_horizon for score in scores), strict=True)
    ]


def agreement(
    predicted: Sequence[float], real: Sequence[float], steps: int, compared_with: Compared = "same_steps"
) -> Agreement:
    """The agreement of predicted mean returns and real figures, one of each for every policy.

    Raises:
        ConfigError: They have different lengths, or a number is not finite.
    """
    violation = mean_maximum_rank_violation(predicted, real)
    extent = float(np.ptp(np.asarray(real, np.float64)))
    have_one_unit = compared_with != "driving_score"
    errors = np.asarray(predicted, np.float64) - np.asarray(real, np.float64)
    return Agreement(
        steps=steps,
        compared_with=compared_with,
        pearson=pearson(predicted, real),
        spearman=spearman(predicted, real),
        mmrv=violation,
        mmrv_share=violation / extent if extent > 0 else None,
        mean_error=float(errors.mean()) if have_one_unit else None,
        mean_absolute_error=float(np.abs(errors).mean()) if have_one_unit else None,
    )


def check_can_be_ranked(policies: Sequence[str]) -> None:
    """Check that there is something to rank.

    Raises:
        ConfigError: There are fewer than two policies.
    """
    if len(policies) < 2:
        raise ConfigError(f"{len(policies)} policy cannot be ranked; name at least two, as in bundled,random.")


def _interval(interval: tuple[float, float] | None, digits: int = 1) -> str | None:
    return None if interval is None else f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"
