"""Where signatures and attestations lie: beside the image, in a registry or an OCI layout.

Nothing that a store gives is trusted: names say where to look, digests and signatures what to
believe. Both implementations answer None only when a thing is truly absent; whatever else goes
wrong is an error, because 'could not look' must never read as 'there is none'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch
from vmrun.model.image import Descriptor

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY_DATA = b"{}"
"""The config of an artifact that has none (OCI image-spec, manifest.md, "Guidance")."""


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest's bytes and the descriptor they were found to have (hashed)."""

    descriptor: Descriptor
    data: bytes


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that says it is about another one (OCI distribution-spec, referrers API)."""

    descriptor: Descriptor
    artifact_type: str
    annotations: Mapping[str, str]


def checked(data: bytes, descriptor: Descriptor, what: str) -> bytes:
    """``data`` if it is what ``descriptor`` says; ``what`` names it in the error otherwise."""
    hasher = descriptor.digest.hasher()
    hasher.update(data)
    if len(data) != descriptor.size or hasher.hexdigest() != descriptor.digest.hex:
        raise DigestMismatch(
            f"{what}: its {len(data)} bytes are not those of its descriptor",
            hint="it is damaged or was tampered with; fetch or push it again",
        )
    return data


class ArtifactStore(Protocol):
    """One repository of a registry, or one OCI layout."""

    def describe(self) -> str:
        """Names the store, for messages."""
        ...

    def manifest(self, name: str | Digest) -> StoredManifest | None:
        """A manifest by tag or digest, its bytes hashed; None when there is none."""
        ...

    def blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, hashed; :class:`ImageTooLarge` above ``limit`` bytes."""
        ...

    def referrers(self, subject: Digest) -> tuple[Referrer, ...]:
        """What refers to ``subject``, by the referrers API or its fallback tag."""
        ...

    def put_blob(self, media_type: str, data: bytes) -> Descriptor:
        """Store a small blob."""
        ...

    def put_manifest(self, media_type: str, data: bytes, tag: str | None = None) -> Descriptor:
        """Store a manifest, under its digest or (moved there) a tag."""
        ...

    def put_referrer(self, subject: Digest, media_type: str, data: bytes) -> Descriptor:
        """Store a manifest whose ``subject`` field names ``subject``, and list it among the
        subject's referrers where the registry does not do that by itself."""
        ...
