"""Gather results of ``wm-gym evaluate --suite nocrash`` into one file of every route, and print them as a table.

A driver may have several training seeds: name each result ``DRIVER/SEED=FILE``, or ``DRIVER=FILE`` where nothing was
trained. Run from the repository's root::

    wm-gym evaluate --agent runs/agent-0 --carla localhost:2000 --suite nocrash --json runs/agent-0.json
    python benchmarks/nocrash_table.py dream/0=runs/agent-0.json autopilot=runs/autopilot.json --out runs/nocrash.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wm_gym.agents.evaluation.suites import TRAFFIC
from wm_gym.files import write_json_atomically

FINISHED = "route_done"
DREAM_STEPS = 30

Cell = dict[str, Any]
"""One driver and seed in one town and traffic; each list has an entry for each route."""


def cells_of(name: str, file: Path) -> list[Cell]:
    """The cells of one result file."""
    driver, _, seed = name.partition("/")
    cells = []
    for condition in json.loads(file.read_text(encoding="utf-8"))["conditions"]:
        result = condition["result"]
        routes = result["last_infos"]
        ratios = [
            row["ratio"] for row in (result["reality_gap"] or {}).get("by_horizon", []) if row["steps"] == DREAM_STEPS
        ]
        cells.append(
            {
                "driver": driver,
                "seed": int(seed) if seed else None,
                "town": condition["town"],
                "traffic": condition["traffic"],
                "routes": result["seeds"],
                "ends": result["texts"]["end"],
                "completion": [round(route["route_completion"], 1) for route in routes],
                "driving_score": [round(route["driving_score"], 1) for route in routes],
                "red_lights": [round(route["red_lights_per_km"] * route["km"]) for route in routes],
                "km": [round(route["km"], 3) for route in routes],
                "dream_over_simulator": ratios[0] if ratios else None,
            }
        )
    return cells


def success(cell: Cell) -> float:
    """Routes finished in per cent."""
    ends: list[str] = cell["ends"]
    return 100 * ends.count(FINISHED) / len(ends)


def render(cells: Sequence[Cell]) -> str:
    """A Markdown table: one row for each traffic, town and driver, with its seeds' figures in their order."""
    lines = [
        "| traffic | town | driver | success (%) | mean | completion (%) | driving score | red lights for each km "
        "| unfinished routes ended by | dream over simulator |",
        "| --- | --- | --- | --- | ---: | --- | --- | --- | --- | --- |",
    ]
    places: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        places.setdefault((cell["traffic"], cell["town"], cell["driver"]), []).append(cell)
    for (traffic, town, driver), seeds in places.items():
        ends = Counter(end.replace("_", " ") for cell in seeds for end in cell["ends"] if end != FINISHED)
        ratios = [cell["dream_over_simulator"] for cell in seeds]
        row = (
            traffic,
            town,
            driver,
            _each(seeds, success, "{:.0f}"),
            f"{statistics.fmean(map(success, seeds)):.1f}",
            _each(seeds, lambda cell: statistics.fmean(cell["completion"]), "{:.1f}"),
            _each(seeds, lambda cell: statistics.fmean(cell["driving_score"]), "{:.1f}"),
            _each(seeds, lambda cell: sum(cell["red_lights"]) / sum(cell["km"]), "{:.2f}"),
            ", ".join(f"{end} {count}" for end, count in ends.most_common()),
            ", ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios) if any(ratios) else "",
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _each(seeds: Sequence[Cell], figure: Callable[[Cell], float], form: str) -> str:
    return ", ".join(form.format(figure(cell)) for cell in seeds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Gather the results and print their table."""
    parser = argparse.ArgumentParser(description="Gather NoCrash results of several drivers and seeds.")
    parser.add_argument("results", nargs="+", metavar="DRIVER[/SEED]=FILE")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    cells: list[Cell] = []
    for given in options.results:
        name, separator, file = given.partition("=")
        if not separator or not Path(file).is_file():
            parser.error(f"{given!r} does not name a driver and its results' file, as in dream/0=runs/agent-0.json")
        cells += cells_of(name, Path(file))
    drivers = list(dict.fromkeys(cell["driver"] for cell in cells))
    cells.sort(
        key=lambda cell: (
            TRAFFIC.index(cell["traffic"]),
            cell["town"],
            drivers.index(cell["driver"]),
            cell["seed"] or 0,
        )
    )
    write_json_atomically(options.out, {"cells": cells})
    print(render(cells))


if __name__ == "__main__":
    main()
