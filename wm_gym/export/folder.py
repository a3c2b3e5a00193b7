"""A folder of exported parts: the files, export.json, latency.json, latency.md and README.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wm_gym.checksums import file_sha256
from wm_gym.errors import ExportError, did_you_mean
from wm_gym.export.back_ends import BACK_ENDS, BackEnd, LoadedModule, versions_of
from wm_gym.export.check import TOLERANCE, check_file
from wm_gym.export.latency import EAGER, measure_part, render_markdown
from wm_gym.export.parts import Part, TensorSpec
from wm_gym.export.web import PARTS, WEB, check_start_states, check_web, read_runtime, write_page
from wm_gym.files import (
    check_replaceable,
    check_writable,
    folder_written_atomically,
    write_json_atomically,
    write_text_atomically,
)
from wm_gym.precision import single_precision
from wm_gym.progress import progress_bar
from wm_gym.provenance import measured_on
from wm_gym.world_model import WorldModel

FORMAT = "wm_gym.export"
VERSION = 1
MANIFEST = "export.json"
DEFAULT_FORMATS = ("torchscript", "onnx")


@dataclass(frozen=True)
class ExportSettings:
    """How parts are exported and measured.

    Attributes:
        formats: Names of back ends.
        batch_sizes: Rows in one call, for the measurement.
        repeats: Measured calls of each part, back end and batch size.
        threads: Of torch and ONNX Runtime; ``None`` leaves torch's own number.
        seed: Of the inputs that files are checked and measured with.
        web_runtime: Folder of ONNX Runtime Web's files for the format ``web``; ``None`` gets them with npm.
    """

    formats: tuple[str, ...] = DEFAULT_FORMATS
    batch_sizes: tuple[int, ...] = (1,)
    repeats: int = 200
    threads: int | None = None
    seed: int = 0
    web_runtime: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: The folder.
        manifest: The contents of its ``export.json``.
        latency: The contents of its ``latency.json``.
        table: The contents of its ``latency.md``.
    """

    path: Path
    manifest: dict[str, Any]
    latency: dict[str, Any]
    table: str


@single_precision()
def export_parts(
    parts: Sequence[Part],
    model: WorldModel,
    out: str | Path,
    settings: ExportSettings | None = None,
    *,
    agent: dict[str, Any] | None = None,
    progress: bool = True,
) -> ExportResult:
    """Write every part in every format, check each file against its part, and measure both.

    The folder appears in one move when all is done, in place of an older export; where a file fails its check, nothing
    is written.

    Args:
        parts: From :func:`~wm_gym.export.parts.model_parts`, or with an agent's driver among them.
        model: What they are parts of; where it is, they compute.
        out: The folder.
        settings: How.
        agent: A record of the agent whose driver is among the parts.
        progress: Whether to show a progress bar.

    Raises:
        ExportError: A back end is missing, a part cannot be written in a format, a file does not compute what its part
            computes, or ``out`` holds something else.
    """
    settings, out, device = settings or ExportSettings(), Path(out), model.device
    back_ends = check_export(out, settings, device)
    runtime: dict[str, bytes] = {}
    if WEB in settings.formats:
        check_start_states(model)
        parts, runtime = [part for part in parts if part.name in PARTS], read_runtime(settings.web_runtime)
    threads = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        with folder_written_atomically(out) as folder:
            files, rows = _write_parts(parts, back_ends, folder, settings, device=device, progress=progress)
            machine = measured_on(str(device))
            made_by = machine.pop("provenance")
            versions = {"wm_gym": made_by["wm_gym"], "python": made_by["python"], "torch": torch.__version__}
            for back_end in back_ends.values():
                versions |= versions_of(back_end)
            measured = {"formats": " ".join(settings.formats), "repeats": settings.repeats, "seed": settings.seed}
            latency = {
                "rows": rows,
                "settings": measured,
                "machine": {**machine, "system": made_by["machine"]},
                "versions": versions,
            }
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "model": {
                    "fingerprint": model.fingerprint,
                    "dynamics": model.config.dynamics.kind,
                    "simulator": model.simulator.model_dump(mode="json"),
                },
                "agent": agent,
                "files": files,
                "versions": versions,
                "provenance": made_by,
            }
            if runtime:
                manifest["page"] = write_page(folder, model, runtime)
            table = render_markdown(latency)
            write_json_atomically(folder / MANIFEST, manifest)
            write_json_atomically(folder / "latency.json", latency)
            write_text_atomically(folder / "latency.md", table + "\n")
            write_text_atomically(folder / "README.md", _card(parts, manifest, table))
    finally:
        torch.set_num_threads(threads)
    return ExportResult(out, manifest, latency, table)


