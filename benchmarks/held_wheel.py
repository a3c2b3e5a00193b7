"""Do world models know what steering does? The wheel is held, in CarRacing and in their dreams, from the same states.

An autopilot drives to a moment of each track; from there one steering angle is held for some steps, with a little
throttle. The simulator's rewards are summed, and so are those that each world model imagines from the state that it
observed up to that moment. Recordings of good drivers hold no such thing, and a world model that has seen no other lets
the road follow the wheel: held-out recordings do not show that, and policies exploit it (docs/experiments.md).
``wm-gym judge --counterfactuals`` measures it for one model and its own agents; here several models see the same
drives of the autopilot::

    python benchmarks/held_wheel.py bundled runs/model --drives 14
"""

from __future__ import annotations

import argparse

from wm_gym.agents.behaviours import make_behaviour
from wm_gym.agents.evaluation.counterfactuals import (
    dream_of_counterfactuals,
    record_counterfactuals,
    score_counterfactuals,
)
from wm_gym.world_model import WorldModel

FIRST_SEED = 950_000  # of training tracks


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("models", nargs="+", help="folders of world models of CarRacingDriving-v0, or 'bundled'")
    parser.add_argument("--drives", type=int, default=14, help="tracks")
    parser.add_argument("--steps", type=int, default=20, help="steps that the wheel is held")
    options = parser.parse_args()
    models = {name: WorldModel.from_pretrained(name).eval() for name in options.models}
    simulator = next(iter(models.values())).simulator
    driver = make_behaviour("autopilot", simulator)
    points = record_counterfactuals(simulator, [driver], options.drives, seed=FIRST_SEED, steps=options.steps)
    scores = {
        name: score_counterfactuals(points, [dream_of_counterfactuals(model, point).returns for point in points]).wheel
        for name, model in models.items()
    }
    first = next(iter(scores.values()))
    rows = {"simulator": first.real, **{name: score.predicted for name, score in scores.items()}}
    print("| steering held | " + " | ".join(f"{angle:g}" for angle in first.values) + " |")
    print("| --- |" + " ---: |" * len(first.values))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in values) + " |")


if __name__ == "__main__":
    main()
