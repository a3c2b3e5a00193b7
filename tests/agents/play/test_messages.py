"""What is read from a page."""

import pytest

from wm_gym.agents.play.messages import RubbishError, Start, parse_message

RUBBISH = (
    "",
    "hello",
    "[]",
    "null",
    "{}",
    '{"kind": "fly"}',
    '{"kind": "start", "mode": "nowhere"}',
    '{"kind": "start", "seed": "3"}',
    '{"kind": "start", "seed": -1}',
    '{"kind": "start", "seed": 1.5}',
    '{"kind": "speed", "speed": 0}',
    '{"kind": "speed", "speed": NaN}',
    '{"kind": "horizon", "steps": 1000000000000000000000000000000}',
    '{"kind": "temperature", "temperature": 0}',
    '{"kind": "controls", "steering": 2, "throttle": 0, "brake": 0}',
    '{"kind": "controls", "steering": Infinity, "throttle": 0, "brake": 0}',
    '{"kind": "pause", "paused": true, "more": 1}',
    "[" * 3000,
    '{"kind": "again", "' + "x" * 3000 + '": 1}',
)


@pytest.mark.parametrize("text", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_is_refused_in_a_clause(text):
    with pytest.raises(RubbishError, match=r"^it sent .+") as refused:
        parse_message({"type": "websocket.receive", "text": text})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_bytes_are_refused():
    with pytest.raises(RubbishError, match="bytes"):
        parse_message({"type": "websocket.receive", "bytes": b"\x00\x01"})


def test_a_message_is_read():
    message = parse_message({"type": "websocket.receive", "text": '{"kind": "start", "mode": "both", "seed": 4}'})
    assert message == Start(kind="start", mode="both", seed=4)
