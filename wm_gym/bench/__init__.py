"""Benchmarks: what ``wm-gym bench`` measures, one part a module, each a table."""

from __future__ import annotations

from wm_gym.bench.table import Table, render_markdown
from wm_gym.provenance import measured_on

__all__ = ["Table", "measured_on", "render_markdown"]
