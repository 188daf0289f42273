"""The client key of one run: made in memory, never written anywhere."""

from __future__ import annotations

import io

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def generate_client_key() -> paramiko.Ed25519Key:
    """A fresh ed25519 key (RFC 8709)."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    )
    return paramiko.Ed25519Key.from_private_key(io.StringIO(pem.decode("ascii")))


def public_line(key: paramiko.PKey) -> str:
    """The key as a line of authorized_keys, without a comment."""
    return f"{key.get_name()} {key.get_base64()}"
