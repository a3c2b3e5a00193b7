"""A world model as a folder: config.yaml, model.safetensors, start_states.safetensors, metrics.json, README.md.

Where the model tells its uncertainty, uncertainty.safetensors lies beside them; its sizes are those of its tensors.
Reading one runs no code from it: YAML is loaded safely, tensors come as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wm_gym.bundle_kind import BundleKind
from wm_gym.bundle_location import resolve_folder
from wm_gym.checksums import add_checksums, check_file, check_settings
from wm_gym.config import ModelConfig, parse_config
from wm_gym.errors import BundleError, ConfigError
from wm_gym.files import check_replaceable, folder_written_atomically, write_tensors
from wm_gym.plain_files import parse_yaml, read_json, read_yaml
from wm_gym.precision import single_precision
from wm_gym.simulator import SimulatorSpec
from wm_gym.state import LatentState
from wm_gym.tensor_files import check_fit, holds_numbers, load_parameters, read_shapes, read_tensors
from wm_gym.uncertainty import Uncertainty, VarianceNetwork
from wm_gym.world_model import WorldModel

FORMAT = "wm_gym.world_model"
VERSION = 1
MANIFEST = "config.yaml"
_MODEL = "model.safetensors"
_START_STATES = "start_states.safetensors"
_UNCERTAINTY = "uncertainty.safetensors"
_METRICS = "metrics.json"
_CARD = "README.md"
_FILES = (_MODEL, _START_STATES, _UNCERTAINTY, _METRICS)
MODEL_BUNDLE = BundleKind("world model", "model", MANIFEST, (MANIFEST, *_FILES, _CARD))
"""What a model's folder consists of."""
_SMALL_BUFFERS = 2**20
_REMEDY = "copy or train the model again"


class ModelManifest(BaseModel):
    """The contents of a model folder's ``config.yaml``.

    Attributes:
        fingerprint: See :func:`model_fingerprint`.
        checksums: See :mod:`wm_gym.checksums`; ``None`` in a folder that is older than they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    version: int
    fingerprint: str
    model: ModelConfig
    simulator: SimulatorSpec
    provenance: dict[str, Any]
    checksums: dict[str, str] | None = None

    @model_validator(mode="after")
    def _frames_are_the_simulators(self) -> ModelManifest:
        if self.model.frame_size != self.simulator.frame_size:
            raise ValueError("model.frame_size and simulator.frame_size differ")
        return self


def model_fingerprint(model: WorldModel) -> str:
    """SHA-256 over configuration, simulator and parameters, as a hexadecimal text."""
    digest = hashlib.sha256()
    header = {"model": model.config.model_dump(mode="json"), "simulator": model.simulator.model_dump(mode="json")}
    digest.update(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(_saved_parameters(model).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _saved_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters as a file holds them: on the CPU, in single precision."""
    return {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.state_dict().items()}


def save_model(model: WorldModel, path: str | Path) -> Path:
    """Write a model's folder in one move, replacing an older one.

    Start states are stored in half precision (a dream's first state need not be exact); all else is exact.

    Raises:
        BundleError: ``path`` is a folder that holds something else.
    """
    path = check_model_folder(path)
    manifest = ModelManifest(
        format=FORMAT,
        version=VERSION,
        fingerprint=model_fingerprint(model),
        model=model.config,
        simulator=model.simulator,
        provenance=model.provenance,
    )
    with folder_written_atomically(path) as folder:
        write_tensors(folder / _MODEL, _saved_parameters(model))
        if model.start_states is not None:
            starts = {name: value.half().contiguous() for name, value in model.start_states._asdict().items()}
            write_tensors(folder / _START_STATES, starts)
        if model.uncertainty is not None:
            write_tensors(folder / _UNCERTAINTY, _saved_parameters(model.uncertainty.network))
        (folder / _METRICS).write_text(json.dumps(model.metrics, indent=2) + "\n", encoding="utf-8")
        (folder / _CARD).write_text(_model_card(model), encoding="utf-8")
        (folder / MANIFEST).write_text(manifest_text(manifest, folder, _FILES), encoding="utf-8")
    return path


