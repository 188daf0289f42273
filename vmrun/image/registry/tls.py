"""TLS for registries: the system's CAs, and those that a certs.d folder adds.

The folder of a registry (docker's certs.d(5)) holds ``*.crt``, CAs to trust besides the system's,
and ``*.cert`` with ``*.key``, what we are known by.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from vmrun.model.errors import ImageError


@dataclass(frozen=True, slots=True)
class Certificates:
    """CAs to trust besides the system's, and pairs of a client's certificate and key."""

    authorities: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path], ...] = ()


def certificates(host: str, directories: tuple[Path, ...]) -> Certificates:
    """What the first folder that has ``HOST[:PORT]`` holds."""
    for directory in directories:
        folder = directory / host
        try:
            names = sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ImageError(
                f"certificates of {host}: {folder}: {error.strerror or error}",
                hint="let the user who runs vmrun read that folder",
            ) from None
        pairs = [(path, path.with_suffix(".key")) for path in names if path.suffix == ".cert"]
        return Certificates(tuple(p for p in names if p.suffix == ".crt"), tuple(pairs))
    return Certificates()


def make_context(found: Certificates, *, known: bool) -> ssl.SSLContext:
    """TLS 1.2 or newer, the peer's name checked. ``known`` says that the peer is the registry
    itself, which alone sees the client's certificate."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    at: Path | None = None
    try:
        for at in found.authorities:
            context.load_verify_locations(cafile=at)
        for at, key in found.clients if known else ():
            # An empty password, or OpenSSL would ask for one on the terminal.
            context.load_cert_chain(at, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ImageError(
            f"certificate {str(at)!r}: {error.strerror or error}",  # type: ignore[union-attr]
            hint="certificates and keys must be PEM, readable and without a password",
        ) from None
    return context
