"""Small episodes with known content."""

import numpy as np

from wm_gym.actions import ActionFormat
from wm_gym.data_collection import DatasetMetadata, Episode, FrameCodec
from wm_gym.simulator import SimulatorSpec


def make_episode(index=0, *, steps=12, size=(16, 24), behaviour="calm", seed=None, terminated=False):
    rng = np.random.default_rng(index)
    ends = np.zeros(steps, bool)
    ends[-1] = True
    actions = rng.uniform([-1, 0, 0, -1], [1, 1, 1, 1], (steps, 4)).astype(np.float32)
    actions[:, 3] = np.rint(actions[:, 3])
    return Episode(
        frames=rng.integers(0, 256, (steps + 1, *size, 3), dtype=np.uint8),
        actions=actions,
        rewards=rng.normal(size=steps).astype(np.float32),
        terminated=ends & terminated,
        truncated=ends & (not terminated),
        infos={"speed": rng.normal(size=steps).astype(np.float32)},
        seed=1000 + index if seed is None else seed,
        behaviour=behaviour,
        index=index,
    )


def make_metadata(codec="png", size=(16, 24)):
    spec = SimulatorSpec(id="Toy-v0", frame_size=size, action=ActionFormat.driving(), step_s=0.05)
    return DatasetMetadata(simulator=spec, codec=FrameCodec.parse(codec))


def assert_same_episode(left, right):
    for name in ("frames", "actions", "rewards", "terminated", "truncated"):
        a, b = getattr(left, name), getattr(right, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert left.infos.keys() == right.infos.keys()
    for name, values in left.infos.items():
        np.testing.assert_array_equal(values, right.infos[name])
    assert (left.seed, left.behaviour, left.index) == (right.seed, right.behaviour, right.index)
