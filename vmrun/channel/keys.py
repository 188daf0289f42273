"""The client key of one run: made in memory; written only when a failed guest is kept."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@dataclass(frozen=True, slots=True)
class ClientKey:
    """An ed25519 key (RFC 8709) in OpenSSH's private key format."""

    pem: str = field(repr=False)

    @classmethod
    def generate(cls) -> ClientKey:
        """A fresh key."""
        pem = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
        return cls(pem.decode("ascii"))

    def as_paramiko(self) -> paramiko.PKey:
        """The key as paramiko takes it."""
        return paramiko.Ed25519Key.from_private_key(io.StringIO(self.pem))

    @property
    def public_line(self) -> str:
        """The public half as a line of authorized_keys, without a comment."""
        return public_line(self.as_paramiko())


def public_line(key: paramiko.PKey) -> str:
    """A public key as a line of authorized_keys, without a comment."""
    return f"{key.get_name()} {key.get_base64()}"
