"""Strict reading of JSON documents that nobody has vouched for yet.

Anything that is not exactly what the caller asks for becomes an :class:`ImageError`
that names the document and the field. Duplicate keys are refused because readers
disagree about which one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import NoReturn, TypeVar

from vmrun.image.limits import ImageLimits
from vmrun.model.errors import ImageError, ImageTooLarge

_Choice = TypeVar("_Choice", bound=StrEnum)


class Document:
    """A JSON object with checked access. ``where`` names it in messages."""

    __slots__ = ("_fields", "where")

    def __init__(self, fields: dict[str, object], where: str) -> None:
        self._fields = fields
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self._fields.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """A string; ``default`` when the field is missing or null."""
        value = self._fields.get(key)
        if value is None and default is not None:
            return default
        return self._string(key, value)

    def loose_text(self, key: str) -> str:
        """A string where others may have put anything: empty for whatever is none."""
        value = self._fields.get(key)
        return value if isinstance(value, str) else ""

    def integer(self, key: str) -> int:
        """A whole number that is not negative (``true`` is not a number)."""
        value = self._fields.get(key)
        if type(value) is not int or value < 0:
            self._wrong(key, "a whole number")
        return value

    def boolean(self, key: str) -> bool:
        """true or false."""
        value = self._fields.get(key)
        if not isinstance(value, bool):
            self._wrong(key, "true or false")
        return value

    def real(self, key: str) -> float:
        """A number."""
        value = self._fields.get(key)
        if type(value) not in (int, float):
            self._wrong(key, "a number")
        return float(value)  # type: ignore[arg-type]

    def choice(self, key: str, choices: type[_Choice]) -> _Choice:
        """One of an enumeration's values."""
        text = self.text(key)
        if text not in [choice.value for choice in choices]:
            self._wrong(key, f"one of {', '.join(choice.value for choice in choices)}")
        return choices(text)

    def nested(self, key: str) -> Document:
        """A nested object; empty when the field is missing or null."""
        value = self._fields.get(key)
        if value is None:
            return Document({}, f"{self.where}: {key}")
        if not isinstance(value, dict):
            self._wrong(key, "an object")
        return Document(value, f"{self.where}: {key}")

    def objects(self, key: str, limit: int) -> list[Document]:
        """A list of objects, which must be there."""
        value = self._fields.get(key)
        if not isinstance(value, list):
            self._wrong(key, "a list")
        if len(value) > limit:
            raise ImageTooLarge(
                f"{self.where}: {key!r} has {len(value)} entries, the limit is {limit}"
            )
        return [object_at(item, f"{self.where}: {key}[{at}]") for at, item in enumerate(value)]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when the field is missing or null."""
        value = self._fields.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self._wrong(key, "a list of strings")
        return tuple(self._string(f"{key}[{at}]", item) for at, item in enumerate(value))

    def text_map(self, key: str) -> dict[str, str]:
        """An object whose values are all strings; empty when missing or null."""
        inner = self.nested(key)
        return {name: inner.text(name) for name in inner.names()}

    def text_map_values(self) -> tuple[str, ...]:
        """The strings of an object whose values are all strings."""
        return tuple(self.text(name) for name in self.names())

    def names(self) -> tuple[str, ...]:
        """The object's keys, in the document's order."""
        return tuple(self._string("a key", key) for key in self._fields)

    def _string(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            self._wrong(key, "a string")
        # Nothing that reaches a kernel, a terminal or a header may hold a NUL.
        if "\0" in value:
            self._wrong(key, "a string without NUL characters")
        return value

    def wrong(self, key: str, expected: str) -> ImageError:
        """An error about a field, to be raised."""
        return ImageError(
            f"{self.where}: field {key[:80]!r} is not {expected}",
            hint="the image is malformed; build or save it again",
        )

    def _wrong(self, key: str, expected: str) -> NoReturn:
        raise self.wrong(key, expected)


def parse_object(data: bytes, where: str, limits: ImageLimits) -> Document:
    """Read a JSON object within the limits on size and nesting."""
    return object_at(_parse(data, where, limits), where)


def parse_objects(data: bytes, where: str, limits: ImageLimits) -> list[Document]:
    """Read a JSON list of objects within the limits on size, nesting and number."""
    return Document({"list": _parse(data, where, limits)}, where).objects("list", limits.manifests)


def object_at(value: object, where: str) -> Document:
    """``value`` as a checked object."""
    if not isinstance(value, dict):
        raise ImageError(
            f"{where}: not a JSON object", hint="the image is malformed; build or save it again"
        )
    return Document(value, where)


def _parse(data: bytes, where: str, limits: ImageLimits) -> object:
    if len(data) > limits.document:
        raise ImageTooLarge(f"{where}: {len(data)} bytes, the limit is {limits.document}")
    try:
        value: object = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
        )
        _check_depth(value, limits.depth)
    except RecursionError:
        raise ImageError(f"{where}: nested more than {limits.depth} deep") from None
    except ValueError as error:  # of which JSONDecodeError and UnicodeDecodeError are kinds
        raise ImageError(
            f"{where}: malformed JSON: {str(error)[:200]}",
            hint="the image is malformed; build or save it again",
        ) from None
    return value


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key[:80]!r}")
            seen.add(key)
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: object, limit: int) -> None:
    """Refuse deep nesting, and strings that are not Unicode text (lone surrogates)."""
    level: list[object] = [value]
    depth = 0
    while level:
        if depth > limit:
            raise RecursionError
        depth += 1
        level = [inner for outer in level for inner in _inside(outer)]


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, list):
        yield from value
    elif isinstance(value, dict):
        yield from value
        yield from value.values()
