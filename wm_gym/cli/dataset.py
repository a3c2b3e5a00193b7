"""``wm-gym dataset``: look at, check, convert and publish datasets."""

from __future__ import annotations

import argparse
import json

from wm_gym.cli.options import Subparsers, add_cache, add_command, download_cache


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
        "Convert to or from Minari, or import a folder of your own frames and actions.",
        "wm-gym dataset convert my_recordings --out data/mine --frame-size 64",
    )
    convert.add_argument("source", metavar="SOURCE", help="a dataset's folder, a folder of recordings, or minari:ID")
    convert.add_argument("--out", required=True, metavar="TARGET", help="a new dataset's folder, or minari:ID")
    convert.add_argument("--frame-size", type=int, default=None, metavar="PIXELS", help="resize frames on import")
    convert.add_argument("--codec", default=None, help="how imported frames are stored (default: png)")
    convert.set_defaults(run=_convert)

    push = add_command(
        actions,
        "push",
        "Put a dataset on object storage, or add there what it has gained. Run it again to resume.",
        "wm-gym dataset push data/car s3://bucket/car",
    )
    push.add_argument("path", metavar="DIR", help="the dataset's folder")
    push.add_argument("url", metavar="URL", help="where to put it: s3://, gs://, or what else fsspec knows")
    push.add_argument("--quiet", action="store_true", help="show no progress bar")
    push.set_defaults(run=_push)


def _info(arguments: argparse.Namespace) -> int:
    from wm_gym.data_collection.datasets.dataset import Dataset
    from wm_gym.data_collection.datasets.statistics import describe, render

    statistics = describe(Dataset.open(arguments.path, downloads=download_cache(arguments)))
    print(json.dumps(statistics.to_dict(), indent=2) if arguments.json else render(statistics))
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


def _convert(arguments: argparse.Namespace) -> int:
    from wm_gym.data_collection.conversion.folder_io import import_folder
    from wm_gym.data_collection.conversion.minari_io import export_minari, import_minari
    from wm_gym.data_collection.datasets.codec import DEFAULT_CODEC
    from wm_gym.data_collection.datasets.dataset import Dataset

    codec = arguments.codec or DEFAULT_CODEC
    frame_size = None if arguments.frame_size is None else (arguments.frame_size, arguments.frame_size)
    source, target = arguments.source, arguments.out
    if target.startswith(_MINARI):
        export_minari(Dataset.open(source), target.removeprefix(_MINARI))
        print(f"{source} -> Minari dataset {target.removeprefix(_MINARI)}")
        return 0
    if source.startswith(_MINARI):
        dataset = import_minari(source.removeprefix(_MINARI), target, frame_size=frame_size, codec=codec)
    else:
        dataset = import_folder(source, target, frame_size=frame_size, codec=codec, notify=print)
    print(f"{source} -> {target}: {dataset.num_episodes} episodes, {dataset.num_steps} steps")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from wm_gym.data_collection.datasets.push import push

    summary = push(arguments.path, arguments.url, progress=not arguments.quiet)
    print(
        f"{arguments.path} -> {summary.url}: {summary.num_episodes} episodes, {summary.num_sent} of them sent now "
        f"({summary.sent_bytes / 1e6:.1f} MB)"
    )
    return 0
