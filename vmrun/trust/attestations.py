"""Attestations: signed statements about an image other than its name, such as a scan's result.

Written and read in both of cosign's forms: the envelope as a layer under ``sha256-HEX.att``, and a
bundle that refers to the image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vmrun.image.artifacts import ArtifactStore
from vmrun.model.digest import Digest
from vmrun.model.errors import TrustError
from vmrun.model.image import Descriptor
from vmrun.trust.attach import NewLayer, append_under_tag, attach_bundle
from vmrun.trust.attached import Attached, Malformed, bundles, under_tag
from vmrun.trust.bundle import LARGEST_BUNDLE, MEDIA_TYPE, make_bundle, parse_bundle
from vmrun.trust.dsse import (
    LARGEST_ENVELOPE,
    LARGEST_STATEMENT,
    Envelope,
    Statement,
    Subject,
    parse_statement,
    read_envelope,
    sign_envelope,
    statement,
)
from vmrun.trust.keys import PrivateKey, PublicKey
from vmrun.trust.signing import rfc3339

SUFFIX = "att"
ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"
VULNERABILITIES = "https://cosign.sigstore.dev/attestation/vuln/v1"
CYCLONEDX = "https://cyclonedx.org/bom"
OPENVEX = "https://openvex.dev/ns"


@dataclass(frozen=True, slots=True)
class Attestation:
    """A good signature's statement about a digest."""

    key_id: str
    digest: Digest
    statement: Statement


def attest(
    store: ArtifactStore,
    subject: Descriptor,
    identity: str,
    predicate_type: str,
    predicate: Mapping[str, object],
    key: PrivateKey,
    *,
    now: float,
) -> None:
    """Sign ``predicate`` about ``subject`` and store it beside the image, in both forms.

    Under the tag an earlier statement of this type by this key gives way; bundles stay, as nothing
    can be taken back from a registry's list of referrers. ``now`` in seconds since 1970.
    Raises :class:`TrustError`, and :class:`ImageError` when the store refuses.
    """
    text = statement(Subject(identity, subject.digest), predicate_type, predicate)
    if len(text) > LARGEST_STATEMENT:
        raise TrustError(
            f"the {predicate_type} statement has {len(text)} bytes, the limit is"
            f" {LARGEST_STATEMENT}"
        )
    parse_statement(text, "the statement")  # nobody should sign what cannot be read
    envelope = sign_envelope(text, key)
    notes = {"dev.cosignproject.cosign/signature": "", "predicateType": predicate_type}

    def outdates(data: bytes, old: Mapping[str, str]) -> bool:
        if old != notes:
            return False
        try:
            return bool(_signers(read_envelope(data, "old attestation"), [key.public]))
        except TrustError:
            return False

    data = json.dumps(envelope, separators=(",", ":")).encode()
    layer = NewLayer(ENVELOPE_TYPE, data, notes, outdates, LARGEST_ENVELOPE)
    append_under_tag(store, subject.digest, SUFFIX, layer)
    bundle = make_bundle(envelope, key.public.key_id)
    attach_bundle(store, subject, bundle, predicate_type, rfc3339(now))


def attestations(
    store: ArtifactStore, lineage: Sequence[Digest], predicate_type: str, keys: Sequence[PublicKey]
) -> tuple[tuple[Attestation, ...], tuple[str, ...]]:
    """Statements of ``predicate_type`` that ``keys`` made about this image, and why others do not
    count. Raises :class:`ImageError` when the store cannot be asked."""
    good: list[Attestation] = []
    rejections: list[str] = []
    for item in _attached(store, lineage, predicate_type):
        if isinstance(item, Malformed):
            rejections.append(item.reason)
            continue
        try:
            found = _attestation(item, predicate_type, keys)
        except TrustError as error:
            rejections.append(error.message)
            continue
        if found is not None and found not in good:
            good.append(found)
    return tuple(good), tuple(rejections)


def _attached(
    store: ArtifactStore, lineage: Sequence[Digest], predicate_type: str
) -> Iterator[Attached | Malformed]:
    for digest in lineage:
        yield from under_tag(store, digest, SUFFIX, ENVELOPE_TYPE, LARGEST_ENVELOPE)
        yield from bundles(store, digest, predicate_type, LARGEST_BUNDLE)


def _attestation(
    item: Attached, predicate_type: str, keys: Sequence[PublicKey]
) -> Attestation | None:
    """Nothing is read of a statement before its signature: it may be large."""
    envelope = _envelope(item)
    signers = _signers(envelope, keys)
    if not signers:
        if item.annotations.get("predicateType", predicate_type) != predicate_type:
            return None
        raise TrustError(f"{item.where}: by none of these keys")
    said = parse_statement(envelope.payload, item.where)
    if said.predicate_type != predicate_type:
        return None
    if [subject.digest for subject in said.subjects] != [item.digest]:
        raise TrustError(f"{item.where}: it is about another image")
    return Attestation(signers[0].key_id, item.digest, said)


def _signers(envelope: Envelope, keys: Sequence[PublicKey]) -> list[PublicKey]:
    return [k for k in keys if any(k.verify(s, envelope.signed) for s in envelope.signatures)]


def _envelope(item: Attached) -> Envelope:
    if item.media_type == MEDIA_TYPE:
        return parse_bundle(item.data, item.where)
    return read_envelope(item.data, item.where)
