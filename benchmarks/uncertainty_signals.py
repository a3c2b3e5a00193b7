"""Which signal tells best where a dream is wrong: five ways to doubt, on the same dreams.

Dreams of 30 steps begin at recorded states of a stochastic (``rssm``) world model of CarRacing and follow the recorded
actions. Every signal is made from the features and actions of a dream; what needs training learns from ``--data``, of
which a fifth of the episodes is held out, and one multiplier for each horizon is fitted on these. Then all are measured
on other recordings: how well a signal tells the dreams that fail from the others (AUROC), and how many errors of the
summed reward are within one deviation. It takes some minutes on a core::

    python benchmarks/uncertainty_signals.py --data data/car --check data/held_out --check data/own_drives
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from wm_gym.data_collection.datasets.joined import JoinedDataset
from wm_gym.data_collection.datasets.training_data import open_training_data
from wm_gym.frames import frames_to_tensor
from wm_gym.metrics import area_under_roc, uncertainty_metrics
from wm_gym.models.blocks import MLP
from wm_gym.models.dynamics.rssm import RSSMDynamics
from wm_gym.state import LatentState
from wm_gym.training.clips import to_tensors
from wm_gym.training.uncertainty import DreamErrors, UncertaintySettings, dream_errors, fit_uncertainty
from wm_gym.uncertainty import Uncertainty, fit_multipliers
from wm_gym.world_model import WorldModel

STEPS = 30
FAILURES = {10: 5.0, 30: 30.0}
"""Absolute errors of the summed reward above which a dream fails, by steps; a tile of the track is worth about 3.3."""
SHOWN = (1, 5, 10, 20, 30)
MEMBERS, MEMBER_UPDATES = 5, 400
NEIGHBOURS, COMPONENTS = 5, 64
_BATCH = 64

Signal: TypeAlias = Callable[[DreamErrors], Tensor]
"""Dreams to one number for each step, ``(B, 30)``, that is the larger the more is wrong."""


def standardised(values: Tensor, like: Tensor) -> Tensor:
    """Values in deviations of others, whose last dimension is the same."""
    flat = like.flatten(0, -2)
    return (values - flat.mean(0)) / flat.std(0).clamp_min(0.05)


@torch.no_grad()
def disagreement(model: WorldModel, data: JoinedDataset, learnt: DreamErrors, seed: int) -> dict[str, Signal]:
    """Members of their own that predict the next encoded latent and the reward, from observed states alone."""
    following = torch.cat(
        [
            model.encode(to_tensors(data.read_clips(rows.numpy(), 2), "cpu").observations)[:, 1]
            for rows in learnt.begin.split(_BATCH)
        ]
    )
    rewards = torch.from_numpy(
        np.concatenate([data.read_clips(rows.numpy(), 2).rewards for rows in learnt.begin.split(_BATCH)])
    )

    def inputs(dreams: DreamErrors) -> Tensor:
        return torch.cat(
            (
                standardised(dreams.features, learnt.features[:, :1]),
                standardised(dreams.actions, learnt.actions[:, :1]),
            ),
            -1,
        )

    seen, scale = inputs(learnt)[:, 0], rewards.std()
    targets = torch.cat((standardised(following, following), rewards / scale), -1)
    members: list[nn.Module] = []
    for number in range(MEMBERS):
        torch.manual_seed(1000 * seed + number)
        member = MLP(seen.shape[-1], 128, targets.shape[-1], num_layers=2)
        optimizer = torch.optim.AdamW(member.parameters(), 1e-3, weight_decay=1e-2)
        bootstrapped = torch.randint(len(seen), (len(seen),))
        with torch.enable_grad():
            for _ in range(MEMBER_UPDATES):
                rows = bootstrapped[torch.randint(len(seen), (256,))]
                loss = (member(seen[rows]) - targets[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        members.append(member.eval())

    def predicted(dreams: DreamErrors) -> Tensor:
        with torch.no_grad():
            return torch.stack([member(inputs(dreams)[:, :STEPS]) for member in members])

    return {
        "members: latent": lambda dreams: predicted(dreams)[..., :-1].var(0).mean(-1).cumsum(1).sqrt(),
        "members: reward": lambda dreams: scale * predicted(dreams)[..., -1].cumsum(2).std(0),
    }


def prior_entropy(model: WorldModel) -> dict[str, Signal]:
    """Entropy of the prior that each step is drawn from, in nats; the square root of its sum."""
    dynamics = model.dynamics
    assert isinstance(dynamics, RSSMDynamics), "the benchmark is for rssm"

    @torch.no_grad()
    def entropy(dreams: DreamErrors) -> Tensor:
        hidden = dreams.features[:, 1 : STEPS + 1, : dynamics.config.hidden_dim]
        prior = dynamics.prior(hidden.flatten(0, 1)).unflatten(-1, (dynamics.config.groups, -1)).softmax(-1)
        return -(prior * prior.clamp_min(1e-9).log()).sum((-1, -2)).view(hidden.shape[:2])

    return {"prior's entropy": lambda dreams: entropy(dreams).cumsum(1).sqrt()}


def distances(learnt: DreamErrors) -> dict[str, Signal]:
    """How far the dream's features are from those of observed states, in their first principal components."""
    seen = standardised(learnt.features[:, 0], learnt.features[:, :1])
    torch.manual_seed(0)
    axes = torch.pca_lowrank(seen, COMPONENTS)[2]
    scale = (seen @ axes).std(0)
    whitened = (seen @ axes) / scale

    def project(dreams: DreamErrors) -> Tensor:
        return standardised(dreams.features[:, :STEPS], learnt.features[:, :1]) @ axes / scale

    def nearest(dreams: DreamErrors) -> Tensor:
        points = project(dreams)
        found = torch.cdist(points.flatten(0, 1), whitened).topk(NEIGHBOURS, largest=False).values.square().mean(-1)
        return found.view(points.shape[:2])

    return {
        "Mahalanobis distance": lambda dreams: project(dreams).square().mean(-1).cumsum(1).sqrt(),
        f"{NEIGHBOURS} nearest neighbours": lambda dreams: nearest(dreams).cumsum(1).sqrt(),
    }


