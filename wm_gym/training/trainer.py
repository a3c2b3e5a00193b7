"""The training loop of a world model.

A run is a folder: ``config.yaml`` (the resolved configuration), ``run.json`` (data, versions, seeds), ``metrics.jsonl``
(the record), ``tensorboard/``, ``checkpoints/last.pt`` and ``best.pt``, and at the end the model's own files, so that
the folder is what :meth:`WorldModel.from_pretrained` reads. Running again on the same folder resumes.

Every update is a pure function of the configuration and its number, so a resumed run equals an uninterrupted one.

There can be two phases. In the second one the encoder is frozen, all frames are encoded once, and everything behind the
encoder learns from many more and longer clips (``training.latent``).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn

from wm_gym.bundle import MANIFEST, load_model, save_model
from wm_gym.clips import Clips
from wm_gym.config import Config, LatentPhaseConfig, TrainingConfig
from wm_gym.errors import BundleError, DatasetError, TrainingError, WMGymError
from wm_gym.losses import Draws, WorldModelLoss
from wm_gym.metrics import held_wheel_metrics, open_loop_metrics
from wm_gym.model_check import warn_of_faults
from wm_gym.perceptual import load_perceptual_network
from wm_gym.precision import single_precision
from wm_gym.progress import progress_bar
from wm_gym.provenance import provenance
from wm_gym.run_folder import RunFolder, restoring
from wm_gym.shared_cores import adapt_threads
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.tensor_files import load_parameters
from wm_gym.training.captured import CapturedGradients, Gradients, clear_gradients
from wm_gym.training.checkpoint import CheckpointClock, load_checkpoint, save_checkpoint
from wm_gym.training.clips import (
    ClipLoader,
    ClipSource,
    EncodedClipLoader,
    EncodedEpisodes,
    encode_episodes,
    to_tensors,
)
from wm_gym.training.freed_memory import keep_freed_memory
from wm_gym.training.log import MetricsLog
from wm_gym.training.shared_noise import SharedNoise
from wm_gym.training.termination_head import train_termination_head
from wm_gym.training.trackers import check_tracker
from wm_gym.world_model import WorldModel

_KIND = "wm_gym.model_run"
_VALIDATION_STREAM = 1_000_003  # separates the draws of validation and start states from those of training
_START_STREAM = 1_000_033
_COLOUR_STREAM = 1_000_037
_START_BATCH = 256
_SHARE_OF_BEGINNINGS = 0.1


class WorldModelTrainer:
    """Trains one world model into one folder.

    Args:
        config: The whole configuration.
        simulator: The simulator that the data come from.
        train: Training episodes.
        validation: Held-out episodes, or ``None`` to train without validation.
        out: The run's folder.
        data_info: What identifies the data (path, fingerprint, counts); saved, and compared on resume.
        data_metrics: Measures what the data say of the simulator, for the model's metrics; called at the end.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
        devices: Number of devices (processes on this machine); under ``torchrun`` they are those that it started.
        initial: A trained model of the same architecture whose parameters training goes on from, with a new optimiser.
        progress: Show a progress bar.
        track: Where the numbers can be watched: one of :data:`wm_gym.training.TRACKERS` (docs/tracking.md).

    Raises:
        ConfigError: The tracker cannot be used.
        TrainingError: The folder holds another run, or the settings do not fit the data, the devices or ``initial``.
    """

    def __init__(
        self,
        config: Config,
        simulator: SimulatorSpec,
        train: ClipSource,
        validation: ClipSource | None,
        out: str | Path,
        *,
        data_info: Mapping[str, Any],
        data_metrics: Callable[[], Mapping[str, Any]] = dict,
        device: str = "auto",
        devices: int = 1,
        initial: WorldModel | None = None,
        progress: bool = True,
        track: str = "tensorboard",
    ) -> None:
        check_tracker(track)
        if tuple(simulator.frame_size) != config.model.frame_size:
            raise TrainingError(
                f"the dataset's frames are {simulator.frame_size[0]}x{simulator.frame_size[1]}, but the config's model "
                f"has {config.model.frame_size[0]}x{config.model.frame_size[1]}; choose another config, or collect "
                f"with --frame-size {config.model.frame_size[0]}."
            )
        if config.training.mirror_share > 0 and simulator.action.kind != "driving":
            raise TrainingError(
                f"the actions of {simulator.id} are {simulator.action.kind}, and it is not known which of their values "
                "steers; set training.mirror_share=0."
            )
        if initial is not None and (initial.config != config.model or initial.simulator != simulator):
            raise TrainingError(
                "training cannot go on from a world model of another architecture or simulator; give the config that "
                "it was trained with, and data of its simulator."
            )
        self.config = config
        self.simulator = simulator
        self.initial = initial
        self.train_source = train
        self.validation_source = validation
        self.out = Path(out)
        self.data_info = dict(data_info)
        self.data_metrics = data_metrics
        self._folder = RunFolder(
            self.out,
            _KIND,
            config,
            {"data": self.data_info, "initial_model": None if initial is None else initial.fingerprint},
            identity={"data.fingerprint": "on other data", "initial_model": "that began from another model"},
        )
        self.progress = progress
        self.track = track
        self.fabric, self._scaler = make_fabric(config.training.precision, device, devices)
        self._encoded: tuple[EncodedEpisodes, dict[str, torch.Tensor]] | None = None

    @single_precision()
    def run(self) -> WorldModel:
        """Train to the configured number of updates, from the last checkpoint where there is one.

        Returns:
            The model that ``training.keep`` asks for (the last one without validation), as it was saved.

        Raises:
            TrainingError: The loss became NaN or infinite; the last good checkpoint is kept.
        """
        fabric = self.fabric
        fabric.launch()
        training = self.config.training
        for name, batch_size in (("", training.batch_size), ("latent.", training.latent.batch_size)):
            if batch_size % fabric.world_size and (name == "" or training.latent.steps):
                raise TrainingError(
                    f"training.{name}batch_size={batch_size} must be a multiple of the {fabric.world_size} processes."
                )
        with ExitStack() as held:
            self._hold_folder(held)
            return self._finished_model() or self._train()

    def _finished_model(self) -> WorldModel | None:
        """What this run has come to before, as it is on disk; ``None`` where it has not, or the files are damaged.

        It is not made again: on a GPU, sums differ in their last bits, and agents know a model by its start states.
        """
        model = None
        if self.fabric.is_global_zero and (self.out / MANIFEST).exists():
            with suppress(BundleError):
                model = load_model(self.out, self.fabric.device)
        # The other processes must not look for themselves: the first one may be writing already.
        if not self.fabric.broadcast(model is not None):
            return None
        return model or load_model(self.out, self.fabric.device)

    def _train(self) -> WorldModel:
        """All updates that are missing, and the model's files."""
        fabric, training = self.fabric, self.config.training
        keep_freed_memory()
        torch.manual_seed(training.seed)
        model = WorldModel(self.config.model, self.simulator)
        if self.initial is not None:
            model.load_state_dict(self.initial.state_dict())
        model.encoder.to(memory_format=torch.channels_last)
        model.decoder.to(memory_format=torch.channels_last)
        state = self._last_checkpoint()
        progress = _Progress(0, math.inf)
        if state is not None:
            self._load_parameters(model, state, self._last_file)
            progress = _Progress(int(state["update"]), float(state["best"]))
        elif self.initial is None:
            colour = self._mean_colour() if fabric.is_global_zero else torch.zeros(3)
            model.decoder.begin_at(fabric.broadcast(colour))
        noise = SharedNoise(model, fabric.global_rank, fabric.world_size, fabric.device)
        log = None
        if fabric.is_global_zero:
            log = MetricsLog(self.out, progress.done + 1, self.config, track=self.track)
        bar = progress_bar(
            training.updates,
            "update",
            "train-model",
            enabled=self.progress and fabric.is_global_zero,
            initial=progress.done,
        )
        failed = True
        try:
            for first, stop in ((0, training.steps), (training.steps, training.updates)):
                if progress.done < stop:
                    # A checkpoint at the very end of a phase holds the optimiser of that one, not of the next.
                    resumed = state if state is not None and progress.done > first else None
                    self._run_phase(model, progress, stop, resumed=resumed, noise=noise, log=log, bar=bar)
            failed = False
        finally:
            noise.close()
            bar.close()
            if log is not None:
                log.close(failed=failed)
        return self._finish(model, progress.best)

    def _run_phase(
        self,
        model: WorldModel,
        progress: _Progress,
        stop: int,
        *,
        resumed: dict[str, Any] | None,
        noise: SharedNoise,
        log: MetricsLog | None,
        bar: Any,
    ) -> None:
        """Updates up to ``stop``: of the whole model, or of all but the encoder."""
        training, fabric = self.config.training, self.fabric
        is_latent = progress.done >= training.steps
        loader = self._make_loader(model, is_latent)
        model.encoder.requires_grad_(not is_latent)
        objective = Objective(model, self._make_loss())
        optimizer = make_optimizer(fabric, objective, training, self._scaler)
        if resumed is not None:
            with restoring(self._last_file):
                optimizer.load_state_dict(resumed["optimizer"])
                if self._scaler is not None and resumed["scaler"] is not None:
                    self._scaler.load_state_dict(resumed["scaler"])
        wrapped, wrapped_optimizer = fabric.setup(objective, optimizer)
        gradients = make_gradients(fabric, wrapped, training, self._scaler, micro_batches=training.accumulation)
        clock = CheckpointClock(training.checkpoint_overhead)
        started, done_before = time.monotonic(), progress.done
        updates = loader.updates(progress.done, stop)
        try:
            for update, micro_batches in enumerate(updates, start=progress.done):
                _set_learning_rate(optimizer, learning_rate_at(update, self.config))
                noise.manual_seed(_mix(training.seed, update, 0))
                adapt_threads()
                totals = self._update(wrapped, gradients, wrapped_optimizer, micro_batches, update)
                progress.done = update + 1
                bar.update()
                bar.set_postfix(loss=f"{totals['loss']:.3f}", reward=f"{totals['reward']:.3f}", refresh=False)
                is_last = progress.done == stop
                if log is not None:
                    totals["updates_per_s"] = (progress.done - done_before) / (time.monotonic() - started)
                    log.write("train", progress.done, totals)
                if progress.done % training.validate_every == 0 or is_last:
                    progress.best = self._validate(model, progress.done, progress.best, log)
                if fabric.is_global_zero and (clock.is_due() or is_last):
                    clock_start = time.monotonic()
                    self._save(model, optimizer, progress)
                    clock.record(clock_start)
        except KeyboardInterrupt:
            if fabric.is_global_zero:
                self._save(model, optimizer, progress)
            raise
        finally:
            updates.close()

    def _mean_colour(self) -> torch.Tensor:
        """``(3,)`` in [-1, 1]: of a batch of training clips."""
        training = self.config.training
        rng = np.random.default_rng((training.seed, _COLOUR_STREAM))
        draws = self.train_source.draw_clips(rng, training.batch_size, training.clip_length)
        frames = to_tensors(self.train_source.read_clips(draws, training.clip_length), "cpu").frames
        return frames.mean(dim=(0, 1, 3, 4))  # (B, T, 3, H, W) to (3,)

    def _make_loader(self, model: WorldModel, is_latent: bool) -> ClipLoader:
        """The clips of a phase; ``model`` encodes them where ``is_latent`` says so."""
        training = self.config.training
        common: dict[str, Any] = {
            "accumulation": training.accumulation,
            "seed": training.seed,
            "beginning_share": training.beginning_share,
            "ending_share": training.ending_share,
            "mirror_share": training.mirror_share,
            "fields": self.simulator.vector,
            "rank": self.fabric.global_rank,
            "world_size": self.fabric.world_size,
        }
        if not is_latent:
            return ClipLoader(self.train_source, training.batch_size, training.clip_length, **common)
        latent = training.latent
        model.to(self.fabric.device).eval()
        episodes = encode_episodes(
            model,
            self.train_source,
            mirrored=training.mirror_share > 0,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        model.train()
        encoder = {name: value.clone() for name, value in model.encoder.state_dict().items()}
        self._encoded = episodes, encoder
        common |= {"episodes": episodes, "shown": latent.decoded}
        return EncodedClipLoader(self.train_source, latent.batch_size, latent.clip_length, **common)

    def _latents(self, model: WorldModel) -> EncodedEpisodes:
        """Of all training episodes: those of the second phase, where the model still has its encoder."""
        if self._encoded is not None:
            episodes, encoder = self._encoded
            now = model.encoder.state_dict()
            if all(torch.equal(value, now[name]) for name, value in encoder.items()):
                return episodes
        return encode_episodes(model, self.train_source)

    def _update(
        self, wrapped: Any, gradients: Gradients, optimizer: Any, micro_batches: list[Any], update: int
    ) -> dict[str, float]:
        training = self.config.training
        fabric = self.fabric
        sums: dict[str, torch.Tensor] = {}
        # All randomness of an update depends on its number alone. Dropout differs between processes; decoded steps do
        # not, nor do the states that are drawn for a clip (SharedNoise).
        torch.manual_seed(_mix(training.seed, update, fabric.global_rank))
        for micro, arrays in enumerate(micro_batches):
            draws = wrapped.loss.draw(arrays, torch.Generator().manual_seed(_mix(training.seed, update, micro)))
            if training.kl_start and self.initial is None:
                counts = update >= min(training.kl_start, training.steps // 2)
                draws = draws._replace(kl_share=torch.tensor(float(counts)))
            is_last = micro + 1 == len(micro_batches)
            with fabric.no_backward_sync(wrapped, enabled=not is_last):
                value, terms = gradients(to_tensors(arrays, fabric.device), draws.to(fabric.device))
            for name, part in {"loss": value, **terms}.items():
                sums[name] = sums.get(name, torch.zeros((), device=fabric.device)) + part.float() / len(micro_batches)
        totals = {}
        for name, value in sums.items():
            mean = fabric.all_reduce(value, reduce_op="mean")
            assert isinstance(mean, torch.Tensor)
            totals[name] = float(mean)
        if not math.isfinite(totals["loss"]):
            # The parameters are still those of the update before; the checkpoint on disk is not newer than they are.
            raise TrainingError(
                f"the loss became {totals['loss']} at update {update + 1}; the last good checkpoint is kept in "
                f"{str(self.out / 'checkpoints')!r}: check the data with `wm-gym dataset verify`, or lower "
                f"training.learning_rate."
            )
        norm = fabric.clip_gradients(wrapped, optimizer, max_norm=training.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        clear_gradients(optimizer, gradients)
        totals["gradient_norm"] = float(norm) if norm is not None and math.isfinite(float(norm)) else 0.0
        totals["learning_rate"] = learning_rate_at(update, self.config)
        return totals

    def _validate(self, model: WorldModel, done: int, best: float, log: MetricsLog | None) -> float:
        """Measure on held-out clips; keep the model if its loss is the lowest yet, or the last one is wanted."""
        if self.validation_source is None or not self.fabric.is_global_zero:
            return best
        training = self.config.training
        source = self.validation_source
        model.eval()
        with torch.no_grad():
            loss = self._make_loss(decode_fraction=1.0)
            total = 0.0
            batches = max(1, training.validation_clips // training.batch_size)
            for batch in range(batches):
                rng = np.random.default_rng((training.seed, _VALIDATION_STREAM, batch))
                draws = source.draw_clips(rng, training.batch_size, training.clip_length)
                clips = to_tensors(source.read_clips(draws, training.clip_length), self.fabric.device)
                torch.manual_seed(_mix(training.seed, _VALIDATION_STREAM, batch))
                total += float(loss(model, clips)[0]) / batches
            measured = self._open_loop(model)
        model.train()
        if log is not None:
            log.write("validation", done, {"loss": total, **measured})
        if total < best or training.keep == "last":
            state = {"update": done, "validation_loss": total, "model": model.state_dict(), "metrics": measured}
            save_checkpoint(self._best_file, _plain(state), self._folder.contents)
            return total
        return best

    def _open_loop(self, model: WorldModel) -> dict[str, Any]:
        training = self.config.training
        source = self.validation_source
        assert source is not None
        length = training.context + training.validation_horizon
        rng = np.random.default_rng((training.seed, _VALIDATION_STREAM))
        try:
            draws = source.draw_clips(rng, training.validation_clips, length)
        except DatasetError:
            # No held-out episode is that long: the longest clip that training itself uses must do.
            length = training.clip_length
            draws = source.draw_clips(rng, training.validation_clips, length)
        clips = to_tensors(source.read_clips(draws, length), self.fabric.device)
        noise = torch.Generator().manual_seed(training.seed)
        measured = open_loop_metrics(model, clips, training.context, noise)
        if self.simulator.action.kind == "driving":
            measured["held_wheel"] = held_wheel_metrics(model, clips, training.context, training.seed)
        return measured

    def _finish(self, model: WorldModel, best: float) -> WorldModel:
        """Save the best model with its start states into the run's folder."""
        self.fabric.barrier()
        if self._best_file.exists() and math.isfinite(best):
            state = load_checkpoint(
                self._best_file, self._folder.contents, keys=("update", "validation_loss", "model", "metrics")
            )
            self._load_parameters(model, state, self._best_file)
            model.metrics = {
                "update": state["update"],
                "validation_loss": state["validation_loss"],
                **json.loads(json.dumps(state["metrics"])),
            }
        model.eval()
        training = self.config.training
        encoded = None
        if training.termination_steps or (training.latent.steps and self.fabric.is_global_zero):
            encoded = self._latents(model)
        if training.termination_steps:
            # Every process for itself: the same numbers from the same seed.
            train_termination_head(
                model,
                self.train_source,
                training.termination_steps,
                training.seed,
                progress=self.progress and self.fabric.is_global_zero,
                encoded=encoded,
            )
            if model.metrics and self.fabric.is_global_zero:
                with torch.no_grad():
                    model.metrics = {**model.metrics, **json.loads(json.dumps(self._open_loop(model)))}
        if self.fabric.is_global_zero:
            model.metrics = {**model.metrics, **self.data_metrics()}
            model.start_states = encode_start_states(
                model,
                self.train_source,
                count=training.num_start_states,
                clip_length=training.clip_length,
                context=training.context,
                seed=training.seed,
                encoded=encoded,
            )
            model.provenance = {**provenance(), "data": self.data_info, "config": self.config.model_dump(mode="json")}
            if self.initial is not None:
                model.provenance["initial_model"] = self.initial.fingerprint
            with torch.no_grad():
                self._folder.install(lambda path: save_model(model, path), MANIFEST)
            warn_of_faults(model.metrics)
        self.fabric.barrier()
        return model

    def _make_loss(self, decode_fraction: float | None = None) -> WorldModelLoss:
        if not hasattr(self, "_perceptual"):
            self._perceptual: nn.Module | None = None
            if self.config.loss.perceptual > 0:
                self._perceptual = load_perceptual_network(self.config.loss.perceptual_weights).to(self.fabric.device)
        return make_loss(self.config, self._perceptual, decode_fraction)

    def _hold_folder(self, held: ExitStack) -> None:
        """Create the run's folder, or check that it holds this very run; keep other runs out of it until the end."""
        fingerprint = self.data_info.get("fingerprint")
        if self.fabric.broadcast(fingerprint) != fingerprint:
            raise TrainingError(
                "this process sees other data than the first one; give all of them the same --data, and add nothing to "
                "it while they start."
            )
        problem: Exception | None = None
        if self.fabric.is_global_zero:
            try:
                held.enter_context(self._folder.held())
            except (WMGymError, OSError) as error:
                problem = error
        problem = self.fabric.broadcast(problem)  # the other processes would wait for the first one for ever
        if problem is not None:
            raise problem

    def _last_checkpoint(self) -> dict[str, Any] | None:
        if not self._last_file.exists():
            return None
        return load_checkpoint(
            self._last_file, self._folder.contents, keys=("update", "best", "model", "optimizer", "scaler")
        )

    @property
    def _last_file(self) -> Path:
        return self._folder.checkpoints / "last.pt"

    @property
    def _best_file(self) -> Path:
        return self._folder.checkpoints / "best.pt"

    def _load_parameters(self, model: WorldModel, state: dict[str, Any], file: Path) -> None:
        load_parameters(model, state["model"], error=TrainingError, file=file, owner="its run's configuration")

    def _save(self, model: WorldModel, optimizer: torch.optim.Optimizer, progress: _Progress) -> None:
        state = {
            "update": progress.done,
            "best": progress.best,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler is not None else None,
        }
        save_checkpoint(self._last_file, _plain(state), self._folder.contents)


@dataclass
class _Progress:
    """How far a training has come: updates done, and the lowest validation loss so far."""

    done: int
    best: float


def make_loss(config: Config, perceptual: nn.Module | None, decode_fraction: float | None = None) -> WorldModelLoss:
    """The loss that a configuration asks for; ``decode_fraction`` takes the place of its own."""
    training = config.training
    return WorldModelLoss(
        config.loss,
        training.context,
        training.decode_fraction if decode_fraction is None else decode_fraction,
        perceptual,
        training.gradient_checkpointing,
        context_range=training.context_range,
    )


class Objective(nn.Module):
    """Model and loss in one module, so that data-parallel wrappers see the forward pass."""

    def __init__(self, model: WorldModel, loss: WorldModelLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, clips: Any, draws: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The total loss and its terms; see :class:`wm_gym.losses.WorldModelLoss`."""
        total, terms = self.loss.given(self.model, clips, draws)
        return total, terms


def make_optimizer(
    fabric: Fabric, objective: Objective, training: TrainingConfig, scaler: torch.amp.GradScaler | None
) -> torch.optim.AdamW:
    """AdamW of what is trained; arguments as for :func:`make_gradients`, before they are set up."""
    return torch.optim.AdamW(
        [parameter for parameter in objective.parameters() if parameter.requires_grad],
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        # PyTorch goes through the parameters one by one on a processor unless it is told otherwise.
        fused=True if fabric.device.type == "cpu" and scaler is None else None,
    )


def make_gradients(
    fabric: Fabric,
    wrapped: Any,
    training: TrainingConfig,
    scaler: torch.amp.GradScaler | None,
    *,
    micro_batches: int = 1,
) -> Gradients:
    """What adds a micro-batch's share of an update's gradient to the parameters'.

    On a single GPU it is recorded as CUDA graphs. What cannot be: processes that wait for each other, a loss that is
    scaled by what the last update showed, and activations that are computed twice, with random numbers kept between.

    Args:
        fabric: Where the training runs.
        wrapped: An :class:`Objective` that was set up with it.
        training: Its settings.
        scaler: Of its gradients, where there is one.
        micro_batches: Of an update.
    """

    def gradients(clips: Clips[torch.Tensor], draws: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, terms = wrapped(clips, draws)
        fabric.backward(loss / micro_batches)
        return loss.detach(), terms

    can_capture = fabric.world_size == 1 and scaler is None and not training.gradient_checkpointing
    if fabric.device.type != "cuda" or not can_capture:
        return gradients
    return CapturedGradients(gradients, wrapped)


def learning_rate_at(update: int, config: Config) -> float:
    """Linear warm-up (docs/guide.md, "Training"), then cosine decay; each phase has its own."""
    training = config.training
    phase: TrainingConfig | LatentPhaseConfig = training
    if training.latent.steps and update >= training.steps:
        update -= training.steps
        phase = training.latent
    warmup = min((update + 1) / phase.warmup_steps, 1.0) if phase.warmup_steps else 1.0
    progress = update / max(1, phase.steps - 1)
    final = phase.final_learning_rate
    decay = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    return phase.learning_rate * warmup * decay


@torch.no_grad()
def encode_start_states(
    model: WorldModel,
    source: ClipSource,
    *,
    count: int,
    clip_length: int,
    context: int,
    seed: int,
    encoded: EncodedEpisodes | None = None,
) -> LatentState:
    """Real states to start dreams from: clips are observed, and one state of each is kept.

    The kept moment is drawn between the first ``context`` frames and the clip's end. One clip in ten is the beginning
    of an episode, where every step counts: every episode begins there, often with frames that never come again.

    Args:
        model: The world model.
        source: The episodes.
        count: States wanted.
        clip_length: Frames in a clip.
        context: Least number of frames observed before a state is kept, but at the beginning of an episode.
        seed: Seed of the draw.
        encoded: The latents of ``source``; ``None`` encodes the clips.

    Returns:
        ``count`` states on the CPU, float32.
    """
    rng = np.random.default_rng((seed, _START_STREAM))
    kept: list[LatentState] = []
    for first in range(0, count, _START_BATCH):
        batch = min(count - first, _START_BATCH)
        draws = source.draw_clips(rng, batch, clip_length)
        is_beginning = rng.random(batch) < _SHARE_OF_BEGINNINGS
        draws[is_beginning, 1] = 0
        drawn = rng.integers(np.where(is_beginning, 0, context - 1), clip_length)
        moments = torch.from_numpy(drawn).to(model.device)
        clips = to_tensors(source.read_clips(draws, clip_length), model.device)
        if encoded is None:
            latents = model.encode(clips.observations)
        else:
            latents = encoded.clips(draws, clip_length).to(model.device)
        states = model.filter(latents, clips.actions).states  # (T * B, ...)
        chosen = states.select(moments * batch + torch.arange(batch, device=model.device))
        kept.append(chosen.to("cpu").to(torch.float32))
    return LatentState.cat(kept)


def make_fabric(precision: str, device: str, devices: int) -> tuple[Fabric, torch.amp.GradScaler | None]:
    """Processes, device and precision of a training; with fp16 also the scaler of its gradients.

    Under ``torchrun`` the processes, of all hosts, are those that it started, and ``devices`` is not asked.
    """
    hosts = 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        hosts = int(os.environ["WORLD_SIZE"]) // devices
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if precision == "auto":
        if on_gpu:
            precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        else:
            precision = "bf16-mixed" if device in {"auto", "cpu"} and _processor_has_bf16() else "32-true"
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda was asked for, but PyTorch sees no CUDA GPU here; use --device cpu or auto.")
    processes: dict[str, Any] = {
        "accelerator": device,
        "strategy": "ddp" if devices * hosts > 1 else "auto",
        "devices": devices,
        "num_nodes": hosts,
    }
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cuda" if on_gpu else "cpu")
        plugin = MixedPrecision("16-mixed", "cuda" if on_gpu else "cpu", scaler=scaler)
        return Fabric(**processes, plugins=plugin), scaler
    return Fabric(**processes, precision=precision), None  # type: ignore[arg-type]


def _processor_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices by itself; others are slower with bf16 than without."""
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Keep only what ``torch.load(weights_only=True)`` reads back."""
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in state.items()}