def check_model_folder(path: str | Path) -> Path:
    """Check that a model's folder may be written at ``path``; returns it.

    Raises:
        BundleError: ``path`` is a folder that holds something else.
    """
    path = Path(path)
    if not check_replaceable(path, MANIFEST):
        raise BundleError(f"{str(path)!r} exists and is no world model; choose another path or remove it.")
    return path


def manifest_text(manifest: BaseModel, folder: Path, files: tuple[str, ...]) -> str:
    """A manifest as YAML, with the checksums of the files beside it."""
    text = yaml.safe_dump(manifest.model_dump(mode="json", exclude={"checksums"}), sort_keys=False)
    # The checksum is of what a reader will see.
    return yaml.safe_dump(add_checksums(parse_yaml(text), folder, files), sort_keys=False)


def read_manifest(path: str | Path) -> tuple[Path, ModelManifest]:
    """The folder and manifest of a model, without reading its tensors.

    Args:
        path: See :func:`wm_gym.bundle_location.resolve_folder`.

    Raises:
        BundleError: The folder or repository is missing, or is no world model of a version that is understood.
    """
    folder = resolve_folder(path, MODEL_BUNDLE)
    if not folder.is_dir():
        raise BundleError(
            f"there is no world model at {str(folder)!r}; give the folder that `wm-gym train-model` wrote."
        )
    config_file = folder / MANIFEST
    if not config_file.exists():
        raise BundleError(f"{str(folder)!r} is no world model: it has no readable config.yaml.")
    values = read_yaml(config_file, error=BundleError, remedy=_REMEDY)
    if values.get("format") != FORMAT:
        raise BundleError(f"{str(folder)!r} is no world model: its config.yaml is of another format.")
    if values.get("version") != VERSION:
        raise BundleError(
            f"the world model at {str(folder)!r} has format version {values.get('version')}, but this wm_gym reads "
            f"version {VERSION}; use the wm_gym that wrote it, or train it again."
        )
    try:
        manifest = parse_config(ModelManifest, values, origin=f"{str(config_file)!r}")
    except ConfigError as error:
        raise BundleError(str(error)) from error
    check_settings(values, config_file, error=BundleError, remedy=_REMEDY)
    return folder, manifest


