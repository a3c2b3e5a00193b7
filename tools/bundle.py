"""Put a finished demo's world model and agent into the package: ``python tools/bundle.py runs/demo``.

What the package ships is what ``wm-gym demo`` made, with nothing added.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from wm_gym.agents.agent_bundle import load_agent, save_agent
from wm_gym.world_model import WorldModel

ASSETS = Path(__file__).resolve().parent.parent / "wm_gym" / "assets"


def main(folder: str) -> None:
    """Replace the bundled model and agent by those of a demo's folder."""
    run = Path(folder)
    shutil.rmtree(ASSETS, ignore_errors=True)
    WorldModel.from_pretrained(run / "model").save_pretrained(ASSETS / "model")
    agent = load_agent(run / "agent", "cpu")
    metrics = json.loads((run / "agent" / "metrics.json").read_text(encoding="utf-8"))
    # With the model in place, the agent names it instead of carrying a copy.
    save_agent(ASSETS / "agent", agent.policy, agent.model, agent.manifest.config, metrics)
    for file in sorted(ASSETS.rglob("*")):
        if file.is_file():
            file.chmod(0o644)
            print(f"{file.relative_to(ASSETS.parent.parent)}  {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
