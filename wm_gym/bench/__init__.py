"""Benchmarks: what ``wm-gym bench`` measures, one part a module, each a table."""

from __future__ import annotations

from wm_gym.bench.table import Table, measured_on, render_markdown

__all__ = ["Table", "measured_on", "render_markdown"]
