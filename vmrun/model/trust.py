"""Who vouches for an image: claims of good signatures, and what the policy made of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmrun.model.digest import Digest


class SignatureFormat(StrEnum):
    """How a signature is written down."""

    SIMPLE_SIGNING = "simple-signing"
    """containers-signature(5)'s payload, a layer of a ``sha256-….sig`` manifest (cosign 1, 2)."""
    BUNDLE = "bundle"
    """A Sigstore bundle v0.3: a DSSE envelope over an in-toto statement (cosign 3)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one good signature says: key ``key_id`` calls ``digest`` by the name ``identity``.

    ``key_id`` is ``sha256:`` and the hex SHA-256 of the key's DER SubjectPublicKeyInfo.
    ``identity`` is a docker reference (``HOST/REPOSITORY[:TAG]``), empty when the signature
    names none. ``signed_at`` (seconds since 1970) is the signer's own word, proved by nothing.
    """

    key_id: str
    digest: Digest
    identity: str
    format: SignatureFormat
    signed_at: float | None = None
    creator: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """Why an image was accepted.

    ``requirements`` are those of the policies that applied, as text; ``insecure`` says that a
    policy accepted anything. ``policies`` are the files (or ``built in``) and their digests.
    """

    claims: tuple[Claim, ...] = ()
    requirements: tuple[str, ...] = ()
    policies: tuple[tuple[str, Digest], ...] = ()
    insecure: bool = False
    catalogue: str = ""
    """What the TUF catalogue said of the reference, if one was asked."""


@dataclass(frozen=True, slots=True)
class TrustFiles:
    """A signature policy and the trust rules beside it; neither has to exist. ``named`` says
    that a user named the file, so that it must exist."""

    policy: Path
    rules: Path
    policy_named: bool = False
    rules_named: bool = False
