"""The page of ``--format web``: what lies beside the ONNX files so that a browser drives the dream with them alone."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from wm_gym.errors import ExportError
from wm_gym.frames import tensor_to_frames
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

WEB = "web"
PARTS = frozenset({"policy", "step", "decoder", "vector_decoder"})
"""Names of the parts that the page uses, where there are such."""
START_STATES = 32
"""Most start states that the page has."""

RUNTIME_VERSION = "1.30.0"
_RUNTIME_PACKAGE = f"onnxruntime-web@{RUNTIME_VERSION}"
_RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, as the npm registry states it."""
_SCRIPTS = ("ort.wasm.bundle.min.mjs", "ort.webgpu.bundle.min.mjs")
_PROGRAMS = ("ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.asyncify.wasm")
_NPM_SECONDS = 600

_PAGE = Path(__file__).parent / "page"
_SHARED = Path(__file__).parents[1] / "pages"
_SHARED_FILES = ("base.css", "drive.css", "icon.svg", "input.js", "live.js", "meters.js", "starts.js")


def check_web(formats: tuple[str, ...], web_runtime: Path | None) -> None:
    """Check, before anything is written, what ``--format web`` needs beyond ONNX.

    Args:
        formats: All formats of the export.
        web_runtime: Folder of ONNX Runtime Web's files; ``None`` leaves it to npm to get them.

    Raises:
        ExportError: It is not the only format, or the runtime cannot be had.
    """
    if WEB not in formats:
        if web_runtime is not None:
            raise ExportError("--web-runtime belongs to --format web; add that format or leave the option out.")
        return
    if len(formats) > 1:
        raise ExportError("--format web makes a folder of its own; export the other formats into another --out.")
    if web_runtime is None:
        if shutil.which("npm") is None:
            raise ExportError(
                f"--format web needs ONNX Runtime Web, and there is no npm here to get it with; install npm, or give "
                f"the folder dist of the npm package {_RUNTIME_PACKAGE} as --web-runtime."
            )
        return
    for name in (*_SCRIPTS, *_PROGRAMS):
        if not (web_runtime / name).is_file():
            raise ExportError(
                f"--web-runtime {str(web_runtime)!r} has no file {name!r}; give the folder dist of the npm package "
                f"{_RUNTIME_PACKAGE}, such as node_modules/onnxruntime-web/dist."
            )


def check_start_states(model: WorldModel) -> LatentState:
    """The start states of a model.

    Raises:
        ExportError: It has none.
    """
    if model.start_states is None:
        raise ExportError(
            "the model has no start states for the page to dream from; train it with training.num_start_states above 0."
        )
    return model.start_states


def read_runtime(web_runtime: Path | None) -> dict[str, bytes]:
    """The files of ONNX Runtime Web that the page loads, by name; of two kinds: for WASM alone, and with WebGPU.

    Raises:
        ExportError: npm does not give the package, or not the one that is meant.
    """
    if web_runtime is not None:
        return {name: (web_runtime / name).read_bytes() for name in (*_SCRIPTS, *_PROGRAMS)}
    advice = f"see to it that npm reaches its registry, or give the folder dist of {_RUNTIME_PACKAGE} as --web-runtime"
    with tempfile.TemporaryDirectory() as folder:
        command = [shutil.which("npm") or "npm", "pack", _RUNTIME_PACKAGE, "--loglevel=error", "--fetch-retries=1"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, timeout=_NPM_SECONDS
            )
            told = " ".join(re.sub("npm (error|ERR!)", "", done.stderr).split())[:200] or f"code {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            told = str(error)
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise ExportError(f"npm did not give {_RUNTIME_PACKAGE} ({told}); {advice}.")
        content = archives[0].read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != _RUNTIME_SHA512:
            raise ExportError(
                f"what npm gave as {_RUNTIME_PACKAGE} is another package: its SHA-512 is not the known one; {advice}."
            )
        with tarfile.open(archives[0]) as archive:  # files are read one by one; nothing is unpacked to the disk
            members = {name: archive.extractfile(f"package/dist/{name}") for name in (*_SCRIPTS, *_PROGRAMS)}
            return {name: member.read() for name, member in members.items() if member is not None}


@torch.no_grad()
def write_page(folder: Path, model: WorldModel, runtime: Mapping[str, bytes]) -> dict[str, Any]:
    """Write the page, the runtime and the start states; returns what ``export.json`` says of them.

    ``start_states.bin`` has the states one after another, each as its latent, its memory and its features: float32,
    little-endian. The runtime's programs are compressed, because hosts seldom do it, and the page unpacks them.

    Args:
        folder: Has the exported parts.
        model: What they are parts of.
        runtime: From :func:`read_runtime`.
    """
    for source, target, names in (
        (_PAGE, folder, [file.name for file in _PAGE.iterdir()]),
        (_SHARED, folder / "shared", _SHARED_FILES),
    ):
        target.mkdir(exist_ok=True)
        for name in names:
            shutil.copyfile(source / name, target / name)
    (folder / "runtime").mkdir()
    (folder / "LICENSE.onnxruntime").rename(folder / "runtime" / "LICENSE")
    for name, content in runtime.items():
        if name in _SCRIPTS:
            # Some hosts do not know .mjs, and browsers run no script that is of another kind.
            (folder / "runtime" / name.replace(".mjs", ".js")).write_bytes(content)
        else:
            (folder / "runtime" / f"{name}.gzip").write_bytes(gzip.compress(content, 9, mtime=0))
    bank = check_start_states(model)
    number = min(START_STATES, bank.batch_size)
    chosen = torch.linspace(0, bank.batch_size - 1, number).round().long()
    states = LatentState(*(part[chosen].to(model.device) for part in bank))
    rows = torch.cat([part.flatten(1) for part in (*states, model.features(states))], dim=1).cpu().numpy()
    (folder / "start_states.bin").write_bytes(rows.astype("<f4").tobytes())
    (folder / "start-states").mkdir()
    for place, frame in enumerate(tensor_to_frames(model.decode(states)).cpu().numpy()):
        Image.fromarray(frame).save(folder / "start-states" / f"{place}.png")
    version = re.search(rb"ONNX Runtime Web v(\S+)", runtime[_SCRIPTS[0]][:200])
    return {
        "start_states": number,
        "features": model.feature_dim,
        "runtime": None if version is None else version[1].decode(),
    }
