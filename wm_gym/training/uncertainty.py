"""Training a world model's uncertainty after the fact: dreams from recorded states, and how far they were off."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_gym.errors import TrainingError
from wm_gym.metrics import uncertainty_metrics
from wm_gym.progress import progress_bar
from wm_gym.rollouts import imagine_step
from wm_gym.state import LatentState
from wm_gym.training.clips import ClipSource, encode_episodes
from wm_gym.uncertainty import HIDDEN_DIM, Uncertainty, VarianceNetwork, fit_multipliers
from wm_gym.world_model import WorldModel

HORIZONS = (1, 5, 10, 20, 30, 50)
"""Steps ahead at which an uncertainty is measured, as far as they fit."""
_EVALUATE_EVERY = 25
_LEAST_DEVIATION = 0.05  # of an input: what hardly varied in training is not blown up later
_STREAMS = {"train": 0, "validation": 1, "check": 2, "calibration": 3}


@dataclass(frozen=True)
class UncertaintySettings:
    """How an uncertainty is trained.

    Attributes:
        horizon: Steps of the dreams that it is trained and calibrated on.
        windows: The most dreams from training episodes; held-out ones are as many.
        steps: Updates.
        batch_size: Dreams of an update.
        learning_rate: Of AdamW.
        weight_decay: Likewise.
        hidden_dim: Size of the network's two hidden layers.
        seed: Of all that is drawn.
    """

    horizon: int = 30
    windows: int = 3000
    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    hidden_dim: int = HIDDEN_DIM
    seed: int = 0


class DreamErrors(NamedTuple):
    """Dreams of ``K`` steps from ``B`` recorded states under the recorded actions, against the recording.

    Attributes:
        features: ``(B, K, F)`` float32, of the imagined state before each step.
        actions: ``(B, K, A)`` float32, stored format.
        errors: ``(B, K)`` float32, imagined less recorded reward, summed up to each step.
        begin: ``(B, 2)`` int64, the position of the episode and the frame in it that the dream begins with.
    """

    features: Tensor
    actions: Tensor
    errors: Tensor
    begin: Tensor

    def select(self, rows: Tensor) -> DreamErrors:
        """The dreams at the given rows: an index tensor or a mask ``(B,)``."""
        return DreamErrors(*(values[rows] for values in self))

    def metrics(self, uncertainty: Uncertainty) -> dict[str, Any]:
        """Number of dreams, and by horizon coverage and AUROC; see :func:`wm_gym.metrics.uncertainty_metrics`."""
        steps = self.errors.shape[1]
        sigma = torch.from_numpy(uncertainty.along(self.features, self.actions))
        horizons = sorted({h for h in HORIZONS if h < steps} | {steps})
        return {"windows": len(sigma), **uncertainty_metrics(sigma, self.errors.cpu(), horizons)}


@torch.no_grad()
def dream_errors(
    model: WorldModel, source: ClipSource, settings: UncertaintySettings, part: str = "train"
) -> DreamErrors:
    """Dream from states of recorded episodes, and compare the rewards.

    Every episode is followed from its beginning, as an agent's is that drives; a dream begins at a moment of it that is
    at least the horizon before its end.

    Args:
        model: The world model, in evaluation mode.
        source: The episodes.
        settings: ``horizon``, ``windows`` and ``seed`` count.
        part: ``"train"``, ``"validation"``, ``"check"`` or ``"calibration"``: each draws its own moments and noise.

    Raises:
        TrainingError: No episode is longer than the horizon.
    """
    horizon = settings.horizon
    counts = np.maximum(source.episode_lengths() - horizon + 1, 0)
    if not counts.any():
        raise TrainingError(
            f"no episode has the {horizon} steps of a dream; record longer ones, or give a smaller horizon."
        )
    rng = np.random.default_rng((settings.seed, _STREAMS[part]))
    total = int(counts.sum())
    chosen = np.sort(rng.choice(total, min(settings.windows, total), replace=False))
    episodes = np.searchsorted(np.cumsum(counts), chosen, side="right")
    starts = chosen - (np.cumsum(counts) - counts)[episodes]
    state, actions, rewards = _recorded(model, source, episodes, starts, horizon)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    features = []
    errors = torch.zeros(len(chosen), horizon, device=model.device)
    for step in range(horizon):
        features.append(model.features(state))
        state, reward, _ = imagine_step(model, state, actions[:, step], generator)
        errors[:, step] = reward - rewards[:, step]
    begin = torch.from_numpy(np.stack((episodes, starts), 1)).to(model.device)
    found = DreamErrors(torch.stack(features, 1), actions, errors.cumsum(1), begin)
    return found.select(torch.isfinite(found.errors).all(1))


def _recorded(
    model: WorldModel, source: ClipSource, episodes: NDArray[np.int64], starts: NDArray[np.int64], horizon: int
) -> tuple[LatentState, Tensor, Tensor]:
    """The states at moments of episodes ``(B,)``, in rising order, and the ``K`` actions and rewards that followed."""
    latents = encode_episodes(model, source).latents
    states: list[LatentState] = []
    actions: list[Tensor] = []
    rewards: list[Tensor] = []
    for episode in np.unique(episodes):
        length = int(source.episode_lengths()[episode])
        clip = source.read_clips(np.array([[episode, 0]]), length + 1)
        taken, earned = (torch.from_numpy(part).to(model.device) for part in (clip.actions, clip.rewards))
        followed = model.filter(latents[episode][None].to(model.device), taken).states  # (length + 1, ...)
        moments = torch.from_numpy(starts[episodes == episode]).to(model.device)
        ahead = moments[:, None] + torch.arange(horizon, device=model.device)
        states.append(followed.select(moments))
        actions.append(taken[0, ahead])
        rewards.append(earned[0, ahead])
    return LatentState.cat(states), torch.cat(actions), torch.cat(rewards)


def train_uncertainty(
    model: WorldModel,
    train: ClipSource,
    validation: ClipSource,
    settings: UncertaintySettings | None = None,
    *,
    calibration: ClipSource | None = None,
    progress: bool = True,
) -> tuple[Uncertainty, dict[str, Any]]:
    """Train and calibrate the uncertainty of a finished world model on its dreams of recorded episodes.

    Args:
        model: The world model, which is not changed.
        train: Episodes to learn from.
        validation: Held-out episodes.
        settings: Sizes and seed.
        calibration: Episodes to fit the multipliers on; ``None``: the held-out ones.
        progress: Show a progress bar.

    Returns:
        As :func:`fit_uncertainty`.

    Raises:
        TrainingError: No episode is longer than the horizon, or the loss is not finite.
    """
    settings = settings or UncertaintySettings()
    learnt = dream_errors(model, train, settings, "train")
    held_out = dream_errors(model, validation, settings, "validation")
    fitted = held_out if calibration is None else dream_errors(model, calibration, settings, "calibration")
    return fit_uncertainty(learnt, held_out, settings, calibration=fitted, progress=progress)


def fit_uncertainty(
    learnt: DreamErrors,
    held_out: DreamErrors,
    settings: UncertaintySettings,
    *,
    calibration: DreamErrors | None = None,
    progress: bool = True,
) -> tuple[Uncertainty, dict[str, Any]]:
    """Learn from the errors of dreams, and calibrate on those of others.

    The network learns the variance of the summed reward's error at every horizon, as a sum over the steps before, by
    the likelihood of a normal distribution (Nix and Weigend 1994, "Estimating the mean and variance of the target
    probability distribution"). It is kept as it was when held-out dreams were most likely; the multipliers are fitted
    on these.

    Args:
        learnt: Dreams from training episodes.
        held_out: Dreams from held-out ones, of as many steps.
        settings: Sizes and seed.
        calibration: Dreams to fit the multipliers on; ``None``: the held-out ones.
        progress: Show a progress bar.

    Returns:
        The uncertainty on the dreams' device, and figures: the settings, and on held-out dreams what
        :meth:`DreamErrors.metrics` tells.

    Raises:
        TrainingError: The loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = VarianceNetwork(
            learnt.features.shape[-1], learnt.actions.shape[-1], learnt.errors.shape[1], settings.hidden_dim
        ).to(learnt.errors.device)
    inputs = (learnt.features, learnt.actions)
    network.mean.copy_(torch.cat([part.mean((0, 1)) for part in inputs]))
    network.deviation.copy_(torch.cat([part.flatten(0, 1).std(0) for part in inputs]).clamp_min(_LEAST_DEVIATION))
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, foreach=False
    )
    best, kept = math.inf, network.state_dict()
    generator = torch.Generator().manual_seed(settings.seed)
    with progress_bar(settings.steps, "update", "uncertainty", enabled=progress) as bar:
        for update in range(1, settings.steps + 1):
            rows = torch.randint(len(learnt.errors), (settings.batch_size,), generator=generator)
            loss = negative_log_likelihood(network, learnt.select(rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update()
            if update % _EVALUATE_EVERY == 0 or update == settings.steps:
                with torch.no_grad():
                    validated = float(negative_log_likelihood(network, held_out))
                if validated < best:
                    best, kept = validated, {name: value.clone() for name, value in network.state_dict().items()}
    if not math.isfinite(best):
        raise TrainingError("the loss of the uncertainty is not finite; check the rewards of the data.")
    network.load_state_dict(kept)
    fitted = held_out if calibration is None else calibration
    raw = Uncertainty(network).along(fitted.features, fitted.actions)  # the multipliers are still one
    multipliers = fit_multipliers(fitted.errors.double().cpu().numpy(), raw)
    network.multipliers.copy_(torch.from_numpy(multipliers))
    uncertainty = Uncertainty(network)
    return uncertainty, {"settings": asdict(settings), "validation_loss": best, **held_out.metrics(uncertainty)}


def negative_log_likelihood(network: VarianceNetwork, dreams: DreamErrors) -> Tensor:
    """Mean over dreams and horizons, for errors that are normal with mean 0 and the summed variance; but a constant."""
    variance = network(dreams.features, dreams.actions).cumsum(1)
    return (dreams.errors.square() / variance + variance.log()).mean() / 2
