"""Put a world model and an agent that was trained in it into the package.

What the package ships is what a run made, with nothing added. The model that was shipped before stays in the package:
agents that were trained in it only name it::

    python tools/bundle.py runs/best/round-3/model runs/best
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from wm_gym.agents.bundles.folder import load_agent, save_agent
from wm_gym.bundle import read_manifest
from wm_gym.world_model import WorldModel

ASSETS = Path(__file__).resolve().parent.parent / "wm_gym" / "assets"


def main(model_folder: str, agent_folder: str) -> None:
    """Replace the bundled model and agent by those of two folders."""
    model = WorldModel.from_pretrained(model_folder)
    agent = load_agent(agent_folder, "cpu")
    if agent.model.fingerprint != model.fingerprint:
        sys.exit(f"bundle: the agent in {agent_folder!r} was trained in another world model than {model_folder!r}")
    metrics = json.loads((Path(agent_folder) / "metrics.json").read_text(encoding="utf-8"))
    keep_former(model.fingerprint)
    shutil.rmtree(ASSETS / "agent", ignore_errors=True)
    model.save_pretrained(ASSETS / "model")
    # With the model in place, the agent names it instead of carrying a copy.
    save_agent(ASSETS / "agent", agent.policy, agent.model, agent.manifest.config, metrics)
    for file in sorted(ASSETS.rglob("*")):
        if file.is_file():
            file.chmod(0o644)
            print(f"{file.relative_to(ASSETS.parent.parent)}  {file.stat().st_size / 1e6:.2f} MB")


def keep_former(fingerprint: str) -> None:
    """Move the shipped model to the former ones, if another is to take its place."""
    shipped = ASSETS / "model"
    if not shipped.is_dir():
        return
    former = read_manifest(shipped)[1].fingerprint
    if former == fingerprint:
        shutil.rmtree(shipped)
        return
    place = ASSETS / "former" / former[:12]
    place.parent.mkdir(exist_ok=True)
    shipped.rename(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
