"""Signatures of an image: found in both of cosign's formats, checked with given keys.

Finding believes nothing: what is malformed becomes a reason why there is one signature fewer.
Only failing to look is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmrun.image.artifacts import ArtifactStore
from vmrun.model.digest import Digest
from vmrun.model.errors import TrustError
from vmrun.model.trust import Claim, SignatureFormat
from vmrun.trust.attached import Attached, Malformed, bundles, under_tag
from vmrun.trust.bundle import SIGN_PREDICATE, parse_bundle
from vmrun.trust.dsse import Statement, decode_base64, parse_statement
from vmrun.trust.keys import PublicKey
from vmrun.trust.simple_signing import LARGEST_PAYLOAD, Payload, parse_payload

SUFFIX = "sig"
PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
LARGEST_SIGN_BUNDLE = 256 * 1024


@dataclass(frozen=True, slots=True)
class StoredSignature:
    """A signature as it was found: ``signed`` is what it covers, ``payload`` what it says."""

    format: SignatureFormat
    digest: Digest
    """What it is attached to."""
    payload: bytes
    signed: bytes
    signatures: tuple[bytes, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Signatures:
    """All that was found, and why some of it is no signature."""

    found: tuple[StoredSignature, ...] = ()
    malformed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """Claims of the signatures that are good under the given keys, and what is wrong with the
    others."""

    claims: tuple[Claim, ...]
    rejections: tuple[str, ...]


def collect(
    store: ArtifactStore,
    lineage: Sequence[Digest],
    formats: Sequence[SignatureFormat] = tuple(SignatureFormat),
) -> Signatures:
    """Find what is attached, in any of ``formats``, to any of the digests that lead to an image.

    Raises :class:`ImageError` when the store cannot be asked: that is not 'unsigned'.
    """
    found: list[StoredSignature] = []
    malformed: list[str] = []
    for item in _attached(store, lineage, formats):
        if isinstance(item, Malformed):
            malformed.append(item.reason)
            continue
        try:
            signature = _simple(item) if item.media_type == PAYLOAD_TYPE else _bundled(item)
        except TrustError as error:
            malformed.append(error.message)
            continue
        if signature is not None:
            found.append(signature)
    return Signatures(tuple(found), tuple(malformed))


def check(signatures: Signatures, keys: Sequence[PublicKey], lineage: Sequence[Digest]) -> Checked:
    """The claims that any of ``keys`` makes about a digest of ``lineage``."""
    claims: list[Claim] = []
    rejections = list(signatures.malformed)
    for stored in signatures.found:
        signers = {key.key_id: key for key in keys if _signed_by(stored, key)}
        if not signers:
            rejections.append(f"{stored.where}: by none of these keys")
            continue
        try:
            said = _said(stored)
        except TrustError as error:
            rejections.append(error.message)
            continue
        if said.digest not in lineage or said.digest != stored.digest:
            rejections.append(f"{stored.where}: it is of {said.digest}, another image")
            continue
        claims += [_claim(key_id, said, stored.format) for key_id in signers]
    return Checked(tuple(dict.fromkeys(claims)), tuple(rejections))


def _attached(
    store: ArtifactStore, lineage: Sequence[Digest], formats: Sequence[SignatureFormat]
) -> Iterator[Attached | Malformed]:
    for digest in lineage:
        if SignatureFormat.SIMPLE_SIGNING in formats:
            yield from under_tag(store, digest, SUFFIX, PAYLOAD_TYPE, LARGEST_PAYLOAD)
        if SignatureFormat.BUNDLE in formats:
            yield from bundles(store, digest, SIGN_PREDICATE, LARGEST_SIGN_BUNDLE)


def _simple(item: Attached) -> StoredSignature:
    signature = decode_base64(item.annotations.get(SIGNATURE, ""), item.where)
    return StoredSignature(
        SignatureFormat.SIMPLE_SIGNING, item.digest, item.data, item.data, (signature,), item.where
    )


def _bundled(item: Attached) -> StoredSignature | None:
    envelope = parse_bundle(item.data, item.where)
    if parse_statement(envelope.payload, item.where).predicate_type != SIGN_PREDICATE:
        return None  # an attestation: it says something else of the image
    return StoredSignature(
        SignatureFormat.BUNDLE,
        item.digest,
        envelope.payload,
        envelope.signed,
        envelope.signatures,
        item.where,
    )


def _signed_by(stored: StoredSignature, key: PublicKey) -> bool:
    return any(key.verify(signature, stored.signed) for signature in stored.signatures)


def _claim(key_id: str, said: Payload, form: SignatureFormat) -> Claim:
    return Claim(
        key_id=key_id,
        digest=said.digest,
        identity=said.identity,
        format=form,
        signed_at=said.timestamp,
        creator=said.creator,
    )


def _said(stored: StoredSignature) -> Payload:
    if stored.format is SignatureFormat.SIMPLE_SIGNING:
        return parse_payload(stored.payload, stored.where)
    statement = parse_statement(stored.payload, stored.where)
    if len(statement.subjects) != 1:
        raise TrustError(f"{stored.where}: it has {len(statement.subjects)} subjects, not one")
    return _of_statement(statement)


def _of_statement(statement: Statement) -> Payload:
    """The subject of a statement; its predicate may tell when and by what it was made."""
    subject = statement.subjects[0]
    creator, timestamp = statement.predicate.get("creator"), statement.predicate.get("timestamp")
    return Payload(
        digest=subject.digest,
        identity=subject.name,
        creator=creator if isinstance(creator, str) else "",
        timestamp=timestamp if type(timestamp) is int and timestamp >= 0 else None,
    )
