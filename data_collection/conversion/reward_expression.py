"""Rewards by a formula over a recording's columns, such as ``speed * 0.1 - abs(steering)``.

The formula is parsed, and only what is named here is computed; no code is run.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_gym.errors import ConfigError, did_you_mean

Values = NDArray[np.float64]

_MAX_CHARACTERS = 1000
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, tuple[range, Callable[..., Any]]] = {
    "abs": (range(1, 2), np.abs),
    "min": (range(2, 100), lambda *values: reduce(np.minimum, values)),
    "max": (range(2, 100), lambda *values: reduce(np.maximum, values)),
    "clip": (range(3, 4), lambda value, low, high: np.minimum(np.maximum(value, low), high)),
}
"""With the numbers of arguments that they take."""


class RewardExpression:
    """A formula of numbers, columns, ``+ - * / **``, comparisons (1 where true, else 0), and abs, min, max, clip.

    Args:
        text: The formula.

    Raises:
        ConfigError: It is no formula of these parts.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            if len(text) > _MAX_CHARACTERS:
                raise ConfigError(f"--reward has more than {_MAX_CHARACTERS} characters; write a shorter formula.")
            self._tree = ast.parse(text.strip(), mode="eval").body
            self._check(self._tree)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"--reward {text!r} is no formula; write one such as 'speed * 0.1 - abs(steering)'."
            ) from error

    def __call__(self, columns: Mapping[str, Values]) -> Values:
        """The rewards ``(N,)`` float64 of rows with these columns, each ``(N,)``.

        Raises:
            ConfigError: It names a column that there is not.
        """
        with np.errstate(all="ignore"):  # the caller names the row of what is not finite
            value = np.asarray(self._value(self._tree, columns), np.float64)
        return np.array(np.broadcast_to(value, next(iter(columns.values())).shape))

    def _check(self, node: ast.expr) -> None:
        parts: Sequence[ast.expr] | None = None
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Name():
                parts = ()
            case ast.Constant(value=int() | float() as number):
                float(number)  # an integer may be too large
                parts = ()
            case ast.BinOp(left, kind, right) if type(kind) in _OPERATORS:
                parts = (left, right)
            case ast.UnaryOp(ast.UAdd() | ast.USub(), operand):
                parts = (operand,)
            case ast.Compare(left, kinds, others) if all(type(kind) in _COMPARISONS for kind in kinds):
                parts = (left, *others)
            case ast.Call(ast.Name(name), arguments, []) if (
                name in _FUNCTIONS and len(arguments) in _FUNCTIONS[name][0]
            ):
                parts = arguments
        if parts is None:
            raise ConfigError(
                f"--reward {self.text!r} holds {ast.unparse(node)!r}, but a formula may have numbers, columns, "
                "+ - * / **, comparisons, abs(x), min(x, y), max(x, y) and clip(x, low, high)."
            )
        for part in parts:
            self._check(part)

    def _value(self, node: ast.expr, columns: Mapping[str, Values]) -> Any:
        match node:
            case ast.Constant(value=number):
                return np.float64(number)  # type: ignore[arg-type]  # checked
            case ast.Name(name):
                if name not in columns:
                    raise ConfigError(
                        f"--reward names {name!r}, which is no column of the recording{did_you_mean(name, columns)}; "
                        f"it has {', '.join(sorted(columns))}."
                    )
                return columns[name]
            case ast.BinOp(left, kind, right):
                return _OPERATORS[type(kind)](self._value(left, columns), self._value(right, columns))
            case ast.UnaryOp(sign, operand):
                value = self._value(operand, columns)
                return -value if isinstance(sign, ast.USub) else value
            case ast.Compare(left, kinds, others):
                values = [self._value(part, columns) for part in (left, *others)]
                found = [
                    _COMPARISONS[type(kind)](a, b) for kind, a, b in zip(kinds, values[:-1], values[1:], strict=True)
                ]
                return np.asarray(reduce(np.logical_and, found), np.float64)
            case ast.Call(ast.Name(name), arguments):
                return _FUNCTIONS[name][1](*(self._value(part, columns) for part in arguments))
        raise AssertionError(node)
