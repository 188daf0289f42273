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
from vmrun.trust.attached import Attached, Malformed, append_under_tag, attach_bundle, bundles
from vmrun.trust.attached import under_tag as attached_under_tag
from vmrun.trust.bundle import MEDIA_TYPE, make_bundle, parse_bundle
from vmrun.trust.dsse import (
    LARGEST_ENVELOPE,
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
    """Sign ``predicate`` about ``subject`` and store it beside the image, in both forms."""
    text = statement(Subject(identity, subject.digest), predicate_type, predicate)
    if len(text) > LARGEST_ENVELOPE // 2:
        raise TrustError(f"the {predicate_type} statement has {len(text)} bytes, too many")
    envelope = sign_envelope(text, key)
    layer = (
        ENVELOPE_TYPE,
        json.dumps(envelope, separators=(",", ":")).encode(),
        {"dev.cosignproject.cosign/signature": "", "predicateType": predicate_type},
    )
    append_under_tag(store, subject.digest, SUFFIX, [layer])
    bundle = make_bundle(envelope, key.public.key_id)
    attach_bundle(store, subject, bundle, predicate_type, rfc3339(now))


def attestations(
    store: ArtifactStore, lineage: Sequence[Digest], predicate_type: str, keys: Sequence[PublicKey]
) -> tuple[tuple[Attestation, ...], tuple[str, ...]]:
    """Statements of ``predicate_type`` that ``keys`` made about this image, and why others do not
    count. Raises :class:`ImageError` when the store cannot be asked."""
    good: list[Attestation] = []
    rejections: list[str] = []
    for item in _attached(store, lineage):
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


def _attached(store: ArtifactStore, lineage: Sequence[Digest]) -> Iterator[Attached | Malformed]:
    for digest in lineage:
        yield from attached_under_tag(store, digest, SUFFIX, ENVELOPE_TYPE, LARGEST_ENVELOPE)
        yield from bundles(store, digest)


def _attestation(
    item: Attached, predicate_type: str, keys: Sequence[PublicKey]
) -> Attestation | None:
    envelope = _envelope(item)
    said = parse_statement(envelope.payload, item.where)
    if said.predicate_type != predicate_type:
        return None
    key = next(
        (k for k in keys if any(k.verify(s, envelope.signed) for s in envelope.signatures)), None
    )
    if key is None:
        raise TrustError(f"{item.where}: by none of these keys")
    if [subject.digest for subject in said.subjects] != [item.digest]:
        raise TrustError(f"{item.where}: it is about another image")
    return Attestation(key.key_id, item.digest, said)


def _envelope(item: Attached) -> Envelope:
    if item.media_type == MEDIA_TYPE:
        return parse_bundle(item.data, item.where)
    return read_envelope(item.data, item.where)
