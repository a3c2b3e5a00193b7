"""``wm-gym export``: a world model's parts, and a whole driver, as files for other runtimes."""

from __future__ import annotations

import argparse

from wm_gym.cli.options import BEGINS_ANEW, Subparsers, add_command, add_common


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "export",
        "Write a world model, or an agent with its world model, as files for other runtimes or as a web page.",
        "wm-gym export --agent bundled --out runs/export --format onnx",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="PATH", help="a world model's folder, bundled, or owner/name on the Hub")
    source.add_argument(
        "--agent",
        metavar="PATH",
        help="an agent's folder, bundled, or owner/name on the Hub: its driver and its world model",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--format",
        action="append",
        dest="formats",
        metavar="NAME",
        help="torchscript, onnx or tensorrt (CUDA only), which may be repeated, or web, a page for any static host "
        "(default: torchscript and onnx)",
    )
    parser.add_argument(
        "--web-runtime",
        metavar="DIR",
        help="for the format web: folder dist of the npm package onnxruntime-web (default: got with npm)",
    )
    parser.add_argument(
        "--batch",
        action="append",
        type=int,
        metavar="N",
        help="rows in one measured call; may be repeated (default: 1)",
    )
    parser.add_argument("--repeats", type=int, default=200, metavar="N", help="measured calls (default: 200)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: torch's own number)")
    add_common(parser)
    parser.set_defaults(run=run, when_stopped=BEGINS_ANEW)


def run(arguments: argparse.Namespace) -> int:
    """Export, and print what was checked and measured."""
    from pathlib import Path

    from wm_gym.device import resolve_device
    from wm_gym.export.folder import DEFAULT_FORMATS, ExportSettings, check_export, export_parts
    from wm_gym.export.parts import model_parts
    from wm_gym.world_model import WorldModel

    settings = ExportSettings(
        formats=tuple(dict.fromkeys(arguments.formats or DEFAULT_FORMATS)),
        batch_sizes=tuple(dict.fromkeys(arguments.batch or (1,))),
        repeats=arguments.repeats,
        threads=arguments.threads,
        seed=arguments.seed or 0,
        web_runtime=None if arguments.web_runtime is None else Path(arguments.web_runtime),
    )
    device = resolve_device(arguments.device)
    check_export(Path(arguments.out), settings, device)
    if arguments.agent is not None:
        from wm_gym.agents.bundles.export import export_agent

        result = export_agent(arguments.agent, arguments.out, settings, device, progress=not arguments.quiet)
    else:
        model = WorldModel.from_pretrained(arguments.model, device)
        result = export_parts(model_parts(model), model, arguments.out, settings, progress=not arguments.quiet)
    for file in result.manifest["files"]:
        checked = file["check"]
        undecided = f", {checked['undecided']} more had undecided draws" if checked["undecided"] else ""
        print(
            f"{result.path / file['name']}: at most {checked['max_difference']:.1e} from the model over "
            f"{checked['compared']} inputs{undecided}"
        )
    print()
    print(result.table)
    return 0
