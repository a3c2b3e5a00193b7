"""An agent as a folder: agent.yaml, policy.safetensors, metrics.json, README.md and the world model it sees through.

The world model is a copy in ``model/``, or a reference by name where it is the one that the package ships. Reading an
agent runs no code from it: YAML is loaded safely, tensors come as safetensors, and the policy is rebuilt from its
configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from wm_gym.agents.config import AgentConfig
from wm_gym.agents.policy import rebuild_policy
from wm_gym.bundle import BUNDLED, bundled_folder, load_model, read_manifest
from wm_gym.config import parse_config
from wm_gym.envs.imagined_rollouts import observation_space_of
from wm_gym.errors import BundleError, ConfigError
from wm_gym.files import folder_written_atomically
from wm_gym.provenance import provenance
from wm_gym.world_model import WorldModel

FORMAT = "wm_gym.agent"
VERSION = 1
MANIFEST = "agent.yaml"
_POLICY = "policy.safetensors"
_MODEL = "model"
_METRICS = "metrics.json"


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
    """The contents of ``agent.yaml``.

    Attributes:
        config: The resolved configuration: algorithm, kind of action, seed, sizes of the policy and all else.
        policy: The policy's name in Stable-Baselines3.
        model: The world model.
        provenance: Versions of the packages, machine, and what the training adds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    version: int
    config: AgentConfig
    policy: Literal["MlpPolicy"] = "MlpPolicy"
    model: ModelReference
    provenance: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class LoadedAgent:
    """An agent as read from its folder.

    Attributes:
        path: The folder.
        manifest: Its record.
        model: The world model, in evaluation mode.
        policy: The trained policy, in evaluation mode.
        metrics: Figures of its training.
    """

    path: Path
    manifest: AgentManifest
    model: WorldModel
    policy: BasePolicy
    metrics: dict[str, Any]


def save_agent(
    path: str | Path,
    policy: BasePolicy,
    model: WorldModel,
    config: AgentConfig,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write an agent's folder in one move, replacing an older agent.

    Args:
        path: The folder.
        policy: The trained policy.
        model: The world model that it was trained in.
        config: The resolved configuration of its training.
        metrics: Figures of its training; JSON values.

    Raises:
        BundleError: ``path`` exists and is no agent.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).exists() and (not path.is_dir() or any(path.iterdir())):
        raise BundleError(f"{str(path)!r} exists and is no agent; choose another path or remove it.")
    fingerprint = model.fingerprint
    reference = ModelReference(location="bundled" if _is_bundled(fingerprint) else "folder", fingerprint=fingerprint)
    manifest = AgentManifest(format=FORMAT, version=VERSION, config=config, model=reference, provenance=provenance())
    with folder_written_atomically(path) as folder:
        text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False)
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        # Policies share one features extractor under several names, which safetensors stores as copies only.
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in policy.state_dict().items()}
        save_file(state, folder / _POLICY)
        (folder / _METRICS).write_text(json.dumps(dict(metrics or {}), indent=2, allow_nan=False) + "\n", "utf-8")
        (folder / "README.md").write_text(_agent_card(manifest, model, dict(metrics or {})), encoding="utf-8")
        if reference.location == "folder":
            model.save_pretrained(folder / _MODEL)
    return path


def read_agent_manifest(path: str | Path) -> tuple[Path, AgentManifest]:
    """The folder and record of an agent given by path or as ``"bundled"``, without reading its tensors.

    Raises:
        BundleError: The folder is missing, or is no agent of a version that is understood.
    """
    folder = bundled_folder("agent") if str(path) == BUNDLED else Path(path)
    if not folder.is_dir():
        raise BundleError(
            f"there is no agent at {str(folder)!r}; give the folder that `wm-gym train-agent` wrote, or 'bundled'."
        )
    file = folder / MANIFEST
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        unfinished = (folder / "run.json").exists()
        hint = (
            "its training has not finished; run the same training again to resume it" if unfinished else "give another"
        )
        raise BundleError(f"{str(folder)!r} is no agent: it has no {MANIFEST}; {hint}.") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{str(file)!r} is damaged: it is no readable YAML; copy or train the agent again."
        ) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleError(f"{str(folder)!r} is no agent: its {MANIFEST} is of another format.")
    if values.get("version") != VERSION:
        raise BundleError(
            f"the agent at {str(folder)!r} has format version {values.get('version')}, but this wm_gym reads version "
            f"{VERSION}; use the wm_gym that wrote it, or train it again."
        )
    try:
        return folder, parse_config(AgentManifest, values, origin=repr(str(file)))
    except ConfigError as error:
        raise BundleError(str(error)) from error


def agent_model_path(folder: Path, manifest: AgentManifest) -> str | Path:
    """The folder of an agent's world model, or ``"bundled"``.

    Raises:
        BundleError: It is missing, or is not the model that the agent was trained in.
    """
    location: str | Path = BUNDLED if manifest.model.location == "bundled" else folder / _MODEL
    _, model_manifest = read_manifest(location)
    _check_fingerprint(model_manifest.fingerprint, manifest, folder)
    return location


def load_agent(path: str | Path, device: str | torch.device = "cpu") -> LoadedAgent:
    """Read an agent's folder, or the one that the package ships (``"bundled"``).

    Raises:
        BundleError: The folder is missing, damaged or of another kind or version, or its world model is another one.
    """
    folder, manifest = read_agent_manifest(path)
    model = load_model(agent_model_path(folder, manifest), device)
    _check_fingerprint(model.fingerprint, manifest, folder)
    config = manifest.config
    try:
        action_space = model.simulator.action.space(config.action)
    except ConfigError as error:
        raise BundleError(f"{str(folder / MANIFEST)!r} does not fit its world model: {error}") from error
    policy = _load_policy(folder / _POLICY, config, observation_space_of(model, "latent"), action_space)
    policy.to(device)
    policy.set_training_mode(False)
    return LoadedAgent(folder, manifest, model, policy, _read_metrics(folder / _METRICS))


def _load_policy(
    file: Path, config: AgentConfig, observation_space: spaces.Box, action_space: spaces.Box
) -> BasePolicy:
    try:
        state: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{str(file)!r} is missing or damaged ({error}); copy or train the agent again.") from error
    try:
        policy = rebuild_policy(config, observation_space, action_space)
        policy.load_state_dict(state, strict=True)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(
            f"{str(file)!r} does not fit the {config.algo} policy that {MANIFEST} beside it describes; the two files "
            "come from different agents."
        ) from error
    return policy


def _read_metrics(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{str(file)!r} is damaged: it is no valid JSON; remove it or copy it again.") from error
    return metrics if isinstance(metrics, dict) else {}


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
    lines = [
        "# A driving agent trained in imagination",
        "",
        f"- Algorithm: {config.algo} (Stable-Baselines3), {config.steps:,} dream steps, seed {config.seed}",
        f"- Simulator of its world model: `{model.simulator.id}` with {json.dumps(model.simulator.kwargs)}",
        f"- World model: {manifest.model.location}, fingerprint `{manifest.model.fingerprint[:12]}`",
        f"- Actions: {config.action}; frames: {model.config.frame_size[0]}x{model.config.frame_size[1]} RGB",
        "",
        "It never drove the simulator while it learned: it saw only what the world model imagined.",
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
        "Dream returns are what the world model promises; measure what the agent does with `wm-gym evaluate`.",
        "",
        "```json",
        json.dumps(metrics, indent=2),
        "```",
        "",
        "## Made by",
        "",
        "```yaml",
        yaml.safe_dump(manifest.provenance, sort_keys=False).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)
