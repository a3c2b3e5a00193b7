"""The one way in which small files are read: settings, records and results in YAML, JSON and plain text.

A file may come from anywhere. It must be a regular file in UTF-8, of a bounded size, and hold nothing but plain values
(mappings, lists, texts, numbers, truth values, nothing) of a bounded depth and number; whatever else it holds becomes
one sentence. YAML's aliases count as often as they are used, so that a small text cannot stand for a huge value.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import yaml

from wm_gym.errors import WMGymError, reason_of

YAML_BYTES = 256 * 2**10
JSON_BYTES = 8 * 2**20
TEXT_BYTES = 512 * 2**20
TENSOR_HEADER_BYTES = 8 * 2**20
MAX_DEPTH = 64
MAX_NODES = 100_000
_INTEGER_BITS = 64
_INTEGER_CHARACTERS = 64

# C0 and C1 controls but tab and the ends of lines, marks that reverse the order of what follows, and halves of
# characters: a terminal would act on them, or they cannot be printed at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class NotPlainError(ValueError):
    """A text is not what it should be; the message goes on where a sentence has named the file: "is damaged: ..."."""


def open_regular_file(path: Path) -> IO[bytes]:
    """Open a file for reading, which must not be a pipe, a device or a folder; a link is followed.

    Raises:
        OSError: It cannot be opened.
        NotPlainError: It is of another kind.
    """
    # A pipe without a writer would wait for ever, and a device may act on being opened.
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotPlainError("is no regular file")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise NotPlainError("is no regular file")
    return file


def check_tensor_file(path: Path) -> None:
    """Check that a safetensors file is a regular one and that its header is no larger than any that is needed.

    Raises:
        OSError: It cannot be opened.
        NotPlainError: It is of another kind, or the header is larger.
    """
    with open_regular_file(path) as file:
        if int.from_bytes(file.read(8), "little") > TENSOR_HEADER_BYTES:
            raise NotPlainError("is damaged: its header is too long")


def read_text(path: Path, *, error: type[WMGymError], remedy: str, limit: int = TEXT_BYTES) -> str:
    """The contents of a text file.

    Args:
        path: The file.
        error: What to raise.
        remedy: What the user can do, the end of the sentence.
        limit: Most bytes.

    Raises:
        WMGymError: ``error``, where the file cannot be read.
    """
    try:
        return _text(path, limit)
    except NotPlainError as problem:
        raise error(f"{str(path)!r} {problem}; {remedy}.") from problem


def read_yaml(path: Path, *, error: type[WMGymError], remedy: str) -> dict[str, Any]:
    """The mapping in a YAML file; arguments and errors as for :func:`read_text`."""
    try:
        return _mapping(parse_yaml(_text(path, YAML_BYTES)))
    except NotPlainError as problem:
        raise error(f"{str(path)!r} {problem}; {remedy}.") from problem


def read_json(path: Path, *, error: type[WMGymError], remedy: str) -> dict[str, Any]:
    """The object in a JSON file; arguments and errors as for :func:`read_text`."""
    try:
        return _mapping(parse_json(_text(path, JSON_BYTES)))
    except NotPlainError as problem:
        raise error(f"{str(path)!r} {problem}; {remedy}.") from problem


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        NotPlainError: It is no JSON, or holds more than plain values of a bounded depth.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotPlainError(f"is damaged: it is no valid JSON ({_reason(error)})") from error
    _check_plain(value)
    return value


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; dates are texts.

    Raises:
        NotPlainError: It is no YAML, or holds more than plain values of a bounded depth and number.
    """
    try:
        _check_events(yaml.parse(text, Loader=_PlainLoader))
        value = yaml.load(text, Loader=_PlainLoader)
    # Texts that a tag declares to be a number raise errors of all kinds.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        if isinstance(error, NotPlainError):
            raise
        raise NotPlainError(f"is damaged: it is no valid YAML ({_reason(error)})") from error
    _check_plain(value)
    return value


