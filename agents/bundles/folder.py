"""An agent as a folder: agent.yaml, policy.safetensors, metrics.json, README.md and the world model it sees through.

The world model is a copy in ``model/``, or a reference by name where it is the one that the package ships. An agent
that sees pixels has none; its record names the simulator that it was trained on. Reading an agent runs no code from it:
YAML is loaded safely, tensors come as safetensors, and the policy is rebuilt from its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field
from stable_baselines3.common.policies import BasePolicy

from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.network import rebuild_policy
from wm_gym.agents.policies.observers import LatentObserver, Observer, PixelObserver
from wm_gym.agents.policies.pixel_config import PixelAgentConfig
from wm_gym.bundle import MODEL_BUNDLE, load_model, manifest_text, read_manifest
from wm_gym.bundle_kind import BundleKind
from wm_gym.bundle_location import BUNDLED, resolve_folder, shipped_model
from wm_gym.checksums import check_file, check_settings
from wm_gym.config import parse_config
from wm_gym.envs.rollout_contract import observation_space_of
from wm_gym.errors import BundleError, ConfigError
from wm_gym.files import check_replaceable, folder_written_atomically, write_tensors
from wm_gym.plain_files import read_json, read_yaml
from wm_gym.provenance import provenance
from wm_gym.simulator import SimulatorSpec
from wm_gym.tensor_files import check_fit, load_parameters, read_shapes, read_tensors
from wm_gym.world_model import WorldModel

FORMAT = "wm_gym.agent"
VERSION = 1
MANIFEST = "agent.yaml"
_POLICY = "policy.safetensors"
_MODEL = "model"
_METRICS = "metrics.json"
_CARD = "README.md"
_REMEDY = "copy or train the agent again"
AGENT_BUNDLE = BundleKind(
    "agent",
    "agent",
    MANIFEST,
    (MANIFEST, _POLICY, _METRICS, _CARD, *(f"{_MODEL}/{file}" for file in MODEL_BUNDLE.files)),
)
"""What an agent's folder consists of."""


class ModelReference(BaseModel):
    """Where an agent's world model is.

    Attributes:
        location: ``"folder"`` for the copy in ``model/``, ``"bundled"`` for the one that the package ships.
        fingerprint: Of the model that the agent was trained in; any other one is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: Literal["folder", "bundled"]
    fingerprint: str


class AgentManifest(BaseModel):
    """The contents of ``agent.yaml`` for an agent that sees through a world model.

    Attributes:
        observation: What the policy sees.
        trained_in: Where its transitions came from: the dreams of the model, or recorded data whose actions it copies.
        config: The resolved configuration: algorithm, kind of action, seed, sizes of the policy and all else.
        policy: The policy's name in Stable-Baselines3.
        model: The world model.
        provenance: Versions of the packages, machine, and what the training adds.
        checksums: See :mod:`wm_gym.checksums`; ``None`` in a folder that is older than they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    version: int
    observation: Literal["latent"] = "latent"
    trained_in: Literal["dream", "data"] = "dream"
    config: AgentConfig
    policy: Literal["MlpPolicy"] = "MlpPolicy"
    model: ModelReference
    provenance: dict[str, Any] = Field(default_factory=dict)
    checksums: dict[str, str] | None = None


