"""Words that a catalogue's command line and its keys share; nothing heavy is loaded for them."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """TUF's top-level roles, in the order in which a publisher writes their files."""

    ROOT = "root"
    TARGETS = "targets"
    SNAPSHOT = "snapshot"
    TIMESTAMP = "timestamp"


ENCRYPTED = frozenset({Role.ROOT, Role.TARGETS})
"""Roles whose private keys are encrypted; with the others a timer signs."""


class KeyType(StrEnum):
    """Kinds of keys that a catalogue is made with."""

    ED25519 = "ed25519"
    ECDSA = "ecdsa"
    """On the curve P-256."""
