"""``wm-gym dataset``: look at, check, convert and publish datasets."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence

from wm_gym.cli.options import BEGINS_ANEW, Subparsers, add_cache, add_command, download_cache, option_value
from wm_gym.errors import ConfigError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command with its four actions."""
    parser = add_command(
        subparsers, "dataset", "Look at, check, convert or publish a dataset.", "wm-gym dataset info data/car"
    )
    actions = parser.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")

    info = add_command(actions, "info", "Counts, statistics and warnings.", "wm-gym dataset info data/car --json")
    info.add_argument("path", metavar="DIR", help="the dataset's folder, or its URL")
    add_cache(info)
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)

    verify = add_command(actions, "verify", "Check every file of a dataset.", "wm-gym dataset verify data/car")
    verify.add_argument("path", metavar="DIR", help="the dataset's folder, or its URL: then all of it is downloaded")
    verify.set_defaults(run=_verify)

    convert = add_command(
        actions,
        "convert",
        "Convert to or from Minari or LeRobot, or import own recordings: docs/own_recordings.md has the layouts.",
        "wm-gym dataset convert my_recordings --out data/mine --frame-size 64x128 --crop",
    )
    convert.add_argument("source", metavar="SOURCE", help="a dataset's folder, recordings, or minari:ID")
    convert.add_argument(
        "--out", required=True, metavar="TARGET", help="a new dataset's folder, minari:ID, or lerobot:DIR"
    )
    convert.add_argument(
        "--from",
        choices=("folder", "udacity", "table", "donkey", "transfuser", "bench2drive", "lerobot"),
        help="the recordings' layout (default: guessed)",
    )
    convert.add_argument("--frame-size", metavar="PIXELS", help="side, or HEIGHTxWIDTH, of the frames")
    convert.add_argument(
        "--crop", action="store_true", help="cut frames of another shape off at two sides (default: black bars)"
    )
    convert.add_argument("--codec", help="how imported frames are stored (default: png)")
    convert.add_argument("--step-s", type=float, metavar="SECONDS", help="time between two frames")
    convert.add_argument("--camera", metavar="NAME", help="of udacity: center, left or right; of lerobot: a feature")
    convert.add_argument("--cut-gap", type=float, metavar="SECONDS", help="a longer pause ends an episode")
    convert.add_argument("--cut-seconds", type=float, metavar="SECONDS", help="longest episode (default: 60; 0: any)")
    convert.add_argument(
        "--fill",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an action that is not recorded, as in throttle=0.3; may be repeated",
    )
    convert.add_argument(
        "--scale", action="append", default=[], metavar="NAME=FACTOR", help="a factor for a column; may be repeated"
    )
    convert.add_argument("--reward", metavar="FORMULA", help="rewards, as in 'speed * 0.1 - abs(steering)'")
    convert.set_defaults(run=_convert, when_stopped=BEGINS_ANEW)

    push = add_command(
        actions,
        "push",
        "Put a dataset on object storage or the Hub, or add there what it has gained. Run it again to resume.",
        "wm-gym dataset push data/car s3://bucket/car",
    )
    push.add_argument("path", metavar="DIR", help="the dataset's folder")
    push.add_argument(
        "url", metavar="URL", help="where to put it: s3://, gs://, what else fsspec knows, or hf://datasets/owner/name"
    )
    push.add_argument("--quiet", action="store_true", help="show no progress bar")
    push.set_defaults(run=_push)


def _info(arguments: argparse.Namespace) -> int:
    from wm_gym.agents.behaviours import is_privileged
    from wm_gym.data_collection.datasets.dataset import Dataset
    from wm_gym.data_collection.datasets.statistics import describe, render

    statistics = describe(Dataset.open(arguments.path, downloads=download_cache(arguments)))
    privileged = [name for name in statistics.behaviours if is_privileged(name)]
    if arguments.json:
        print(json.dumps({**statistics.to_dict(), "privileged_behaviours": privileged}, indent=2))
        return 0
    print(render(statistics))
    count = sum(statistics.behaviours[name].episodes for name in privileged)
    print(
        f"\nprivileged: {count} of {statistics.episodes} episodes are of drivers that read the simulator's state"
        + (f" ({', '.join(privileged)})" if privileged else "")
    )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from wm_gym.data_collection.datasets.verification import verify

    found = verify(arguments.path)
    for problem in found.problems:
        print(f"  {problem}")
    verdict = "every file is sound" if found.is_valid else f"{len(found.problems)} problems"
    print(f"{found.path}: {found.num_episodes} sound episodes, {found.num_steps} steps; {verdict}")
    return 0 if found.is_valid else 1


_MINARI = "minari:"
_LEROBOT = "lerobot:"


