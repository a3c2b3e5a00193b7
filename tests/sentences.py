"""What all errors for the user are asked: one sentence."""

from __future__ import annotations

from typing import Any

import pytest


def sentence_of(error: type[Exception], call: Any, *arguments: Any, **keywords: Any) -> str:
    """The message of the error that a call raises, which must be one sentence."""
    with pytest.raises(error) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and ". " not in message
    return message