class PixelAgentManifest(BaseModel):
    """The contents of ``agent.yaml`` for an agent that sees the last frames as they are.

    Attributes:
        observation: What the policy sees.
        trained_in: Where its transitions came from.
        config: The resolved configuration, with the number of frames that are stacked.
        policy: The policy's name in Stable-Baselines3.
        simulator: The simulator that it was trained on.
        provenance: Versions of the packages, machine.
        checksums: See :mod:`wm_gym.checksums`; ``None`` in a folder that is older than they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    version: int
    observation: Literal["pixels"]
    trained_in: Literal["simulator"] = "simulator"
    config: PixelAgentConfig
    policy: Literal["CnnPolicy"] = "CnnPolicy"
    simulator: SimulatorSpec
    provenance: dict[str, Any] = Field(default_factory=dict)
    checksums: dict[str, str] | None = None


_MANIFESTS: dict[str, type[AgentManifest] | type[PixelAgentManifest]] = {
    "latent": AgentManifest,
    "pixels": PixelAgentManifest,
}


@dataclass(frozen=True)
class LoadedAgent:
    """An agent as read from its folder.

    Attributes:
        path: The folder.
        manifest: Its record.
        observer: What turns frames into the policy's observations, with the world model if it has one.
        policy: The trained policy, in evaluation mode.
        metrics: Figures of its training.
    """

    path: Path
    manifest: AgentManifest | PixelAgentManifest
    observer: Observer
    policy: BasePolicy
    metrics: dict[str, Any]

    @property
    def model(self) -> WorldModel:
        """The world model, in evaluation mode.

        Raises:
            BundleError: The agent sees pixels, without a world model.
        """
        if not isinstance(self.observer, LatentObserver):
            raise BundleError(f"the agent at {str(self.path)!r} sees pixels and has no world model; give another one.")
        assert isinstance(self.observer.model, WorldModel)
        return self.observer.model


def save_agent(
    path: str | Path,
    policy: BasePolicy,
    model: WorldModel,
    config: AgentConfig,
    metrics: Mapping[str, Any] | None = None,
    *,
    trained_in: Literal["dream", "data"] = "dream",
) -> Path:
    """Write the folder of an agent that sees through a world model in one move, replacing an older agent.

    Args:
        path: The folder.
        policy: The trained policy.
        model: The world model that it was trained in.
        config: The resolved configuration of its training.
        metrics: Figures of its training; JSON values.
        trained_in: Whether it learned in the model's dreams, or from recorded data.

    Raises:
        BundleError: ``path`` exists and is no agent.
    """
    fingerprint = model.fingerprint
    # The one that the package ships tells no uncertainty: a model that does is kept, whatever its parameters are.
    shipped = model.uncertainty is None and _is_bundled(fingerprint)
    manifest = AgentManifest(
        format=FORMAT,
        version=VERSION,
        trained_in=trained_in,
        config=config,
        model=ModelReference(location="bundled" if shipped else "folder", fingerprint=fingerprint),
        provenance=provenance(),
    )
    return _write_agent(Path(path), manifest, policy, metrics, model)


def save_self_contained(path: str | Path, agent: LoadedAgent) -> Path:
    """Write an agent with its world model beside it, also where it only named the one that the package ships.

    Raises:
        BundleError: ``path`` exists and is no agent.
    """
    manifest = agent.manifest
    if isinstance(manifest, PixelAgentManifest):
        return _write_agent(Path(path), manifest, agent.policy, agent.metrics)
    reference = manifest.model.model_copy(update={"location": "folder"})
    manifest = manifest.model_copy(update={"model": reference})
    return _write_agent(Path(path), manifest, agent.policy, agent.metrics, agent.model)


def save_pixel_agent(
    path: str | Path,
    policy: BasePolicy,
    simulator: SimulatorSpec,
    config: PixelAgentConfig,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write the folder of an agent that sees pixels in one move, replacing an older agent.

    Args:
        path: The folder.
        policy: The trained policy.
        simulator: The simulator that it was trained on.
        config: The resolved configuration of its training.
        metrics: Figures of its training; JSON values.

    Raises:
        BundleError: ``path`` exists and is no agent.
    """
    manifest = PixelAgentManifest(
        format=FORMAT,
        version=VERSION,
        observation="pixels",
        config=config,
        simulator=simulator,
        provenance=provenance(),
    )
    return _write_agent(Path(path), manifest, policy, metrics)


def _write_agent(
    path: Path,
    manifest: AgentManifest | PixelAgentManifest,
    policy: BasePolicy,
    given: Mapping[str, Any] | None,
    model: WorldModel | None = None,
) -> Path:
    """Write an agent's folder, with its world model where the record says that it is there."""
    metrics, copied = dict(given or {}), None
    if isinstance(manifest, PixelAgentManifest):
        card = _pixel_agent_card(manifest, metrics)
    else:
        assert model is not None
        card = _agent_card(manifest, model, metrics)
        copied = model if manifest.model.location == "folder" else None
    if not check_replaceable(path, MANIFEST):
        raise BundleError(f"{str(path)!r} exists and is no agent; choose another path or remove it.")
    with folder_written_atomically(path) as folder:
        # Policies share one features extractor under several names, which safetensors stores as copies only.
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in policy.state_dict().items()}
        write_tensors(folder / _POLICY, state)
        (folder / _METRICS).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", "utf-8")
        (folder / _CARD).write_text(card, encoding="utf-8")
        if copied is not None:
            copied.save_pretrained(folder / _MODEL)
        (folder / MANIFEST).write_text(manifest_text(manifest, folder, (_POLICY, _METRICS)), encoding="utf-8")
    return path


