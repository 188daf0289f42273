"""The bytes of secrets on their way from a command to a supervisor, within one request."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from vmrun.model.errors import StateError

MOST = 4 << 20
"""Bytes of all secrets of one run: a request is one line of at most 8 MiB."""


def sealed(secrets: Mapping[str, bytes]) -> dict[str, str]:
    """As they travel. Raises :class:`StateError` for more than :data:`MOST` bytes."""
    if sum(map(len, secrets.values())) > MOST:
        raise StateError(
            "the secrets are larger than 4 MiB together",
            hint="use a volume for what is large, or add --own-guest",
        )
    return {name: base64.b64encode(data).decode() for name, data in secrets.items()}


def opened(found: Any) -> dict[str, bytes]:
    """Their bytes by name. Raises :class:`StateError` for what :func:`sealed` does not give; what
    was sent is not shown."""
    if not isinstance(found, dict):
        raise StateError("secrets are no object")
    secrets = {}
    for name, text in found.items():
        try:
            secrets[name] = base64.b64decode(text, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise StateError(f"secret {name[:64]!r} was not sent as it should be") from None
    return secrets