def first_steps(dreams: DreamErrors) -> DreamErrors:
    """The dreams without their last step, which is there for the state before it alone."""
    return DreamErrors(*(part[:, :STEPS] for part in dreams[:3]), dreams.begin)


def learnt_variance(uncertainty: Uncertainty, dreams: DreamErrors) -> Tensor:
    """The deviation that the package's own uncertainty tells."""
    return torch.from_numpy(uncertainty.along(dreams.features[:, :STEPS], dreams.actions[:, :STEPS]))


@torch.no_grad()
def picture_fails(model: WorldModel, data: JoinedDataset, dreams: DreamErrors) -> Tensor:
    """Whether the picture after 30 steps is further from the recorded one than the last frame seen ``(B,)``."""
    found = []
    for rows, features in zip(dreams.begin.split(_BATCH), dreams.features[:, STEPS].split(_BATCH), strict=True):
        frames = frames_to_tensor(torch.from_numpy(data.read_clips(rows.numpy(), STEPS + 1).frames[:, [0, STEPS]]))
        state = LatentState(torch.zeros(len(rows), 0), features.unsqueeze(1))
        dreamt = model.decode_latent(model.dynamics.shown(state))
        errors = [(picture - frames[:, 1]).square().mean((1, 2, 3)) for picture in (dreamt, frames[:, 0])]
        found.append(errors[0] > errors[1])
    return torch.cat(found)


def main() -> None:
    """Print a Markdown table for each set of recordings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="bundled", help="folder of a world model with rssm, or 'bundled'")
    parser.add_argument("--data", action="append", required=True, help="recordings to learn from; may be repeated")
    parser.add_argument("--calibrate", help="recordings to fit multipliers on, besides those held out of --data")
    parser.add_argument("--check", action="append", required=True, help="recordings to measure on; may be repeated")
    parser.add_argument("--seeds", type=int, default=3, help="trainings, whose mean is shown")
    options = parser.parse_args()
    model = WorldModel.from_pretrained(options.model)
    data = open_training_data(options.data, 0.2)
    assert data.validation is not None
    checked = {path: open_training_data(path, 0).train for path in options.check}
    further = UncertaintySettings(horizon=STEPS + 1)  # the state after the last step, too
    learnt = dream_errors(model, data.train, further, "train")
    held_out = dream_errors(model, data.validation, further, "validation")
    dreams = {path: dream_errors(model, source, further, "check") for path, source in checked.items()}
    if options.calibrate is not None:
        source = open_training_data(options.calibrate, 0).train
        calibrated = dream_errors(model, source, further, "calibration")
    fails = {path: picture_fails(model, source, dreams[path]) for path, source in checked.items()}
    rows: dict[str, dict[str, list[list[float]]]] = {path: {} for path in checked}

    def measure(name: str, signal: Signal, fitted: DreamErrors = held_out) -> None:
        errors = fitted.errors[:, :STEPS].double().numpy()
        multipliers = torch.from_numpy(fit_multipliers(errors, signal(fitted).double().numpy()))
        for path, found in dreams.items():
            told, error = signal(found).double(), found.errors[:, :STEPS]
            wrong = [(told[:, h - 1], error[:, h - 1].abs() > above) for h, above in FAILURES.items()]
            wrong.append((told[:, -1], fails[path]))
            measured = uncertainty_metrics(told * multipliers, error, SHOWN)
            numbers = [*(area_under_roc(*pair) for pair in wrong), measured["auroc"][STEPS]]
            numbers += [measured["coverage"][h] for h in SHOWN]
            rows[path].setdefault(name, []).append([float("nan") if n is None else n for n in numbers])

    measure("horizon alone", lambda dreams: torch.ones(len(dreams.errors), STEPS))
    for name, signal in {**prior_entropy(model), **distances(learnt)}.items():
        measure(name, signal)
    for seed in range(options.seeds):
        for name, signal in disagreement(model, data.train, learnt, seed).items():
            measure(name, signal)
        settings = UncertaintySettings(horizon=STEPS, seed=seed)
        uncertainty, _ = fit_uncertainty(first_steps(learnt), first_steps(held_out), settings, progress=False)
        measure("learnt variance", partial(learnt_variance, uncertainty))
        if options.calibrate is not None:
            measure("learnt variance, calibrated on --calibrate", partial(learnt_variance, uncertainty), calibrated)
    for path, table in rows.items():
        sizes = dreams[path].errors[:, :STEPS].abs()
        shares = [float((sizes[:, h - 1] > above).float().mean()) for h, above in FAILURES.items()]
        print(f"\n{path}: {len(sizes)} dreams; failing: {[f'{s:.2f}' for s in shares]}, by picture "
              f"{float(fails[path].float().mean()):.2f}\n")  # fmt: skip
        heads = [*(f"above {above:g} at {h}" for h, above in FAILURES.items()), "picture", "largest quarter"]
        heads += [f"{h} steps" for h in SHOWN]
        print("| signal | " + " | ".join(heads) + " |")
        print("| --- |" + " ---: |" * len(heads))
        for name, runs in table.items():
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in np.mean(runs, axis=0)) + " |")


if __name__ == "__main__":
    main()
