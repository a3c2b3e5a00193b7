"""What a world model's features tell of the simulator's vector: a linear read-out, on held-out episodes.

The model watches recorded drives, as a driver would see them. From the features of each step a linear map is fitted by
least squares to each measured field, and to the classes of each field that has some; the figures are of the share of
the episodes that training holds out too. Route points are asked of the model's own head, too, which is not linear::

    python benchmarks/probe.py runs/model data/drives
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from wm_gym.agents.baselines.behaviour_cloning import watch
from wm_gym.data_collection.datasets.dataset import Dataset
from wm_gym.vector import VectorField
from wm_gym.world_model import WorldModel

FloatArray = NDArray[np.float64]
RIDGE = 1e-3
"""Of the standardised features' covariance: features that hardly vary must not decide."""


def read_out(train: FloatArray, targets: FloatArray, test: FloatArray) -> FloatArray:
    """Fit targets ``(N, K)`` to features ``(N, F)`` linearly; returns what that gives for ``test`` ``(M, F)``."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    known, asked = (np.column_stack(((part - mean) / scale, np.ones(len(part)))) for part in (train, test))
    gram = known.T @ known + RIDGE * len(known) * np.eye(known.shape[1])
    fitted: FloatArray = asked @ np.linalg.solve(gram, known.T @ targets)
    return fitted


def describe(field: VectorField, fitted: FloatArray, true: FloatArray) -> str:
    """One line on a field: the share of classes that are right, or the error in its unit."""
    if field.classes:
        right = fitted.argmax(1) == true
        shares = [
            f"{name} {right[true == number].mean():.3f} of {(true == number).sum():,}"
            for number, name in enumerate(field.classes)
            if (true == number).any()
        ]
        return f"{field.name}: {right.mean():.3f} of {len(right):,} right ({', '.join(shares)})"
    error = np.abs(fitted[:, 0] - true)
    unit = f" {field.unit}" if field.unit else ""
    return f"{field.name}: mean error {error.mean():.3f}{unit}, deviation of the field {true.std():.3f}{unit}"


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a world model's folder")
    parser.add_argument("data", metavar="DATASET", help="recordings with the model's vector")
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="of the episodes (default: 0.1)")
    arguments = parser.parse_args()
    model = WorldModel.from_pretrained(arguments.model)
    parts = Dataset.open(arguments.data).split(arguments.held_out)
    features, vectors = [], []
    for part in parts:
        seen = watch(model, part, range(len(part)), "steer_accel")
        features.append(seen.features.numpy().astype(np.float64))
        vectors.append(np.concatenate([part.read_episode(place).vectors[:-1] for place in range(len(part))]))
    with torch.inference_mode():
        told = model.vector_head(torch.from_numpy(features[1]).float()).numpy()
    distances, own_distances = [], []
    for place, field in enumerate(model.simulator.vector):
        known, true = (part[:, place].astype(np.float64) for part in vectors)
        targets = np.eye(len(field.classes))[known.astype(int)] if field.classes else known[:, None]
        fitted = read_out(features[0], targets, features[1])
        print(describe(field, fitted, true))
        if field.name.startswith("route_"):
            distances.append(fitted[:, 0] - true)
            own_distances.append(told[:, place] - true)
    for name, errors in (("the linear read-out", distances), ("the model's own head", own_distances)):
        if errors:
            points = np.stack(errors).reshape(-1, 2, len(features[1]))  # (points, axes, steps)
            off = np.hypot(points[:, 0], points[:, 1]).mean(axis=1)
            one_by_one = ", ".join(f"{one:.2f}" for one in off)
            print(f"route points by {name}: {off.mean():.2f} m off in the mean; one by one {one_by_one}")


if __name__ == "__main__":
    main()