@single_precision()
def load_model(path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """Read a world model; see :meth:`WorldModel.from_pretrained`."""
    folder, manifest = read_manifest(path)
    file = folder / _MODEL
    found = read_shapes(file, error=BundleError, remedy=_REMEDY)
    model = _build(manifest, folder / MANIFEST, found)
    check_fit(found, model.state_dict(), error=BundleError, file=file, owner="its config.yaml")
    check_file(file, manifest.checksums, error=BundleError, remedy=_REMEDY)
    tensors = read_tensors(file, error=BundleError, remedy=_REMEDY)
    load_parameters(model, tensors, error=BundleError, file=file, owner="its config.yaml")
    if model_fingerprint(model) != manifest.fingerprint:
        raise BundleError(
            f"{str(file)!r} or the config.yaml beside it has changed since the model was written: its fingerprint does "
            f"not match; {_REMEDY}."
        )
    model.start_states = _read_start_states(folder, manifest, model)
    model.uncertainty = _read_uncertainty(folder, manifest, model)
    model.provenance = manifest.provenance
    metrics_file = folder / _METRICS
    if metrics_file.exists() or _METRICS in (manifest.checksums or {}):
        model.metrics = read_json(metrics_file, error=BundleError, remedy=_REMEDY)
        check_file(metrics_file, manifest.checksums, error=BundleError, remedy=_REMEDY)
    return model.to(device).eval()


class _TooLargeError(Exception):
    """A model needs more memory than the file of its parameters can fill."""


class _Budget(TorchFunctionMode):
    """Counts the values of the tensors that are made, and stops before there are too many.

    Args:
        values: How many there may be.
    """

    def __init__(self, values: int) -> None:
        super().__init__()
        self.left = values

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and func in {torch.empty, torch.zeros, torch.ones, torch.randn}:
            self.left -= math.prod(args if isinstance(args[0], int) else args[0])
            if self.left < 0:
                raise _TooLargeError
        return func(*args, **(kwargs or {}))


def _build(manifest: ModelManifest, config_file: Path, found: Mapping[str, Tensor]) -> WorldModel:
    """The model that the settings describe, as long as it is no larger than the parameters that were found."""
    try:
        with _Budget(2 * sum(tensor.numel() for tensor in found.values()) + _SMALL_BUFFERS):
            return WorldModel(manifest.model, manifest.simulator)
    except _TooLargeError as error:
        raise BundleError(
            f"{str(config_file.with_name(_MODEL))!r} does not fit its config.yaml, whose sizes need more parameters; "
            f"{_REMEDY}."
        ) from error
    except ConfigError as error:
        raise BundleError(str(error)) from error
    except (RuntimeError, TypeError, ValueError, OverflowError, AssertionError) as error:
        raise BundleError(f"{str(config_file)!r} describes no world model that can be built; {_REMEDY}.") from error


@torch.no_grad()
def _read_start_states(folder: Path, manifest: ModelManifest, model: WorldModel) -> LatentState | None:
    file = folder / _START_STATES
    if not file.exists() and _START_STATES not in (manifest.checksums or {}):
        return None
    found = read_shapes(file, error=BundleError, remedy=_REMEDY)
    count = found["latent"].shape[0] if "latent" in found and found["latent"].dim() else 0
    if count < 1:
        raise BundleError(f"{str(file)!r} does not fit the model beside it: it holds no states; {_REMEDY}.")
    one = model.dynamics.initial(torch.zeros(1, model.dynamics.latent_dim))
    wanted = {name: part.half().to("meta").expand(count, *part.shape[1:]) for name, part in one._asdict().items()}
    check_fit(found, wanted, error=BundleError, file=file, owner="the model beside it")
    check_file(file, manifest.checksums, error=BundleError, remedy=_REMEDY)
    starts = read_tensors(file, error=BundleError, remedy=_REMEDY)
    if not all(holds_numbers(tensor) for tensor in starts.values()):
        raise BundleError(f"{str(file)!r} is damaged: it holds values that are no numbers; {_REMEDY}.")
    return LatentState(starts["latent"].float(), starts["memory"].float())


def _read_uncertainty(folder: Path, manifest: ModelManifest, model: WorldModel) -> Uncertainty | None:
    file = folder / _UNCERTAINTY
    if not file.exists() and _UNCERTAINTY not in (manifest.checksums or {}):
        return None
    found = read_shapes(file, error=BundleError, remedy=_REMEDY)
    horizon, hidden = (
        found[name].shape[0] if name in found and found[name].dim() == 1 else 0
        for name in ("multipliers", "mlp.0.bias")
    )
    if min(horizon, hidden) < 1:
        raise BundleError(f"{str(file)!r} holds no uncertainty of a world model; {_REMEDY}.")
    with torch.device("meta"):
        wanted = VarianceNetwork(model.feature_dim, model.simulator.action.dim, horizon, hidden)
    check_fit(found, wanted.state_dict(), error=BundleError, file=file, owner="the model beside it")
    check_file(file, manifest.checksums, error=BundleError, remedy=_REMEDY)
    network = wanted.to_empty(device="cpu")
    load_parameters(
        network,
        read_tensors(file, error=BundleError, remedy=_REMEDY),
        error=BundleError,
        file=file,
        owner="the model beside it",
    )
    finite = all(holds_numbers(tensor) for tensor in network.state_dict().values())
    if not (finite and network.deviation.min() > 0 and network.multipliers.min() > 0):
        raise BundleError(f"{str(file)!r} is damaged: deviations and multipliers are numbers above 0; {_REMEDY}.")
    return Uncertainty(network)


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
        *([] if model.uncertainty is None else [f"- Uncertainty: calibrated for {model.uncertainty.horizon} steps"]),
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