def check_export(out: Path, settings: ExportSettings, device: torch.device) -> dict[str, BackEnd]:
    """Check, before anything is written, what an export needs; returns its back ends by name.

    Raises:
        ExportError: A setting is out of range, a back end is unknown or missing, or ``out`` holds something else.
        OutputError: ``out`` cannot be written.
    """
    for name, values in (
        ("--batch", settings.batch_sizes),
        ("--repeats", (settings.repeats,)),
        ("--threads", () if settings.threads is None else (settings.threads,)),
    ):
        for value in values:
            if value < 1:
                raise ExportError(f"{name} {value} must be a whole number of at least 1.")
    check_writable(out, is_folder=True)
    if not check_replaceable(out, MANIFEST):
        raise ExportError(f"{str(out)!r} exists and is no export; choose another path or remove it.")
    check_web(settings.formats, settings.web_runtime)
    back_ends = {}
    for name in settings.formats:
        if name not in BACK_ENDS:
            raise ExportError(
                f"no format is called {name!r}{did_you_mean(name, BACK_ENDS)}; use one of {', '.join(BACK_ENDS)}."
            )
        BACK_ENDS[name].check_available(device)
        back_ends[name] = BACK_ENDS[name]
    return back_ends


def _write_parts(
    parts: Sequence[Part],
    back_ends: dict[str, BackEnd],
    folder: Path,
    settings: ExportSettings,
    *,
    device: torch.device,
    progress: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write, check and measure; returns the records of the files and the rows of the measurement."""
    files, rows = [], []
    with progress_bar(len(parts) * (len(back_ends) + 1), "step", "export", enabled=progress) as bar:
        for part in parts:
            runners: dict[str, Any] = {EAGER: LoadedModule(part.module, device)}
            devices = {EAGER: str(device)}
            for name, back_end in back_ends.items():
                file = folder / f"{part.name}{back_end.suffix}"
                bar.set_postfix_str(file.name)
                back_end.write(part, file)
                runners[name] = back_end.load(part, file, device)
                devices[name] = back_end.runs_on(device)
                checked = check_file(part, runners[name], settings.seed, label=file.name)
                files.append(
                    {
                        "name": file.name,
                        "part": part.name,
                        "format": name,
                        "device": devices[name],
                        "sha256": file_sha256(file),
                        "inputs": [spec.describe() for spec in part.inputs],
                        "outputs": [spec.describe() for spec in part.outputs],
                        "check": checked.describe(),
                    }
                )
                bar.update()
            bar.set_postfix_str(f"measuring {part.name}")
            measured = measure_part(part, runners, settings.batch_sizes, repeats=settings.repeats, seed=settings.seed)
            rows += [{**row, "device": devices[row["back_end"]]} for row in measured]
            bar.update()
    return files, rows


def _card(parts: Sequence[Part], manifest: dict[str, Any], table: str) -> str:
    model, agent = manifest["model"], manifest["agent"]
    lines = [
        "# An exported world model" if agent is None else "# An exported driver and its world model",
        "",
        f"- World model: fingerprint `{model['fingerprint'][:12]}`, dynamics {model['dynamics']}",
        f"- Simulator: `{model['simulator']['id']}` with {json.dumps(model['simulator']['kwargs'])}",
    ]
    if agent is not None:
        lines.append("- Agent: " + ", ".join(f"{name} {value}" for name, value in agent.items()))
    lines += [
        f"- Versions: {', '.join(f'{name} {version}' for name, version in manifest['versions'].items())}",
        "",
        f"Every file was loaded again and differs from the model by at most {TOLERANCE:g} in any output: `{MANIFEST}` "
        "has the figures. Tensors have the batch `B` first; ONNX files name them, the others have them in this order.",
        "A TorchScript file or an engine is a program, not data: load only those that you made or trust.",
    ]
    if "page" in manifest:
        lines += [
            "",
            "`index.html` drives the dream in a browser: put the folder on any static host, or run "
            "`python -m http.server --bind 127.0.0.1` in it. `runtime/` is ONNX Runtime Web, under its own licence.",
        ]
    for part in parts:
        names = [file["name"] for file in manifest["files"] if file["part"] == part.name]
        lines += ["", f"## {part.name}", "", f"{part.meaning} Files: {', '.join(f'`{name}`' for name in names)}.", ""]
        lines += ["| tensor | shape | dtype | |", "| --- | --- | --- | --- |"]
        lines += [_tensor_row("in", spec) for spec in part.inputs] + [_tensor_row("out", spec) for spec in part.outputs]
    return "\n".join([*lines, "", "## Latency", "", table, ""])


def _tensor_row(direction: str, spec: TensorSpec) -> str:
    shape = ", ".join(("B", *map(str, spec.shape)))
    dtype = str(spec.dtype).removeprefix("torch.")
    return f"| {direction}: `{spec.name}` | ({shape}) | {dtype} | {spec.meaning} |"