def leaves(values: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values within nested mappings, each with its name: ``"training.steps"``, where ``separator`` is a dot."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def check_printable(name: str) -> None:
    """Refuse a text that a terminal would act on.

    Raises:
        NotPlainError: It holds control characters.
    """
    if _UNPRINTABLE.search(name):
        raise NotPlainError(f"is damaged: it holds control characters, in {name[:80]!r}")


def read_bytes(path: Path, limit: int) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes.

    Raises:
        NotPlainError: It cannot be read, is of another kind or has more.
    """
    try:
        with open_regular_file(path) as file:
            is_too_large = os.fstat(file.fileno()).st_size > limit
            content = b"" if is_too_large else file.read(limit + 1)
    except FileNotFoundError as error:
        raise NotPlainError("cannot be read: there is no such file") from error
    except (OSError, ValueError) as error:
        if isinstance(error, NotPlainError):
            raise
        raise NotPlainError(f"cannot be read: {reason_of(error)}") from error
    if is_too_large or len(content) > limit:
        raise NotPlainError(f"is damaged: it has more than the {limit // 2**10:,} KiB that a file of its kind may have")
    return content


def _text(path: Path, limit: int) -> str:
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotPlainError("is damaged: it is no text in UTF-8") from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotPlainError(f"is damaged: it must hold a mapping, not {_NAMES.get(type(value), 'a single value')}")
    return value


_NAMES: dict[type, str] = {list: "a list", str: "a text", type(None): "nothing"}


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_plain(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        following: list[Any] = []
        for item in level:
            if isinstance(item, str):
                check_printable(item)
            elif isinstance(item, dict):
                following.extend(item)
                following.extend(item.values())
            elif isinstance(item, list):
                following.extend(item)
            elif isinstance(item, int) and item.bit_length() > _INTEGER_BITS:
                raise NotPlainError(f"is damaged: it holds a whole number of more than {_INTEGER_BITS} bits")
        if not following:
            return
        level = following
    raise NotPlainError(f"is damaged: it is nested more than {MAX_DEPTH} deep")


def _check_events(events: Iterator[yaml.Event]) -> None:
    """Refuse YAML that is too deep or too large once its aliases are filled in, before any value is made."""
    sizes: dict[str | None, tuple[int, int]] = {}  # nodes and depth of what an anchor names
    open_nodes: list[list[Any]] = [[None, 0, 0]]  # anchor, nodes and depth so far
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.pop(event.anchor, None)
            open_nodes.append([event.anchor, 1, 1])
            size, depth = 0, 0
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size, depth = open_nodes.pop()
            sizes[anchor] = (size, depth)
        elif isinstance(event, yaml.ScalarEvent):
            size, depth = 1, 1
            sizes[event.anchor] = (size, depth)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise NotPlainError(f"is damaged: its alias {event.anchor!r} names nothing, or what it is a part of")
            size, depth = sizes[event.anchor]
        else:
            continue
        node = open_nodes[-1]
        node[1] += size
        node[2] = max(node[2], depth + 1)
        if node[1] > MAX_NODES:
            raise NotPlainError(f"is damaged: it holds more than {MAX_NODES:,} values")
        if len(open_nodes) > MAX_DEPTH or node[2] > MAX_DEPTH:
            raise NotPlainError(f"is damaged: it is nested more than {MAX_DEPTH} deep")


_PLAIN_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, in C where PyYAML has it, for plain values alone."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        **{
            tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (f"tag:yaml.org,2002:{name}" for name in _PLAIN_TAGS)
        },
        None: yaml.SafeLoader.yaml_constructors[None],
    }
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; a long one takes time that grows with the square of its length."""
        if len(node.value) > _INTEGER_CHARACTERS:
            raise NotPlainError(f"is damaged: it holds a whole number of more than {_INTEGER_CHARACTERS} characters")
        number: int = super().construct_yaml_int(node)
        return number


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
