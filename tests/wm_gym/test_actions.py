import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from wm_gym.actions import ActionFormat
from wm_gym.errors import ConfigError

DRIVING = ActionFormat.driving()
NATIVE = ActionFormat(kind="native", low=(-0.1, -float("inf"), 0.0), high=(0.1, 1.0, float("inf")))


def test_steer_accel_maps_to_driving():
    stored = DRIVING.to_stored([[0.5, 0.25], [-1.0, -0.75], [0.0, 0.0]], "steer_accel")
    np.testing.assert_allclose(stored, [[0.5, 0.25, 0, 1], [-1, 0, 0.75, 1], [0, 0, 0, 1]])
    assert stored.dtype == np.float32


def test_driving_is_clipped_and_its_gear_rounded():
    stored = DRIVING.to_stored([2.0, -1.0, 0.5, -0.7], "driving")
    np.testing.assert_allclose(stored, [1.0, 0.0, 0.5, -1.0])


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32))
def test_steer_accel_round_trips(steering, acceleration):
    action = np.asarray([steering, acceleration], np.float32)
    np.testing.assert_array_equal(DRIVING.from_stored(DRIVING.to_stored(action, "steer_accel"), "steer_accel"), action)


@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4))
def test_stored_actions_lie_in_the_space(values):
    assert DRIVING.space("driving").contains(DRIVING.to_stored(values))


@given(st.sampled_from([(DRIVING, "driving"), (DRIVING, "steer_accel"), (NATIVE, "native")]), st.data())
def test_one_action_is_stored_as_an_array_of_them_is(kind, data):
    action_format, name = kind
    size = action_format.space(name).shape[0]
    values = data.draw(st.lists(st.floats(-5, 5, width=32), min_size=size, max_size=size))
    np.testing.assert_array_equal(
        np.asarray(action_format.one_to_stored(values, name), np.float32), action_format.to_stored(values, name)
    )


def test_native_passes_through():
    space = spaces.Box(np.asarray([-2.0, 0.0], np.float32), np.asarray([2.0, 1.0], np.float32))
    native = ActionFormat.native(space)
    assert native.space() == space
    np.testing.assert_allclose(native.to_stored([1.5, 0.25]), [1.5, 0.25])


@pytest.mark.parametrize(("name", "hint"), [("steer_acel", "steer_accel"), ("native", "driving")])
def test_unknown_action_name(name, hint):
    with pytest.raises(ConfigError, match=hint):
        DRIVING.space(name)


def test_wrong_number_of_values():
    with pytest.raises(ConfigError, match="4 values"):
        DRIVING.to_stored([0.0, 0.0, 0.0])