def read_agent_manifest(path: str | Path) -> tuple[Path, AgentManifest | PixelAgentManifest]:
    """The folder and record of an agent, without reading its tensors.

    Args:
        path: See :func:`wm_gym.bundle_location.resolve_folder`.

    Raises:
        BundleError: The folder or repository is missing, or is no agent of a version that is understood.
    """
    folder = resolve_folder(path, AGENT_BUNDLE)
    if not folder.is_dir():
        raise BundleError(
            f"there is no agent at {str(folder)!r}; give the folder that `wm-gym train-agent` wrote, or 'bundled'."
        )
    file = folder / MANIFEST
    if not file.exists():
        unfinished = (folder / "run.json").exists()
        hint = (
            "its training has not finished; run the same training again to resume it" if unfinished else "give another"
        )
        raise BundleError(f"{str(folder)!r} is no agent: it has no {MANIFEST}; {hint}.")
    values = read_yaml(file, error=BundleError, remedy=_REMEDY)
    if values.get("format") != FORMAT:
        raise BundleError(f"{str(folder)!r} is no agent: its {MANIFEST} is of another format.")
    if values.get("version") != VERSION:
        raise BundleError(
            f"the agent at {str(folder)!r} has format version {values.get('version')}, but this wm_gym reads version "
            f"{VERSION}; use the wm_gym that wrote it, or train it again."
        )
    observation = str(values.get("observation", "latent"))  # agents of the first versions do not say
    if observation not in _MANIFESTS:
        raise BundleError(
            f"the agent at {str(folder)!r} sees {observation!r}, but this wm_gym knows only {', '.join(_MANIFESTS)}; "
            "use the wm_gym that wrote it, or train it again."
        )
    try:
        manifest = parse_config(_MANIFESTS[observation], values, origin=repr(str(file)))
    except ConfigError as error:
        raise BundleError(str(error)) from error
    check_settings(values, file, error=BundleError, remedy=_REMEDY)
    return folder, manifest


def is_finished_agent(folder: Path) -> bool:
    """Whether a run's folder holds its agent already.

    Raises:
        BundleError: It does, and the agent's record is damaged.
    """
    if not (folder / MANIFEST).exists():
        return False
    read_agent_manifest(folder)
    return True


def agent_model_path(folder: Path, manifest: AgentManifest | PixelAgentManifest) -> str | Path:
    """The folder of an agent's world model, or ``"bundled"`` where the package ships it.

    Raises:
        BundleError: It is missing, or is not the model that the agent was trained in, or the agent sees pixels.
    """
    if isinstance(manifest, PixelAgentManifest):
        raise BundleError(f"the agent at {str(folder)!r} sees pixels and has no world model; give another one.")
    fingerprint = manifest.model.fingerprint
    location = shipped_model(fingerprint) if manifest.model.location == "bundled" else folder / _MODEL
    _, model_manifest = read_manifest(location)
    _check_fingerprint(model_manifest.fingerprint, manifest, folder)
    return location


def agent_simulator(path: str | Path) -> SimulatorSpec:
    """The simulator that an agent of either kind knows, without reading its tensors.

    Args:
        path: See :func:`wm_gym.bundle_location.resolve_folder`.

    Raises:
        BundleError: The folder is missing, or is no agent of a version that is understood, or its world model is
            missing or another one.
    """
    folder, manifest = read_agent_manifest(path)
    if isinstance(manifest, PixelAgentManifest):
        return manifest.simulator
    return read_manifest(agent_model_path(folder, manifest))[1].simulator


def load_agent(path: str | Path, device: str | torch.device = "cpu") -> LoadedAgent:
    """Read an agent.

    Args:
        path: Its folder, ``"bundled"``, or a repository on the Hub, ``"owner/name"``; see
            :func:`wm_gym.bundle_location.resolve_folder`.
        device: Where it computes.

    Raises:
        BundleError: The folder or repository is missing, damaged or of another kind or version, or its
            world model is another one.
    """
    folder, manifest = read_agent_manifest(path)
    observer: Observer
    if isinstance(manifest, PixelAgentManifest):
        observer = PixelObserver(manifest.simulator, manifest.config.frame_stack)
        observation_space = observer.space
    else:
        model = load_model(agent_model_path(folder, manifest), device)
        _check_fingerprint(model.fingerprint, manifest, folder)
        observer = LatentObserver(model)
        observation_space = observation_space_of(model, "latent")
    policy = _load_policy(folder, manifest, observation_space, observer.simulator)
    policy.to(device)
    policy.set_training_mode(False)
    return LoadedAgent(folder, manifest, observer, policy, _read_metrics(folder / _METRICS, manifest))


