"""CARLA's real client in tests: a world that waits for ticks, and scripts with a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def ticked_world(client):
    """The client's world, which simulates 0.05 s at each tick and else waits."""
    world = client.get_world()
    settings = world.get_settings()
    settings.synchronous_mode, settings.fixed_delta_seconds = True, 0.05
    world.apply_settings(settings)
    return world


def run_script(script: str, *arguments: object) -> str:
    """What a script prints; for what may take its process along, as a Traffic Manager whose server ends."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=_ROOT)
    return done.stdout
