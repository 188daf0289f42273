"""Values of the model as JSON, there and back: between vmrun's own processes and in their files.

Only what a type's annotations say is read: an unknown or missing field, another type, or a value
that an enumeration does not have is a :class:`StateError`, never a guess.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum, IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vmrun.model.errors import StateError, VmrunError

_Value = TypeVar("_Value")


def encode(value: object) -> Any:
    """``value`` as JSON's own types."""
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(encode(item) for item in value)
    return value


def dumps(value: object) -> str:
    """``value`` as one line of JSON."""
    return json.dumps(encode(value), separators=(",", ":"))


def loads(kind: type[_Value], text: str | bytes) -> _Value:
    """Read what :func:`dumps` wrote. Raises :class:`StateError`."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateError(f"not a {kind.__name__}: {error}") from None
    return decode(kind, raw)


def decode(kind: type[_Value], raw: object) -> _Value:
    """``raw`` as a ``kind``. Raises :class:`StateError`."""
    found: _Value = _decode(kind, raw, kind.__name__)
    return found


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode(kind: Any, raw: object, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _optional(kind, raw, where)
    if origin is tuple:
        return _tuple(get_args(kind), _listed(raw, where), where)
    if origin is frozenset:
        (item,) = get_args(kind)
        return frozenset(_decode(item, value, where) for value in _listed(raw, where))
    if origin is Mapping:
        return _mapping(get_args(kind), raw, where)
    if is_dataclass(kind):
        return _dataclass(kind, raw, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(raw)
        except ValueError:
            raise StateError(f"{where}: no {kind.__name__} {str(raw)[:80]!r}") from None
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    if kind is float and type(raw) in (int, float):
        return float(raw)  # type: ignore[arg-type]
    if kind in (str, int, bool) and type(raw) is kind:
        return raw
    raise StateError(f"{where}: not a {getattr(kind, '__name__', kind)}: {str(raw)[:80]!r}")


def _optional(kind: Any, raw: object, where: str) -> Any:
    alternatives = get_args(kind)
    if raw is None and type(None) in alternatives:
        return None
    error: VmrunError = StateError(f"{where}: missing")
    for alternative in alternatives:
        if alternative is type(None):
            continue
        try:
            return _decode(alternative, raw, where)
        except StateError as this:
            error = this
    raise error


def _listed(raw: object, where: str) -> list[Any]:
    if not isinstance(raw, list):
        raise StateError(f"{where}: not a list: {str(raw)[:80]!r}")
    return raw


def _tuple(items: tuple[Any, ...], raw: list[Any], where: str) -> tuple[Any, ...]:
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_decode(items[0], value, f"{where}[{n}]") for n, value in enumerate(raw))
    if len(items) != len(raw):
        raise StateError(f"{where}: {len(raw)} values, not {len(items)}")
    return tuple(_decode(item, value, where) for item, value in zip(items, raw, strict=True))


def _mapping(items: tuple[Any, ...], raw: object, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise StateError(f"{where}: not an object: {str(raw)[:80]!r}")
    return {key: _decode(items[1], value, f"{where}.{key}") for key, value in raw.items()}


def _dataclass(kind: Any, raw: object, where: str) -> Any:
    if not isinstance(raw, dict):
        raise StateError(f"{where}: not an object: {str(raw)[:80]!r}")
    hints = _hints(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(set(raw) - set(known)):
        raise StateError(f"{where}: unknown field {unknown[0][:80]!r}")
    values = {}
    for name, field in known.items():
        if name in raw:
            values[name] = _decode(hints[name], raw[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise StateError(f"{where}: {name} is missing")
    return kind(**values)