def _load_policy(
    folder: Path,
    manifest: AgentManifest | PixelAgentManifest,
    observation_space: spaces.Space[Any],
    simulator: SimulatorSpec,
) -> BasePolicy:
    file = folder / _POLICY
    try:
        action_space = simulator.action.space(manifest.config.action)
    except ConfigError as error:
        raise BundleError(f"{str(folder / MANIFEST)!r} does not fit its simulator: {error}") from error
    found = read_shapes(file, error=BundleError, remedy=_REMEDY)
    owner = f"the {manifest.config.algo} policy that {MANIFEST} beside it describes"
    # A layer is made only where the file holds its weights: (out, in) for widths that follow each other.
    shapes = {tuple(tensor.shape) for tensor in found.values()}
    widths = manifest.config.net_arch
    features = (manifest.config.features_dim,) if isinstance(manifest, PixelAgentManifest) else ()
    if any((wide, narrow) not in shapes for narrow, wide in pairwise(widths)) or not all(
        any(shape[0] == width for shape in shapes if len(shape) == 2) for width in (*widths[:1], *features)
    ):
        raise BundleError(f"{str(file)!r} does not fit {owner}: its layers are not of net_arch; {_REMEDY}.")
    try:
        policy = rebuild_policy(manifest.config, observation_space, action_space)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"{str(folder / MANIFEST)!r} describes no policy that can be built; {_REMEDY}.") from error
    check_fit(found, policy.state_dict(), error=BundleError, file=file, owner=owner)
    check_file(file, manifest.checksums, error=BundleError, remedy=_REMEDY)
    tensors = read_tensors(file, error=BundleError, remedy=_REMEDY)
    load_parameters(policy, tensors, error=BundleError, file=file, owner=owner)
    return policy


def _read_metrics(file: Path, manifest: AgentManifest | PixelAgentManifest) -> dict[str, Any]:
    if not file.exists() and _METRICS not in (manifest.checksums or {}):
        return {}
    metrics = read_json(file, error=BundleError, remedy=_REMEDY)
    check_file(file, manifest.checksums, error=BundleError, remedy=_REMEDY)
    return metrics


def _is_bundled(fingerprint: str) -> bool:
    try:
        return read_manifest(BUNDLED)[1].fingerprint == fingerprint
    except BundleError:
        return False


def _check_fingerprint(actual: str, manifest: AgentManifest, folder: Path) -> None:
    if actual != manifest.model.fingerprint:
        raise BundleError(
            f"the agent at {str(folder)!r} was trained in the world model {manifest.model.fingerprint[:12]}, but the "
            f"{manifest.model.location} one is {actual[:12]}; restore that model, or train the agent again."
        )


def _agent_card(manifest: AgentManifest, model: WorldModel, metrics: dict[str, Any]) -> str:
    config = manifest.config
    if manifest.trained_in == "data":
        title = "# A driving agent cloned from recorded episodes"
        how = f"- Policy of {config.algo} (Stable-Baselines3), {config.steps:,} updates, seed {config.seed}"
        story = "It copies the actions of the recorded episodes, given what the world model makes of their frames."
        figures = "Validation losses say how well it copies; measure what it does with `wm-gym evaluate`."
    else:
        title = "# A driving agent trained in imagination"
        how = f"- Algorithm: {config.algo} (Stable-Baselines3), {config.steps:,} dream steps, seed {config.seed}"
        story = (
            "Reinforcement learning saw only what the world model imagined; the policy may have begun as a clone of "
            "recorded drives."
        )
        figures = "Dream returns are what the world model promises; measure what the agent does with `wm-gym evaluate`."
    facts = [
        how,
        f"- Simulator of its world model: `{model.simulator.id}` with {json.dumps(model.simulator.kwargs)}",
        f"- World model: {manifest.model.location}, fingerprint `{manifest.model.fingerprint[:12]}`",
        f"- Actions: {config.action}; frames: {model.config.frame_size[0]}x{model.config.frame_size[1]} RGB",
    ]
    return _card([title, "", *facts, "", story], figures, metrics, manifest.provenance)


def _pixel_agent_card(manifest: PixelAgentManifest, metrics: dict[str, Any]) -> str:
    config, simulator = manifest.config, manifest.simulator
    height, width = simulator.frame_size
    head = [
        "# A driving agent trained from pixels",
        "",
        f"- Algorithm: {config.algo} (Stable-Baselines3), {config.steps:,} decisions, seed {config.seed}",
        f"- Simulator: `{simulator.id}` with {json.dumps(simulator.kwargs)}",
        f"- Actions: {config.action}; observations: the last {config.frame_stack} frames, {height}x{width} RGB",
        "",
        "It learned in the simulator itself, without a world model.",
    ]
    figures = "Returns are those of its training, with exploration; measure what it does with `wm-gym evaluate`."
    return _card(head, figures, metrics, manifest.provenance)


def _card(head: list[str], figures: str, metrics: dict[str, Any], made_by: dict[str, Any]) -> str:
    lines = [
        *head,
        "",
        "```python",
        "from wm_gym.agents import Driver",
        "",
        "driver = Driver.load(PATH)",
        "driver.reset()",
        "action = driver.act(frame)  # frame: uint8 (H, W, 3) RGB",
        "```",
        "",
        "It is a result of research and no driver for a real vehicle.",
        "",
        "## Figures of its training",
        "",
        figures,
        "",
        "```json",
        json.dumps(metrics, indent=2),
        "```",
        "",
        "## Made by",
        "",
        "```yaml",
        yaml.safe_dump(made_by, sort_keys=False).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)