def _convert(arguments: argparse.Namespace) -> int:
    from wm_gym.data_collection.conversion.convert import (
        FOLDER_LAYOUT,
        LEROBOT_LAYOUT,
        convert_recordings,
        guess_layout,
    )
    from wm_gym.data_collection.conversion.folder_io import import_folder
    from wm_gym.data_collection.conversion.lerobot_export import export_lerobot
    from wm_gym.data_collection.conversion.lerobot_import import import_lerobot
    from wm_gym.data_collection.conversion.minari_io import export_minari, import_minari
    from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC
    from wm_gym.data_collection.datasets.dataset import Dataset

    codec = arguments.codec or DEFAULT_CODEC
    frame_size = _frame_size(arguments.frame_size)
    source, target = arguments.source, arguments.out
    if target.startswith(_MINARI):
        _refuse_options(arguments, "to Minari", keep=())
        export_minari(Dataset.open(source), target.removeprefix(_MINARI))
        print(f"{source} -> Minari dataset {target.removeprefix(_MINARI)}")
        return 0
    if target.startswith(_LEROBOT):
        _refuse_options(arguments, "to LeRobot", keep=("--step-s",))
        export_lerobot(Dataset.open(source), target.removeprefix(_LEROBOT), step_s=arguments.step_s)
        print(f"{source} -> LeRobot dataset {target.removeprefix(_LEROBOT)}")
        return 0
    if source.startswith(_MINARI):
        _refuse_options(arguments, "from Minari", keep=())
        dataset = import_minari(source.removeprefix(_MINARI), target, frame_size=frame_size, codec=codec)
    elif (layout := option_value(arguments, "--from") or guess_layout(source)) == FOLDER_LAYOUT:
        _refuse_options(arguments, "from the layout folder", keep=("--from", "--crop", "--step-s"))
        dataset = import_folder(
            source,
            target,
            frame_size=frame_size,
            fit="crop" if arguments.crop else "stretch",
            step_s=arguments.step_s or 0.0,
            codec=codec,
            notify=print,
        )
    elif layout == LEROBOT_LAYOUT:
        _refuse_options(
            arguments, "from lerobot", keep=("--from", "--crop", "--camera", "--fill", "--scale", "--reward")
        )
        dataset = import_lerobot(
            source,
            target,
            camera=arguments.camera,
            frame_size=frame_size,
            fit="crop" if arguments.crop else "letterbox",
            fill=_numbers("--fill", arguments.fill),
            scale=_numbers("--scale", arguments.scale),
            reward=arguments.reward,
            codec=codec,
            notify=print,
        )
    else:
        if arguments.camera and layout != "udacity":
            raise ConfigError(f"--camera belongs to --from udacity or lerobot, not to {layout}; leave it out.")
        dataset = convert_recordings(
            source,
            target,
            layout=layout,
            camera=arguments.camera or "center",
            frame_size=frame_size,
            fit="crop" if arguments.crop else "letterbox",
            step_s=arguments.step_s,
            cut_gap=arguments.cut_gap,
            **({} if arguments.cut_seconds is None else {"cut_seconds": arguments.cut_seconds}),
            fill=_numbers("--fill", arguments.fill),
            scale=_numbers("--scale", arguments.scale),
            reward=arguments.reward,
            codec=codec,
            notify=print,
        )
    print(f"{source} -> {target}: {dataset.num_episodes} episodes, {dataset.num_steps} steps")
    return 0


_RECORDING_OPTIONS = (
    "--from",
    "--crop",
    "--step-s",
    "--camera",
    "--cut-gap",
    "--cut-seconds",
    "--fill",
    "--scale",
    "--reward",
)


def _refuse_options(arguments: argparse.Namespace, where: str, *, keep: Sequence[str]) -> None:
    """Refuse an option that would do nothing."""
    for option in _RECORDING_OPTIONS:
        if option not in keep and option_value(arguments, option) not in (None, False, []):
            raise ConfigError(f"{option} has no use in a conversion {where}; leave it out.")


def _frame_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of ``"64"`` or ``"64x128"``."""
    from wm_gym.simulator import MAX_FRAME_SIDE

    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 1 <= int(side) <= MAX_FRAME_SIDE for side in sides):
        raise ConfigError(f"--frame-size {text!r} must be a number of pixels, or height and width as in 64x128.")
    return int(sides[0]), int(sides[-1])


def _numbers(option: str, settings: Sequence[str]) -> dict[str, float]:
    """The numbers by name of options such as ``throttle=0.3``."""
    found = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        try:
            found[name.strip()] = float(text)
        except ValueError:
            separator = ""
        if not separator or not math.isfinite(found[name.strip()]):
            raise ConfigError(f"{option} {setting!r} is not of the form NAME=NUMBER, as in {option} throttle=0.3.")
    return found


def _push(arguments: argparse.Namespace) -> int:
    from wm_gym.data_collection.datasets.push import push

    summary = push(arguments.path, arguments.url, progress=not arguments.quiet)
    print(
        f"{arguments.path} -> {summary.url}: {summary.num_episodes} episodes, {summary.num_sent} of them sent now "
        f"({summary.sent_bytes / 1e6:.1f} MB)"
    )
    return 0
