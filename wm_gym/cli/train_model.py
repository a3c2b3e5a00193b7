"""``wm-gym train-model``: train a world model on datasets."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import (
    Subparsers,
    add_cache,
    add_changes,
    add_command,
    add_common,
    add_track,
    download_cache,
)
from wm_gym.errors import TrainingError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "train-model",
        "Train a world model on one or several datasets. Run it again to resume.",
        "wm-gym train-model --data data/car --config tiny --out runs/model --set training.steps=2000",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DIR",
        help="the dataset's folder, or its URL (s3://, gs://, ...); may be repeated",
    )
    add_cache(parser)
    parser.add_argument("--config", default="tiny", help="tiny (default), compact, base, large, or a YAML file")
    parser.add_argument("--out", required=True, metavar="DIR", help="the run's folder; at the end it is the model")
    add_changes(parser)
    parser.add_argument("--resume", action="store_true", help="insist that there is a run to resume in --out")
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="GPUs, or processes on the CPU (default: 1)"
    )
    add_track(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the held-out metrics."""
    from pathlib import Path

    from wm_gym.config import load_config
    from wm_gym.training.trackers import check_tracker

    check_tracker(arguments.track)  # a download of the data may come first
    changes = list(arguments.changes)
    if arguments.seed is not None:
        changes.append(f"training.seed={arguments.seed}")
    config = load_config(arguments.config, changes)
    if arguments.resume and not (Path(arguments.out) / "run.json").exists():
        raise TrainingError(f"--resume was given, but {arguments.out!r} holds no training run; check --out.")

    from wm_gym.data_collection.datasets.training_data import open_training_data
    from wm_gym.envs.simulators import scene_settings
    from wm_gym.training.trainer import WorldModelTrainer

    fraction = config.training.validation_fraction
    data = open_training_data(arguments.data, fraction, downloads=download_cache(arguments), scenes=scene_settings)
    trainer = WorldModelTrainer(
        config,
        data.simulator,
        data.train,
        data.validation,
        arguments.out,
        data_info=data.info,
        data_metrics=data.metrics,
        device=arguments.device,
        devices=arguments.devices,
        progress=not arguments.quiet,
        track=arguments.track,
    )
    model = trainer.run()
    if trainer.fabric.is_global_zero:
        counts = model.num_parameters()
        print(f"{arguments.out}: world model with {counts['total']:,} parameters")
        for name, values in model.metrics.items():
            print(f"  {name}: {values}")
    return 0
