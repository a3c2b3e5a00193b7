"""``wm-gym train-uncertainty``: let a finished world model tell how far its dreams may be off."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from wm_gym.cli.options import Subparsers, add_cache, add_command, add_common, download_cache, given_values
from wm_gym.errors import SimulatorError

_VALIDATION_FRACTION = 0.2


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "train-uncertainty",
        "Let a finished world model tell how far its dreams may be off: info['uncertainty'] in every step.",
        "wm-gym train-uncertainty --model bundled --data data/car --out runs/doubting --check data/own_drives",
    )
    parser.add_argument("--model", required=True, metavar="PATH", help="a world model's folder, or 'bundled'")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DIR",
        help="recordings to learn from, a fifth of which is held out for the calibration; may be repeated",
    )
    add_cache(parser)
    parser.add_argument(
        "--calibrate",
        action="append",
        default=[],
        metavar="DIR",
        help="fit the multipliers on these recordings instead of those held out, for example an agent's own episodes; "
        "may be repeated",
    )
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="DIR",
        help="measure it on other recordings too, for example an agent's own episodes; may be repeated",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the model with its uncertainty")
    parser.add_argument("--horizon", type=int, metavar="N", help="steps of a dream (default: 30)")
    parser.add_argument("--steps", type=int, metavar="N", help="updates (default: 300)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, write the model, and print the figures."""
    from wm_gym.bundle import check_model_folder
    from wm_gym.data_collection.datasets.training_data import open_training_data
    from wm_gym.envs.simulators import scene_settings
    from wm_gym.files import check_writable, write_json_result
    from wm_gym.training.uncertainty import UncertaintySettings, dream_errors, train_uncertainty
    from wm_gym.world_model import WorldModel

    names = ("horizon", "steps", "seed")
    settings = UncertaintySettings(**given_values({name: getattr(arguments, name) for name in names}))
    check_model_folder(arguments.out)
    json_file = None if arguments.json is None else check_writable(arguments.json)
    model = WorldModel.from_pretrained(arguments.model, arguments.device)
    recordings = partial(open_training_data, downloads=download_cache(arguments), scenes=scene_settings)
    data = recordings(arguments.data, _VALIDATION_FRACTION)
    checks = {path: recordings(path, 0.0) for path in arguments.check}
    calibration = recordings(arguments.calibrate, 0.0) if arguments.calibrate else None
    opened = [(arguments.data[0], data), *checks.items()]
    if calibration is not None:
        opened.append((arguments.calibrate[0], calibration))
    for path, found in opened:
        misfit = model.simulator.misfit(found.simulator)
        if misfit is not None:
            raise SimulatorError(
                f"the recordings {path} do not fit the world model: {misfit}; give recordings of the simulator that "
                "the model was trained on."
            )
    assert data.validation is not None
    model.uncertainty, figures = train_uncertainty(
        model,
        data.train,
        data.validation,
        settings,
        calibration=None if calibration is None else calibration.train,
        progress=not arguments.quiet,
    )
    figures |= {"data": data.info, "calibration": None if calibration is None else calibration.info, "checks": {}}
    for path, found in checks.items():
        figures["checks"][path] = dream_errors(model, found.train, settings, "check").metrics(model.uncertainty)
    model.metrics["uncertainty"] = figures
    model.uncertainty = model.uncertainty.to("cpu")
    model.save_pretrained(arguments.out)
    print(f"{arguments.out}: world model with the uncertainty of its dreams of {settings.horizon} steps")
    for name, measured in {"held-out recordings": figures, **figures["checks"]}.items():
        for line in _lines(name, measured):
            print(line)
    if json_file is not None:
        write_json_result(json_file, figures)
    return 0


def _lines(name: str, measured: Mapping[str, Any]) -> Iterator[str]:
    """What was measured on one set of recordings."""
    yield f"  {name}, {measured['windows']} dreams:"
    for steps, coverage in measured["coverage"].items():
        auroc = measured["auroc"][steps]
        told = "" if auroc is None else f", AUROC of the largest quarter {auroc:.2f}"
        yield f"    {steps} steps ahead: {100 * coverage:.0f} % of the errors within one deviation{told}"
