"""Signing: one claim, written down in either or both of cosign's formats."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from vmrun.image.artifacts import ArtifactStore
from vmrun.model.errors import TrustError
from vmrun.model.image import Descriptor
from vmrun.model.trust import SignatureFormat
from vmrun.trust.attach import NewLayer, append_under_tag, attach_bundle
from vmrun.trust.bundle import SIGN_PREDICATE, make_bundle
from vmrun.trust.dsse import Subject, decode_base64, parse_statement, sign_envelope, statement
from vmrun.trust.keys import PrivateKey
from vmrun.trust.signatures import PAYLOAD_TYPE, SIGNATURE, SUFFIX, check, collect
from vmrun.trust.simple_signing import (
    LARGEST_PAYLOAD,
    Payload,
    check_annotations,
    make_payload,
    parse_payload,
    without_time,
)

_TRIES = 5


def sign_image(
    store: ArtifactStore,
    subject: Descriptor,
    identity: str,
    key: PrivateKey,
    *,
    now: float,
    formats: Sequence[SignatureFormat] = tuple(SignatureFormat),
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Say with ``key`` that the manifest or index ``subject`` is called ``identity``.

    ``identity`` is ``HOST/REPOSITORY:TAG``; ``now`` in seconds since 1970 goes into the signature.
    Signatures that are there stay; but under the tag the same words by the same key, only older,
    give way. What was written is read again and verified, and written once more where somebody
    who signed at the same moment has overwritten it: a registry only moves tags.
    Raises :class:`TrustError`, and :class:`ImageError` when the store refuses.
    """
    more = dict(annotations or {})
    check_annotations(more)
    said = Payload(subject.digest, identity, creator(), int(now))
    missing = tuple(formats)
    for _ in range(_TRIES):
        if SignatureFormat.SIMPLE_SIGNING in missing:
            append_under_tag(store, subject.digest, SUFFIX, _simple(said, more, key))
        if SignatureFormat.BUNDLE in missing:
            bundle = _bundle(said, more, key)
            attach_bundle(store, subject, bundle, SIGN_PREDICATE, rfc3339(now))
        there = _formats_there(store, said, key, formats)
        missing = tuple(form for form in formats if form not in there)
        if not missing:
            return
    raise TrustError(
        f"signatures in {store.describe()} keep changing",
        hint="others are signing the same image; try again",
    )


def _formats_there(
    store: ArtifactStore, said: Payload, key: PrivateKey, formats: Sequence[SignatureFormat]
) -> set[SignatureFormat]:
    lineage = (said.digest,)
    found = check(collect(store, lineage, formats), [key.public], lineage)
    return {
        claim.format
        for claim in found.claims
        if (claim.identity, claim.signed_at) == (said.identity, said.timestamp)
    }


def _bundle(said: Payload, annotations: Mapping[str, str], key: PrivateKey) -> bytes:
    predicate = {**annotations, "creator": said.creator, "timestamp": said.timestamp}
    text = statement(Subject(said.identity, said.digest), SIGN_PREDICATE, predicate)
    parse_statement(text, "the statement")  # nobody should sign what cannot be read
    return make_bundle(sign_envelope(text, key), key.public.key_id)


def _simple(said: Payload, annotations: Mapping[str, str], key: PrivateKey) -> NewLayer:
    payload = make_payload(said, annotations)
    parse_payload(payload, "the payload")  # nobody should sign what cannot be read

    def outdates(data: bytes, notes: Mapping[str, str]) -> bool:
        try:
            signature = decode_base64(notes.get(SIGNATURE, ""), "signature")
            same = without_time(data) == without_time(payload)
        except TrustError:
            return False
        return same and key.public.verify(signature, data)

    signature = base64.b64encode(key.sign(payload)).decode()
    return NewLayer(PAYLOAD_TYPE, payload, {SIGNATURE: signature}, outdates, LARGEST_PAYLOAD)


def creator() -> str:
    """What made a signature."""
    return f"vmrun {version('vmrun')}"


def rfc3339(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 has it, in UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
