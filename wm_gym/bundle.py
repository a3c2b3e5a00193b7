"""A world model as a folder: config.yaml, model.safetensors, start_states.safetensors, metrics.json, README.md.

Reading one runs no code from it: YAML is loaded safely, tensors come as safetensors.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wm_gym.config import ModelConfig, parse_config
from wm_gym.errors import BundleError, ConfigError
from wm_gym.files import folder_written_atomically
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

FORMAT = "wm_gym.world_model"
VERSION = 1
BUNDLED = "bundled"


class ModelManifest(BaseModel):
    """The contents of a model folder's ``config.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    version: int
    fingerprint: str
    model: ModelConfig
    simulator: SimulatorSpec
    provenance: dict[str, Any]


def bundled_folder(kind: str) -> Path:
    """Folder of what the package ships: ``"model"`` or ``"agent"``.

    Raises:
        BundleError: This installation has none.
    """
    folder = Path(str(resources.files("wm_gym") / "assets" / kind))
    if not folder.is_dir():
        raise BundleError(f"this installation of wm_gym ships no bundled {kind}; give the path of one you trained.")
    return folder


def model_fingerprint(model: WorldModel) -> str:
    """SHA-256 over configuration, simulator and parameters, as a hexadecimal text."""
    digest = hashlib.sha256()
    header = {"model": model.config.model_dump(mode="json"), "simulator": model.simulator.model_dump(mode="json")}
    digest.update(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(model: WorldModel, path: str | Path) -> Path:
    """Write a model's folder in one move, replacing an older one.

    Start states are stored in half precision (a dream's first state need not be exact); all else is exact.

    Raises:
        BundleError: ``path`` is a folder that holds something else.
    """
    path = Path(path)
    if path.exists() and not (path / "config.yaml").exists() and (not path.is_dir() or any(path.iterdir())):
        raise BundleError(f"{str(path)!r} exists and is no world model; choose another path or remove it.")
    manifest = ModelManifest(
        format=FORMAT,
        version=VERSION,
        fingerprint=model_fingerprint(model),
        model=model.config,
        simulator=model.simulator,
        provenance=model.provenance,
    )
    with folder_written_atomically(path) as folder:
        text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        if model.start_states is not None:
            starts = {name: value.half().contiguous() for name, value in model.start_states._asdict().items()}
            save_file(starts, folder / "start_states.safetensors")
        (folder / "metrics.json").write_text(json.dumps(model.metrics, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_model_card(model), encoding="utf-8")
    return path


def read_manifest(path: str | Path) -> tuple[Path, ModelManifest]:
    """The folder and manifest of a model given by path or as ``"bundled"``, without reading its tensors.

    Raises:
        BundleError: The folder is missing, or is no world model of a version that is understood.
    """
    folder = bundled_folder("model") if str(path) == BUNDLED else Path(path)
    if not folder.is_dir():
        raise BundleError(
            f"there is no world model at {str(folder)!r}; give the folder that `wm-gym train-model` wrote."
        )
    config_file = folder / "config.yaml"
    try:
        values = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{str(folder)!r} is no world model: it has no readable config.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{str(config_file)!r} is damaged: it is no valid YAML.") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleError(f"{str(folder)!r} is no world model: its config.yaml is of another format.")
    if values.get("version") != VERSION:
        raise BundleError(
            f"the world model at {str(folder)!r} has format version {values.get('version')}, but this wm_gym reads "
            f"version {VERSION}; use the wm_gym that wrote it, or train it again."
        )
    try:
        return folder, parse_config(ModelManifest, values, origin=f"{str(config_file)!r}")
    except ConfigError as error:
        raise BundleError(str(error)) from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """Read a world model; see :meth:`WorldModel.from_pretrained`."""
    folder, manifest = read_manifest(path)
    model = WorldModel(manifest.model, manifest.simulator)
    state = _load_tensors(folder / "model.safetensors")
    expected = model.state_dict()
    if set(state) != set(expected):
        differing = sorted(set(state) ^ set(expected))[0]
        raise BundleError(
            f"{str(folder / 'model.safetensors')!r} does not fit its config.yaml: {differing!r} is "
            f"{'unknown' if differing in state else 'missing'}; the two files come from different models."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise BundleError(
                f"{str(folder / 'model.safetensors')!r} does not fit its config.yaml: {name!r} has shape "
                f"{tuple(tensor.shape)}, but the config's sizes need {tuple(expected[name].shape)}."
            )
    model.load_state_dict(state)
    starts_file = folder / "start_states.safetensors"
    if starts_file.exists():
        starts = _load_tensors(starts_file)
        if set(starts) != {"latent", "memory"} or starts["latent"].shape[-1] != manifest.model.latent_dim:
            raise BundleError(f"{str(starts_file)!r} does not fit the model beside it; train the model again.")
        model.start_states = LatentState(starts["latent"].float(), starts["memory"].float())
    model.provenance = manifest.provenance
    metrics_file = folder / "metrics.json"
    if metrics_file.exists():
        try:
            model.metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{str(metrics_file)!r} is damaged: it is no valid JSON.") from error
    return model.to(device).eval()


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{str(path)!r} is missing or damaged ({error}); copy or train the model again.") from error


def _model_card(model: WorldModel) -> str:
    counts = model.num_parameters()
    lines = [
        "# A world model for driving",
        "",
        f"- Simulator: `{model.simulator.id}` with {json.dumps(model.simulator.kwargs)}",
        f"- Frames: {model.config.frame_size[0]}x{model.config.frame_size[1]} RGB; actions: "
        f"{model.simulator.action.kind} ({model.simulator.action.dim} values)",
        f"- Dynamics: {model.config.dynamics.kind}; parameters: {counts['total']:,} "
        f"(encoder {counts['encoder']:,}, dynamics {counts['dynamics']:,}, decoder {counts['decoder']:,})",
        f"- Start states: {0 if model.start_states is None else model.start_states.batch_size}",
        "",
        "Use it as `gym.make('DreamDriving-v0', model=PATH)` or `wm_gym.WorldModel.from_pretrained(PATH)`.",
        "It predicts what the simulator would show; it is no substitute for a safety test of a real vehicle.",
        "",
        "## Held-out metrics",
        "",
        "```json",
        json.dumps(model.metrics, indent=2),
        "```",
        "",
        "## Made by",
        "",
        "```yaml",
        yaml.safe_dump(model.provenance, sort_keys=False).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)
