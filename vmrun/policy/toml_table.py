"""A table of trust.toml with checked access: every wrong value is an error that names its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, SettingsError, UsageError
from vmrun.model.image import Transport
from vmrun.model.quantity import parse_duration
from vmrun.policy.scopes import bad_scope

KEY_ID = re.compile(r"sha256:[0-9a-f]{64}")
_MOST = 10_000
_HINT = "docs/reference/trust-rules.md lists what may stand there"


class TomlTable:
    """A TOML table with checked access."""

    def __init__(self, fields: Mapping[str, object], where: str) -> None:
        self._fields = fields
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def wrong(self, key: str, expected: str) -> SettingsError:
        """An error about ``key``, to be raised."""
        return SettingsError(f"{self._where}: {key!r} must be {expected}", hint=_HINT)

    def only(self, *known: str) -> None:
        """Refuse keys that nobody knows."""
        for key in self._fields:
            if key not in known:
                raise SettingsError(
                    f"{self._where}: unknown key {key[:80]!r}",
                    hint=f"known there: {', '.join(known)}",
                )

    def text(self, key: str, default: str | None = None) -> str:
        """A printable string."""
        value = self._fields.get(key, default)
        if not isinstance(value, str) or (value == "" and default is None):
            raise self.wrong(key, "a string")
        if not value.isprintable():
            raise self.wrong(key, "a string without control characters")
        return value

    def scope(self, key: str) -> str:
        """A host, a path below it, or ``*.DOMAIN``."""
        return self._scope(key, self.text(key))

    def scopes(self, key: str) -> tuple[str, ...]:
        """A list of such that is not empty."""
        return tuple(self._scope(key, text) for text in self.texts(key, required=True))

    def _scope(self, key: str, text: str) -> str:
        if reason := bad_scope(Transport.DOCKER, text):
            raise SettingsError(f"{self._where}: {key!r} {text[:200]!r} {reason}", hint=_HINT)
        return text

    def reason(self) -> str:
        """Why somebody made this entry; mandatory."""
        return self.text("reason")

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        """A list of strings; empty when it is absent."""
        value = self._fields.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        if required and not value:
            raise self.wrong(key, "a list of strings that is not empty")
        return tuple(value)

    def number(self, key: str, default: int) -> int:
        """A whole number."""
        value = self._fields.get(key, default)
        if type(value) is not int:
            raise self.wrong(key, "a whole number")
        return value

    def positive(self, key: str) -> int:
        """A number of things."""
        value = self.number(key, 0)
        if not 1 <= value <= 100:
            raise self.wrong(key, "a whole number from 1 to 100")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._fields.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def duration(self, key: str, default: float) -> float:
        """Seconds of ``24h`` or ``7d``."""
        if key not in self._fields:
            return default
        try:
            return parse_duration(self.text(key), option=f"{self._where}: {key}")
        except UsageError as error:
            raise SettingsError(error.message, hint=error.hint) from None

    def time(self, key: str) -> float | None:
        """Seconds since 1970; a time without a zone could mean several."""
        value = self._fields.get(key)
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise self.wrong(key, "a date and time with a zone, e.g. 2027-01-31T00:00:00Z")
        try:
            return value.astimezone(UTC).timestamp()
        except OverflowError:
            raise self.wrong(key, "a date and time before the year 10000") from None

    def required_time(self, key: str) -> float:
        """The same, mandatory."""
        value = self.time(key)
        if value is None:
            raise self.wrong(key, "a date and time: an exception without an end is a hole")
        return value

    def key_id(self, key: str) -> str:
        """The id of a public key."""
        value = self.text(key)
        if not KEY_ID.fullmatch(value):
            raise self.wrong(key, "a key id: sha256: and 64 hex digits (see 'vmrun key show')")
        return value

    def digest(self, key: str) -> Digest:
        """A digest."""
        try:
            return Digest.parse(self.text(key))
        except ImageError as error:
            raise SettingsError(f"{self._where}: {error.message}", hint=error.hint) from None

    def table(self, key: str) -> TomlTable:
        """A nested table; empty when it is absent."""
        value = self._fields.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return TomlTable(value, f"{self._where}: {key}")

    def tables(self, key: str, *known: str) -> list[TomlTable]:
        """A list of tables that have only ``known`` keys."""
        value = self._fields.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, "a list of tables")
        if len(value) > _MOST:
            raise self.wrong(key, f"a list of at most {_MOST} tables")
        found = [TomlTable(item, f"{self._where}: {key}[{at}]") for at, item in enumerate(value)]
        for item in found:
            item.only(*known)
        return found
